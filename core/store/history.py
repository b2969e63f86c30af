"""Reading the ledger, and the lists that a person looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import String, and_, bindparam, func, or_, select

from ..schema import events, installation, sandboxes, sessions, turns
from .database import Database
from .rules import OF_SESSION, b, s, t


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One line of the ledger."""

    at: datetime
    kind: str
    session_id: str | None
    generation: int | None
    actor: str
    detail: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One session as a list shows it."""

    id: str
    tenant: str
    status: str
    generation: int
    sandbox: str
    turns_open: int
    last_activity_at: datetime
    due_at: datetime
    end_reason: str | None


class History:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self.database = database
        e = events.c
        self._of_session = (
            select(events).where(e.session_id == bindparam("of_session")).order_by(e.id)
        )
        open_turns = (
            select(func.count())
            .select_from(turns)
            .where(t.session_id == s.id, t.ended_at.is_(None), t.generation == s.generation)
            .scalar_subquery()
        )
        status = bindparam("of_status", type_=String)
        self._lines = (
            select(
                s.id,
                s.tenant,
                s.status,
                s.generation,
                b.state.label("sandbox"),
                open_turns.label("turns_open"),
                s.last_activity_at,
                s.due_at,
                s.end_reason,
            )
            .join_from(sessions, sandboxes, OF_SESSION)
            .where(
                and_(
                    s.id > bindparam("after", type_=String),
                    or_(status.is_(None), s.status == status),
                )
            )
            .order_by(s.id)
            .limit(bindparam("limit", type_=s.generation.type))
        )
        self._pulse = select(installation.c.swept_at)

    def of_session(self, session_id: str) -> list[Recorded]:
        """What happened to one session, in order."""
        with self.database.look() as look:
            rows = look.all(self._of_session, {"of_session": session_id})
        return [
            Recorded(**{name: row._mapping[name] for name in Recorded.__dataclass_fields__})
            for row in rows
        ]

    def lines(self, *, status: str | None = None, after: str = "", limit: int = 100) -> list[Line]:
        """Sessions by id, from behind `after`."""
        parameters = {"of_status": status, "after": after, "limit": limit}
        with self.database.look() as look:
            rows = look.all(self._lines, parameters)
        return [Line(**row._mapping) for row in rows]

    def swept_at(self) -> datetime | None:
        """When a sweep last ran to its end, None when none ever did."""
        with self.database.look() as look:
            row = look.one(self._pulse)
        return None if row is None else row.swept_at
