"""
An OpenSandbox server as opensandbox-server 1.1.1 is on Docker: its answers, word for word.

Unlike the real one, it refuses what it does not know: a field that we misspell has to show.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl

from tests.apis import Call, Reply

KEY = "a-key"
KNOWN = {
    *("image", "entrypoint", "env", "metadata", "timeout", "resourceLimits"),
    *("networkPolicy", "extensions", "snapshotId"),
}
TURNS = {"pause": ("Running", "Paused"), "resume": ("Paused", "Running")}
NO_IMAGE = (
    "404 Client Error for http+docker://localhost/v1.41/images/create?tag=1&fromImage=no-such: Not "
    'Found ("pull access denied for no-such, repository does not exist or may require '
    "'docker login'\")"
)
NO_REGISTRY = (
    "500 Server Error for http+docker://localhost/v1.41/images/create?tag=1&fromImage=far-away: "
    'Internal Server Error ("Get "https://registry-1.docker.io/v2/": dial tcp: lookup '
    'registry-1.docker.io: no such host")'
)


@dataclass
class Sandbox:
    """One that runs, or whatever a test makes of it."""

    id: str
    body: Mapping[str, Any]
    created: datetime
    expires: datetime | None
    state: str = "Running"
    metadata: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """As JSON. The server leaves out what is None."""
        said = {
            "id": self.id,
            "image": self.body.get("image"),
            "status": {"state": self.state, "reason": "CONTAINER", "message": "It is."},
            "metadata": self.metadata or None,
            "entrypoint": self.body.get("entrypoint"),
            "expiresAt": None if self.expires is None else _text(self.expires),
            "createdAt": _text(self.created),
        }
        return {name: value for name, value in said.items() if value is not None}


class FakeOpenSandbox:
    """
    Its state, which a test may look at and change. `hidden` are the ids that no listing shows, as
    one from a cache of Kubernetes may not; so many of the next that are made are `late`, and hidden
    from the first; without `filters` it lists everybody's; `clock` is the server's own.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.hidden: set[str] = set()
        self.late = 0
        self.filters = True
        self.longest: int | None = None  # seconds of a TTL at creation
        self.clock = clock

    def add(self, metadata: Mapping[str, Any], *, age: float = 0.0, state: str = "Running") -> str:
        """One that somebody else made, so many seconds ago; its id."""
        created = self.clock() - timedelta(seconds=age)
        body = {"image": {"uri": "theirs"}, "entrypoint": ["sleep", "infinity"]}
        made = Sandbox(str(uuid.uuid4()), body, created, None, state)
        made.metadata = dict(metadata)
        self.sandboxes[made.id] = made
        return made.id

    def __call__(self, call: Call) -> Reply:
        """Answer one call."""
        self._expire()
        reply = self._answer(call)
        date = format_datetime(self.clock(), usegmt=True)
        return Reply(reply.status, reply.body, {"Date": date, **reply.headers})

    def _expire(self) -> None:
        now = self.clock()
        for found in list(self.sandboxes.values()):
            if found.expires is not None and found.expires <= now:
                del self.sandboxes[found.id]

    def _answer(self, call: Call) -> Reply:
        key = call.headers.get("open-sandbox-api-key")
        if key != KEY:
            code = "INVALID_API_KEY" if key else "MISSING_API_KEY"
            return refused(401, code, "Authentication credentials are invalid.")
        match call.method, call.path.split("/")[1:]:
            case "POST", ["v1", "sandboxes"]:
                return self._create(call.body)
            case "GET", ["v1", "sandboxes"]:
                return self._list(call.query)
            case method, ["v1", "sandboxes", which, *verb]:
                return self._one(method, which, "/".join(verb), call)
        return Reply(404, {"detail": "Not Found"})

    def _create(self, body: dict[str, Any]) -> Reply:
        if wrong := self._wrong(body):
            return wrong
        uri = body.get("image", {}).get("uri", "")
        if uri.startswith(("no-such", "far-away")):
            said = NO_IMAGE if uri.startswith("no-such") else NO_REGISTRY
            return refused(
                500, "DOCKER::SANDBOX_IMAGE_PULL_FAILED", f"Failed to pull {uri}: {said}"
            )
        now = self.clock()
        expires = now + timedelta(seconds=body["timeout"]) if "timeout" in body else None
        made = Sandbox(str(uuid.uuid4()), body, now, expires, metadata=dict(body["metadata"]))
        self.sandboxes[made.id] = made
        if self.late:
            self.late -= 1
            self.hidden.add(made.id)
        answer = made.shown()
        del answer["image"]
        return Reply(202, answer)

    def _wrong(self, body: dict[str, Any]) -> Reply | None:
        timeout = body.get("timeout", 60)
        if unknown := body.keys() - KNOWN:
            return invalid("extra_forbidden", f"{sorted(unknown)}")
        if not isinstance(timeout, int) or timeout < 60:
            return invalid("greater_than_equal", "timeout: should be greater than or equal to 60")
        if "image" in body and not body.get("entrypoint"):
            return invalid("value_error", "Entrypoint is required when image is provided.")
        return self._unsupported(body, timeout)

    def _unsupported(self, body: dict[str, Any], timeout: int) -> Reply | None:
        if "snapshotId" in body:
            return refused(404, "SNAPSHOT::NOT_FOUND", f"Snapshot {body['snapshotId']} not found")
        if "extensions" in body:
            said = "poolRef is not supported by the Docker provider."
            return refused(400, "SANDBOX::UNSUPPORTED_POOL_REF", said)
        if self.longest is not None and timeout > self.longest:
            said = f"Sandbox timeout {timeout}s exceeds configured maximum of {self.longest}s."
            return refused(400, "SANDBOX::INVALID_PARAMETER", said)
        return None

    def _list(self, query: Mapping[str, str]) -> Reply:
        number, size = int(query.get("page", 1)), int(query.get("pageSize", 20))
        if not (1 <= size <= 200 and number >= 1):
            return invalid("less_than_equal", "pageSize: should be less than or equal to 200")
        wanted = dict(parse_qsl(query.get("metadata", ""), keep_blank_values=True))
        found = [
            one
            for one in sorted(self.sandboxes.values(), key=lambda one: one.created, reverse=True)
            if not (self.filters and wanted.items() - one.metadata.items())
            and one.id not in self.hidden
        ]
        pages = math.ceil(len(found) / size)
        items = [one.shown() for one in found[(number - 1) * size : number * size]]
        pagination = {
            "page": number,
            "pageSize": size,
            "totalItems": len(found),
            "totalPages": pages,
            "hasNextPage": number < pages,
        }
        return Reply(200, {"items": items, "pagination": pagination})

    def _one(self, method: str, which: str, verb: str, call: Call) -> Reply:
        found = self.sandboxes.get(which)
        if found is None:
            return refused(404, "DOCKER::SANDBOX_NOT_FOUND", f"Sandbox {which} not found.")
        match method, verb:
            case "GET", "":
                return Reply(200, found.shown())
            case "DELETE", "":
                del self.sandboxes[which]
                return Reply(204)
            case "POST", "renew-expiration":
                return self._renew(found, datetime.fromisoformat(call.body["expiresAt"]))
            case "POST", "pause" | "resume":
                return self._turn(found, *TURNS[verb])
        return Reply(404, {"detail": "Not Found"})

    def _turn(self, found: Sandbox, before: str, after: str) -> Reply:
        if found.state != before:
            code = f"DOCKER::SANDBOX_NOT_{before.upper()}"
            return refused(409, code, f"Sandbox is not in a {before.lower()} state.")
        found.state = after
        return Reply(202)

    def _renew(self, found: Sandbox, until: datetime) -> Reply:
        if until <= self.clock():
            said = "New expiration time must be in the future."
            return refused(400, "DOCKER::INVALID_EXPIRATION", said)
        if found.expires is None:
            said = f"Sandbox {found.id} does not have automatic expiration enabled."
            return refused(409, "DOCKER::INVALID_EXPIRATION", said)
        found.expires = until
        return Reply(200, {"expiresAt": _text(until)})


def refused(status: int, code: str, message: str, **headers: str) -> Reply:
    """An error in the server's own shape."""
    return Reply(status, {"code": code, "message": message}, headers)


def invalid(kind: str, message: str) -> Reply:
    """What FastAPI says of a request that does not fit its model."""
    return Reply(422, {"detail": [{"type": kind, "loc": ["body"], "msg": message}]})


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
