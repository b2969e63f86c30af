"""
What a vendor publishes of its API, held against the calls that a test made to our fake of it.

A document is stricter here than its own words: a field, a parameter or a status that it does not
name is a deviation, because what we send must not depend on being overlooked, and what a fake
answers must not be of our invention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from openapi_core import Config, OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.templating.paths.datatypes import PathOperationServer
from openapi_core.templating.paths.exceptions import PathError
from openapi_core.templating.paths.finders import APICallPathFinder
from werkzeug.datastructures import Headers, ImmutableMultiDict

from tests.apis import Call, Handler, Reply

STRICT = Config(additional_properties_default_policy="forbid")


@dataclass
class Asked:
    """A call as openapi-core wants to be told of it."""

    host_url: str
    path: str
    method: str
    parameters: RequestParameters
    body: bytes | None
    content_type: str


@dataclass
class Answered:
    """Likewise for its answer."""

    status_code: int
    data: bytes | None
    content_type: str
    headers: Headers


class Published:
    """
    A document of OpenAPI 3, from a file. `below` is the path that our fake serves it at; `moved`
    names the operation that is meant by one of ours which the document does not have.
    """

    def __init__(
        self, file: Path, *, below: str = "", moved: Mapping[tuple[str, str], str] | None = None
    ) -> None:
        self._api = OpenAPI.from_file_path(str(file), config=STRICT)
        self._finder = APICallPathFinder(self._api.spec)
        server = urlsplit((self._api.spec / "servers" / 0 / "url").read_str())
        self._host, self._base = f"{server.scheme}://{server.netloc}", server.path.rstrip("/")
        self._below, self._moved = below, moved or {}

    def deviations(self, call: Call, reply: Reply) -> Iterator[str]:
        """Each in a line that begins with the call's method, path and status."""
        path = call.path.removeprefix(self._below)
        for where in filter(None, (path, self._moved.get((call.method, path)))):
            asked = self._asked(call, where)
            with suppress(PathError):
                found = self._finder.find(asked.method, f"{asked.host_url}{asked.path}")
                yield from self._within(found, call, asked, reply)
                return
        yield f"{call.method} {path} {reply.status}: no such operation"

    def _within(
        self, found: PathOperationServer, call: Call, asked: Asked, reply: Reply
    ) -> Iterator[str]:
        told = f"{call.method} {found.path_result.pattern} {reply.status}"
        known = {
            (parameter / "name").read_str()
            for each in (found.path, found.operation)
            for parameter in each.get("parameters", [])
        }
        yield from (f"{told}: query {name}: not known" for name in sorted({*call.query} - known))
        for error in self._api.iter_apicall_request_errors(asked):
            yield from (f"{told}: request: {words}" for words in _words(error))
        for error in self._api.iter_apicall_response_errors(asked, _answered(reply)):
            yield from (f"{told}: answer: {words}" for words in _words(error))

    def _asked(self, call: Call, path: str) -> Asked:
        return Asked(
            host_url=self._host,
            path=f"{self._base}{path}",
            method=call.method.lower(),
            parameters=RequestParameters(
                query=ImmutableMultiDict(call.query), header=Headers(dict(call.headers))
            ),
            body=call.content or None,
            content_type=call.headers.get("content-type", ""),
        )


@dataclass
class Compared:
    """A fake whose every answer is held against the document; `deviations` is what was found."""

    fake: Handler
    published: Published
    calls: set[str] = field(default_factory=set)  # each kind, such as `GET 404`
    deviations: set[str] = field(default_factory=set)

    def __call__(self, call: Call) -> Reply:
        """Answer as the fake does."""
        reply = self.fake(call)
        self.calls.add(f"{call.method} {reply.status}")
        self.deviations.update(self.published.deviations(call, reply))
        return reply


def _answered(reply: Reply) -> Answered:
    kind = "application/json" if reply.body is not None else ""
    return Answered(
        status_code=reply.status,
        data=reply.content or None,
        content_type=reply.headers.get("Content-Type", kind),
        headers=Headers(dict(reply.headers)),
    )


def _words(error: Exception) -> Iterator[str]:
    """What is wrong at which field, of whatever lies deepest."""
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    details = list(getattr(deepest, "schema_errors", ()))
    for detail in details:
        where = ".".join(map(str, detail.absolute_path))
        yield f"{where or getattr(error, 'name', 'body')}: {detail.message}"
    if not details:
        yield str(deepest) or type(deepest).__name__
