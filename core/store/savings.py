"""
What savings.py counts, read by stretches of sandboxes in the order of sessions and generations:
no statement, and nothing in memory, grows with how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    String,
    bindparam,
    cast,
    literal,
    null,
    select,
    tuple_,
    union_all,
)

from ..events import EventKind
from ..model import EndReason
from ..savings import Act, Book, Ending, Life, Meter, Span, Use
from ..schema import UTCDateTime, events, sandboxes, sessions
from .database import Database
from .rules import Rules, b, s, t
from .sql import any_of

STRETCH: Final = 500  # sandboxes that one statement reads
USES: Final = 5_000  # turns and promises that one statement reads
LOTS: Final = 20_000  # sandboxes that one call reads, and to the end of that session
_LAST: Final = (1 << 31) - 1  # no generation is greater
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ENDINGS: Final = {EndReason.IDLE.value: Ending.IDLE, EndReason.LOST.value: Ending.LOST}
e = events.c
Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What some sandboxes come to, and behind which session to go on; None: there are no more."""

    span: Span
    book: Book
    read: int
    behind: str | None


@dataclass(frozen=True, kw_only=True)
class _Box:
    """A sandbox, and until when a turn on it that nobody ended was alive."""

    life: Life
    silent: float

    @property
    def key(self) -> Key:
        return self.life.session_id, self.life.generation

    def use(self, row: Row[Any]) -> Use:
        """What this row says of it."""
        at = row.at.timestamp()
        if row.act == Act.TURN:
            ended = row.ended_at or row.hard_until
            until = ended.timestamp() if row.ended_at else min(ended.timestamp(), self.silent)
        else:
            until = at if row.promised is None else _parsed(row.promised)
        return Use(act=Act(row.act), at=at, until=until)


class Savings:
    """Reads only."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._now = select(rules.now.label("now"))
        self._sandboxes = _sandboxes()
        self._endings = (
            select(e.session_id, e.generation, e.detail["reason"].as_string().label("reason"))
            .where(any_of(e.session_id, "ids"), e.kind == EventKind.SESSION_ENDED.value)
            .where(*_between(e.session_id, e.generation))
        )
        self._uses = _uses()

    def span(self, seconds: float) -> Span:
        """The last so many seconds, by the database's clock."""
        with self.database.look() as look:
            (row,) = look.all(self._now)
        until = row.now.timestamp()
        return Span(since=until - seconds, until=until)

    def read(
        self,
        span: Span,
        ttls: Sequence[float],
        *,
        tenant: str | None = None,
        after: str = "",
        most: int = LOTS,
    ) -> Reading:
        """
        Sandboxes of the sessions behind `after`, about `most` of them: a session is never parted,
        so what several readings of one span come to may be added.
        """
        meter = Meter(span, ttls)
        read, place = 0, (after, _LAST if after else 0)
        behind: str | None = None
        while behind is None and (rows := self._stretch(tenant, place)):
            for life, uses in self._used(rows, meter.horizon):
                if read >= most and life.session_id != place[0]:
                    behind = place[0]
                    break
                read, place = read + 1, (life.session_id, life.generation)
                meter.count(life, uses)
        meter.finish()
        return Reading(span=span, book=meter.book, read=read, behind=behind)

    def _stretch(self, tenant: str | None, behind: Key) -> Sequence[Row[Any]]:
        of: dict[str, Any] = {"after_id": behind[0], "after_generation": behind[1]}
        query = self._sandboxes
        if tenant is not None:
            # Another statement, not a parameter that may be null: a plan is made for its values.
            query, of["tenant"] = query.where(s.tenant == bindparam("tenant")), tenant
        with self.database.look() as look:
            return look.all(query, {**of, "limit": STRETCH})

    def _used(
        self, rows: Sequence[Row[Any]], horizon: float
    ) -> Iterator[tuple[Life, Iterable[Use]]]:
        """Each sandbox with its uses, of which no more are in memory than one statement reads."""
        recent = [row for row in rows if row.gone_at is None or row.gone_at.timestamp() > horizon]
        endings = self._reasons(recent)
        keys = {(row.session_id, row.generation) for row in recent}
        used = groupby(self._rows(recent), key=lambda row: (row.session_id, row.generation))
        groups = ((key, group) for key, group in used if key in keys)
        # Both in the order that this database sorts ids in, so each group is its sandbox's or a
        # later one's.
        key, group = next(groups, (None, iter(())))
        for row in rows:
            box = _box(row, endings.get((row.session_id, row.generation)))
            if box.key == key:
                yield box.life, map(box.use, group)
                key, group = next(groups, (None, iter(())))
            else:
                yield box.life, ()

    def _reasons(self, rows: Sequence[Row[Any]]) -> Mapping[Key, str]:
        if not rows:
            return {}
        with self.database.look() as look:
            found = look.all(self._endings, _ends(rows))
        return {(row.session_id, row.generation): row.reason for row in found}

    def _rows(self, rows: Sequence[Row[Any]]) -> Iterator[Row[Any]]:
        if not rows:
            return
        of = _ends(rows)
        place = {"after_at": _LONG_AGO, "after_use": ""}
        while True:
            with self.database.look() as look:
                found = look.all(self._uses, {**of, **place, "limit": USES})
            yield from found
            if len(found) < USES:
                return
            last = found[-1]
            of |= {"first_id": last.session_id, "first_generation": last.generation}
            place = {"after_at": last.at, "after_use": last.id}


