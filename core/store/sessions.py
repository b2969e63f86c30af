"""The moves of a session that its callers make once it is open: touch, extend, end; and a look."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, bindparam, func, null, select, update

from ..errors import SessionEnded, SessionNotFound
from ..events import Event, EventKind
from ..model import (
    EndReason,
    Sandbox,
    SandboxState,
    Session,
    SessionStatus,
    sandbox_name,
)
from ..schema import sandboxes, sessions
from .database import Database, Move
from .endings import Endings
from .promises import Promises
from .rules import ACTIVE, FRESH, OF_SESSION, Rules, b, s
from .sql import Earliest, Latest

SANDBOX = (
    b.key,
    b.provider,
    b.scope,
    b.spec,
    b.state,
    b.external_id,
    b.created_at.label("sandbox_created_at"),
    b.due_at.label("sandbox_due_at"),
    b.expires_at,
)


class Sessions:
    """One method, one transaction. `installation` is the eight characters on every label."""

    def __init__(self, database: Database, rules: Rules, installation: str) -> None:
        self.database = database
        self.installation = installation
        self._promises = Promises(rules)
        self._this = s.id == bindparam("session_id")
        self._view = (
            select(
                sessions,
                FRESH.label("fresh"),
                rules.now.label("seen_at"),
                *SANDBOX,
            )
            .join_from(sessions, sandboxes, OF_SESSION)
            .where(self._this)
        )
        self._prepare_changes(rules)

    # Looking

    def get(self, session_id: str) -> Session:
        """The session with its current sandbox. SessionNotFound when there is none."""
        with self.database.look() as look:
            return self.seen(look, session_id)

    def seen(self, move: Move, session_id: str) -> Session:
        """The same, inside somebody's transaction."""
        row = move.one(self._view, {"session_id": session_id})
        if row is None:
            raise SessionNotFound(session_id)
        return self.of(row)

    # Changes

    def touch(self, session_id: str) -> None:
        """Move last_activity_at to now. SessionEnded or SessionNotFound when it may not."""
        with self.database.single() as move:
            touched = self.touch_in(move, session_id)
        if not touched:
            raise self.refusal(self.get(session_id))

    def touch_in(self, move: Move, session_id: str) -> bool:
        """The same, inside somebody's transaction; False when it may not."""
        return move.one(self._touch, {"session_id": session_id}) is not None

    def extend(
        self, session_id: str, seconds: float, *, actor: str, reason: str | None = None
    ) -> Session:
        """Keep it for so long from now, at most until its max age; the ledger keeps a reason."""
        why = {} if reason is None else {"reason": reason}
        with self.database.move() as move:
            self._promises.set_aside(move, [session_id])
            row = move.one(self._extend, {"session_id": session_id, "seconds": seconds})
            session = self.seen(move, session_id)
            if row is None:
                raise self.refusal(session)
            move.record(
                session_event(
                    EventKind.SESSION_EXTENDED,
                    session_id,
                    row.generation,
                    actor,
                    until=row.extended_until.isoformat(),
                    **why,
                )
            )
        return session

    def end(
        self, session_id: str, reason: str, *, actor: str, generation: int | None = None
    ) -> Session:
        """
        active → ended, its sandbox to closing. An ended session stays as it is, and with
        `generation` only that one is ended: a late caller never ends the next.
        """
        with self.database.move() as move:
            self.end_in(move, session_id, reason, actor, generation=generation)
            return self.seen(move, session_id)

    def end_in(
        self, move: Move, session_id: str, reason: str, actor: str, *, generation: int | None = None
    ) -> None:
        """The same, inside somebody's transaction."""
        parameters = {"session_id": session_id, "reason": reason, "only": generation}
        self._endings.close(move, move.all(self._end, parameters), actor)

    def refusal(self, session: Session) -> SessionEnded:
        """Why a change of this session was refused."""
        old = session.max_age is not None and _age(session) >= session.max_age
        # Neither ended nor too old: it was reopened since it refused, and has a new generation.
        since = EndReason.MAX_AGE.value if old else session.reset_reason
        reason = session.end_reason or since or "ended"
        return SessionEnded(session.id, reason=reason)

    # Statements, built once

    def _prepare_changes(self, rules: Rules) -> None:
        self._touch = (
            update(sessions)
            .where(self._this, rules.usable)
            .values(last_activity_at=rules.active_now)
            .returning(s.id)
        )
        asked = rules.in_(bindparam("seconds", type_=s.idle_ttl.type))
        # Not opened_at for "none yet": after a step back of the clock it is in the future.
        wished = Latest(asked, func.coalesce(rules.extended_until, asked))
        self._extend = (
            update(sessions)
            .where(self._this, rules.usable)
            .values(
                extended_until=Earliest(wished, func.coalesce(rules.age_ends, wished)),
                extended_at=rules.made_at(s.extended_until, rules.extended_at, asked),
                noticed_at=null(),
                noticed_activity_at=null(),
            )
            .returning(s.generation, s.extended_until)
        )
        only = bindparam("only", type_=s.generation.type)
        self._end = (
            update(sessions)
            .where(self._this, ACTIVE, s.generation == func.coalesce(only, s.generation))
            .values(
                status=SessionStatus.ENDED.value,
                ended_at=rules.now,
                end_reason=bindparam("reason"),
            )
            .returning(s.id, s.generation, s.end_reason)
        )
        self._endings = Endings(rules)

    def of(self, row: Row[Any]) -> Session:
        """A row of the view, or of another statement that returns its columns."""
        sandbox = Sandbox(
            key=row.key,
            name=sandbox_name(self.installation, row.key),
            session_id=row.id,
            generation=row.generation,
            provider=row.provider,
            scope=row.scope,
            spec=row.spec,
            state=SandboxState(row.state),
            external_id=row.external_id,
            created_at=row.sandbox_created_at,
            due_at=row.sandbox_due_at,
            expires_at=row.expires_at,
        )
        found = row._mapping
        fields = {name: found[name] for name in _SESSION_FIELDS}
        return Session(status=SessionStatus(row.status), sandbox=sandbox, **fields)


def session_event(
    kind: EventKind, session_id: str, generation: int, actor: str, **detail: object
) -> Event:
    """An event about one generation of one session."""
    return Event(
        kind=kind, actor=actor, session_id=session_id, generation=generation, detail=detail
    )


def _age(session: Session) -> float:
    return (session.seen_at - session.opened_at).total_seconds()


_SESSION_FIELDS = tuple(
    name for name in Session.__dataclass_fields__ if name not in {"status", "sandbox"}
)
