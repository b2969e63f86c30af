"""The broker: messages that are lost, doubled, late and out of order, and a broker that is down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.simulation.faults import Fault, Faults
from tests.simulation.scheduler import Actor, Scheduler

Message = tuple[str, int, int]
"""A session, a generation, and how often it was retried."""

DELAYS = (0.0, 2.0, 15.0, 60.0)
POLL = 20.0  # a worker that was not woken looks by itself
TAKES = 0.5  # how long a healthy broker takes at most


class BrokerDown(Exception):
    """What a client raises that cannot reach its broker."""


class Bus:
    """Messages that nobody is obliged to deliver."""

    def __init__(
        self, scheduler: Scheduler, faults: Faults, heard: Callable[[str, int], None]
    ) -> None:
        self.scheduler = scheduler
        self.heard = heard
        self.faults = faults
        self.ready: list[Message] = []
        self.idle: list[Actor] = []  # who waits for a message
        self.down_until = 0.0

    def ring(self, pairs: Sequence[tuple[str, int]]) -> None:
        """The doorbell."""
        self.scheduler.point()
        if self.scheduler.now < self.down_until:
            raise BrokerDown("connection refused")
        for session_id, generation in pairs:
            self.heard(session_id, generation)
            self.publish((session_id, generation, 0))

    def publish(self, message: Message, *, delay: float = 0.0) -> None:
        """On its way, perhaps."""
        random = self.scheduler.random
        if self.faults.hit(Fault.LOST):
            self.scheduler.note(f"message {message} is lost")
            return
        for _ in range(2 if self.faults.hit(Fault.DOUBLED) else 1):
            late = random.choice(DELAYS) if self.faults.hit(Fault.DELAYED) else 0.0
            when = self.scheduler.now + delay + late + TAKES * random.random()
            self.scheduler.at(when, lambda: self.deliver(message))

    def deliver(self, message: Message) -> None:
        """It is there for the next one who asks, and wakes somebody who waits."""
        self.ready.append(message)
        self.idle = [actor for actor in self.idle if actor.process.alive]
        if self.idle:
            actor = self.idle.pop(self.scheduler.random.randrange(len(self.idle)))
            self.scheduler.wake(actor, self.scheduler.now + TAKES * self.scheduler.random.random())

    def take(self) -> Message:
        """Wait for one of those that are there: there is no order."""
        actor = self.scheduler.actor
        while not self.ready or self.scheduler.now < self.down_until:
            self.idle.append(actor)
            self.scheduler.sleep(POLL)
            self.idle = [other for other in self.idle if other is not actor]
        return self.ready.pop(self.scheduler.random.randrange(len(self.ready)))

    def wipe(self) -> None:
        """The broker lost its disk."""
        self.scheduler.note("the broker is wiped")
        self.ready.clear()
        self.faults.happened(Fault.BROKER_WIPED)

    def go_down(self, seconds: float) -> None:
        """Nobody reaches it."""
        self.scheduler.note(f"the broker is down for {seconds:g} s")
        self.down_until = self.scheduler.now + seconds
        self.faults.happened(Fault.BROKER_DOWN)
