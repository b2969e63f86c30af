"""What happens between two statements of a sweep, where a world is about that: the clock jumps."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.faults import Fault, Faults
from tests.simulation.scheduler import Actor, Scheduler

# Each is longer than the idle TTL and the confirm interval: who beats seems silent for long.
JUMPS = (60.0, 60.0, 60.0, 90.0, -60.0)
TAKEN_BACK = (None, 0.2, 4.0, 30.0)  # seconds after which the clock is put right, or never


class Moments:
    """Decides by the world's own chance, wherever a sweep is about to send a statement."""

    def __init__(
        self, scheduler: Scheduler, faults: Faults, step_clock: Callable[[float], None]
    ) -> None:
        self._scheduler = scheduler
        self._faults = faults
        self._step_clock = step_clock

    def between(self, actor: Actor) -> None:
        """Before a statement of this actor."""
        if sweeps(actor) and self._faults.hit(Fault.JUMP_IN_SWEEP):
            random = self._scheduler.random
            self.swing(random.choice(JUMPS), random.choice(TAKEN_BACK))

    def swing(self, seconds: float, back: float | None) -> None:
        """The clock jumps, and is put right again after so many seconds, or never."""
        self._step_clock(seconds)
        if back is not None:
            self._scheduler.at(self._scheduler.now + back, lambda: self._put_right(-seconds))

    def _put_right(self, seconds: float) -> None:
        if self._faults.on:
            self._step_clock(seconds)


def sweeps(actor: Actor) -> bool:
    """Whether this is a sweep: beat's, or one that stands in for it."""
    return actor.name.endswith(("/sweep", "/watchdog"))
