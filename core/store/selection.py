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
    bindparam,
    func,
    select,
)

from ..model import SandboxState, SessionStatus
from ..schema import sandboxes, sessions, turns
from .database import Database, Move
from .listings import STATES
from .overdue import Overdue
from .rules import ACTIVE, OF_SESSION, Rules, b, s, t
from .sql import Seconds, any_of

STRETCH = 20_000  # ids that one step looks at
STEPS = 5  # for one page
_upto = bindparam("upto", type_=String)
UNSETTLED = frozenset({SandboxState.CREATING, SandboxState.CLOSING})
# As the index says it: SQLite compares the words.
_UNSETTLED = b.state.in_(["creating", "closing"])
# As a value, not a join: for that a planner may read the sandboxes of everybody.
_state = select(b.state).where(OF_SESSION).correlate(sessions).scalar_subquery()


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


@dataclass(frozen=True)
class Stretch:
    """Ids from behind one up to another, None for all that are left; of these alone if it says."""

    after: str
    upto: str | None = None
    ids: Sequence[str] | None = None


class Selection:
    """Reads only."""

    def __init__(self, database: Database, rules: Rules, overdue: Overdue) -> None:
        self.database = database
        self._rules = rules
        self._overdue = overdue
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
            _state.label("sandbox"),
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
            for stretch in self._stretches(look, wish, after):
                looked += STRETCH
                found += self._matches(look, wish, stretch, limit + 1 - len(found))
                if len(found) > limit:
                    return Found(matches=found[:limit], behind=found[limit - 1].id)
                if stretch.upto is None:
                    return Found(matches=found, behind=None)
                after = stretch.upto
        return Found(matches=found, behind=after, looked=looked)

    def count(self, wish: Wish, *, steps: int = STEPS) -> tuple[int, bool]:
        """How many match, and whether there may be more: so many steps were not enough."""
        total = 0
        with self.database.look() as look:
            for stretch in self._stretches(look, wish, "", steps):
                query = self._wanted(select(func.count().label("found")), wish, stretch)
                total += look.connection.execute(query, _of(wish, stretch)).scalar_one()
                if stretch.upto is None:
                    return total, False
        return total, True

    def _stretches(
        self, look: Move, wish: Wish, after: str, steps: int = STEPS
    ) -> Iterator[Stretch]:
        """One after the other, so many of them at most."""
        ids = self._overdue.ids(look) if wish.overdue else None
        if ids is not None:
            yield Stretch(after, None, ids)
            return
        for _ in range(steps):
            of = {**_of(wish, Stretch(after)), "limit": STRETCH - 1}
            last = look.one(self._end_of_stretch(wish), of)
            upto = None if last is None else str(last.id)
            yield Stretch(after, upto)
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

    def _wanted(self, query: Select[Any], wish: Wish, stretch: Stretch) -> Select[Any]:
        # Another statement for each wish, not parameters that may be null: a plan fits its words.
        rules = self._rules
        query = query.select_from(sessions).where(s.id > self._after, *self._indexed(wish))
        if stretch.upto is not None:
            query = query.where(s.id <= _upto)
        if stretch.ids is not None:
            query = query.where(any_of(s.id, "ids"))
        elif wish.overdue:
            query = query.where(self._overdue.rule)
        if wish.status is not None:
            # Not ENDED: purge's index, which has no order of ids, would be read as a whole.
            query = query.where(ACTIVE if wish.status is SessionStatus.ACTIVE else ~ACTIVE)
        if wish.state is not None:
            query = self._in_state(query, wish.state, stretch)
        if wish.idle is not None:
            seconds = bindparam("idle", type_=rules.seconds)
            query = query.where(s.last_activity_at <= rules.in_(-seconds))
        if wish.prefix is not None:
            prefix = bindparam("prefix", type_=String)
            query = query.where(func.substr(s.id, 1, func.length(prefix)) == prefix)
        return query

    def _in_state(self, query: Select[Any], state: SandboxState, stretch: Stretch) -> Select[Any]:
        if state not in UNSETTLED:
            return query.where(_state == state.value)
        # Few are unsettled, and their index is read: in this stretch alone, if it is told so.
        query = query.join(sandboxes, OF_SESSION).where(b.session_id > self._after)
        if stretch.upto is not None:
            query = query.where(b.session_id <= _upto)
        return query.where(_UNSETTLED, STATES[state])

    def _matches(self, look: Move, wish: Wish, stretch: Stretch, limit: int) -> list[Match]:
        query = self._wanted(select(*self._columns), wish, stretch).order_by(s.id)
        rows = look.all(query.limit(self._limit), {**_of(wish, stretch), "limit": limit})
        return [_match(row) for row in rows]


def _match(row: Row[Any]) -> Match:
    fields = dict(row._mapping)
    return Match(**{**fields, "noticed": bool(fields["noticed"])})


def _of(wish: Wish, stretch: Stretch) -> dict[str, Any]:
    given: dict[str, Any] = {"tenant": wish.tenant, "idle": wish.idle, "prefix": wish.prefix}
    given |= {"after": stretch.after, "upto": stretch.upto, "ids": stretch.ids}
    return {name: value for name, value in given.items() if value is not None}
