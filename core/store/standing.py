"""
How many of each there are, for people. Above a hundred thousand nobody needs the last digit, and
no page may read a row of each session: from there on the database's own statistics tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    column,
    func,
    select,
    table,
)

from ..schema import orphans
from .database import Database, Move
from .rules import ACTIVE, CLOSING, CREATING, RUNNING, b, s

MOST: Final = (
    100_000  # of each, up to which is counted; and sessions of a tenant that are looked at
)
MOST_OF_TENANT: Final = 10_000
# What knows how many there are beyond that.
_INDEXES: Final = {"active": "sessions_active", "running": "sandboxes_running"}
_QUARANTINED = and_(CLOSING, b.quarantined_at.is_not(None))
_SETTLED = and_(CLOSING, b.quarantined_at.is_(None))
_most = bindparam("most", type_=Integer)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """
    How many there are, counted up to `most`. `about` says of what was more how many that is,
    roughly. `orphans` is None to one tenant.
    """

    active: int
    creating: int
    running: int
    closing: int
    quarantined: int
    orphans: int | None = None
    most: int
    about: Mapping[str, int]


class Standings:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self.database = database
        # In the order of its index each: else a planner reads the table, from its oldest end.
        of_all = {
            "active": select(s.id).where(ACTIVE).order_by(s.id),
            "creating": select(b.due_at).where(CREATING).order_by(b.due_at),
            "running": select(b.key).where(RUNNING).order_by(b.provider, b.key),
            "closing": select(b.due_at).where(_SETTLED).order_by(b.due_at),
            "quarantined": select(b.due_at).where(_QUARANTINED).order_by(b.due_at),
            "orphans": select(orphans.c.external_id),
        }
        self._of_all = select(*(_up_to_most(query).label(name) for name, query in of_all.items()))
        of_tenant = {
            "active": _theirs(),
            "creating": _their_share(CREATING),
            "closing": _their_share(_SETTLED),
            "quarantined": _their_share(_QUARANTINED),
        }
        self._of_tenant = select(*(count.label(name) for name, count in of_tenant.items()))
        self._size: Select[Any] = (
            select(column("reltuples"))
            .select_from(table("pg_class"))
            .where(column("oid") == func.to_regclass(bindparam("index", type_=String)))
        )

    def of_all(self) -> Standing:
        """What the whole installation has."""
        with self.database.look() as look:
            counts = look.connection.execute(self._of_all, {"most": MOST}).one()._mapping
            about = {
                name: max(MOST, self._entries(look, index))
                for name, index in _INDEXES.items()
                if counts[name] >= MOST
            }
        return Standing(**counts, most=MOST, about=about)

    def of_tenant(self, tenant: str) -> Standing:
        """What one tenant has."""
        of = {"tenant": tenant, "most": MOST_OF_TENANT, "looked": MOST}
        with self.database.look() as look:
            row = look.connection.execute(self._of_tenant, of).one()
        # An active session's sandbox is the one or the other.
        running = max(0, row.active - row.creating)
        return Standing(**row._mapping, running=running, most=MOST_OF_TENANT, about={})

    def _entries(self, look: Move, index: str) -> int:
        """As of when it was vacuumed or analysed last; nothing on SQLite, which is for one host."""
        if not self.database.single_statement:
            return 0
        row = look.one(self._size, {"index": index})
        return 0 if row is None else int(row.reltuples)


def _up_to_most(query: Select[Any]) -> ColumnElement[int]:
    return select(func.count()).select_from(query.limit(_most).subquery()).scalar_subquery()


def _theirs() -> ColumnElement[int]:
    """Active sessions of a tenant, among so many of its own."""
    of = s.tenant == bindparam("tenant", type_=String)
    looked = bindparam("looked", type_=Integer)
    first = select(s.id, s.status).where(of).order_by(s.tenant, s.id).limit(looked)
    ours = first.subquery("ours")
    return _up_to_most(select(ours.c.id).where(ours.c.status == "active"))


def _their_share(rule: ColumnElement[bool]) -> ColumnElement[int]:
    """Of the sandboxes that are so and due first, those of a tenant."""
    first = select(b.session_id).where(rule).order_by(b.due_at).limit(_most).subquery("first")
    tenant = select(s.tenant).where(s.id == first.c.session_id).correlate(first).scalar_subquery()
    mine = select(first.c.session_id).where(tenant == bindparam("tenant", type_=String))
    return select(func.count()).select_from(mine.subquery()).scalar_subquery()
