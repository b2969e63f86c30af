"""
Totals that outlive every process. Worker processes die with what they count, and the ledger, which
has it all, is too long to be read at each look: so its lines are counted here, once each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnClause,
    ColumnElement,
    Double,
    Executable,
    Insert,
    Select,
    String,
    Update,
    and_,
    bindparam,
    case,
    column,
    func,
    literal_column,
    select,
    update,
)

from ..events import EventKind
from ..model import EndReason
from ..schema import events, installation, sandboxes, tallies
from .database import Database, Move
from .rules import Rules, b, constant
from .sql import Seconds, Writers

EVENTS: Final = "events"  # by kind
ENDED: Final = "ended"  # sessions, by reason; all of their callers' own are ASKED
ASKED: Final = "asked"
SWEPT: Final = "swept"  # rows, by what the sweep did to them
SWEEP: Final = "sweep"  # seconds that a sweep took
TEARDOWN: Final = "teardown"  # seconds from closing to gone, by provider
LATENESS: Final = "lateness"  # seconds since nobody was entitled to it, by provider
BEYOND: Final = "+Inf"

# Upper bounds in seconds. A bucket keeps its bound as its name: others may come with a later
# version, and what was counted before stays what it was.
BOUNDS: Final[Mapping[str, tuple[str, ...]]] = {
    SWEEP: ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "15", "60"),
    TEARDOWN: ("0.5", "1", "2.5", "5", "10", "30", "60", "120", "300", "900", "3600", "14400"),
    LATENESS: ("5", "15", "30", "60", "90", "120", "180", "300", "600", "1800", "3600", "14400"),
}
LINES: Final = 5_000  # counted in one transaction

COLUMNS: tuple[ColumnClause[Any], ...] = (
    column("name", String),
    column("label", String),
    column("bucket", String),
    column("count", BigInteger),
    column("total", Double),
)
e, i, y = events.c, installation.c, tallies.c


@dataclass(frozen=True, kw_only=True, order=True)
class Tally:
    """One total. A bucket has what lies between its bound and the one before; `total` seconds."""

    name: str
    label: str = ""
    bucket: str = ""
    count: int
    total: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Totals:
    """All of them, and for how many seconds the oldest event has been waiting to be counted."""

    tallies: Sequence[Tally]
    behind: float


def swept(seconds: float, rows: Mapping[str, int]) -> list[Tally]:
    """What one sweep adds: how long it took, and what it did to how many rows."""
    bucket = next((bound for bound in BOUNDS[SWEEP] if seconds <= float(bound)), BEYOND)
    did = [Tally(name=SWEPT, label=step, count=count) for step, count in rows.items() if count]
    return [Tally(name=SWEEP, bucket=bucket, count=1, total=seconds), *did]


class Adding:
    """The statement that adds the parameter `added` to the totals, alone or with another."""

    def __init__(self, database: Database) -> None:
        self._database = database
        added = bindparam("added", type_=JSON())
        of = _of_postgresql if database.single_statement else _of_sqlite
        # With a WHERE: without one SQLite takes ON CONFLICT for the ON of a join.
        rows = select(*of(added)).where(literal_column("1 = 1"))
        self.insert = _adding(database, rows)

    def with_(self, change: Update) -> Executable:
        """Both as one statement, where the database can do that; for `run`."""
        return (
            change.add_cte(self.insert.cte("added")) if self._database.single_statement else change
        )

    def run(self, move: Move, change: Executable, added: Iterable[Tally]) -> Any:
        """The row that the change returns."""
        # In one order everywhere, or two that add to the same rows may wait for each other.
        entries = {"added": [asdict(tally) for tally in sorted(added)]}
        if self._database.single_statement:
            return move.one(change, entries)
        row = move.one(change)
        move.run(self.insert, entries)
        return row


class Tallies:
    """
    `told` is the last line of the ledger that was counted; it moves in the transaction that
    counts, so a crash counts nothing twice. A line's id is drawn before its commit, and a smaller
    id may become visible later than a greater one: to count up to what is seen would skip it for
    ever. So lines are counted up to `seen` only when everybody who was writing when it was seen
    has come to an end, by the locks that the database itself keeps. No clock and no timeout has
    to be right for that.
    """

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._prepare_cursor()
        self._prepare_reading(rules.now)
        self._counts = [
            _adding(database, _totals(name, rows))
            for name, rows in (
                (EVENTS, _kinds()),
                (ENDED, _reasons()),
                (TEARDOWN, _took(TEARDOWN, b.closing_at)),
                (LATENESS, _took(LATENESS, func.coalesce(b.over_at, b.closing_at))),
            )
        ]

    def fold(self, limit: int = LINES) -> int:
        """
        Count at most `limit` more lines of the ledger; returns how many. 0 too when another
        process counts now, or somebody who may be writing one of them has not come to an end.
        """
        with self.database.move() as move:
            row = move.one(self._lock)
            if row is None:
                return 0
            if row.seen <= row.told:
                row = move.one(self._see)
            if row is None or row.seen <= row.told:
                return 0
            # Each in a statement of its own: what is read after it is read by a later snapshot.
            if set(row.writers) & set(move.all(self._writers)[0].writers):
                return 0
            (batch,) = move.all(self._batch, {"after": row.told, "seen": row.seen, "limit": limit})
            if not batch.lines:
                move.run(self._move_on, {"upto": row.seen})  # the last ones were rolled back
                return 0
            for statement in self._counts:
                move.run(statement, {"after": row.told, "upto": batch.upto})
            move.run(self._move_on, {"upto": row.seen if batch.lines < limit else batch.upto})
        return int(batch.lines)

    def totals(self) -> Totals:
        """As of the last fold."""
        with self.database.look() as look:
            rows = look.all(self._tallies)
            waiting = look.one(self._waiting)
        return Totals(
            tallies=[Tally(**row._mapping) for row in rows],
            behind=0.0 if waiting is None else max(0.0, waiting.behind),
        )

    # Statements, built once

    def _prepare_cursor(self) -> None:
        here = select(i.told, i.seen, i.writers)
        self._lock = here.with_for_update(skip_locked=True)
        newest = select(func.max(e.id)).scalar_subquery()
        self._see = (
            update(installation)
            .values(seen=func.coalesce(newest, i.told), writers=Writers())
            .returning(i.told, i.seen, i.writers)
        )
        self._writers = select(Writers().label("writers"))
        between = and_(e.id > bindparam("after", type_=e.id.type), e.id <= bindparam("seen"))
        limit = bindparam("limit", type_=y.count.type)
        batch = select(e.id).where(between).order_by(e.id).limit(limit).subquery()
        self._batch = select(func.count().label("lines"), func.max(batch.c.id).label("upto"))
        self._batch = self._batch.select_from(batch)
        self._move_on = update(installation).values(told=bindparam("upto", type_=e.id.type))

    def _prepare_reading(self, now: ColumnElement[datetime]) -> None:
        self._tallies = select(*tallies.c).order_by(*tallies.primary_key)
        told = select(i.told).scalar_subquery()
        self._waiting = (
            select(Seconds(e.at, now).label("behind")).where(e.id > told).order_by(e.id).limit(1)
        )


def _kinds() -> Select[Any]:
    return select(e.kind.label("label"), constant("").label("bucket"), _value("0.0"))


def _reasons() -> Select[Any]:
    reason = e.detail["reason"].as_string()
    label = case(
        (reason.in_([constant(each) for each in EndReason]), reason), else_=constant(ASKED)
    )
    return select(label.label("label"), constant("").label("bucket"), _value("0.0")).where(
        e.kind == constant(EventKind.SESSION_ENDED)
    )


def _took(name: str, since: ColumnElement[datetime]) -> Select[Any]:
    """Of each sandbox that is gone: its row is there, because purge waits for its line."""
    took = Seconds(since, b.gone_at)
    seconds = case((took < 0, _constant_of("0.0")), else_=took)  # the clock stepped back meanwhile
    bounds = [(took <= _constant_of(bound), constant(bound)) for bound in BOUNDS[name]]
    bucket = case(*bounds, else_=constant(BEYOND))
    this = and_(b.session_id == e.session_id, b.generation == e.generation)
    return (
        select(b.provider.label("label"), bucket.label("bucket"), seconds.label("value"))
        .join_from(events, sandboxes, this)
        .where(e.kind == constant(EventKind.SANDBOX_GONE), b.gone_at.is_not(None))
    )


def _totals(name: str, rows: Select[Any]) -> Select[Any]:
    lines = and_(
        e.id > bindparam("after", type_=e.id.type), e.id <= bindparam("upto", type_=e.id.type)
    )
    each = rows.where(lines).subquery()
    return select(
        constant(name), each.c.label, each.c.bucket, func.count(), func.sum(each.c.value)
    ).group_by(each.c.label, each.c.bucket)


def _adding(database: Database, rows: Select[Any]) -> Insert:
    insert = database.insert(tallies)
    return insert.from_select([each.name for each in COLUMNS], rows).on_conflict_do_update(
        index_elements=["name", "label", "bucket"],
        set_={
            "count": y.count + insert.excluded.count,
            "total": y.total + insert.excluded.total,
        },
    )


def _value(text: str) -> ColumnElement[float]:
    return _constant_of(text).label("value")


def _constant_of(text: str) -> ColumnElement[float]:
    return literal_column(text, Double)


def _of_postgresql(added: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    rows = func.json_to_recordset(added).table_valued(*COLUMNS).render_derived(with_types=True)
    return [*rows.c]


def _of_sqlite(added: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    row = func.json_each(added).table_valued("value").c.value
    return [func.json_extract(row, f"$.{column.name}") for column in COLUMNS]
