"""What happens to a world from outside: kills, stops, outages, clock steps, lost sandboxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from tests.simulation.faults import Fault
from tests.simulation.plan import Focus, Plan
from tests.simulation.scheduler import Scheduler

CLOCK_STEPS = (7200.0, 7200.0, 600.0, 45.0, -30.0, -600.0, -3600.0, -3600.0)

SWINGS = (7200.0, 600.0, 120.0)  # ahead, and some time later back again


class Ground(Protocol):
    """What chaos can do to a world."""

    scheduler: Scheduler

    def kill_one(self) -> None: ...

    def stop_one(self, seconds: float) -> None: ...

    def outage(self, seconds: float, fault: Fault) -> None: ...

    def step_clock(self, seconds: float) -> None: ...

    def swing_clock(self, seconds: float, back: float) -> None: ...

    def vanish(self) -> None: ...

    def plant(self) -> None: ...

    def lose_row(self) -> None: ...

    def forge(self) -> None: ...

    def wipe(self) -> None: ...

    def broker_down(self, seconds: float) -> None: ...

    def change_policy(self) -> None: ...

    def change_account(self) -> None: ...

    def abandon(self) -> None: ...


def schedule(plan: Plan, ground: Ground, until: float) -> None:
    """Decide beforehand what happens when; it happens to whoever is there then."""
    random = ground.scheduler.random

    def often(few: float, focus: Focus, many: float) -> int:
        """How many times: the fraction is the chance of one more."""
        wanted = many if plan.has(focus) else (0.0 if plan.foci == (Focus.CALM,) else few)
        return int(wanted) + (random.random() < wanted % 1)

    def at_some_time(what: Callable[[], None], times: int) -> None:
        for _ in range(times):
            ground.scheduler.at(until * (0.05 + 0.9 * random.random()), what)

    at_some_time(ground.plant, 1)
    at_some_time(ground.kill_one, often(0.4, Focus.CRASHES, 4))
    at_some_time(
        lambda: ground.stop_one(random.choice((5.0, 25.0, 60.0, 100.0))),
        often(0.3, Focus.STOPS, 4),
    )
    at_some_time(ground.vanish, often(0.3, Focus.PROVIDER, 1))
    at_some_time(ground.lose_row, often(0.1, Focus.ORPHANS, 1))
    at_some_time(ground.forge, often(1, Focus.MESSAGES, 8))
    at_some_time(ground.wipe, often(0.2, Focus.MESSAGES, 1))
    at_some_time(
        lambda: ground.broker_down(random.choice((10.0, 60.0))), often(0.2, Focus.MESSAGES, 1)
    )
    at_some_time(lambda: ground.step_clock(random.choice(CLOCK_STEPS)), often(0.1, Focus.CLOCK, 2))
    at_some_time(
        lambda: ground.swing_clock(random.choice(SWINGS), random.choice((4.0, 15.0, 40.0))),
        often(0, Focus.JUMPS, 2),
    )
    at_some_time(ground.change_policy, often(0.03, Focus.ROLLOUT, 5))
    at_some_time(ground.change_account, often(0.05, Focus.ACCOUNTS, 4))
    if plan.has(Focus.ABANDONED):
        ground.scheduler.at(until * random.random(), ground.abandon)
    if often(0.1, Focus.OUTAGES, 1):
        _outages(ground, until)


def _outages(ground: Ground, until: float) -> None:
    """A short one, one that is longer than the idle TTL, or one that comes and goes."""
    random = ground.scheduler.random
    start = until * 0.4 * random.random()
    kind = random.choice((Fault.OUTAGE, Fault.LONG_OUTAGE, Fault.LONG_OUTAGE, Fault.FLAPPING))
    if kind is Fault.OUTAGE:
        ground.scheduler.at(start, lambda: ground.outage(random.choice((3.0, 20.0)), kind))
    elif kind is Fault.LONG_OUTAGE:
        ground.scheduler.at(start, lambda: ground.outage(random.choice((45.0, 60.0, 100.0)), kind))
    else:
        for _ in range(6):
            length = random.choice((5.0, 20.0, 30.0))
            ground.scheduler.at(start, partial(ground.outage, length, kind))
            start += length + random.choice((0.5, 2.0, 5.0))
