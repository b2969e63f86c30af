"""
Quarantine: teardowns that failed too often, and what of them somebody wants to see. All filters
are in the address; what is tried again is what was picked, or all that match.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import Query, Response
from fastapi.responses import RedirectResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...errors import InvalidArgument
from ...model import check_reason, check_session_id, check_tenant
from ...store.quarantine import BEGINNING, STRETCH, Among
from ..pages import cursor, place
from .door import Act, Acting, Form, Looking, Visit
from .render import page
from .route import base, new_router
from .sessions import Blank

router = new_router()

PAGE: Final = 50
SHOWN: Final = 20  # sessions in a preview; what is picked there is tried again, shown or not
MOST: Final = 200  # that are picked one by one


def _tenant(value: str | None) -> str | None:
    return None if value is None else check_tenant(value)


Word = Annotated[Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")] | None, Blank]


class Filter(BaseModel):
    """What the address of a list may say."""

    model_config = ConfigDict(extra="ignore")

    provider: Word = None
    error: Word = None
    tenant: Annotated[str | None, Blank, AfterValidator(_tenant)] = None
    after: Annotated[Annotated[str, Field(max_length=2000)] | None, Blank] = None
    retried: Annotated[Annotated[int, Field(ge=0, lt=10**9)] | None, Blank] = None

    def among(self, visit: Visit) -> Among:
        """The same as the store has it: of the viewer's tenant alone, if there is one."""
        tenant = visit.tenant or self.tenant
        return Among(tenant=tenant, provider=self.provider, error=self.error)

    def fields(self) -> dict[str, str]:
        """The filters as the address has them, without the place in the list."""
        given = {"provider": self.provider, "error": self.error, "tenant": self.tenant}
        return {name: value for name, value in given.items() if value is not None}

    def address(self, **instead: str | None) -> str:
        """The address of this list with some of it changed; None leaves a field out."""
        fields = {**self.fields(), **instead}
        kept = {name: value for name, value in fields.items() if value is not None}
        return f"/quarantine?{urlencode(kept)}" if kept else "/quarantine"

    def chips(self) -> list[tuple[str, str]]:
        """What is asked for, in words, each with the address of the list without it."""
        return [
            (f"{name} {value}", self.address(**{name: None}))
            for name, value in self.fields().items()
        ]


@router.get("/quarantine")
async def quarantine(visit: Looking, wanted: Annotated[Filter, Query()]) -> Response:
    """One page of the list."""
    return await visit.desk.page(_list, visit, wanted)


@router.post("/quarantine/preview")
async def preview(act: Acting) -> Response:
    """Which it would be, and how many."""
    return await act.desk.page(_preview, act)


@router.post("/quarantine/retry")
async def retry(act: Acting) -> Response:
    """Try those that were picked, or all that match, again with the next sweep."""
    reason = check_reason(act.form.one("reason"))
    retried = await act.desk.slow(_retry, act, reason)
    back = _filter(act.form).address(retried=str(retried))
    return RedirectResponse(f"{base(act.request)}{back}", 303)


def _list(visit: Visit, wanted: Filter) -> Response:
    store = visit.desk.keeper.store
    among = wanted.among(visit)
    found = store.quarantine.page(among, after=_place(wanted.after), limit=PAGE)
    providers, errors = store.quarantine.choices() if visit.tenant is None else ([], [])
    following = None
    if found.behind is not None:
        at, key = found.behind
        following = wanted.address(after=cursor(at.isoformat(), key))
    facts: dict[str, Any] = {
        "wanted": wanted,
        "found": found,
        "following": following,
        "providers": sorted({*providers, wanted.provider} - {None}),
        "errors": sorted({*errors, wanted.error} - {None}),
        "stretch": STRETCH,
        "now": store.sweeps.now(),
    }
    return page(visit.request, "quarantine.html", visit=visit, **facts)


def _preview(act: Act) -> Response:
    wanted, store = _filter(act.form), act.desk.keeper.store
    every, picked = act.form.one("every") == "1", _picked(act.form)
    matching, more = len(picked), False
    if every:
        among = wanted.among(act)
        matching, more = store.quarantine.count(among)
        picked = [one.session_id for one in store.quarantine.page(among, limit=SHOWN).rows]
    facts: dict[str, Any] = {
        "wanted": wanted,
        "every": every,
        "picked": picked,
        "matching": matching,
        "more": more,
    }
    return page(act.request, "retry.html", visit=act, **facts)


def _retry(act: Act, reason: str) -> int:
    teardowns, wanted = act.desk.keeper.store.teardowns, _filter(act.form)
    if act.form.one("every") == "1":
        return teardowns.retry_now(among=wanted.among(act), actor=act.actor, why=reason)
    picked = _picked(act.form)
    if not picked:
        raise InvalidArgument("nothing was picked: tick what is to be tried again, or all of it")
    for session_id in picked:
        act.expect(session_id)
    return sum(teardowns.retry_now(one, actor=act.actor, why=reason) for one in picked)


def _filter(form: Form) -> Filter:
    return Filter.model_validate({name: form.one(name) for name in ("provider", "error", "tenant")})


def _picked(form: Form) -> list[str]:
    found = dict.fromkeys(check_session_id(one) for one in form.all("pick"))
    return list(found)[:MOST]


def _place(given: str | None) -> tuple[datetime, str]:
    at, key = place(given, (BEGINNING[0].isoformat(), ""))
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        moment = BEGINNING[0]
    return (moment if moment.tzinfo else BEGINNING[0]), key
