"""
Which teardowns are published next. The broker's queue is first come, first served: so no more is
put into it than its bound, and of what waits in the rows each tenant gets its share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    String,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    text,
    true,
    update,
)

from ..schema import IN_FLIGHT, providers, sandboxes
from .database import Database, Move
from .health import blocked
from .rules import CLOSING, UNHELD, Rules, b
from .sql import any_of, listed

AT_ONCE = 500  # tenants that are asked by one statement
Pairs = list[tuple[str, int]]
p = providers.c
_limit = bindparam("limit", type_=Integer)
_of_provider = bindparam("of_provider", type_=String)


@dataclass(frozen=True, kw_only=True)
class Room:
    """A provider that has teardowns waiting, and how many of them may be published now."""

    provider: str
    room: int


class Publications:
    """
    What is published is due again after the publish lease: a crash between the commit and the
    publication costs that, and nothing else. Published, or claimed, and not done is in flight.
    """

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._bound = rules.policy.in_flight_bound
        self._prepare_rooms(rules)
        self._prepare_tenants()
        self._prepare_shares(rules)
        self._prepare_failing(rules)

    def rooms(self, only: str | None = None) -> list[Room]:
        """Providers that can be called now and have less in flight than the bound; or this one."""
        with self.database.look() as look:
            rows = look.all(self._rooms, {"only": only})
        found = [Room(provider=row.provider, room=self._bound - row.flying) for row in rows]
        return [room for room in found if room.room > 0]

    def take(self, room: Room, limit: int) -> Pairs:
        """
        Due teardowns of a provider, `limit` at most: of each tenant as many as of the next one,
        its most overdue first, and what one tenant does not use is for the others.
        """
        taken: Pairs = []
        with self.database.move() as move:
            # Read anew by each batch, or all batches of one sweep would be for the same tenants.
            last = move.one(self._last, {"of_provider": room.provider})
            after = "" if last is None else last.published_after or ""
            for tenants in self._in_turn(move, room.provider, after):
                served = tenants[: limit - len(taken)]
                taken += self._share(move, room.provider, served, limit - len(taken))
                if len(taken) < limit:
                    continue
                if after or len(served) < len(tenants) or len(tenants) >= AT_ONCE:
                    # Not everybody had a turn: the next call goes on behind.
                    of = {"of_provider": room.provider, "tenant": served[-1]}
                    move.run(self._remember, of)
                break
        return taken

    def failing(self, limit: int) -> tuple[int, Pairs]:
        """
        The quarantined ones, most overdue first: how many, and those whose provider answers. They
        have a queue of their own, so that they hold nobody up.
        """
        with self.database.move() as move:
            rows = move.all(self._lock_failing, {"limit": limit})
            self._lease_rows(move, rows)
        return len(rows), [(row.session_id, row.generation) for row in rows if not row.blocked]

    def _in_turn(self, move: Move, provider: str, last: str) -> Iterator[list[str]]:
        """Everybody who waits, once: from whose turn it is to the last, then from the first."""
        seen: set[str] = set()
        tenants: list[str] = []
        for after in dict.fromkeys((last, "")):
            while True:
                of = {"of_provider": provider, "after": after, "limit": AT_ONCE}
                found = [row.tenant for row in move.all(self._tenants, of)]
                new = [tenant for tenant in found if tenant not in seen]
                seen.update(new)
                tenants += new
                if len(new) < AT_ONCE:
                    break
                yield tenants
                tenants, after = [], new[-1]
        yield tenants

    def _share(self, move: Move, provider: str, tenants: Sequence[str], left: int) -> Pairs:
        taken: Pairs = []
        while tenants and left > 0:
            share = max(1, left // len(tenants))
            of = {"of_provider": provider, "tenants": list(tenants[:left]), "share": share}
            rows = move.all(self._shares, of)
            self._lease_rows(move, rows)
            taken += [(row.session_id, row.generation) for row in rows]
            left -= len(rows)
            had = Counter(row.tenant for row in rows)
            tenants = [tenant for tenant in tenants if had[tenant] == share]
        return taken

    def _lease_rows(self, move: Move, rows: Sequence[Row[Any]]) -> None:
        if rows:
            move.run(self._lease, {"keys": [row.key for row in rows]})

    # Statements, built once

    def _prepare_rooms(self, rules: Rules) -> None:
        each = _distinct("each_provider", sandboxes.alias("w"), "provider").c
        flying = (
            select(func.count())
            .select_from(sandboxes)
            .where(in_flight(rules.now), b.provider == each.value)
            .correlate(each.value.table)
            .scalar_subquery()
        )
        only = bindparam("only", type_=String)
        self._rooms = (
            select(each.value.label("provider"), flying.label("flying"))
            .where(each.value.is_not(None), or_(only.is_(None), each.value == only))
            .where(~blocked(rules, each.value))
            .order_by(each.value)
        )

    def _prepare_tenants(self) -> None:
        each = _distinct(
            "each_tenant", sandboxes.alias("w"), "tenant", after=True, of_provider=True
        ).c
        self._tenants = select(each.value.label("tenant")).where(each.value.is_not(None))

    def _prepare_shares(self, rules: Rules) -> None:
        tenants = listed("tenants", postgresql=self.database.single_statement)
        w = sandboxes.alias("w")
        due = (
            select(w.c.key, w.c.session_id, w.c.generation, w.c.due_at)
            .where(*_waiting(w), w.c.provider == _of_provider, w.c.tenant == tenants.c.value)
            .where(w.c.due_at <= rules.now, UNHELD)
            .order_by(w.c.due_at)
            .limit(bindparam("share", type_=Integer))
            .correlate(tenants)
        )
        tenant = tenants.c.value.label("tenant")
        mine: FromClause
        if self.database.single_statement:
            mine = due.with_for_update(of=w, skip_locked=True).lateral("mine")
            of_each = tenants.join(mine, true())
        else:  # SQLite has one writer, and no LATERAL
            mine = sandboxes
            keys = due.with_only_columns(w.c.key).scalar_subquery()
            of_each = tenants.join(mine, b.key.in_(keys))
        columns = (mine.c.key, mine.c.session_id, mine.c.generation)
        self._shares = select(tenant, *columns).select_from(of_each).order_by(mine.c.due_at)
        self._lease = (
            update(sandboxes)
            # By key alone, locked as they are: with the state the planner takes its index, and
            # reads all that is closing for each batch.
            .where(any_of(b.key, "keys"))
            .values(due_at=rules.in_(rules.policy.publish_lease))
        )
        self._last = select(p.published_after).where(p.provider == _of_provider)
        self._remember = (
            self.database.insert(providers)
            .values(provider=_of_provider, published_after=bindparam("tenant", type_=String))
            .on_conflict_do_update(
                index_elements=["provider"],
                set_={"published_after": bindparam("tenant", type_=String)},
            )
        )

    def _prepare_failing(self, rules: Rules) -> None:
        self._lock_failing = (
            select(b.key, b.session_id, b.generation)
            .add_columns(blocked(rules, b.provider).label("blocked"))
            .where(CLOSING, b.quarantined_at.is_not(None), b.due_at <= rules.now, UNHELD)
            .order_by(b.due_at)
            .limit(_limit)
            .with_for_update(of=sandboxes, skip_locked=True)
        )


def in_flight(now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """
    In SQL: whether a teardown was published or is claimed, and that has not run out. Not of the
    quarantined: a batch of them is published by each sweep, whatever else there is, and would
    leave no room to what does not fail.
    """
    return and_(text(IN_FLIGHT), b.due_at > now)


def _waiting(table: FromClause) -> tuple[ColumnElement[bool], ...]:
    return table.c.not_before.is_not(None), table.c.quarantined_at.is_(None)


def _distinct(
    name: str,
    table: FromClause,
    column: str,
    *,
    after: bool = False,
    of_provider: bool = False,
) -> CTE:
    """
    The distinct values of a column among what waits, and NULL at last: from each the index leads
    to the next one, so that it reads an entry a value, however many rows have it.
    """
    found = table.c[column]
    first = select(found).where(*_waiting(table)).order_by(found).limit(1)
    if of_provider:
        first = first.where(table.c.provider == _of_provider)
    start: Select[Any] = first
    if after:
        start = first.where(found > bindparam("after", type_=String))
    each = select(start.scalar_subquery().label("value"), literal(1).label("n")).cte(
        name, recursive=True
    )
    following = first.where(found > each.c.value).correlate(each).scalar_subquery()
    more = select(following, each.c.n + 1).where(each.c.value.is_not(None))
    if of_provider:
        more = more.where(each.c.n < _limit)
    return each.union_all(more)
