"""What tells whether anybody sweeps: the pulse, and what is overdue. Each is one index probe."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, FromClause, func, select

from ..schema import holds, installation, sandboxes, sessions, windows
from .database import Database
from .rules import ACTIVE, CLOSING, CREATING, Rules, b, s

i = installation.c


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """The last sweep, by the database's clock. `age` and `overdue` are in seconds."""

    swept_at: datetime | None
    age: float | None  # None: no sweep ever ran
    stand_in_age: float | None  # of the last one that an API process ran in its place
    installed: float  # how long this installation has existed
    overdue: float  # how long the most overdue row has been waiting
    held: int  # questions to an operator that are open
    window: str | None = None  # the maintenance window that is open, and will be longest

    def late(self, after: float) -> bool:
        """Whether nobody has swept for so many seconds."""
        # A pulse from the future was written before the clock stepped back: nobody knows its age.
        return abs(self.installed if self.age is None else self.age) > after

    def needs_stand_in(self, after: float) -> bool:
        """Whether nobody has swept in its place either."""
        return self.late(after) and (self.stand_in_age is None or abs(self.stand_in_age) > after)


class Watch:
    """Reads only."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        oldest = [
            _oldest(sessions, s.due_at, ACTIVE),
            _oldest(sandboxes, b.due_at, CREATING),
            _oldest(sandboxes, b.due_at, CLOSING, b.quarantined_at.is_(None)),
        ]
        self._pulse = select(
            i.swept_at, i.stood_in_at, i.created_at, rules.now.label("at"), *oldest
        )
        w = windows.c
        self._window = select(w.name).where(rules.window_open).order_by(w.until_at.desc()).limit(1)
        self._held = select(func.count()).select_from(holds).where(holds.c.until.is_(None))

    def pulse(self) -> Pulse:
        """How the sweep is doing."""
        with self.database.look() as look:
            row = look.connection.execute(self._pulse).one()
            held = look.connection.execute(self._held).scalar_one()
            window = look.connection.execute(self._window).scalar()
        dues = [due for due in row[4:] if due is not None]
        return Pulse(
            swept_at=row.swept_at,
            age=_seconds(row.swept_at, row.at),
            stand_in_age=_seconds(row.stood_in_at, row.at),
            installed=_seconds(row.created_at, row.at) or 0.0,
            overdue=max([(row.at - due).total_seconds() for due in dues] + [0.0]),
            held=held,
            window=window,
        )


def _oldest(
    table: FromClause, due_at: ColumnElement[datetime], *where: ColumnElement[bool]
) -> ColumnElement[datetime]:
    return (
        select(due_at).select_from(table).where(*where).order_by(due_at).limit(1).scalar_subquery()
    )


def _seconds(since: datetime | None, now: datetime) -> float | None:
    return None if since is None else (now - since).total_seconds()
