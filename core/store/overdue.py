"""
What waits too long: a session or a create that no sweep moved in time, and a sandbox that is
closing for longer than three sweeps and one teardown take. The date when a teardown is due next
tells nothing of that: every attempt, and every sweep that publishes it again, puts it off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, FromClause, Select, and_, case, func, or_, select, union_all

from ..schema import sessions
from .database import Database, Move
from .rules import ACTIVE, CLOSING, CREATING, OF_SESSION, Rules, b, s
from .sql import Seconds

LOTS: Final = 10_000  # rows, up to which is counted
FEW: Final = 2_000  # of each kind, that are named one by one; more are found everywhere
_SETTLED = and_(CLOSING, b.quarantined_at.is_(None))


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """A sandbox that is closing for too long, for so many seconds."""

    session_id: str
    provider: str
    attempts: int
    last_error: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How much waits too long; each at most LOTS. `worst` is what is closing for longest."""

    sessions: int = 0
    creating: int = 0
    closing: int = 0
    untried: int = 0  # of those that are closing: nobody has tried to tear them down
    worst: Stuck | None = None

    @property
    def total(self) -> int:
        return self.sessions + self.creating + self.closing


class Overdue:
    """Reads only."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        since = rules.in_(-rules.policy.late_after)
        self._stuck_since = rules.in_(-rules.policy.late_after - rules.policy.claim_ttl)
        self._since = since
        active, creating = and_(ACTIVE, s.due_at <= since), and_(CREATING, b.due_at <= since)
        waits = or_(creating, and_(_SETTLED, self._stuck(b.due_at, b.closing_at)))
        # As a value, not an EXISTS: for that a planner may read the sandboxes of everybody.
        box = select(b.key).where(OF_SESSION, waits).correlate(sessions).scalar_subquery()
        self.rule: ColumnElement[bool] = or_(active, box.is_not(None))
        # What is due first: however many are closing, no more of them are looked at.
        columns = (b.session_id, b.provider, b.attempts, b.last_error, b.due_at, b.closing_at)
        first = select(*columns).where(_SETTLED).order_by(b.due_at).limit(LOTS).subquery("first")
        stuck = self._stuck(first.c.due_at, first.c.closing_at)
        self._ids = union_all(
            _few(select(s.id.label("id")).where(active).order_by(s.due_at)),
            _few(select(b.session_id.label("id")).where(creating).order_by(b.due_at)),
            _few(select(first.c.session_id.label("id")).where(stuck)),
        )
        untried = func.sum(case((first.c.attempts == 0, 1), else_=0))
        self._closing = select(
            func.count().label("closing"), func.coalesce(untried, 0).label("untried")
        ).where(stuck)
        self._rest = select(
            _up_to_lots(select(s.id).where(active)).label("sessions"),
            _up_to_lots(select(b.key).where(creating)).label("creating"),
        )
        seconds = Seconds(first.c.closing_at, rules.now).label("seconds")
        names = ("session_id", "provider", "attempts", "last_error")
        worst = select(*(first.c[name] for name in names), seconds).where(stuck)
        self._worst = worst.order_by(first.c.closing_at).limit(1)

    def waiting(self) -> Waiting:
        """How much there is of it."""
        with self.database.look() as look:
            counts = look.connection.execute(self._rest).one()._mapping
            closing = look.connection.execute(self._closing).one()._mapping
            worst = look.one(self._worst) if closing["closing"] else None
        stuck = None if worst is None else Stuck(**worst._mapping)
        return Waiting(**counts, **closing, worst=stuck)

    def ids(self, look: Move) -> list[str] | None:
        """The sessions, by the indexes that the sweep has; None when they are many."""
        found = list(look.connection.execute(self._ids).scalars())
        return None if len(found) >= FEW else sorted(set(found))

    def _stuck(self, due_at: Any, closing_at: Any) -> ColumnElement[bool]:
        return or_(due_at <= self._since, closing_at <= self._stuck_since)


def _few(query: Select[Any]) -> Select[Any]:
    # A subquery each: SQLite takes no ORDER BY within a UNION.
    found: FromClause = query.limit(FEW).subquery()
    return select(found.c.id)


def _up_to_lots(query: Select[Any]) -> ColumnElement[int]:
    return select(func.count()).select_from(query.limit(LOTS).subquery()).scalar_subquery()
