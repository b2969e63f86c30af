"""The figures of the Fleet page, read in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ...store import Quarantined, Store
from ...store.guard import Hold
from ...store.health import Health
from ...store.overdue import LOTS, Waiting
from ...store.overview import Forecast
from ...store.standing import Standing
from ...store.watch import Pulse


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What there is at one moment. What is of the whole installation is None to one tenant."""

    now: datetime
    has: Standing
    in_turn: int
    forecast: Forecast
    late_after: float
    lots: int = LOTS
    waiting: Waiting | None = None
    pulse: Pulse | None = None
    holds: Sequence[Hold] = ()
    providers: Sequence[Health] = ()
    failing: Sequence[Quarantined] = field(default=())

    @property
    def late(self) -> bool:
        return self.pulse is not None and self.pulse.late(self.late_after)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show yet."""
        has = self.has
        return not (has.active or has.closing or has.quarantined or has.orphans)


def look(store: Store, tenant: str | None) -> Fleet:
    """The fleet of all, or of one tenant."""
    return _all(store) if tenant is None else _of(store, tenant)


def _all(store: Store) -> Fleet:
    has = store.standings.of_all()
    return Fleet(
        now=store.sweeps.now(),
        has=has,
        in_turn=store.overview.in_turn(),
        waiting=store.overdue.waiting(),
        forecast=store.overview.forecast(has.about.get("active", has.active)),
        pulse=store.watch.pulse(),
        late_after=store.policy.late_after,
        holds=store.guard.holds(),
        providers=store.health.all(),
        failing=store.teardowns.quarantined(1) if has.quarantined else (),
    )


def _of(store: Store, tenant: str) -> Fleet:
    has = store.standings.of_tenant(tenant)
    return Fleet(
        now=store.sweeps.now(),
        has=has,
        in_turn=store.overview.in_turn(tenant),
        forecast=store.overview.forecast(has.active, tenant),
        late_after=store.policy.late_after,
    )
