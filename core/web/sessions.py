"""Sessions: open, list, look at, explain, extend, pin, end."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from ..explain import Explanation
from ..lifecycle import DEFAULT_TENANT
from ..model import Session
from .answers import EventPage, ExplanationAnswer, OpenAnswer, SessionAnswer, SessionPage
from .gate import Admitted, Caller
from .pages import page, place
from .problems import ID_TAKEN, Problem
from .requests import (
    EndQuery,
    ExtendRequest,
    Nothing,
    OpenRequest,
    PageQuery,
    PinRequest,
    SessionId,
    SessionQuery,
)

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

OUTCOMES = {"session_opened": "created", "session_reopened": "reopened"}


@router.post("", status_code=201, response_model=OpenAnswer, responses={200: {"model": OpenAnswer}})
async def open_session(
    caller: Admitted, wanted: OpenRequest, response: Response, _: Nothing
) -> dict[str, Any]:
    """
    Get a session with a running sandbox: 201 when it is new or reopened, 200 when it was there.
    Safe to repeat. It counts as activity, and may take as long as the provider takes.
    """
    tenant = caller.tenant(wanted.tenant) or DEFAULT_TENANT
    await _free_for(caller, wanted.id, tenant)
    session: Session = await caller.desk.slow(
        caller.desk.keeper.acting_as(caller.actor).open,
        wanted.id,
        tenant=tenant,
        idle_ttl=wanted.idle_ttl,
        max_age=wanted.max_age,
        max_turn=wanted.max_turn,
        never_used_ttl=wanted.never_used_ttl,
        profile=wanted.profile,
        metadata=wanted.metadata,
    )
    outcome = await _outcome(caller, session)
    response.headers["Location"] = f"sessions/{session.id}"
    if outcome == "existing":
        response.status_code = 200
    return {**vars(session), "outcome": outcome}


@router.get("", response_model=SessionPage)
async def list_sessions(caller: Admitted, wanted: SessionQuery) -> dict[str, Any]:
    """List sessions by id."""
    (after,) = place(wanted.cursor, ("",))
    lines = await caller.desk.quick(
        caller.desk.listings.sessions,
        tenant=caller.tenant(wanted.tenant),
        status=wanted.status,
        after=after,
        limit=wanted.limit + 1,
    )
    return page(lines, wanted.limit, lambda line: (line.id,))


@router.get("/{session_id}", response_model=SessionAnswer)
async def get_session(caller: Admitted, session_id: SessionId, _: Nothing) -> Session:
    """Look at one session. It does not count as activity."""
    await caller.expect(session_id)
    return await caller.desk.quick(caller.desk.keeper.get, session_id)


@router.get("/{session_id}/events", response_model=EventPage)
async def list_events(caller: Admitted, session_id: SessionId, wanted: PageQuery) -> dict[str, Any]:
    """List what happened to one session, in order."""
    (after,) = place(wanted.cursor, (0,))
    await caller.expect(session_id)
    await caller.desk.quick(caller.desk.keeper.get, session_id)  # an unknown one is no empty list
    lines = await caller.desk.quick(
        caller.desk.listings.events, session_id, after=after, limit=wanted.limit + 1
    )
    return page(lines, wanted.limit, lambda line: (line.id,))


@router.get("/{session_id}/explain", response_model=ExplanationAnswer)
async def explain_session(caller: Admitted, session_id: SessionId, _: Nothing) -> Explanation:
    """
    Why it is still there, or why it was taken: raw values, and a sentence with each. It does not
    count as activity.
    """
    await caller.expect(session_id)
    return await caller.desk.quick(caller.desk.keeper.explain, session_id)


@router.post("/{session_id}/extend", response_model=SessionAnswer)
async def extend_session(
    caller: Admitted, session_id: SessionId, wanted: ExtendRequest, _: Nothing
) -> Session:
    """
    Keep an idle session for so long from now. Max age still holds: `extended_until` is what was
    granted.
    """
    await caller.expect(session_id)
    keeper = caller.desk.keeper.acting_as(caller.actor)
    return await caller.desk.slow(keeper.extend, session_id, wanted.by)


@router.post("/{session_id}/pin", response_model=SessionAnswer)
async def pin_session(
    caller: Admitted, session_id: SessionId, wanted: PinRequest, _: Nothing
) -> Session:
    """
    Keep it from being ended by idleness for so long from now; everybody sees who did it and why.
    Max age still holds, and so does an explicit end: `pinned_until` is what was granted.
    """
    await caller.expect(session_id)
    keeper = caller.desk.keeper.acting_as(caller.actor)
    why = wanted.reason
    return await caller.desk.slow(
        keeper.pin, session_id, wanted.for_, reason=why, owner=caller.owner
    )


@router.delete("/{session_id}/pin", response_model=SessionAnswer)
async def unpin_session(caller: Admitted, session_id: SessionId, _: Nothing) -> Session:
    """Lift a pin before its date. Where there is none nothing happens."""
    await caller.expect(session_id)
    return await caller.desk.quick(caller.desk.keeper.acting_as(caller.actor).unpin, session_id)


@router.delete("/{session_id}", status_code=202, response_model=SessionAnswer)
async def end_session(caller: Admitted, session_id: SessionId, wanted: EndQuery) -> Session:
    """
    End it now; its sandbox is torn down in the background. An open turn is refused at its next
    heartbeat. Ending an ended session changes nothing.
    """
    await caller.expect(session_id)
    keeper = caller.desk.keeper.acting_as(caller.actor)
    return await caller.desk.quick(keeper.end, session_id, reason=wanted.reason)


async def _free_for(caller: Caller, session_id: str | None, tenant: str) -> None:
    """
    An id that another tenant uses cannot be opened, and nobody is told whose it is. Without this
    look open() says the same in words of its own; a session never changes its tenant.
    """
    if session_id is None:
        return
    owner = await caller.desk.quick(caller.desk.listings.tenant_of, session_id)
    if owner is not None and owner != tenant:
        raise Problem(ID_TAKEN, f"session id {session_id!r} cannot be used: choose another id")


async def _outcome(caller: Caller, session: Session) -> str:
    """
    What this very call did. The ledger knows: of concurrent calls one has opened the generation,
    and no other request has its actor.
    """
    opened = await caller.desk.quick(caller.desk.listings.opened, session.id, session.generation)
    if opened is None or opened[0] != caller.actor:
        return "existing"
    return OUTCOMES[opened[1]]
