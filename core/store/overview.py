"""
The fleet at one look, for people: who is in a turn, and what ends soon. Nothing here reads more
than some ten thousand rows, however many there are; a larger fleet is estimated from a sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Double,
    FromClause,
    Select,
    String,
    and_,
    bindparam,
    case,
    column,
    func,
    select,
    table,
    tablesample,
)
from sqlalchemy.sql import visitors

from ..schema import events, holds, installation, sessions, turns
from .database import Database, Move
from .overdue import LOTS
from .rules import ACTIVE, Rules, s, t
from .sql import Seconds, Whole

SAMPLE = 20_000  # sessions, from which the rest is estimated
MINUTES = 30  # of the forecast
IDLE = (60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0)  # seconds: the edges of the histogram
_percent = bindparam("percent", type_=Double)
_tenant = s.tenant == bindparam("tenant", type_=String)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """
    Active sessions by the minute in which they end if nobody shows activity, and by how long they
    have been idle. `sampled`: estimated from so many of them; None: all were counted.
    """

    ends: Sequence[int]  # MINUTES of them; the first has those that are over as well
    idle: Sequence[int]  # below each edge of IDLE, and above the last one
    sampled: int | None = None


class Overview:
    """Reads only. With `tenant` it is that tenant's fleet."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._rules = rules
        asked = select(func.count()).select_from(holds).where(holds.c.until.is_(None))
        self._stamp = select(
            select(func.max(events.c.id)).scalar_subquery().label("told"),
            installation.c.swept_at,
            installation.c.stood_in_at,
            asked.scalar_subquery().label("asked"),
        )
        self._in_turn = _in_turn(rules)
        self._prepare_forecast()
        self._size: Select[Any] = (
            select(column("reltuples"))
            .select_from(table("pg_class"))
            .where(column("oid") == func.to_regclass("sessions"))
        )

    def stamp(self) -> tuple[object, ...]:
        """What differs as soon as something was recorded, swept or asked: two index probes."""
        with self.database.look() as look:
            return tuple(look.connection.execute(self._stamp).one())

    def in_turn(self, tenant: str | None = None) -> int:
        """Sessions with a live turn, at most LOTS."""
        query, of = self._in_turn, {}
        if tenant is not None:
            query, of = query.where(_tenant), {"tenant": tenant}
        turn = query.limit(LOTS).subquery()
        with self.database.look() as look:
            counted = select(func.count(turn.c.session_id.distinct()))
            return int(look.connection.execute(counted, of).scalar_one())

    def forecast(self, active: int, tenant: str | None = None) -> Forecast:
        """When active sessions end, of which there are about so many."""
        with self.database.look() as look:
            if tenant is not None:
                rows = look.all(self._of_tenant, {"tenant": tenant})
                return _forecast(rows, 1.0, LOTS if active >= LOTS else None)
            if active <= SAMPLE or not self.database.single_statement:
                return _forecast(look.all(self._of_all), 1.0, None)
            percent = min(100.0, 100.0 * SAMPLE / self._rows(look, active))
            rows = look.all(self._of_sample, {"percent": percent})
        looked = sum(row.found for row in rows)
        return _forecast(rows, active / max(1, looked), looked)

    def _rows(self, look: Move, active: int) -> float:
        """About how many rows the table has; it says less before it was ever analysed."""
        row = look.one(self._size)
        return max(float(active), 0.0 if row is None else float(row.reltuples))

    # Statements, built once

    def _prepare_forecast(self) -> None:
        of_one = select(sessions).where(_tenant, ACTIVE).order_by(s.id).limit(LOTS)
        sample = tablesample(sessions, func.system(_percent), seed=func.abs(1))
        self._of_all = self._grouped(sessions)
        self._of_tenant = self._grouped(of_one.subquery("ours"))
        # The same pages each time: the figures change because the fleet does.
        self._of_sample = self._grouped(sample)

    def _grouped(self, source: FromClause) -> Select[Any]:
        now = self._rules.now
        left = Seconds(now, _in(source, self._rules.ends_at))
        idle = Seconds(source.c.last_activity_at, now)
        minute = case((left <= 0, 0), (left >= 60.0 * MINUTES, MINUTES), else_=Whole(left / 60.0))
        edge = case(*((idle < edge, place) for place, edge in enumerate(IDLE)), else_=len(IDLE))
        rows = select(minute.label("minute"), edge.label("edge")).where(_in(source, ACTIVE))
        found = rows.subquery("found")
        return select(found.c.minute, found.c.edge, func.count().label("found")).group_by(
            found.c.minute, found.c.edge
        )


def _in_turn(rules: Rules) -> Select[Any]:
    return select(t.session_id).join_from(turns, sessions, and_(rules.live_turn, ACTIVE))


def _in(source: FromClause, rule: Any) -> Any:
    """A rule on sessions, on what stands for them."""
    if source is sessions:
        return rule

    def instead(element: Any, **_: Any) -> Any:
        if isinstance(element, Column) and element.table is sessions:
            return source.c[element.key]
        return None

    return visitors.replacement_traverse(rule, {}, instead)


def _forecast(rows: Sequence[Any], factor: float, sampled: int | None) -> Forecast:
    ends: Counter[int] = Counter()
    idle: Counter[int] = Counter()
    for row in rows:
        ends[row.minute] += row.found
        idle[row.edge] += row.found
    return Forecast(
        ends=[round(ends[minute] * factor) for minute in range(MINUTES)],
        idle=[round(idle[edge] * factor) for edge in range(len(IDLE) + 1)],
        sampled=sampled,
    )
