"""
Pins: somebody keeps a session from being ended by idleness, with a name, a reason and a date. It is
an extension that can be lifted early, and so has a date of its own: what `extend` promised stays.
"""

from __future__ import annotations

from sqlalchemy import bindparam, func, null, update

from ..events import EventKind
from ..model import Session
from ..schema import sessions
from .database import Database
from .promises import Promises
from .rules import ACTIVE, Rules, s
from .sessions import Sessions, session_event
from .sql import Earliest, Latest


class Pins:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules, session_store: Sessions) -> None:
        self.database = database
        self.sessions = session_store
        self._promises = Promises(rules)
        this = s.id == bindparam("session_id")
        asked = rules.in_(bindparam("seconds", type_=rules.seconds))
        wished = Latest(asked, func.coalesce(rules.pinned_until, asked))
        self._pin = (
            update(sessions)
            .where(this, rules.usable)
            .values(
                pinned_until=Earliest(wished, func.coalesce(rules.age_ends, wished)),
                pinned_at=rules.made_at(s.pinned_until, s.pinned_at, asked),
                pinned_by=bindparam("owner"),
                pin_reason=bindparam("reason"),
                noticed_at=null(),
                noticed_activity_at=null(),
            )
            .returning(s.generation, s.pinned_until)
        )
        self._unpin = (
            update(sessions)
            .where(this, ACTIVE, s.pinned_until.is_not(None))
            .values(
                pinned_until=null(),
                pinned_at=null(),
                pinned_by=null(),
                pin_reason=null(),
                due_at=Earliest(s.due_at, rules.now),  # the next sweep looks at what is left
            )
            .returning(s.generation)
        )

    def pin(
        self, session_id: str, seconds: float, *, owner: str, reason: str, actor: str
    ) -> Session:
        """
        Keep it for so many seconds from now, at most until its max age. A second pin never
        shortens the first; its owner and reason are the ones that are shown. SessionEnded or
        SessionNotFound when it may not be kept.
        """
        pin = {"session_id": session_id, "seconds": seconds, "owner": owner, "reason": reason}
        with self.database.move() as move:
            self._promises.set_aside(move, [session_id])
            row = move.one(self._pin, pin)
            session = self.sessions.seen(move, session_id)
            if row is None:
                raise self.sessions.refusal(session)
            until = row.pinned_until.isoformat()
            told = (EventKind.SESSION_PINNED, session_id, row.generation, actor)
            move.record(session_event(*told, until=until, owner=owner, reason=reason))
        return session

    def unpin(self, session_id: str, *, actor: str, reason: str | None = None) -> Session:
        """Lift the pin; nothing happens where there is none. SessionNotFound for an unknown id."""
        why = {} if reason is None else {"reason": reason}
        with self.database.move() as move:
            row = move.one(self._unpin, {"session_id": session_id})
            if row is not None:
                self._promises.lift_pins(move, session_id)
                kind = EventKind.SESSION_UNPINNED
                move.record(session_event(kind, session_id, row.generation, actor, **why))
            return self.sessions.seen(move, session_id)
