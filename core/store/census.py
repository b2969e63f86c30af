"""What there is, in numbers: for metrics. Each is counted in an index that has little else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, FromClause, func, select

from ..schema import call_slots, orphans, providers, sandboxes, sessions
from .database import Database
from .publications import in_flight
from .rules import ACTIVE, CLOSING, CREATING, RUNNING, b


@dataclass(frozen=True, kw_only=True)
class Census:
    """How many of each there are now."""

    sessions_active: int
    sandboxes: Mapping[str, int]  # by state, without those that are gone
    quarantined: int
    orphans: int
    circuits_open: int
    in_flight: int  # published or claimed, and not done; without the quarantined
    slots_taken: int  # of PROVIDER_CONCURRENCY


class Counts:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self.database = database
        waiting = b.quarantined_at.is_(None)
        # One scalar each: a GROUP BY would read every sandbox that is gone.
        self._census = select(
            _count(sessions, ACTIVE).label("active"),
            _count(sandboxes, CREATING).label("creating"),
            _count(sandboxes, RUNNING).label("running"),
            _count(sandboxes, CLOSING, waiting).label("closing"),
            _count(sandboxes, CLOSING, ~waiting).label("quarantined"),
            _count(orphans).label("orphans"),
            _count(providers, providers.c.open_until > database.now).label("circuits"),
            _count(sandboxes, in_flight(database.now)).label("in_flight"),
            _count(call_slots, call_slots.c.until > database.now).label("slots"),
        )

    def census(self) -> Census:
        """All of it at one moment."""
        with self.database.look() as look:
            row = look.connection.execute(self._census).one()
        states = {name: row._mapping[name] for name in ("creating", "running")}
        return Census(
            sessions_active=row.active,
            sandboxes={**states, "closing": row.closing + row.quarantined},
            quarantined=row.quarantined,
            orphans=row.orphans,
            circuits_open=row.circuits,
            in_flight=row.in_flight,
            slots_taken=row.slots,
        )


def _count(table: FromClause, *where: ColumnElement[bool]) -> ColumnElement[int]:
    return select(func.count()).select_from(table).where(*where).scalar_subquery()
