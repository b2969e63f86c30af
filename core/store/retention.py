"""Forgetting what ended long ago, in bounded batches."""

from __future__ import annotations

from sqlalchemy import and_, bindparam, delete, exists, func, or_, select, update

from ..schema import earlier_promises, events, installation, sandboxes, sessions, turns
from .database import Database
from .rules import ENDED, GONE, UNHELD, Rules, b, locked, s
from .sql import any_of


class Retention:
    """
    A session goes when it ended, and its last sandbox was confirmed gone, longer ago than the
    retention. Not earlier: a create that lands late must still find the row that condemns it.
    And not before each of its lines was counted: nothing else has them.
    """

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        horizon = rules.in_(-rules.policy.retention)
        kept = exists(
            select(1)
            .where(b.session_id == s.id, or_(~GONE, b.gone_at > horizon))
            .correlate(sessions)
        )
        told = select(installation.c.told).scalar_subquery()
        counted = ~exists(
            select(1).where(events.c.session_id == s.id, events.c.id > told).correlate(sessions)
        )
        self._forgettable = locked(
            select(s.id)
            .where(and_(ENDED, s.ended_at <= horizon), counted, ~kept, UNHELD)
            .order_by(s.ended_at)
            .limit(bindparam("limit", type_=s.generation.type)),
            skip=True,
        )
        self._deletes = (
            delete(events).where(any_of(events.c.session_id, "ids")),
            delete(turns).where(any_of(turns.c.session_id, "ids")),
            delete(earlier_promises).where(any_of(earlier_promises.c.session_id, "ids")),
            delete(sandboxes).where(any_of(b.session_id, "ids")),
            delete(sessions).where(any_of(s.id, "ids")),
        )

        # SQLite gives the id of a last row that was deleted to the next one, which must be counted.
        last = func.coalesce(select(func.max(events.c.id)).scalar_subquery(), 0)
        back = update(installation).values(told=last, seen=last).where(installation.c.told > last)
        self._back = None if database.single_statement else back

    def purge(self, limit: int) -> int:
        """Delete at most `limit` sessions with all that belongs to them; returns how many."""
        with self.database.move() as move:
            ids = [row.id for row in move.all(self._forgettable, {"limit": limit})]
            if ids:
                for statement in self._deletes:
                    move.run(statement, {"ids": ids})
                if self._back is not None:
                    move.run(self._back)
        return len(ids)
