"""The moves of a turn: begin, beat, end. Each writes last_activity_at, or is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import (
    CTE,
    String,
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from ..errors import SandkeeperError, SessionEnded, SessionNotReady, TurnExpired
from ..model import SandboxState, Session, TurnOutcome
from ..schema import sandboxes, sessions, turns
from .database import Database
from .rules import ACTIVE, HAS_RUNNING, Rules, b, locked, s, t
from .sessions import SANDBOX, Sessions
from .sql import any_of


@dataclass(frozen=True, kw_only=True)
class BegunTurn:
    """A turn as the store wrote it, and the session as it was at that moment."""

    turn_id: str
    session: Session
    started_at: datetime
    hard_until: datetime


class Turns:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules, session_store: Sessions) -> None:
        self.database = database
        self.sessions = session_store
        # On SQLite, and when something stands against a turn, its begin and its end are several
        # statements, which find out what it is.
        self._at_once = database.single_statement
        self._prepare_begin(rules)
        self._prepare_beat(rules)
        self._prepare_end(rules)

    def begin(self, turn_id: str, session_id: str, holder: str) -> BegunTurn:
        """
        Count a turn, if the session is active and its sandbox is running. SessionEnded,
        SessionNotReady or SessionNotFound otherwise.
        """
        begun = self._begun_at_once(turn_id, session_id, holder)
        if begun is not None:
            return begun
        with self.database.move() as move:
            # One statement decides. It waits for a sweep that holds the row, and then sees ended.
            of = {"session_id": session_id}
            counted = move.one(self._count, of)
            if counted is None:
                # Again with the row held: its sandbox may have become ready since, and must not
                # be taken for one that ended.
                move.run(self._hold, of)
                counted = move.one(self._count, of)
            if counted is None:
                session = self.sessions.seen(move, session_id)
                if session.sandbox.state is SandboxState.CREATING and session.ended_at is None:
                    raise SessionNotReady(session_id)
                raise self.sessions.refusal(session)
            row = move.connection.execute(
                self._begin, {"turn_id": turn_id, "of_session": session_id, "holder": holder}
            ).one()
            session = self.sessions.seen(move, session_id)
        return BegunTurn(
            turn_id=turn_id,
            session=replace(session, fresh=counted.first),
            started_at=row.started_at,
            hard_until=row.hard_until,
        )

    def beat(self, turn_ids: Sequence[str]) -> dict[str, SandkeeperError]:
        """
        Move last_activity_at for all of these turns at once. Returns why for those that may not
        go on. A row that somebody holds locked is skipped and is not refused: it is neither
        proof that the turn is lost, nor a reason to hold up the others.
        """
        with self.database.move() as move:
            move.run(self._beat, {"turn_ids": list(turn_ids)})
            rows = move.all(self._standing, {"turn_ids": list(turn_ids)})
        standing = {row.id: row for row in rows}
        refused: dict[str, SandkeeperError] = {}
        for turn_id in turn_ids:
            row = standing.get(turn_id)
            if row is None:
                refused[turn_id] = TurnExpired("?", turn_id, reason="it is not in the database")
            elif row.session_over:
                reason = row.end_reason or row.reset_reason or "ended"
                refused[turn_id] = SessionEnded(row.session_id, reason=reason)
            elif row.turn_over:
                refused[turn_id] = _expired(row.session_id, turn_id, ended=row.turn_ended)
        return refused

    def end(self, turn_id: str, session_id: str, outcome: TurnOutcome) -> None:
        """
        Record the outcome. SessionEnded or TurnExpired when the turn had lost its right before:
        what it did at last may have been on a sandbox that was being torn down.
        """
        of = {"of_session": session_id, "of_turn": turn_id}
        ends = {"of_turn": turn_id, "new_outcome": outcome.value}
        if self._at_once:
            with self.database.single() as move:
                if move.one(self._end_at_once, {**of, **ends}) is not None:
                    return
        with self.database.move() as move:
            alive = move.one(self._last_activity, of)
            ended = move.one(self._end, ends)
            if alive is not None and ended is not None:
                return
            session = self.sessions.seen(move, session_id)
        if ended is not None and session.generation != ended.generation:
            raise SessionEnded(session_id, reason=session.reset_reason or "ended")
        if session.ended_at is not None:
            raise self.sessions.refusal(session)
        raise _expired(session_id, turn_id, ended=ended is None)

    def _begun_at_once(self, turn_id: str, session_id: str, holder: str) -> BegunTurn | None:
        """The same in one round trip. None when something stands against it, or may."""
        if not self._at_once:
            return None
        of = {"turn_id": turn_id, "session_id": session_id, "holder": holder}
        with self.database.single() as move:
            row = move.one(self._begin_at_once, of)
        if row is None:
            return None
        return BegunTurn(
            turn_id=turn_id,
            session=self.sessions.of(row),
            started_at=row.seen_at,
            hard_until=row.hard_until,
        )

    # Statements, built once

    def _prepare_begin(self, rules: Rules) -> None:
        this = s.id == bindparam("session_id")
        count = (
            update(sessions)
            .where(this, rules.usable, HAS_RUNNING)
            .values(last_activity_at=rules.active_now, turn_count=s.turn_count + 1)
        )
        first = s.turn_count == s.turns_before + 1
        self._count = count.returning(s.id, first.label("first"))
        self._prepare_begin_at_once(
            rules,
            count.returning(
                *sessions.c,
                first.label("fresh"),
                rules.now.label("seen_at"),
                rules.hard_until().label("hard_until"),
            ).cte("counted"),
        )
        self._hold = locked(select(s.id).where(this), skip=False)
        self._begin = (
            insert(turns)
            .from_select(
                ["id", "session_id", "generation", "holder", "started_at", "hard_until"],
                select(
                    bindparam("turn_id", type_=String),
                    s.id,
                    s.generation,
                    bindparam("holder", type_=String),
                    rules.now,
                    rules.hard_until(),
                ).where(s.id == bindparam("of_session")),
            )
            .returning(t.started_at, t.hard_until)
        )

    def _prepare_begin_at_once(self, rules: Rules, counted: CTE) -> None:
        """The row of the turn follows from that of the session, as it was counted."""
        c = counted.c
        begun = insert(turns).from_select(
            ["id", "session_id", "generation", "holder", "started_at", "hard_until"],
            select(
                bindparam("turn_id", type_=String),
                c.id,
                c.generation,
                bindparam("holder", type_=String),
                c.seen_at,
                c.hard_until,
            ),
        )
        # The sandbox as the statement found it: who was counted has one that runs. Of a generation
        # that began while this waited for the row there is none to be seen, and nobody is counted.
        self._begin_at_once = (
            select(counted, *SANDBOX)
            .join_from(counted, sandboxes, and_(b.session_id == c.id, b.generation == c.generation))
            .add_cte(begun.cte("begun"))
        )

    def _prepare_beat(self, rules: Rules) -> None:
        these = any_of(t.id, "turn_ids")
        live = locked(
            select(s.id)
            .join_from(sessions, turns, rules.live_turn)
            .where(these, ACTIVE)
            .order_by(s.id),  # two beaters that lock the same sessions cannot deadlock
            skip=True,
        )
        self._beat = (
            update(sessions).where(s.id.in_(live), ACTIVE).values(last_activity_at=rules.active_now)
        )
        self._standing = (
            select(
                t.id,
                t.session_id,
                t.ended_at.is_not(None).label("turn_ended"),
                or_(t.ended_at.is_not(None), t.hard_until <= rules.now).label("turn_over"),
                func.coalesce(~and_(ACTIVE, s.generation == t.generation), literal(True)).label(
                    "session_over"
                ),
                s.end_reason,
                s.reset_reason,
            )
            .outerjoin_from(turns, sessions, s.id == t.session_id)
            .where(these)
        )

    def _prepare_end(self, rules: Rules) -> None:
        live = select(t.session_id).where(
            t.id == bindparam("of_turn"),
            t.ended_at.is_(None),
            t.hard_until > rules.now,
            t.generation == s.generation,
        )
        self._last_activity = (
            update(sessions)
            .where(s.id == bindparam("of_session"), ACTIVE, s.id.in_(live.correlate(sessions)))
            .values(last_activity_at=rules.active_now)
            .returning(s.id)
        )
        self._end = (
            update(turns)
            .where(t.id == bindparam("of_turn"), t.ended_at.is_(None))
            .values(ended_at=rules.now, outcome=bindparam("new_outcome"))
            .returning(t.id, t.generation)
        )
        alive = self._last_activity.cte("alive")
        self._end_at_once = self._end.where(exists(select(1).select_from(alive)))


def _expired(session_id: str, turn_id: str, *, ended: bool) -> TurnExpired:
    reason = "it was ended" if ended else "it passed its hard ceiling"
    return TurnExpired(session_id, turn_id, reason=reason)