def _box(row: Row[Any], reason: str | None) -> _Box:
    closing, current = _at(row.closing_at), row.generation == row.current
    seen = _at(row.last_activity_at) if current else None
    silent = seen if seen is not None else closing
    if seen is None and reason == EndReason.IDLE and row.over_at is not None:
        # It was over its TTL after the last heartbeat, of which an earlier generation keeps none.
        silent = row.over_at.timestamp() - row.idle_ttl
    life = Life(
        session_id=row.session_id,
        generation=row.generation,
        tenant=row.tenant,
        provider=row.provider,
        created=row.created_at.timestamp(),
        closing=closing,
        gone=_at(row.gone_at),
        max_age=row.max_age,
        ending=_ENDINGS.get(reason or "", Ending.OTHER),
        ran=row.running_at is not None,
        seen=seen,
    )
    return _Box(life=life, silent=life.created if silent is None else silent)


def _at(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _parsed(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _ends(rows: Sequence[Row[Any]]) -> dict[str, Any]:
    """The parameters of `_between`: the first and the last of these sandboxes."""
    return {
        "ids": sorted({row.session_id for row in rows}),
        "first_id": rows[0].session_id,
        "first_generation": rows[0].generation,
        "last_id": rows[-1].session_id,
        "last_generation": rows[-1].generation,
    }


def _between(session_id: Any, generation: Any) -> tuple[ColumnElement[bool], ...]:
    """Of a session with very many generations, those of the stretch alone."""
    first = tuple_(
        bindparam("first_id", type_=String), bindparam("first_generation", type_=Integer)
    )
    last = tuple_(bindparam("last_id", type_=String), bindparam("last_generation", type_=Integer))
    of = tuple_(session_id, generation)
    return of >= first, of <= last


def _sandboxes() -> Select[Any]:
    after_id = bindparam("after_id", type_=String)
    behind = tuple_(after_id, bindparam("after_generation", type_=Integer))
    of_sandbox = ("session_id", "generation", "provider", "created_at", "running_at", "over_at")
    of_session = ("tenant", "last_activity_at", "idle_ttl", "max_age")
    return (
        select(
            *(b[name] for name in (*of_sandbox, "closing_at", "gone_at")),
            *(s[name] for name in of_session),
            s.generation.label("current"),
        )
        .join_from(sandboxes, sessions, b.session_id == s.id)
        # Said of both tables: of a tenant, the sessions are found first.
        .where(tuple_(b.session_id, b.generation) > behind, s.id >= after_id)
        .order_by(s.id, b.generation)
        .limit(bindparam("limit", type_=Integer))
    )


def _uses() -> Select[Any]:
    """Turns and promises in the order of sandboxes and moments, some at a time."""
    never, nothing = cast(null(), UTCDateTime), cast(null(), String)
    of_turns = select(
        t.session_id,
        t.generation,
        t.started_at.label("at"),
        t.id,
        literal(Act.TURN.value).label("act"),
        t.ended_at,
        t.hard_until,
        nothing.label("promised"),
    ).where(any_of(t.session_id, "ids"), *_between(t.session_id, t.generation))
    promises = [literal(act.value) for act in (Act.EXTENDED, Act.PINNED, Act.UNPINNED)]
    of_events = (
        select(
            e.session_id,
            e.generation,
            e.at,
            cast(e.id, String).label("id"),
            e.kind.label("act"),
            never.label("ended_at"),
            never.label("hard_until"),
            e.detail["until"].as_string().label("promised"),
        )
        .where(any_of(e.session_id, "ids"), *_between(e.session_id, e.generation))
        .where(e.kind.in_(promises))
    )
    use: Any = union_all(of_turns, of_events).subquery("use").c
    after = tuple_(
        bindparam("first_id", type_=String),
        bindparam("first_generation", type_=Integer),
        bindparam("after_at", type_=UTCDateTime),
        bindparam("after_use", type_=String),
    )
    return (
        select(*use)
        .where(tuple_(use.session_id, use.generation, use.at, use.id) > after)
        .order_by(use.session_id, use.generation, use.at, use.id)
        .limit(bindparam("limit", type_=Integer))
    )
