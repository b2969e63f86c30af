"""Who may make which call. What is not in the table below is refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request

from ..access import Grant, Known, Scope, taken_apart
from ..errors import SessionNotFound
from .desk import Desk
from .limits import REQUEST_ID
from .problems import FORBIDDEN, NOT_FOUND, UNAUTHORIZED, Problem


@dataclass(frozen=True)
class Rule:
    """What a token needs. Of the whole installation: to a token of one tenant it is not there."""

    scope: Scope
    whole_installation: bool = False


RULES: Final[Mapping[tuple[str, str], Rule]] = {
    ("POST", "/v1/sessions"): Rule(Scope.TURNS),
    ("GET", "/v1/sessions"): Rule(Scope.READ),
    ("GET", "/v1/sessions/{session_id}"): Rule(Scope.READ),
    ("GET", "/v1/sessions/{session_id}/events"): Rule(Scope.READ),
    ("GET", "/v1/sessions/{session_id}/explain"): Rule(Scope.READ),
    ("POST", "/v1/sessions/{session_id}/extend"): Rule(Scope.OPERATE),
    ("POST", "/v1/sessions/{session_id}/pin"): Rule(Scope.OPERATE),
    ("DELETE", "/v1/sessions/{session_id}/pin"): Rule(Scope.OPERATE),
    ("DELETE", "/v1/sessions/{session_id}"): Rule(Scope.OPERATE),
    ("POST", "/v1/sessions/{session_id}/turns"): Rule(Scope.TURNS),
    ("PUT", "/v1/sessions/{session_id}/turns/{turn_id}"): Rule(Scope.TURNS),
    ("DELETE", "/v1/sessions/{session_id}/turns/{turn_id}"): Rule(Scope.TURNS),
    ("GET", "/v1/sandboxes"): Rule(Scope.READ),
    ("GET", "/v1/orphans"): Rule(Scope.READ, whole_installation=True),
    ("GET", "/v1/quarantine"): Rule(Scope.READ),
    ("POST", "/v1/quarantine/{session_id}/retry"): Rule(Scope.OPERATE),
    ("GET", "/v1/sweeps"): Rule(Scope.READ, whole_installation=True),
    ("POST", "/v1/sweeps"): Rule(Scope.OPERATE, whole_installation=True),
    ("GET", "/v1/policies"): Rule(Scope.READ, whole_installation=True),
    ("GET", "/v1/policies/{scope}"): Rule(Scope.READ, whole_installation=True),
    ("PATCH", "/v1/policies/{scope}"): Rule(Scope.OPERATE, whole_installation=True),
    ("DELETE", "/v1/policies/{scope}"): Rule(Scope.OPERATE, whole_installation=True),
    ("GET", "/v1/windows"): Rule(Scope.READ, whole_installation=True),
    ("PUT", "/v1/windows/{name}"): Rule(Scope.OPERATE, whole_installation=True),
    ("DELETE", "/v1/windows/{name}"): Rule(Scope.OPERATE, whole_installation=True),
    ("GET", "/v1/savings"): Rule(Scope.READ),
    ("GET", "/metrics"): Rule(Scope.READ, whole_installation=True),
}
# For probes, which have no token: they say nothing of any session.
FOR_ALL: Final = frozenset({("GET", "/healthz"), ("GET", "/readyz")})
NOBODY: Final = Grant(id="nobody", scopes=frozenset({Scope.OPERATE}))
FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip")


def methods(path: str) -> list[str]:
    """The methods that an address has: what a refusal of another one has to name."""
    routes = (*RULES, *FOR_ALL)
    return sorted(method for method, template in routes if _pattern(template).fullmatch(path))


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", "[^/]+", template))


@dataclass(frozen=True)
class Caller:
    """Who asks, and how the ledger names it: no two requests alike."""

    grant: Grant
    actor: str
    desk: Desk

    @property
    def owner(self) -> str:
        """Whose a pin is: the same for all requests of one token."""
        return "nobody" if self.grant is NOBODY else f"token {self.grant.id}"

    async def expect(self, session_id: str) -> None:
        """SessionNotFound for what is another tenant's: it must look as if it were not there."""
        if self.grant.tenant is not None:
            tenant = await self.desk.quick(self.desk.listings.tenant_of, session_id)
            if tenant is None or not self.grant.sees(tenant):
                raise SessionNotFound(session_id)

    def tenant(self, wanted: str | None) -> str | None:
        """The tenant to list or open for; None: all of them, or the default."""
        if wanted is not None and not self.grant.sees(wanted):
            raise Problem(NOT_FOUND, f"no tenant {wanted!r}: leave `tenant` out")
        return wanted or self.grant.tenant


async def admitted(request: Request) -> Caller:
    """The caller, once it is known that it may make this call."""
    desk: Desk = request.app.state.desk
    grant = await _grant(desk, request)
    rule = RULES[request.method, request.scope["route"].path]
    if not grant.allows(rule.scope):
        has = ", ".join(sorted(grant.scopes))
        raise Problem(FORBIDDEN, f"this call needs the scope {rule.scope}, and the token has {has}")
    if rule.whole_installation and grant.tenant is not None:
        raise Problem(NOT_FOUND, "a token of one tenant cannot see the whole installation")
    who = "nobody" if grant is NOBODY else f"token {grant.id}"
    return Caller(grant, f"{who}, request {request.scope[REQUEST_ID]}", desk)


Admitted = Annotated[Caller, Depends(admitted)]


async def _grant(desk: Desk, request: Request) -> Grant:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return await without_token(desk, request)
    return await grant_of(desk, token.strip() if scheme.lower() == "bearer" else "")


async def grant_of(desk: Desk, token: str) -> Grant:
    """What the holder of this token may do, or Problem."""
    parts = taken_apart(token)
    if parts is None:
        raise Problem(UNAUTHORIZED, "send `Authorization: Bearer sk_<id>_<secret>`")
    # Asked each time: a token that was revoked is refused from the next request on.
    known: Known | None = desk.configured.get(parts[0])
    known = known or await desk.quick(desk.tokens.find, parts[0])
    if known is None or not known.fits(parts[1]):
        raise Problem(UNAUTHORIZED, "nobody knows this token: see `sandkeeper tokens ls`")
    if known.refused is not None:
        raise Problem(UNAUTHORIZED, f"the token {known.grant.id} {known.refused}: make another")
    return known.grant


async def without_token(desk: Desk, request: Request) -> Grant:
    """Before the first token is made, this machine may do everything, and nobody else anything."""
    made = await desk.quick(desk.tokens.any)
    if made or desk.configured:
        raise Problem(UNAUTHORIZED, "send `Authorization: Bearer sk_<id>_<secret>`")
    if not is_from_here(request):
        raise Problem(
            UNAUTHORIZED,
            "there is no token yet, so only this machine may call: make one with "
            "`sandkeeper tokens create`",
        )
    return NOBODY


def is_from_here(request: Request) -> bool:
    """
    Whether a program of this machine asks. Not a proxy, which asks for others; nor a page in a
    browser, whose address may have been made to resolve to this machine.
    """
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    return (
        request.client is not None
        and is_loopback(request.client.host)
        and is_loopback(urlsplit(f"//{host}").hostname or "")
        and (origin is None or urlsplit(origin).netloc == host)
        and not any(name in request.headers for name in FORWARDED)
    )


def is_loopback(host: str) -> bool:
    """Whether this address, or name, is the machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
