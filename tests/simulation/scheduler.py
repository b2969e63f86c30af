"""
Virtual time and who runs next. Every actor is a greenlet in one thread; it gives way only at a
scheduling point, so one seed decides every interleaving, and the same seed decides it again.
"""

from __future__ import annotations

import heapq
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

from greenlet import greenlet


class Crash(BaseException):
    """The process died at this instruction: no handler of the program's own may see it."""


@dataclass(frozen=True)
class Look:
    """One look of a process at the database's clock: when it asked, when it knew, what it saw."""

    asked: float
    at: float
    clock: datetime


@dataclass(eq=False)
class Process:
    """One life of one process. A process that comes back is a new one with the same name."""

    name: str
    kind: str
    actors: list[Actor] = field(default_factory=list)
    alive: bool = True
    stopped_until: float = 0.0
    stops: list[tuple[float, float]] = field(default_factory=list)
    confirm_interval: float = 0.0  # by the policy that it was started with
    account: str = ""  # that it is logged in to
    looks: list[Look] = field(default_factory=list)  # when it sweeps

    def stopped_between(self, since: float, until: float) -> float:
        """For how many of these seconds it was stopped (SIGSTOP, a suspended machine)."""
        return overlap(self.stops, since, until)


@dataclass(eq=False)
class Actor:
    """One thread of a process. `wake` tells a timer that still counts from one that does not."""

    name: str
    process: Process
    greenlet: greenlet
    wake: int = 0
    opened_at: float | None = None  # when its transaction began
    attempt: tuple[str, int, str] | None = None  # the session, generation and name of a worker's


def overlap(spans: list[tuple[float, float]], since: float, until: float) -> float:
    """The seconds of [since, until] that lie in any of the spans."""
    return sum(max(0.0, min(until, end) - max(since, start)) for start, end in spans)


class Scheduler:
    """
    `crash_rate` and `stop_rate` are chances at each scheduling point: faults fall where something
    happens, not in the long silences between. `log` hears every step when a world is replayed.
    """

    def __init__(self, random: Random, log: Callable[[str], None] | None = None) -> None:
        self.random = random
        self.log = log
        self.now = 0.0
        self.digest = 0
        self.steps = 0
        self.halted = False
        self.crash_rate = 0.0
        self.stop_rate = 0.0
        self.stop_lengths: tuple[float, ...] = (1.0,)
        self.latency = 0.03
        self.failures: list[tuple[Actor, str]] = []
        self.on_death: list[Callable[[Process], None]] = []
        self.on_stop: list[Callable[[Process, float], None]] = []
        self._queue: list[tuple[float, int, Actor | Callable[[], None], int]] = []
        self._sequence = 0
        self._hub = greenlet.getcurrent()
        self._current: Actor | None = None

    # Who and when

    @property
    def actor(self) -> Actor:
        """Who runs. A dead process runs no instruction: asked by one, it dies again."""
        actor = self._current
        assert actor is not None, "only an actor may come here"
        if not actor.process.alive:
            raise Crash
        return actor

    @property
    def running(self) -> Actor | None:
        """Who runs, also while it is being unwound; None for what happens by itself."""
        return self._current

    def note(self, what: str) -> None:
        """A line of the trace. The digest of all lines is what two runs of a seed must share."""
        who = "world" if self._current is None else self._current.name
        self.digest = zlib.crc32(f"{self.now:.6f} {who} {what}".encode(), self.digest)
        if self.log is not None:
            self.log(f"{self.now:11.3f}  {who:<22} {what}")

    def at(self, time: float, what: Callable[[], None]) -> None:
        """Let something happen by itself: what an actor did not wait for."""
        self._sequence += 1
        heapq.heappush(self._queue, (time, self._sequence, what, -1))

    def spawn(
        self, process: Process, name: str, body: Callable[[], None], *, delay: float = 0.0
    ) -> Actor:
        """A new thread of a process, which starts after `delay` seconds."""
        actor = Actor(name, process, greenlet(parent=self._hub))
        actor.greenlet.run = lambda: self._run(actor, body)
        process.actors.append(actor)
        self.wake(actor, self.now + delay)
        return actor

    # Scheduling points

    def sleep(self, seconds: float) -> None:
        """Let the others go on for so long."""
        actor = self.actor
        self.wake(actor, self.now + max(0.0, seconds))
        self._hub.switch()
        if not actor.process.alive:
            raise Crash

    def point(self) -> None:
        """A place where a process may be overtaken, be stopped or die."""
        process = self.actor.process
        chance = self.random.random()
        if chance < self.crash_rate:
            self.at(self.now, lambda: self.kill(process))
        elif chance < self.crash_rate + self.stop_rate:
            self.stop(process, self.random.choice(self.stop_lengths))
        self.sleep(self.latency * self.random.random())

    def wake(self, actor: Actor, time: float) -> None:
        """Let an actor go on then, and at no other time that was agreed before."""
        actor.wake += 1
        self._sequence += 1
        heapq.heappush(self._queue, (time, self._sequence, actor, actor.wake))

    # Processes

    def stop(self, process: Process, seconds: float) -> None:
        """SIGSTOP and, so many seconds later, SIGCONT."""
        if not process.alive or process.stopped_until > self.now:
            return
        self.note(f"{process.name} is stopped for {seconds:g} s")
        process.stopped_until = self.now + seconds
        process.stops.append((self.now, process.stopped_until))
        for listener in self.on_stop:
            listener(process, seconds)

    def kill(self, process: Process) -> None:
        """SIGKILL: none of its threads runs another instruction. To be called from no actor."""
        if not process.alive:
            return
        self.note(f"{process.name} dies")
        process.alive = False
        for listener in self.on_death:
            listener(process)
        for actor in process.actors:
            self._current = actor
            if actor.greenlet:
                actor.greenlet.throw(Crash)
            self._current = None

    def run(self, until: float) -> None:
        """Let time pass, until something calls halt() or there is no more of it."""
        while self._queue and not self.halted and self._queue[0][0] <= until:
            time, _, what, wake = heapq.heappop(self._queue)
            if not isinstance(what, Actor):
                self.now = max(self.now, time)
                what()
                continue
            if wake != what.wake or not what.process.alive or what.greenlet.dead:
                continue
            self.now = max(self.now, time)
            if what.process.stopped_until > self.now:
                self.wake(what, what.process.stopped_until)
                continue
            self.steps += 1
            self._current = what
            what.greenlet.switch()
            self._current = None
        if not self.halted:
            self.now = max(self.now, until)

    def _run(self, actor: Actor, body: Callable[[], None]) -> None:
        try:
            body()
        except Crash:
            return
        except Exception:  # noqa: BLE001 - whatever it is, an actor may not die of it
            self.failures.append((actor, traceback.format_exc()))
            self.halted = True
