"""The database server of one world, in virtual time: its clock, its write lock, its outages."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Protocol

from tests.simulation.faults import Fault, Faults
from tests.simulation.plan import Flavour
from tests.simulation.scheduler import Actor, Process, Scheduler, overlap

EPOCH = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUSY = 6.0  # how long a writer waits on SQLite
LOCK_TIMEOUT = 3.0  # and on PostgreSQL
IDLE_IN_TRANSACTION = 5.0  # after which PostgreSQL ends a transaction whose process is stopped
HANG = 4.0  # how long a connection attempt to a dead server may take

Committed = Callable[[Actor, datetime], None]
"""Hears who committed, and the latest that now() can have been to him."""


class Client(Protocol):
    """A connection, as the server knows it."""

    process: Process | None
    number: int

    def cut(self, why: str) -> None: ...

    def time_out(self, number: int) -> None: ...


class Server:
    """The database of one world: its clock, its one write lock, its outages."""

    def __init__(
        self,
        real: sqlite3.Connection,
        scheduler: Scheduler,
        faults: Faults,
        flavour: Flavour,
        committed: Committed,
    ) -> None:
        self.real = real
        self.scheduler = scheduler
        self.faults = faults
        self.flavour = flavour
        self.committed = committed
        self.between: Callable[[Actor], None] = lambda _: None  # statements of a transaction
        self.step = 0.0  # how far the clock is off
        self.stepped: list[float] = []  # when
        self._steps = [(0.0, 0.0)]  # since when the clock was off by how much
        self.down_until = 0.0
        self.hangs = False
        self.owner: Client | None = None
        self.blocked: list[tuple[float, float]] = []
        self._waiting: list[Actor] = []
        scheduler.on_death.append(self._process_died)
        scheduler.on_stop.append(self._process_stopped)

    # The clock

    def clock(self) -> datetime:
        """The time by the database's own clock."""
        return EPOCH + timedelta(seconds=self.scheduler.now + self.step)

    def now(self) -> datetime:
        """The time for who asks: the beginning of his statement, before it waits for a lock."""
        return self.clock()

    def began(self, actor: Actor) -> datetime:
        """The earliest that his transaction can have taken for the time."""
        assert actor.opened_at is not None, "only while it is open"
        return self.earliest(actor.opened_at)

    def earliest(self, since: float) -> datetime:
        """The earliest that anything since can have taken for the time."""
        return EPOCH + timedelta(seconds=since + min(self.off_by(since)))

    def may_show(self, actor: Actor) -> datetime:
        """The latest that it can have."""
        assert actor.opened_at is not None, "only while it is open"
        return self.latest(actor.opened_at)

    def latest(self, since: float) -> datetime:
        """The latest that anything since can have taken for the time."""
        return EPOCH + timedelta(seconds=self.scheduler.now + max(self.off_by(since)))

    def jumped_ahead(self, since: float) -> float:
        """So many seconds altogether, which no clock that steps back gives back."""
        offs = self.off_by(since)
        return sum(max(0.0, after - before) for before, after in pairwise(offs))

    def off_by(self, since: float) -> list[float]:
        """By how many seconds the clock was off, at any time since."""
        before = [off for when, off in self._steps if when <= since]
        return [before[-1], *(off for when, off in self._steps if when > since)]

    def step_clock(self, seconds: float) -> None:
        """The clock is set, as it happens after a failover or a wrong time server."""
        self.step += seconds
        self.stepped.append(self.scheduler.now)
        self._steps.append((self.scheduler.now, self.step))
        self.scheduler.note(f"the database's clock steps by {seconds:+g} s")
        self.faults.happened(Fault.CLOCK_FORWARD if seconds > 0 else Fault.CLOCK_BACK)

    # Outages

    def go_down(self, seconds: float, *, hangs: bool) -> None:
        """The server dies, its open transaction with it, and comes back."""
        self.scheduler.note(f"the database is down for {seconds:g} s")
        self.down_until = max(self.down_until, self.scheduler.now + seconds)
        self.blocked.append((self.scheduler.now, self.down_until))
        self.hangs = hangs
        if self.owner is not None:
            self.owner.cut("the server is going down")

    def blocked_between(self, since: float, until: float) -> float:
        """For how many of these seconds nobody could write."""
        return overlap(self.blocked, since, until)

    def check_up(self) -> None:
        """Raise what a driver raises without a server."""
        if self.scheduler.now < self.down_until:
            if self.hangs:
                self.scheduler.sleep(HANG * self.scheduler.random.random())
            raise sqlite3.OperationalError("connection refused")

    # The write lock

    def acquire(self, client: Client) -> None:
        """Wait for the lock, as long as this kind of database does."""
        patience = BUSY if self.flavour is Flavour.SQLITE else LOCK_TIMEOUT
        until = self.scheduler.now + patience
        while self.owner is not None:
            if self.scheduler.now >= until:
                self.faults.happened(Fault.LOCK_TIMEOUT)
                raise sqlite3.OperationalError("database is locked")
            actor = self.scheduler.actor
            self._waiting.append(actor)
            self.scheduler.sleep(until - self.scheduler.now)
            self._waiting = [other for other in self._waiting if other is not actor]
        self.check_up()
        self.owner = client
        self.real.execute("BEGIN")

    def release(self, end: str) -> None:
        """End the transaction, COMMIT or ROLLBACK, and let those who wait try, in no order."""
        self.real.execute(end)
        self.owner = None
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            self.scheduler.wake(actor, self.scheduler.now + self.scheduler.random.random() / 100)

    def _process_died(self, process: Process) -> None:
        if self.owner is not None and self.owner.process is process:
            self.owner.cut("its process died")

    def _process_stopped(self, process: Process, seconds: float) -> None:
        owner = self.owner
        if owner is None or owner.process is not process:
            return
        self.faults.happened(Fault.STOP_IN_TRANSACTION)
        if self.flavour is Flavour.POSTGRESQL and seconds > IDLE_IN_TRANSACTION:
            number = owner.number
            until = self.scheduler.now + IDLE_IN_TRANSACTION
            self.scheduler.at(until, lambda: owner.time_out(number))
        else:
            until = self.scheduler.now + seconds
        self.blocked.append((self.scheduler.now, until))
