"""
Who looks, and who may act. The browser keeps the token itself in a cookie that no script can read.
It is looked up for each request: a token that was revoked is refused at once, by any server.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from fastapi import Depends, Request

from ...access import Grant, Scope
from ...errors import SessionNotFound
from ..desk import Desk
from ..gate import NOBODY, grant_of, without_token
from ..problems import FORBIDDEN, NOT_FOUND, Problem
from .shared import Shared

TOKEN: Final = "sandkeeper_token"  # noqa: S105 - the name of a cookie
SEED: Final = "sandkeeper_seed"  # of what makes a form ours
FIELD: Final = "form"
LONGEST_NAME: Final = 80  # characters of a token's name in the ledger's actor
MOST_FIELDS: Final = 2_000


@dataclass(frozen=True)
class Visit:
    """One request of somebody who may look."""

    request: Request
    desk: Desk
    grant: Grant

    @property
    def shared(self) -> Shared:
        found: Shared = self.request.app.state.dashboard
        return found

    @property
    def tenant(self) -> str | None:
        """Whose sessions are seen; None: all of them."""
        return self.grant.tenant

    @property
    def may_act(self) -> bool:
        return self.grant.allows(Scope.OPERATE)

    @property
    def actor(self) -> str:
        """How the ledger names who acts here."""
        if self.grant is NOBODY:
            return "somebody at this machine, dashboard"
        name = f" {self.grant.name[:LONGEST_NAME]}" if self.grant.name else ""
        return f"token {self.grant.id}{name}, dashboard"

    @property
    def form_token(self) -> str:
        return form_token(self.request)

    def expect(self, session_id: str) -> None:
        """SessionNotFound for what is another tenant's. It asks the database."""
        if self.tenant is not None and self.desk.listings.tenant_of(session_id) != self.tenant:
            raise SessionNotFound(session_id)


class Form:
    """What a form sent."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields

    def one(self, name: str) -> str:
        """The first value of this name, without blanks around it; empty when there is none."""
        return self.all(name)[0].strip() if self.all(name) else ""

    def all(self, name: str) -> Sequence[str]:
        return self._fields.get(name, ())


@dataclass(frozen=True)
class Act(Visit):
    """One request of somebody who may act, and means it."""

    form: Form


async def looking(request: Request) -> Visit:
    """Somebody who may look."""
    desk: Desk = request.app.state.desk
    token = request.cookies.get(TOKEN)
    known = await (without_token(desk, request) if token is None else grant_of(desk, token))
    if not known.allows(Scope.READ):
        has = ", ".join(sorted(known.scopes))
        raise Problem(FORBIDDEN, f"looking needs a token with the scope read; this one has {has}")
    return Visit(request, desk, known)


async def overseeing(request: Request) -> Visit:
    """Somebody who may look at the whole installation."""
    visit = await looking(request)
    _expect_whole(visit)
    return visit


async def acting(request: Request) -> Act:
    """Somebody who may act, by a form that we made for this very login."""
    visit = await looking(request)
    if not visit.may_act:
        has = ", ".join(sorted(visit.grant.scopes))
        raise Problem(FORBIDDEN, f"this needs a token with the scope operate; yours has {has}")
    return Act(visit.request, visit.desk, visit.grant, await form_of(request))


async def ruling(request: Request) -> Act:
    """Somebody who may act on the whole installation."""
    act = await acting(request)
    _expect_whole(act)
    return act


Looking = Annotated[Visit, Depends(looking)]
Overseeing = Annotated[Visit, Depends(overseeing)]
Acting = Annotated[Act, Depends(acting)]
Ruling = Annotated[Act, Depends(ruling)]


async def form_of(request: Request) -> Form:
    """The form, if it is one that we gave to this browser. Problem when another site made it."""
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise Problem(FORBIDDEN, f"a form of at most {MOST_FIELDS} fields") from error
    form = Form(fields)
    if not hmac.compare_digest(form.one(FIELD).encode(), form_token(request).encode()):
        raise Problem(
            FORBIDDEN, "this form was made before your login, or elsewhere: go back, reload, again"
        )
    return form


def form_token(request: Request) -> str:
    """What a form of ours carries. Another site can read neither cookie that it is made from."""
    login = request.cookies.get(TOKEN, "")
    return hmac.new(seed(request).encode(), login.encode(), hashlib.sha256).hexdigest()


def seed(request: Request) -> str:
    """This browser's random value: its cookie, or the one that it gets with this answer."""
    found: Any = request.cookies.get(SEED) or request.state.fresh_seed
    return str(found)


def _expect_whole(visit: Visit) -> None:
    if visit.tenant is not None:
        raise Problem(NOT_FOUND, "a token of one tenant cannot see the whole installation")
