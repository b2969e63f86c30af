"""What an error is in HTTP: one table, and its words as problem details (RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .. import errors

logger = logging.getLogger("sandkeeper")

MEDIA_TYPE: Final = "application/problem+json"
PREFIX: Final = "urn:sandkeeper:problem:"
SOON: Final = 1.0  # seconds after which what is retryable may be tried again
LONGEST_VALUE: Final = 100  # characters of a refused value that are repeated


@dataclass(frozen=True)
class Kind:
    """One kind of problem. With `retry_after` (seconds) the same call may succeed later."""

    type: str
    status: int
    title: str
    retry_after: float | None = None
    secret: bool = False  # its words are for the log: they name hosts and settings


# Each class of core/errors.py has a line; one that a provider refines has its parent's.
KINDS: Final[Mapping[type[errors.SandkeeperError], Kind]] = {
    errors.SandkeeperError: Kind("internal", 500, "Something went wrong here", secret=True),
    errors.SettingsError: Kind("settings", 500, "This server is set up wrongly", secret=True),
    errors.InvalidArgument: Kind("invalid-argument", 422, "A value is malformed"),
    errors.SessionNotFound: Kind("session-not-found", 404, "No session has this id"),
    errors.SessionNotReady: Kind(
        "session-not-ready", 409, "The sandbox is still being created", SOON
    ),
    errors.SessionEnded: Kind("session-ended", 410, "The session was ended"),
    errors.TurnExpired: Kind("turn-expired", 410, "The turn may not go on"),
    errors.TenantFull: Kind("tenant-full", 429, "The tenant has no room for another", 30.0),
    errors.StoreError: Kind("store", 500, "The database refused", secret=True),
    errors.StoreUnavailable: Kind(
        "store-unavailable", 503, "The database cannot be used now", SOON, secret=True
    ),
    errors.RowLocked: Kind(
        "row-locked", 503, "Somebody else is changing this session", SOON, secret=True
    ),
    errors.SchemaOutdated: Kind(
        "schema-outdated", 503, "The database needs `sandkeeper db upgrade`", secret=True
    ),
    errors.ProviderError: Kind("provider", 502, "The sandbox provider failed", SOON),
    errors.RateLimited: Kind(
        "provider-rate-limited", 503, "The sandbox provider wants fewer calls", SOON
    ),
    errors.QuotaExceeded: Kind(
        "provider-quota-exceeded", 503, "The sandbox provider has no room", 30.0
    ),
    errors.Unavailable: Kind(
        "provider-unavailable", 503, "The sandbox provider cannot be reached", SOON
    ),
    errors.OutcomeUnknown: Kind(
        "outcome-unknown", 503, "It may have happened: the same call again finds out", SOON
    ),
    errors.Busy: Kind("provider-busy", 503, "Another change of the sandbox is under way", SOON),
    errors.AuthFailed: Kind("provider-auth-failed", 502, "The provider refused our credentials"),
    errors.InvalidSpec: Kind("invalid-spec", 422, "The sandbox can never be made"),
    errors.ForeignConflict: Kind(
        "foreign-conflict", 502, "The sandbox's name belongs to somebody else"
    ),
    errors.Unsupported: Kind("unsupported", 501, "The provider cannot do that"),
}


class Problem(Exception):
    """A refusal that is of HTTP alone."""

    def __init__(self, kind: Kind, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.more = more


MALFORMED = Kind("malformed-json", 400, "The body is no JSON")
UNAUTHORIZED = Kind("unauthorized", 401, "A token is needed")
FORBIDDEN = Kind("forbidden", 403, "The token is not for this")
NOT_FOUND = Kind("not-found", 404, "There is nothing here")
TURN_NOT_FOUND = Kind("turn-not-found", 404, "The session has no such turn")
NOT_ALLOWED = Kind("method-not-allowed", 405, "This method is not for this address")
ID_TAKEN = Kind("session-id-taken", 409, "The session id is in use elsewhere")
TOO_LARGE = Kind("body-too-large", 413, "The body is too large")
INVALID = Kind("invalid-request", 422, "The request is malformed")
INTERNAL = Kind("internal", 500, "Something went wrong here")
OF_HTTP = (
    MALFORMED,
    UNAUTHORIZED,
    FORBIDDEN,
    NOT_FOUND,
    TURN_NOT_FOUND,
    NOT_ALLOWED,
    ID_TAKEN,
    TOO_LARGE,
    INVALID,
)
_WORDS = {
    400: "the body is no JSON: send a JSON object",
    404: "no call has this address: openapi.json has them all",
    405: "this address has other methods: the header Allow names them",
}
_BY_STATUS = {400: MALFORMED, 404: NOT_FOUND, 405: NOT_ALLOWED}


def kind_of(error: Exception) -> Kind:
    """The nearest class that has a line."""
    return next((KINDS[each] for each in type(error).__mro__ if each in KINDS), INTERNAL)


def answer(
    kind: Kind, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """The response to a problem."""
    sent = dict(headers or {})
    if kind.retry_after is not None:
        sent.setdefault("Retry-After", f"{kind.retry_after:.0f}")
    if kind is UNAUTHORIZED:
        sent.setdefault("WWW-Authenticate", 'Bearer realm="sandkeeper"')
    body = {
        "type": PREFIX + kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        **{name: value for name, value in more.items() if value is not None},
    }
    return Response(json.dumps(body, default=str), kind.status, headers=sent, media_type=MEDIA_TYPE)


def install(app: FastAPI, methods: Callable[[str], Sequence[str]]) -> None:
    """Let the app answer with problems, whatever is raised. `methods` are those of an address."""

    async def of_framework(request: Request, error: Exception) -> Response:
        return _of_framework(error, methods(_path(request)))

    app.add_exception_handler(errors.SandkeeperError, _ours)
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, of_framework)
    app.add_exception_handler(Exception, _unforeseen)


async def _ours(_: Request, error: Exception) -> Response:
    return answer_to(error)


def answer_to(error: Exception) -> Response:
    """The response to one of our errors."""
    kind = kind_of(error)
    if kind.status >= 500:
        logger.warning("ApiProblem type=%s error=%r", kind.type, str(error))
    headers = {}
    if isinstance(error, errors.RateLimited) and error.retry_after is not None:
        headers["Retry-After"] = f"{max(1.0, error.retry_after):.0f}"
    facts = {name: getattr(error, name, None) for name in ("session_id", "turn_id", "reason")}
    return answer(kind, kind.title if kind.secret else str(error), headers=headers, **facts)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - as it was registered
    return answer(error.kind, error.detail, **error.more)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as it was registered
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        return answer(MALFORMED, _WORDS[400])
    mistakes = [_mistake(one) for one in found]
    said = "; ".join(f"{one['field']}={one['value']}: {one['fix']}" for one in mistakes)
    return answer(INVALID, said, errors=mistakes)


def _of_framework(error: Exception, methods: Sequence[str]) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as it was registered
    status = error.status_code
    kind = _BY_STATUS.get(status) or Kind(f"http-{status}", status, str(error.detail))
    said = _WORDS.get(status, str(error.detail))
    # The framework names the methods of one of its routes, and an address may have several.
    headers = {"Allow": ", ".join(methods)} if status == 405 else error.headers
    return answer(kind, said, headers=headers)


async def _unforeseen(request: Request, error: Exception) -> Response:
    logger.error("ApiFailed method=%s path=%s", request.method, request.url.path, exc_info=error)
    return answer(INTERNAL, INTERNAL.title)


def _path(request: Request) -> str:
    """The address as the app has it, wherever it is mounted."""
    scope = request.scope
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _mistake(one: Mapping[str, Any]) -> dict[str, str]:
    """Which field, what it was, and what would be right."""
    where, *path = one["loc"]
    fix = one["msg"].removeprefix("Value error, ")
    if one["type"] == "extra_forbidden":
        fix = "there is no such field: leave it out"
    given = one.get("input")
    if isinstance(given, bytes):
        given, fix = given.decode("utf-8", "replace"), "send it with Content-Type: application/json"
    value = json.dumps(given, default=str)
    if len(value) > LONGEST_VALUE:
        value = f"{value[: LONGEST_VALUE - 3]}..."
    return {
        "in": str(where),
        "field": ".".join(map(str, path)) or "(all)",
        "value": value,
        "fix": fix,
    }
