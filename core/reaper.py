"""The two background works: the sweep that ends idle sessions, and the teardown of one sandbox."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from .errors import RowLocked, SchemaOutdated, StoreError, StoreUnavailable, words
from .events import Event, EventKind
from .following import follow_policies
from .host import Host
from .providers.base import SandboxProvider
from .store import Store
from .store.guard import Decision, HoldReason
from .store.outlook import Work
from .store.tallies import LINES, swept
from .teardown import CALLS_AT_ONCE, Teardown, TeardownOutcome, Undertaker
from .timekeeper import Timekeeper, Watched

__all__ = ["Doorbell", "Reaper", "Rehearsal", "SweepReport", "Teardown", "TeardownOutcome"]

ACTOR = "sweep"
FOLDS = 40  # batches of the ledger that one sweep counts at most
FOLLOW_UPS = 20  # for each time that all that may be in flight is done

Doorbell = Callable[[Sequence[tuple[str, int]]], None]
"""Rings for (session_id, generation) pairs. It may lose them: the sweep rings again."""


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What one sweep did, in rows."""

    clamped: int = 0
    followed: int = 0
    rearmed: int = 0
    noticed: int = 0
    ended: int = 0
    expired: int = 0
    published: int = 0
    poisoned: int = 0

    def __add__(self, other: SweepReport) -> SweepReport:
        names = [field.name for field in fields(self)]
        return SweepReport(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a sweep would do: in rows, in events, and the teardowns that it would ring for."""

    report: SweepReport
    events: tuple[Event, ...]
    rung: tuple[tuple[str, int], ...]


class Reaper:
    """
    Safe to run many at once, twice, or late. `providers` by the name that is on the rows. All
    reapers of one process share its `undertaker`, which counts the calls that are under way, and
    its `timekeeper`.
    """

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, SandboxProvider],
        *,
        doorbell: Doorbell,
        host: Host | None = None,
        at_once: int = CALLS_AT_ONCE,
        undertaker: Undertaker | None = None,
        timekeeper: Timekeeper | None = None,
    ) -> None:
        self.store = store
        self.policy = store.policy
        self.providers = providers
        self.doorbell = doorbell
        self.host = host or Host()
        self._undertaker = undertaker or Undertaker(
            store, providers, host=self.host, at_once=at_once
        )
        self._timekeeper = timekeeper or timekeeper_of(store)

    # The sweep

    def sweep(self, *, stand_in: bool = False) -> SweepReport:
        """
        One pass over what is due: clamp, end, notice, re-arm, expire creates, publish teardowns.
        Each step stops with the first batch that is not full. StoreError when the database refuses.
        `stand_in` when nobody else sweeps, and that must not look as if somebody did.
        """
        began = self.host.monotonic()
        report, work = self._pass()
        added = swept(self.host.monotonic() - began, asdict(report))
        self.store.guard.witness.remember(self.store.sweeps.pulse(added, stood_in=stand_in))
        if work.told:  # after the pulse: whatever is wrong with figures, somebody sweeps
            self._count()
        return report

    def rehearse(self) -> Rehearsal:
        """
        What a sweep would do now: the same pass, taken back, with a doorbell that nobody hears.
        Nothing is written and nothing published; it says nothing of the pulse either. The rows
        that it would move are locked until it is over: heartbeats skip them, calls on them wait.
        """
        rung: list[tuple[str, int]] = []
        stage = copy.copy(self)
        stage.doorbell = rung.extend
        with self.store.database.rehearsal() as events:
            report, _ = stage._pass()  # noqa: SLF001 - a copy of ourselves
        return Rehearsal(report=report, events=tuple(events), rung=tuple(rung))

    def _pass(self) -> tuple[SweepReport, Work]:
        self.store.guard.check(actor=ACTOR)
        watched = self._timekeeper.watch(self.store.sweeps.now)
        work = self.store.outlook.work()
        clamped = self._until_short(self.store.clamps.clamp) if work.far else 0
        followed = self._try_to_follow(watched) if work.changed else 0
        # The breaker counts after the policies were followed, by which more may be over; and behind
        # the watch: a window that ends between the two is still open to this sweep.
        ending = self._may_end()
        report = SweepReport(clamped=clamped, followed=followed)
        if work.due or clamped or followed:
            report += self._sweep_sessions(watched, ending=ending)
        if ending and (work.creates or clamped):
            report += self._expire_creates(watched)
        if work.closing or report.ended or report.expired or clamped:
            report += SweepReport(published=self._ring_while_there_is_room())
        if work.failing or clamped:
            report += SweepReport(published=self._ring_for_failing())
        return report, work

    def _try_to_follow(self, watched: Watched) -> int:
        """Whatever is wrong with that, the rest of the sweep goes on."""
        try:
            return follow_policies(self.store, self.policy, self.host.monotonic, watched=watched)
        except (StoreUnavailable, SchemaOutdated):
            raise
        except StoreError as error:
            detail = {"step": "follow policies", "error": str(error)}
            self.store.database.tell(Event(kind=EventKind.ROW_POISONED, actor=ACTOR, detail=detail))
            return 0

    def _may_end(self) -> bool:
        """The breaker: more ends at once than is plausible are an operator's decision."""
        mass = self.store.sweeps.mass_end()
        if mass is None:
            return True
        decision = self.store.guard.decision(HoldReason.MASS_END)
        if decision is None:
            self.store.guard.hold(HoldReason.MASS_END, mass, actor=ACTOR)
        return decision is Decision.APPROVED

    def _sweep_sessions(self, watched: Watched, *, ending: bool) -> SweepReport:
        total = SweepReport()
        while True:
            try:
                looked, rearmed, noticed, ended = self.store.sweeps.sessions(
                    self.policy.batch, watched, ending=ending
                )
            except RowLocked:
                return total + self._sweep_one_by_one(watched, ending=ending)
            except (StoreUnavailable, SchemaOutdated):
                raise
            except StoreError:
                return total + self._sweep_one_by_one(watched, ending=ending)
            total += SweepReport(rearmed=rearmed, noticed=noticed, ended=ended)
            if looked < self.policy.batch:
                return total

    def _sweep_one_by_one(self, watched: Watched, *, ending: bool) -> SweepReport:
        def sweep_one(session_id: str) -> SweepReport:
            _, rearmed, noticed, ended = self.store.sweeps.sessions(
                1, watched, only=session_id, ending=ending
            )
            return SweepReport(rearmed=rearmed, noticed=noticed, ended=ended)

        return self._one_by_one(self.store.sweeps.due_sessions(self.policy.batch), sweep_one)

    def _expire_creates(self, watched: Watched) -> SweepReport:
        expire = self.store.sweeps.expired_creates

        def expire_one(session_id: str) -> SweepReport:
            return SweepReport(expired=expire(1, watched, only=session_id))

        try:
            return SweepReport(expired=self._until_short(lambda limit: expire(limit, watched)))
        except RowLocked:  # the next sweep tries again; what is left of this one goes on
            return SweepReport(poisoned=1)
        except (StoreUnavailable, SchemaOutdated):
            raise
        except StoreError:
            due = self.store.sweeps.due_creates(self.policy.batch)
            return self._one_by_one(due, expire_one)

    def _one_by_one(
        self, session_ids: Sequence[str], step: Callable[[str], SweepReport]
    ) -> SweepReport:
        """Some row makes its batch fail: move the others without it, and show it."""
        total = SweepReport()
        for session_id in session_ids:
            try:
                total += step(session_id)
            except RowLocked:  # it stays due; whoever holds it will let go
                total += SweepReport(poisoned=1)
            except (StoreUnavailable, SchemaOutdated):
                raise
            except StoreError as error:
                self._postpone(session_id, error)
                total += SweepReport(poisoned=1)
        return total

    def _postpone(self, session_id: str, error: StoreError) -> None:
        try:
            self.store.sweeps.postpone(session_id, str(error))
        except (StoreUnavailable, SchemaOutdated):
            raise
        except StoreError as refused:  # not even that: it stays due, and the others go on
            self.store.database.tell(
                Event(
                    kind=EventKind.ROW_POISONED,
                    actor=ACTOR,
                    session_id=session_id,
                    detail={"error": str(refused)},
                )
            )

    def _until_short(self, step: Callable[[int], int]) -> int:
        total = 0
        while (count := step(self.policy.batch)) >= self.policy.batch:
            total += count
        return total + count

    def _ring_for_failing(self) -> int:
        """Of what always fails no more than a batch, and after the others."""
        _, failing = self.store.publications.failing(self.policy.batch)
        return len(failing) if failing and self._ring(failing) else 0

    def _ring_while_there_is_room(self, only: str | None = None) -> int:
        """A batch of each provider in turn, until nothing is due or enough is in flight."""
        published = 0
        # No longer than the lease: what was published first is due again then, and a slow broker
        # would keep this sweep ringing for the same rows for ever.
        end = self.host.monotonic() + self.policy.publish_lease
        rooms = self.store.publications.rooms(only)
        while rooms and self.host.monotonic() < end:
            left = []
            for room in rooms:
                limit = min(self.policy.batch, room.room)
                batch = self.store.publications.take(room, limit)
                if batch and not self._ring(batch):
                    return published
                published += len(batch)
                if len(batch) == limit < room.room:
                    left.append(replace(room, room=room.room - limit))
            rooms = left
        return published

    def _ring(self, batch: Sequence[tuple[str, int]]) -> bool:
        try:
            self.doorbell(batch)
        except Exception as error:  # noqa: BLE001 - the rows are due again after the lease
            self.store.database.tell(
                Event(
                    kind=EventKind.FAN_OUT_FAILED,
                    actor=ACTOR,
                    detail={"teardowns": len(batch), "error": words(error)},
                )
            )
            return False
        return True

    def purge(self) -> int:
        """Delete what ended longer ago than the retention; returns how many sessions."""
        self._count()
        return self._until_short(self.store.retention.purge)

    def _count(self) -> None:
        """What the ledger has that is not counted yet, as far as one sweep should go."""
        for _ in range(FOLDS):
            if self.store.tallies.fold(LINES) < LINES:
                return

    # The teardown

    def teardown(
        self, session_id: str, generation: int, *, worker: str, early: bool = False
    ) -> Teardown:
        """
        One attempt to make a sandbox go away and to confirm it. Only a row that says `closing`
        can be claimed, whatever a message says. `early` does not wait for a pause to end.
        """
        return self._undertaker.teardown(session_id, generation, worker=worker, early=early)

    def follow_up(self, teardown: Teardown) -> int:
        """
        After an attempt: where one is done there is room for one more, so that a backlog does not
        wait for the next sweep. A share of the attempts rings for all of them. Only success makes
        room: what fails would call for more that fails. Returns how many were published.
        """
        if teardown.outcome is not TeardownOutcome.GONE or teardown.provider is None:
            return 0
        if self.host.spread() * self.policy.in_flight_bound >= FOLLOW_UPS:
            return 0
        return self._ring_while_there_is_room(teardown.provider)


def timekeeper_of(store: Store) -> Timekeeper:
    """
    For all sweeps of this process. HEARTBEAT is at most half of CONFIRM_INTERVAL: what is no jump
    leaves time for one.
    """
    return Timekeeper(store.monotonic, store.policy.confirm_interval / 4)
