"""
Turns: begin, beat, end. All of it is in the database: any server of the installation takes the
heartbeats of a turn that another one began, and the death of a server harms none.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from ..store.listings import HeldTurn
from .answers import BeatAnswer, SandboxAnswer, TurnAnswer
from .gate import Admitted, Caller
from .problems import TURN_NOT_FOUND, Problem
from .requests import Nothing, OutcomeQuery, SessionId, TurnId, TurnRequest

router = APIRouter(prefix="/v1/sessions/{session_id}/turns", tags=["turns"])


@router.post("", status_code=201)
async def begin_turn(
    caller: Admitted,
    session_id: SessionId,
    response: Response,
    _: Nothing,
    wanted: TurnRequest | None = None,
) -> TurnAnswer:
    """
    Begin a turn. Send a heartbeat every `heartbeat_every` seconds for as long as you work, and
    stop working when one is answered 410 or 404, or when `hard_until` - `started_at` has passed.
    """
    await caller.expect(session_id)
    remote = caller.desk.keeper.remote
    holder = (wanted.holder if wanted else None) or caller.actor
    # Slow: a sandbox whose provider would soon end it is extended first.
    begun = await caller.desk.slow(remote.begin, session_id, holder=holder)
    response.headers["Location"] = f"turns/{begun.turn_id}"
    return TurnAnswer(
        turn_id=begun.turn_id,
        session_id=session_id,
        generation=begun.session.generation,
        sandbox=SandboxAnswer.model_validate(begun.session.sandbox),
        fresh=begun.session.fresh,
        heartbeat_every=remote.heartbeat_every,
        started_at=begun.started_at,
        hard_until=begun.hard_until,
    )


@router.put("/{turn_id}")
async def beat(caller: Admitted, session_id: SessionId, turn_id: TurnId, _: Nothing) -> BeatAnswer:
    """
    A heartbeat: 200 when the turn goes on; 410 when its session ended, or it may not go on. What
    is answered 503, or not at all, refuses nothing: go on, and try again sooner.
    """
    turn = await _turn(caller, session_id, turn_id)
    remote = caller.desk.keeper.remote
    await caller.desk.quick(remote.beat, turn_id, session_id)
    return BeatAnswer(
        turn_id=turn_id,
        session_id=session_id,
        generation=turn.generation,
        heartbeat_every=remote.heartbeat_every,
        hard_until=turn.hard_until,
    )


@router.delete("/{turn_id}", status_code=204, response_class=Response)
async def end_turn(
    caller: Admitted, session_id: SessionId, turn_id: TurnId, wanted: OutcomeQuery
) -> None:
    """
    End a turn. 410 when it had been lost before: what it did at last may have been on a sandbox
    that was being torn down. Also when it is ended again.
    """
    await _turn(caller, session_id, turn_id)
    await caller.desk.quick(caller.desk.keeper.remote.end, turn_id, session_id, wanted.outcome)


async def _turn(caller: Caller, session_id: str, turn_id: str) -> HeldTurn:
    """The turn, if it is one of this session, and the session one that the caller sees."""
    turn = await caller.desk.quick(caller.desk.listings.turn, session_id, turn_id)
    if turn is None or not caller.grant.sees(turn.tenant):
        raise Problem(
            TURN_NOT_FOUND,
            f"session {session_id!r} has no turn {turn_id}: begin a new turn",
            session_id=session_id,
            turn_id=turn_id,
        )
    return turn
