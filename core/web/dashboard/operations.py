"""Orphans, sweeps with their holds, and providers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import Query, Response
from fastapi.responses import RedirectResponse

from ...errors import InvalidArgument
from ...events import Event, EventKind
from ...model import check_reason
from ...policy import duration
from ...store.guard import ONCE_AND_FOR_ALL, HoldReason
from ..pages import cursor, place
from .diagnosis import BEAT, QUESTIONS, WORKER
from .door import Act, Overseeing, Ruling, Visit
from .render import page
from .route import base, new_router

router = new_router()

PAGE: Final = 50
Cursor = Annotated[str | None, Query(max_length=2000)]


@router.get("/orphans")
async def orphans(visit: Overseeing, after: Cursor = None) -> Response:
    """Sandboxes that no row explains."""
    return await visit.desk.page(_orphans, visit, after)


@router.get("/sweeps")
async def sweeps(visit: Overseeing) -> Response:
    """How the sweep is doing, and what waits for an answer."""
    return await visit.desk.page(_sweeps, visit)


@router.post("/sweeps")
async def sweep(act: Ruling) -> Response:
    """Sweep once, now, in this server."""
    reason = check_reason(act.form.one("reason"))
    return await act.desk.slow(_sweep, act, reason)


@router.post("/holds/{hold}")
async def answer(act: Ruling, hold: HoldReason) -> Response:
    """Approve or deny what is held."""
    await act.desk.slow(_answer, act, hold)
    return RedirectResponse(f"{base(act.request)}/sweeps#holds", 303)


@router.get("/providers")
async def providers(visit: Overseeing) -> Response:
    """How healthy each provider is, and what the last comparison with it found."""
    return await visit.desk.page(_providers, visit)


def _orphans(visit: Visit, after: str | None) -> Response:
    provider, external_id = place(after, ("", ""))
    found = visit.desk.listings.orphans(after=(provider, external_id), limit=PAGE + 1)
    last = found[PAGE - 1] if len(found) > PAGE else None
    following = None if last is None else cursor(last.provider, last.external_id)
    facts: dict[str, Any] = {"orphans": found[:PAGE], "following": following, "now": _now(visit)}
    facts["grace"] = visit.desk.keeper.policy.orphan_grace
    return page(visit.request, "orphans.html", visit=visit, **facts)


def _sweeps(visit: Visit, report: dict[str, int] | None = None) -> Response:
    store = visit.desk.keeper.store
    pulse = store.watch.pulse()
    facts: dict[str, Any] = {
        "pulse": pulse,
        "late": pulse.late(store.policy.late_after),
        "late_after": store.policy.late_after,
        "holds": store.guard.holds(),
        "questions": QUESTIONS,
        "for_good": ONCE_AND_FOR_ALL,
        "report": report,
        "commands": (WORKER, BEAT),
        "now": _now(visit),
    }
    return page(visit.request, "sweeps.html", visit=visit, **facts)


def _sweep(act: Act, reason: str) -> Response:
    asked = Event(kind=EventKind.SWEEP_ASKED, actor=act.actor, detail={"why": reason})
    act.desk.keeper.store.records.note(asked)
    return _sweeps(act, asdict(act.desk.sweep()))


def _answer(act: Act, hold: HoldReason) -> None:
    reason = check_reason(act.form.one("reason"))
    guard, verdict = act.desk.keeper.store.guard, act.form.one("verdict")
    try:
        seconds = duration("minutes", float(act.form.one("minutes") or 60) * 60.0)
    except ValueError as error:
        raise InvalidArgument(f"minutes {act.form.one('minutes')!r}: use a number") from error
    if verdict == "approve":
        guard.approve(hold, seconds, actor=act.actor, why=reason)
    elif verdict == "deny":
        guard.deny(hold, seconds, actor=act.actor, why=reason)
    else:
        raise InvalidArgument(f"verdict {verdict!r}: use approve or deny")


def _providers(visit: Visit) -> Response:
    facts: dict[str, Any] = {"providers": visit.desk.keeper.store.health.all(), "now": _now(visit)}
    facts["default"] = visit.desk.keeper.provider.name
    return page(visit.request, "providers.html", visit=visit, **facts)


def _now(visit: Visit) -> Any:
    return visit.desk.keeper.store.sweeps.now()
