"""What beat and workers do: sweeps, purges, and teardowns from the messages of the bus."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress

from core.errors import InvalidArgument, StoreUnavailable
from core.reaper import Reaper, TeardownOutcome
from core.reconcile import Reconciler
from core.store.guard import Guard, HoldReason
from tests.simulation.bus import Bus, Message
from tests.simulation.faults import Fault, Faults
from tests.simulation.scheduler import Scheduler

RETRY_WITHIN = 15.0
RETRIES = 3


class Sweeper:
    """A beat and the worker that it enqueues for, in one process."""

    def __init__(self, scheduler: Scheduler, reaper: Reaper, interval: float) -> None:
        self.scheduler = scheduler
        self.reaper = reaper
        self.interval = interval

    def live(self) -> None:
        """Sweep after sweep; every few of them a purge."""
        self.scheduler.sleep(self.interval * self.scheduler.random.random())
        for number in itertools.count(1):
            try:
                self.reaper.sweep()
                if number % 3 == 0:
                    self.reaper.purge()
            except StoreUnavailable as error:
                self.scheduler.note(f"sweep failed: {error!s:.60}")
            self.scheduler.sleep(self.interval)


class Comparer:
    """What beat enqueues to compare the provider with the store."""

    def __init__(self, scheduler: Scheduler, reconciler: Reconciler, interval: float) -> None:
        self.scheduler = scheduler
        self.reconciler = reconciler
        self.interval = interval

    def live(self) -> None:
        """Pass after pass."""
        while True:
            self.scheduler.sleep(self.interval * (0.5 + self.scheduler.random.random()))
            try:
                for report in self.reconciler.reconcile():
                    self.scheduler.note(f"reconciled: {report.skipped or report}")
            except StoreUnavailable as error:
                self.scheduler.note(f"reconcile failed: {error!s:.60}")


class Operator:
    """Somebody who looks now and then what is held, and says what it is."""

    def __init__(
        self, scheduler: Scheduler, guard: Guard, faults: Faults, *, worried: bool
    ) -> None:
        self.scheduler = scheduler
        self.guard = guard
        self.faults = faults
        self.worried = worried  # holds everything now and then, to be on the safe side

    def live(self) -> None:
        """In quiet times every question gets a yes."""
        while True:
            self.scheduler.sleep(20.0 * (0.5 + self.scheduler.random.random()))
            try:
                self._answer()
                if self.worried and self.faults.on and self.scheduler.random.random() < 0.4:
                    self.guard.hold(HoldReason.OPERATOR, {}, actor="operator")
            except StoreUnavailable as error:
                self.scheduler.note(f"no answer: {error!s:.60}")

    def _answer(self) -> None:
        for hold in self.guard.holds():
            if not hold.open:
                continue
            self.faults.happened(Fault.HELD)
            self.scheduler.note(f"held: {hold.reason} {hold.detail}")
            denies = self.faults.on and self.scheduler.random.random() < 0.3
            with suppress(InvalidArgument):  # somebody else has answered
                if denies:
                    self.guard.deny(hold.reason, 30.0, actor="operator")
                else:
                    self.guard.approve(hold.reason, 100.0, actor="operator")


class Worker:
    """One child of a worker: a message at a time, acknowledged when it is done or forgotten."""

    def __init__(self, scheduler: Scheduler, reaper: Reaper, bus: Bus) -> None:
        self.scheduler = scheduler
        self.reaper = reaper
        self.bus = bus
        self.number = 0

    def live(self) -> None:
        """Whatever comes in."""
        while True:
            self._teardown(self.bus.take())

    def _teardown(self, message: Message) -> None:
        session_id, generation, retries = message
        self.number += 1
        actor = self.scheduler.actor
        worker = f"{actor.name}:{self.number}"
        actor.attempt = (session_id, generation, worker)
        try:
            done = self.reaper.teardown(session_id, generation, worker=worker)
            self.reaper.follow_up(done)
        except StoreUnavailable as error:
            self.scheduler.note(f"teardown failed: {error!s:.60}")
            return
        self.scheduler.note(f"teardown of {session_id} {generation}: {done.outcome}")
        after = done.retry_after
        again = done.outcome is TeardownOutcome.RETRY and retries < RETRIES
        if again and after is not None and after <= RETRY_WITHIN:
            self.bus.publish((session_id, generation, retries + 1), delay=math.ceil(after))
