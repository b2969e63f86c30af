"""One session: its timeline, its sandboxes and what their provider said, and what can be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Path, Response
from fastapi.responses import RedirectResponse
from pydantic import AfterValidator

from ...events import EventKind
from ...lifecycle import Keeper
from ...model import check_reason, check_session_id
from .bulk import minutes
from .door import Acting, Looking, Visit
from .render import page
from .route import base, new_router
from .timeline import timeline

router = new_router()

EVENTS: Final = 100
TURNS: Final = 50
GENERATIONS: Final = 10
ATTEMPTS: Final = frozenset(
    {EventKind.TEARDOWN_FAILED, EventKind.TEARDOWN_QUARANTINED, EventKind.SANDBOX_GONE}
)

Id = Annotated[str, AfterValidator(check_session_id), Path()]


@router.get("/sessions/{session_id}")
async def session(visit: Looking, session_id: Id) -> Response:
    """All that is known of it."""
    return await visit.desk.page(_session, visit, session_id)


@router.post("/sessions/{session_id}/end")
async def end(act: Acting, session_id: Id) -> Response:
    """End this generation of it."""
    reason = check_reason(act.form.one("reason"))

    def end_it(keeper: Keeper) -> object:
        generation = int(act.form.one("generation") or 0) or None
        return keeper.end(session_id, reason=reason, generation=generation)

    return await _done(act, session_id, end_it)


@router.post("/sessions/{session_id}/extend")
async def extend(act: Acting, session_id: Id) -> Response:
    """Keep it for so many minutes from now."""
    reason, by = check_reason(act.form.one("reason")), minutes(act.form)
    return await _done(act, session_id, lambda it: it.extend(session_id, by, reason=reason))


@router.post("/sessions/{session_id}/pin")
async def pin(act: Acting, session_id: Id) -> Response:
    """Keep it from being ended by idleness for so many minutes."""
    reason, for_ = check_reason(act.form.one("reason")), minutes(act.form)
    return await _done(act, session_id, lambda it: it.pin(session_id, for_, reason=reason))


@router.post("/sessions/{session_id}/unpin")
async def unpin(act: Acting, session_id: Id) -> Response:
    """Lift the pin: the next sweep looks at what else keeps it."""
    reason = check_reason(act.form.one("reason"))
    return await _done(act, session_id, lambda it: it.unpin(session_id, reason=reason))


@router.post("/sessions/{session_id}/retry")
async def retry(act: Acting, session_id: Id) -> Response:
    """Have its teardown, which is in quarantine, tried again with the next sweep."""
    reason = check_reason(act.form.one("reason"))

    def retry_it(keeper: Keeper) -> object:
        return keeper.store.teardowns.retry_now(session_id, actor=act.actor, why=reason)

    return await _done(act, session_id, retry_it)


async def _done(act: Acting, session_id: str, change: Callable[[Keeper], object]) -> Response:
    """One change, in the name of who asks, of a session that is theirs to change."""
    await act.desk.page(act.expect, session_id)
    await act.desk.slow(change, act.desk.keeper.acting_as(act.actor))
    return RedirectResponse(f"{base(act.request)}/sessions/{session_id}", 303)


def _session(visit: Visit, session_id: str) -> Response:
    visit.expect(session_id)
    keeper = visit.desk.keeper
    records = keeper.store.records
    found = keeper.get(session_id)
    turns = records.turns(session_id, limit=TURNS)
    events = records.of_session(session_id, limit=EVENTS)
    facts: dict[str, Any] = {
        "session": found,
        "turns": turns,
        "events": events,
        "attempts": [line for line in events if line.kind in ATTEMPTS],
        "sandboxes": records.sandboxes(session_id, limit=GENERATIONS),
        "timeline": timeline(found, turns, events),
        "explained": keeper.explain(session_id),
        "most": {"events": EVENTS, "turns": TURNS, "sandboxes": GENERATIONS},
    }
    return page(visit.request, "session.html", visit=visit, **facts)
