"""The machine of one simulated process: the ports of core.host, in virtual time."""

from __future__ import annotations

from core.host import Host, Loop, Step
from tests.simulation.scheduler import Process, Scheduler


class VirtualLoop:
    """Rounds of a background work as an actor of its process."""

    def __init__(
        self, scheduler: Scheduler, process: Process, name: str, step: Step, first_pause: float
    ) -> None:
        self._scheduler = scheduler
        self._process = process
        self._name = name
        self._step = step
        self._first_pause = first_pause
        self._number = 0
        self._runs = False

    def start(self) -> None:
        if not self._runs:
            self._runs = True
            self._number += 1
            number = self._number
            name = f"{self._process.name}/{self._name}"
            self._scheduler.spawn(self._process, name, lambda: self._rounds(number))

    def stop(self) -> None:
        self._runs = False

    def _rounds(self, number: int) -> None:
        self._scheduler.sleep(self._first_pause)
        while self._runs and number == self._number:
            self._scheduler.sleep(self._step())


def host(scheduler: Scheduler, process: Process) -> Host:
    """Monotonic clocks of two processes have nothing to do with each other, nor with the time."""
    random = scheduler.random
    offset = 1000.0 * random.random()

    def loop(name: str, step: Step, first_pause: float) -> Loop:
        return VirtualLoop(scheduler, process, name.rpartition("-")[2], step, first_pause)

    return Host(
        monotonic=lambda: scheduler.now + offset,
        sleep=scheduler.sleep,
        spread=random.random,
        randbits=random.getrandbits,
        milliseconds=lambda: int(scheduler.now * 1000),
        loop=loop,
    )
