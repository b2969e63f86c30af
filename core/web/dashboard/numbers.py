"""The figures of the Fleet page, read in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ...store import Quarantined, Store
from ...store.census import Census, Counts
from ...store.guard import Hold
from ...store.health import Health
from ...store.overview import LOTS, Forecast, OfTenant, Waiting
from ...store.watch import Pulse


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What there is at one moment. What is of the whole installation is None to one tenant."""

    now: datetime
    active: int
    creating: int
    running: int
    closing: int
    quarantined: int
    in_turn: int
    forecast: Forecast
    late_after: float
    lots: int = LOTS
    orphans: int | None = None
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
        return not (self.active or self.closing or self.quarantined or self.orphans)


def look(store: Store, tenant: str | None) -> Fleet:
    """The fleet of all, or of one tenant."""
    return _all(store) if tenant is None else _of(store, tenant)


def _all(store: Store) -> Fleet:
    census: Census = Counts(store.database).census()
    return Fleet(
        now=store.sweeps.now(),
        active=census.sessions_active,
        creating=census.sandboxes["creating"],
        running=census.sandboxes["running"],
        closing=census.sandboxes["closing"] - census.quarantined,
        quarantined=census.quarantined,
        orphans=census.orphans,
        in_turn=store.overview.in_turn(),
        waiting=store.overview.waiting(),
        forecast=store.overview.forecast(census.sessions_active),
        pulse=store.watch.pulse(),
        late_after=store.policy.late_after,
        holds=store.guard.holds(),
        providers=store.health.all(),
        failing=store.teardowns.quarantined(1) if census.quarantined else (),
    )


def _of(store: Store, tenant: str) -> Fleet:
    found: OfTenant = store.overview.of_tenant(tenant)
    active = found.creating + found.running
    return Fleet(
        now=store.sweeps.now(),
        active=active,
        creating=found.creating,
        running=found.running,
        closing=found.closing,
        quarantined=found.quarantined,
        in_turn=store.overview.in_turn(tenant),
        forecast=store.overview.forecast(active, tenant),
        late_after=store.policy.late_after,
    )
