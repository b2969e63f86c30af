"""
Which sessions match what a person asked for, by id. Whatever is asked and however many there are,
one step looks at a bounded stretch of an index: what is seldom found is found in several steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    String,
    and_,
    bindparam,
    func,
    or_,
    select,
)

from ..model import SandboxState, SessionStatus
from ..schema import sandboxes, sessions, turns
from .database import Database, Move
from .listings import STATES
from .rules import ACTIVE, CLOSING, CREATING, OF_SESSION, Rules, b, s, t
from .sql import Seconds

STRETCH = 20_000  # ids that one step looks at
STEPS = 5  # for one page
UNSETTLED = frozenset({SandboxState.CREATING, SandboxState.CLOSING})
# As the index says it: SQLite compares the words.
_UNSETTLED = b.state.in_(["creating", "closing"])


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a session has to be. `idle` is seconds without activity, `prefix` the id's beginning."""

    status: SessionStatus | None = None
    tenant: str | None = None
    state: SandboxState | None = None
    idle: float | None = None
    prefix: str | None = None
    overdue: bool = False


@dataclass(frozen=True, kw_only=True)
class Match:
    """One session as a list shows it. `idle` and `ends_in` are seconds."""

    id: str
    tenant: str
    status: str
    generation: int
    sandbox: str
    turns_open: int
    idle: float
    ends_in: float
    noticed: bool
    end_reason: str | None
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """Matches, and the id behind which to go on; None at the end of all sessions."""

    matches: Sequence[Match]
    behind: str | None
    looked: int = 0  # ids, where not all could be looked at


class Selection:
    """Reads only."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._rules = rules
        self._after = bindparam("after", type_=String)
        self._limit = bindparam("limit", type_=Integer)
        open_turns = (
            select(func.count())
            .select_from(turns)
            .where(t.session_id == s.id, t.ended_at.is_(None), t.generation == s.generation)
            .scalar_subquery()
        )
        self._columns = (
            s.id,
            s.tenant,
            s.status,
            s.generation,
            b.state.label("sandbox"),
            open_turns.label("turns_open"),
            Seconds(s.last_activity_at, rules.now).label("idle"),
            Seconds(rules.now, rules.ends_at).label("ends_in"),
            s.noticed_at.is_not(None).label("noticed"),
            s.end_reason,
            s.ended_at,
        )

    def page(self, wish: Wish, *, after: str = "", limit: int) -> Found:
        """Matches by id, from behind `after`; fewer than there are when they are far apart."""
        found: list[Match] = []
        looked = 0
        with self.database.look() as look:
            for start, upto in self._stretches(look, wish, after):
                looked += STRETCH
                found += self._matches(look, wish, start, upto, limit + 1 - len(found))
                if len(found) > limit:
                    return Found(matches=found[:limit], behind=found[limit - 1].id)
                if upto is None:
                    return Found(matches=found, behind=None)
                after = upto
        return Found(matches=found, behind=after, looked=looked)

    def count(self, wish: Wish, *, steps: int = STEPS) -> tuple[int, bool]:
        """How many match, and whether there may be more: so many steps were not enough."""
        total = 0
        with self.database.look() as look:
            for start, upto in self._stretches(look, wish, "", steps):
                query = self._wanted(select(func.count().label("found")), wish, upto)
                total += look.connection.execute(query, _of(wish, start, upto)).scalar_one()
                if upto is None:
                    return total, False
        return total, True

    def _stretches(
        self, look: Move, wish: Wish, after: str, steps: int = STEPS
    ) -> Iterator[tuple[str, str | None]]:
        """From behind which id up to which, None for all that is left; so many of them at most."""
        for _ in range(steps):
            last = look.one(self._end_of_stretch(wish), {**_of(wish, after), "limit": STRETCH - 1})
            upto = None if last is None else str(last.id)
            yield after, upto
            if upto is None:
                return
            after = upto

    def _end_of_stretch(self, wish: Wish) -> Select[Any]:
        """In the index that has the fewest of those that cannot match."""
        if wish.state in UNSETTLED:
            query = select(b.session_id.label("id")).where(_UNSETTLED, b.session_id > self._after)
            return query.order_by(b.session_id).offset(self._limit).limit(1)
        query = select(s.id).where(s.id > self._after, *self._indexed(wish))
        return query.order_by(s.id).offset(self._limit).limit(1)

    def _indexed(self, wish: Wish) -> list[ColumnElement[bool]]:
        """What one index knows of a session: what two know, neither of them bounds."""
        found = [] if wish.prefix is None else [s.id >= bindparam("prefix", type_=String)]
        if wish.tenant is not None:
            found.append(s.tenant == bindparam("tenant", type_=String))
        elif wish.status is SessionStatus.ACTIVE:
            found.append(ACTIVE)
        return found

    def _wanted(self, query: Select[Any], wish: Wish, upto: str | None) -> Select[Any]:
        # Another statement for each wish, not parameters that may be null: a plan fits its words.
        rules = self._rules
        query = query.select_from(sessions).join(sandboxes, OF_SESSION)
        # Said of both tables, so that either is read in this stretch alone.
        query = query.where(s.id > self._after, b.session_id > self._after, *self._indexed(wish))
        if upto is not None:
            end = bindparam("upto", type_=String)
            query = query.where(s.id <= end, b.session_id <= end)
        if wish.status is not None:
            # Not ENDED: purge's index, which has no order of ids, would be read as a whole.
            query = query.where(ACTIVE if wish.status is SessionStatus.ACTIVE else ~ACTIVE)
        if wish.state is not None:
            query = query.where(STATES[wish.state])
        if wish.state in UNSETTLED:
            query = query.where(_UNSETTLED)
        if wish.idle is not None:
            seconds = bindparam("idle", type_=rules.seconds)
            query = query.where(s.last_activity_at <= rules.in_(-seconds))
        if wish.prefix is not None:
            prefix = bindparam("prefix", type_=String)
            query = query.where(func.substr(s.id, 1, func.length(prefix)) == prefix)
        return query.where(overdue(rules)) if wish.overdue else query

    def _matches(
        self, look: Move, wish: Wish, after: str, upto: str | None, limit: int
    ) -> list[Match]:
        query = self._wanted(select(*self._columns), wish, upto).order_by(s.id).limit(self._limit)
        rows = look.all(query, {**_of(wish, after, upto), "limit": limit})
        return [_match(row) for row in rows]


def overdue(rules: Rules) -> ColumnElement[bool]:
    """A session that waits longer than any sweep in time lets it wait, or its sandbox does."""
    since = rules.in_(-rules.policy.late_after)
    waits = and_(or_(CREATING, CLOSING), b.due_at <= since, b.quarantined_at.is_(None))
    return or_(and_(ACTIVE, s.due_at <= since), waits)


def _match(row: Row[Any]) -> Match:
    fields = dict(row._mapping)
    return Match(**{**fields, "noticed": bool(fields["noticed"])})


def _of(wish: Wish, after: str, upto: str | None = None) -> dict[str, Any]:
    given = {"tenant": wish.tenant, "idle": wish.idle, "prefix": wish.prefix, "upto": upto}
    return {"after": after, **{name: value for name, value in given.items() if value is not None}}
