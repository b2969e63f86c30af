"""
Everything at once, in an order that nobody thought of: hypothesis drives callers, sweeps, workers
and a cloud that misbehaves, and after every step the promises of docs/lifecycle.md must hold.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, select, text

from core import schema
from core.engines import make_engine
from core.errors import (
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    TurnExpired,
    Unavailable,
)
from core.host import Host
from core.lifecycle import Keeper
from core.model import Claim, Session, TurnOutcome, sandbox_name
from core.policy import Policy
from core.providers.base import Capability, SandboxRef
from core.reaper import Reaper, TeardownOutcome
from core.store import Store
from tests.fakes import FakeCloud, FrozenClock

SWEEP = 20.0
POLICY = Policy(
    idle_ttl=100.0,
    max_turn=160.0,
    heartbeat=10.0,
    confirm_interval=SWEEP,
    create_deadline=50.0,
    claim_ttl=30.0,
    publish_lease=15.0,
    retry_base=5.0,
    retry_max=40.0,
    quarantine_after=3,
    quarantine_retry=60.0,
    retention=1000.0,
    batch=2,  # so that a few sessions already make several batches
)
IDS = ("a", "b", "c")
FAR = 1e9
RANK = {"creating": 1, "running": 2, "closing": 3, "gone": 4}


class Crash(BaseException):
    """The process died at this instruction: no handler of ours may see it."""


@dataclass
class Kept:
    """What callers were promised of one generation: the reference that the rows are held to."""

    generation: int
    name: str
    idle_ttl: float
    age_ends: datetime | None
    active_at: datetime
    extended_until: datetime | None = None
    extended_at: datetime | None = None
    pinned_until: datetime | None = None
    pinned_at: datetime | None = None
    ended: bool = False
    vanished: bool = False

    def until(self) -> datetime:
        """The moment up to which the sandbox has to live."""
        idle = self.active_at + timedelta(seconds=self.idle_ttl)
        kept = max(idle, self.extended_until or idle, self.pinned_until or idle)
        return kept if self.age_ends is None else min(kept, self.age_ends)


@dataclass
class Held:
    """A turn as its holder knows it."""

    id: str
    session_id: str
    name: str
    hard_until: datetime


@dataclass
class Grabbed:
    """A claim that a worker has and has not finished with."""

    claim: Claim
    until: datetime


@dataclass
class World:
    """What a machine runs on; made anew for every example."""

    engine: Engine
    close: Callable[[], None]


class Machine(RuleBasedStateMachine):
    """
    Callers keep a model of what they were promised; nothing in it is read from the rows. `world`
    gives an empty, migrated database.
    """

    def __init__(self, world: Callable[[], World]) -> None:
        super().__init__()
        self.world = world()
        self.clock = FrozenClock()
        # Without a TTL of its own: nobody is in the background here to extend it.
        self.cloud = FakeCloud(
            clock=self.clock, capabilities=frozenset(Capability) - {Capability.TTL}
        )
        self.store = Store(self.world.engine, policy=POLICY, clock=self.clock)
        self.messages: list[tuple[str, int]] = []
        self.keeper = Keeper(
            self.store, self.cloud, doorbell=self.messages.extend, host=Host(sleep=lambda _: None)
        )
        self.reaper = Reaper(
            self.store,
            {"fake": self.cloud},
            doorbell=self.messages.extend,
            host=Host(spread=lambda: 0.0),
        )
        foreign = {"sandkeeper-installation": "another0", "sandkeeper-schema": "1"}
        self.foreign = [
            self.cloud.plant(f"sk-another0-{'a' * 26}", foreign),
            self.cloud.plant("somebody-else"),
        ]
        self.kept: dict[str, Kept] = {}
        self.turns: list[Held] = []
        self.claims: list[Grabbed] = []
        self.numbers = itertools.count(1)
        self.stepped_back = 0.0
        self.seen: dict[str, tuple[int, int, str | None]] = {}
        self.gone_seen: set[tuple[str, str]] = set()
        self.bound_sweeps()

    def bound_sweeps(self) -> None:
        """A sweep that never ends must be an example that hypothesis can shrink."""
        batch = self.store.sweeps.sessions
        calls = itertools.count(1)

        def bounded(*arguments: Any, **options: Any) -> tuple[int, int, int, int]:
            assert next(calls) < 2000, "the sweep goes round in circles"
            return batch(*arguments, **options)

        self.store.sweeps.sessions = bounded  # type: ignore[method-assign]

    # What callers do

    @rule(
        session_id=st.sampled_from(IDS),
        idle_ttl=st.sampled_from([None, None, 60.0, 250.0]),
        max_age=st.sampled_from([None, None, 180.0]),
        fault=st.sampled_from(
            ["", "", "", "", "fails", "doubt", "three doubts", "refused", "crash", "crash before"]
        ),
    )
    def open(
        self, session_id: str, idle_ttl: float | None, max_age: float | None, fault: str
    ) -> None:
        """Whatever the provider does, the caller gets a running sandbox or a typed error."""
        before = self.kept.get(session_id)
        try:
            with self.create_fault(fault):
                session = self.keeper.open(session_id, idle_ttl=idle_ttl, max_age=max_age)
        except (Crash, ProviderError):
            if before is not None and not self.protected(before):
                del self.kept[session_id]
            return
        except SessionEnded:
            assert before is None or not self.protected(before)
            return
        if before is not None and self.protected(before):
            assert session.generation == before.generation, "a live session was replaced"
        self.acknowledge(session)

    @contextmanager
    def create_fault(self, fault: str) -> Iterator[None]:
        """The next create goes wrong in this way."""
        openings = self.store.openings
        real = openings.record
        if fault == "fails":
            self.cloud.fail("create", Unavailable("503"))
        elif fault.endswith("doubt"):
            self.cloud.doubt("create", OutcomeUnknown("timeout"))
        elif fault == "three doubts":
            self.cloud.doubt("create", OutcomeUnknown("timeout"), times=3)
        elif fault == "refused":
            self.cloud.fail("create", InvalidSpec("no such image"))
        elif fault == "crash before":
            self.cloud.fail("create", Crash())  # type: ignore[arg-type]
        elif fault == "crash":
            openings.record = crash  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            openings.record = real  # type: ignore[method-assign]
            self.cloud.heal()

    def acknowledge(self, session: Session) -> None:
        """Remember what open() promised."""
        assert session.sandbox.external_id is not None
        known = self.kept.get(session.id)
        if known is not None and known.name == session.sandbox.name:
            assert not known.ended, "an ended session came back in the same generation"
            known.active_at = self.clock.now
            return
        age = None if session.max_age is None else timedelta(seconds=session.max_age)
        self.kept[session.id] = Kept(
            generation=session.generation,
            name=session.sandbox.name,
            idle_ttl=session.idle_ttl,
            age_ends=None if age is None else session.opened_at + age,
            active_at=self.clock.now,
            extended_until=session.extended_until,
        )

    @rule(session_id=st.sampled_from(IDS))
    def begin(self, session_id: str) -> None:
        """A turn begins on a sandbox that lives, or is refused by type."""
        turn_id = f"turn-{next(self.numbers)}"
        kept = self.kept.get(session_id)
        try:
            begun = self.store.turns.begin(turn_id, session_id, "holder")
        except (SessionEnded, SessionNotReady, SessionNotFound):
            assert kept is None or not self.protected(kept), "a live session refused a turn"
            return
        session = begun.session
        assert begun.hard_until > self.clock.now
        self.acknowledge(session)
        self.turns.append(Held(turn_id, session_id, session.sandbox.name, begun.hard_until))

    @rule()
    def beat(self) -> None:
        """One heartbeat for all open turns: it refuses the lost ones, and only those."""
        refused = self.store.turns.beat([turn.id for turn in self.turns]) if self.turns else {}
        for turn in list(self.turns):
            live, kept = self.lives(turn), self.kept.get(turn.session_id)
            if turn.id in refused:
                assert not live, f"a live turn was refused: {refused[turn.id]}"
                self.turns.remove(turn)
                continue
            assert kept is not None
            assert kept.name == turn.name, "a turn of an older generation goes on"
            assert turn.hard_until > self.clock.now, "a turn goes on past its hard ceiling"
            assert not kept.ended, "a turn on an ended session goes on"
            kept.active_at = self.clock.now

    @precondition(lambda self: self.turns)
    @rule(index=st.integers(0, 5), outcome=st.sampled_from(list(TurnOutcome)))
    def end_turn(self, index: int, outcome: TurnOutcome) -> None:
        """The end of a turn counts as activity, and says when the work was not to be trusted."""
        turn = self.turns.pop(index % len(self.turns))
        live = self.lives(turn)
        try:
            self.store.turns.end(turn.id, turn.session_id, outcome)
        except (SessionEnded, TurnExpired, SessionNotFound):
            assert not live, "a live turn was not allowed to end"
        else:
            self.kept[turn.session_id].active_at = self.clock.now

    @precondition(lambda self: self.turns)
    @rule(index=st.integers(0, 5))
    def abandon_turn(self, index: int) -> None:
        """Its holder died with -9: nobody beats for it any more."""
        self.turns.pop(index % len(self.turns))

    @rule(session_id=st.sampled_from(IDS))
    def touch(self, session_id: str) -> None:
        """A touch keeps a session alive, or is refused by type."""
        kept = self.kept.get(session_id)
        try:
            self.store.sessions.touch(session_id)
        except (SessionEnded, SessionNotFound):
            assert kept is None or not self.protected(kept)
        else:
            if kept is not None:
                kept.active_at = self.clock.now

    @rule(session_id=st.sampled_from(IDS), by=st.sampled_from([1.0, 30.0, 150.0, 400.0]))
    def extend(self, session_id: str, by: float) -> None:
        """What an extension grants is kept."""
        kept = self.kept.get(session_id)
        try:
            session = self.keeper.extend(session_id, by)
        except (SessionEnded, SessionNotFound):
            assert kept is None or not self.protected(kept)
            return
        assert session.extended_until is not None
        if kept is not None and kept.name == session.sandbox.name:
            kept.extended_until, kept.extended_at = session.extended_until, self.clock.now
            wanted = self.clock.now + timedelta(seconds=by)
            assert session.extended_until >= min(wanted, kept.age_ends or wanted)

    @rule(session_id=st.sampled_from(IDS), by=st.sampled_from([1.0, 30.0, 150.0, 400.0]))
    def pin(self, session_id: str, by: float) -> None:
        """What a pin grants is kept until it is lifted."""
        kept = self.kept.get(session_id)
        try:
            session = self.keeper.pin(session_id, by, reason="debugging")
        except (SessionEnded, SessionNotFound):
            assert kept is None or not self.protected(kept)
            return
        assert session.pinned_until is not None
        if kept is not None and kept.name == session.sandbox.name:
            kept.pinned_until, kept.pinned_at = session.pinned_until, self.clock.now
            wanted = self.clock.now + timedelta(seconds=by)
            assert session.pinned_until >= min(wanted, kept.age_ends or wanted)

    @rule(session_id=st.sampled_from(IDS))
    def unpin(self, session_id: str) -> None:
        """Lifted, it keeps nobody; what an extension promised stays."""
        kept = self.kept.get(session_id)
        try:
            session = self.keeper.unpin(session_id)
        except SessionNotFound:
            assert kept is None or not self.protected(kept)
            return
        if kept is not None and kept.name == session.sandbox.name:
            kept.pinned_until = kept.pinned_at = None

    @rule(session_id=st.sampled_from(IDS))
    def end(self, session_id: str) -> None:
        """A caller may end at any time; turns that are open find out at their next heartbeat."""
        kept = self.kept.get(session_id)
        try:
            self.keeper.end(session_id, reason="enough")
        except SessionNotFound:
            assert kept is None or not self.protected(kept)
        else:
            if kept is not None:
                kept.ended = True

    # What the system does

    @rule(fault=st.sampled_from(["", "", "", "", "broker", "crash"]))
    def sweep(self, fault: str) -> None:
        """A broker that is away, or a crash before the publication, changes only when."""
        real = self.reaper.doorbell
        if fault:
            self.reaper.doorbell = {"broker": no_broker, "crash": crash}[fault]
        try:
            self.reaper.sweep()
        except Crash:
            pass
        finally:
            self.reaper.doorbell = real

    @precondition(lambda self: self.messages)
    @rule(
        index=st.integers(0, 50),
        generation=st.sampled_from([0, 0, 0, 0, 0, 1, -1]),
        fault=st.sampled_from(
            ["", "", "", "fails", "doubt", "lie", "limited", "bug", "blind", "scope", "crash"]
        ),
        early=st.booleans(),
    )
    def deliver(self, index: int, generation: int, fault: str, *, early: bool) -> None:
        """A message that is new, old, doubled, or of a generation that nobody asked for."""
        session_id, of = self.messages[-1 - index % len(self.messages)]
        try:
            with self.destroy_fault(fault):
                done = self.reaper.teardown(session_id, of + generation, worker="w", early=early)
        except Crash:
            return
        if done.outcome is TeardownOutcome.RETRY:
            assert fault, "a teardown failed without a fault"
            assert done.retry_after is not None

    @contextmanager
    def destroy_fault(self, fault: str) -> Iterator[None]:
        """The next teardown goes wrong in this way."""
        plans: dict[str, Callable[[], None]] = {
            "fails": lambda: self.cloud.fail("destroy", Unavailable("503")),
            "doubt": lambda: self.cloud.doubt("destroy", OutcomeUnknown("timeout")),
            "lie": self.cloud.lie,
            "limited": lambda: self.cloud.fail("destroy", RateLimited("429", retry_after=35.0)),
            "bug": lambda: self.cloud.fail("destroy", ZeroDivisionError("theirs")),
            "blind": lambda: self.cloud.fail("get", Unavailable("503")),
            "scope": lambda: setattr(self.cloud, "account", "another-account"),
            "crash": lambda: self.cloud.doubt("destroy", Crash()),  # type: ignore[arg-type]
        }
        plans.get(fault, lambda: None)()
        try:
            yield
        finally:
            self.cloud.heal()
            self.cloud.account = "test-account"

    @precondition(lambda self: self.messages)
    @rule(index=st.integers(0, 50), early=st.booleans())
    def claim(self, index: int, *, early: bool) -> None:
        """A worker takes a claim and is slow; nobody else gets one that it may still use."""
        session_id, generation = self.messages[-1 - index % len(self.messages)]
        claim = self.store.teardowns.claim(session_id, generation, "slow", early=early)
        if claim is None:
            return
        for other in self.claims:
            if other.claim.key == claim.key:
                assert other.until <= self.clock.now, "two live claims on one sandbox"
                assert other.claim.token < claim.token
        until = self.clock.now + timedelta(seconds=POLICY.claim_ttl)
        self.claims.append(Grabbed(claim, until))

    @precondition(lambda self: self.claims)
    @rule(index=st.integers(0, 5), works=st.booleans())
    def finish_claim(self, index: int, *, works: bool) -> None:
        """However late a worker comes back, its writes count only while the claim is its own."""
        claim = self.claims.pop(index % len(self.claims)).claim
        row = self.one(schema.sandboxes, schema.sandboxes.c.key == claim.key)
        mine = row is not None and row.state == "closing" and row.claim_token == claim.token
        if not works:
            released = self.store.teardowns.release(claim, "later", 5.0, actor="slow")
            assert released == mine
            return
        ref = SandboxRef(name=claim.name, external_id=claim.external_id)
        self.cloud.destroy(ref, deadline=FAR)
        assert self.cloud.get(ref, deadline=FAR) is None
        assert self.store.teardowns.gone(claim, actor="slow") == mine

    @rule()
    def purge(self) -> None:
        """Only what ended long ago, and is confirmed gone, may be forgotten."""
        self.reaper.purge()

    # What the world does

    @rule(seconds=st.sampled_from([0.001, 1.0, 5.0, 10.0, 19.0, 20.0, 21.0, 49.0, 99.0, 100.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([101.0, 300.0, 1500.0, 40000.0]))
    def leap(self, seconds: float) -> None:
        """An outage, or a clock that was set forward: everything is overdue at once."""
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0, 120.0]))
    def step_back(self, seconds: float) -> None:
        """The database's clock is set back: what happened, happened before the new now."""
        self.clock.advance(-seconds)
        self.stepped_back += seconds
        for kept in self.kept.values():
            kept.active_at = min(kept.active_at, self.clock.now)
            if kept.pinned_until is not None and kept.pinned_at is not None:
                ahead = max(timedelta(0), kept.pinned_at - self.clock.now)
                kept.pinned_until -= ahead
                kept.pinned_at -= ahead
            if kept.extended_until is not None and kept.extended_at is not None:
                # So many seconds were promised, and not a date.
                ahead = max(timedelta(0), kept.extended_at - self.clock.now)
                kept.extended_until -= ahead
                kept.extended_at -= ahead
        for grabbed in self.claims:
            grabbed.until = self.clock.now  # dates that are too far away may be brought back

    @precondition(lambda self: self.kept)
    @rule(index=st.integers(0, 5))
    def vanish(self, index: int) -> None:
        """The provider loses a sandbox."""
        kept = list(self.kept.values())[index % len(self.kept)]
        self.cloud.vanish(kept.name)
        kept.vanished = True

    # What must hold

    def protected(self, kept: Kept) -> bool:
        """Whether somebody was promised that this sandbox lives now."""
        return not kept.ended and self.clock.now < kept.until()

    def lives(self, turn: Held) -> bool:
        """Begun, beaten within the idle TTL, under its ceiling, and nobody ended the session."""
        kept = self.kept.get(turn.session_id)
        return (
            kept is not None
            and kept.name == turn.name
            and self.protected(kept)
            and self.clock.now < turn.hard_until
        )

    def one(self, table: Any, where: Any) -> Any:
        with self.world.engine.connect() as connection:
            return connection.execute(select(table).where(where)).one_or_none()

    def rows(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Sessions, sandboxes and the ledger, as they are committed."""
        with self.world.engine.connect() as connection:
            connection = connection.execution_options(sandkeeper_read=True)
            read = [
                list(connection.execute(select(table).order_by(order)))
                for table, order in (
                    (schema.sessions, schema.sessions.c.id),
                    (schema.sandboxes, schema.sandboxes.c.created_at),
                    (schema.events, schema.events.c.id),
                )
            ]
        return read[0], read[1], read[2]

    @invariant()
    def promises(self) -> None:
        """S1 to S5, L2 and H1, after every step."""
        sessions, sandboxes, ledger = self.rows()
        living = {box.name for box in self.cloud.alive()}
        self.check_protected(sessions, sandboxes, living)
        self.check_foreign()
        self.check_rows(sessions, sandboxes, living)
        self.check_monotone(sandboxes)
        self.check_ledger(sessions, sandboxes, ledger)

    def check_protected(self, sessions: list[Any], sandboxes: list[Any], living: set[str]) -> None:
        """S1: what was promised to be alive is alive, in the cloud and in the rows."""
        session_of = {row.id: row for row in sessions}
        sandbox_of = {(row.session_id, row.generation): row for row in sandboxes}
        for session_id, kept in self.kept.items():
            if not self.protected(kept):
                continue
            row = session_of[session_id]
            assert (row.status, row.generation) == ("active", kept.generation)
            assert sandbox_of[session_id, kept.generation].state == "running"
            assert kept.vanished or kept.name in living, "a promised sandbox is dead"

    def check_foreign(self) -> None:
        """S2: nobody called for, or touched, what is not ours."""
        living = {box.external_id for box in self.cloud.alive()}
        for box in self.foreign:
            assert box.external_id in living
            assert not self.cloud.count("destroy", box.name)

    def check_rows(self, sessions: list[Any], sandboxes: list[Any], living: set[str]) -> None:
        """Active has a sandbox that may live; what is not final is due; gone is really gone."""
        open_of = {r.session_id: r.generation for r in sandboxes if r.state in _OPEN}
        active = {row.id: row.generation for row in sessions if row.status == "active"}
        assert active == open_of
        far = self.clock.now + timedelta(seconds=100.0 + self.stepped_back)
        assert all(row.due_at <= far for row in sessions if row.status == "active")
        assert all(r.due_at <= far for r in sandboxes if r.state in ("creating", "closing"))
        gone = {self.name(row) for row in sandboxes if row.state == "gone"}
        assert not gone & living, "confirmed gone, and alive"
        assert all(count == 1 for count in self.cloud.kills.values()), "killed twice"

    def check_monotone(self, sandboxes: list[Any]) -> None:
        """A sandbox never goes back."""
        for row in sandboxes:
            now = (RANK[row.state], row.claim_token, row.external_id)
            was = self.seen.get(row.key, (0, 0, None))
            assert was[:2] <= now[:2]
            assert was[0] <= now[0]
            assert was[1] <= now[1]
            assert was[2] in (None, now[2])
            self.seen[row.key] = now

    def check_ledger(self, sessions: list[Any], sandboxes: list[Any], ledger: list[Any]) -> None:
        """H1, S3, S5: the ledger alone tells where every row is, and why."""
        told: dict[tuple[str, int], str] = {}
        noticed: dict[tuple[str, int], datetime] = {}
        for line in ledger:
            of = (line.session_id, line.generation)
            match line.kind:
                case "session_opened" | "session_reopened":
                    assert told.get((of[0], of[1] - 1), "closing") in ("closing", "gone")
                    told[of] = "creating"
                case "sandbox_running":
                    assert told[of] == "creating"
                    told[of] = "running"
                case "session_noticed":
                    noticed[of] = line.at
                case "session_ended":
                    assert told[of] in _OPEN
                    told[of] = "closing"
                    if line.detail["reason"] == "idle":
                        waited = line.at - noticed[of]
                        confirm = timedelta(seconds=POLICY.confirm_interval)
                        assert waited >= confirm, "ended at first sight"
                case "sandbox_gone":
                    assert told[of] == "closing", "gone twice, or gone before it was closing"
                    told[of] = "gone"
        assert told == {(row.session_id, row.generation): row.state for row in sandboxes}

    def name(self, row: Any) -> str:
        return sandbox_name(self.store.installation, row.key)

    def deliver_all(self) -> None:
        """Every message, once."""
        messages, self.messages[:] = list(dict.fromkeys(self.messages)), []
        for session_id, generation in messages:
            self.reaper.teardown(session_id, generation, worker="w")

    def patience(self) -> float:
        """The idle TTL and three sweeps, from the last thing that anybody was promised."""
        sandboxes = self.rows()[1]
        promised = [kept.until() for kept in self.kept.values() if not kept.ended]
        waiting = [row.not_before for row in sandboxes if row.state == "closing"]
        creating = [row.due_at for row in sandboxes if row.state == "creating"]
        moments = [self.clock.now, *promised, *waiting, *creating]
        limit: float = (max(moments) - self.clock.now).total_seconds()
        # Dates of a clock that was ahead: the clamp lets none stay beyond one look.
        return limit + 3 * SWEEP + min(self.stepped_back, 2 * POLICY.longest_look)

    def teardown(self) -> None:
        """The end of an example: nobody calls any more, and no fault comes."""
        try:
            self.everything_goes()
        finally:
            self.keeper.close()
            self.world.close()

    def everything_goes(self) -> None:
        """L1 and L3: once faults stop, everything that is ours goes away, in bounded time."""
        left = self.patience()
        while left > 0:
            self.clock.advance(SWEEP)
            left -= SWEEP
            self.reaper.sweep()
            self.deliver_all()
            self.promises()
        sessions, sandboxes, _ = self.rows()
        assert {row.state for row in sandboxes} <= {"gone"}
        assert {row.status for row in sessions} <= {"ended"}
        assert {box.name for box in self.cloud.alive()} == {box.name for box in self.foreign}


_OPEN = ("creating", "running")


def crash(*_: object, **__: object) -> None:
    """Die here."""
    raise Crash


def no_broker(_: object) -> None:
    """Nobody answers."""
    raise ConnectionError("no broker")


def explore(world: Callable[[], World], *, examples: int, steps: int) -> None:
    """
    Run the machine, the same way each time: a change is judged by itself, not by luck. EXPLORE=40
    looks elsewhere, forty times as long; a failure prints the blob that repeats it.
    """
    further = int(os.environ.get("EXPLORE", "0"))
    run_state_machine_as_test(
        lambda: Machine(world),  # type: ignore[arg-type] # its documentation says a callable
        settings=settings(
            max_examples=examples * max(further, 1),
            stateful_step_count=steps,
            deadline=None,  # a database's pauses are not ours
            print_blob=True,
            derandomize=not further,
            database=None,  # nothing is left behind in the tree
            # A step is several transactions, so examples are slow and few; the rules that need a
            # turn, a message or a claim are skipped until there is one.
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_promises_hold_on_sqlite_whatever_happens_in_whatever_order(
    sqlite_template: Path, tmp_path: Path
) -> None:
    """S1 to S5, L1 to L3 and H1, against a cloud that fails, lies and forgets."""
    numbers = itertools.count(1)

    def world() -> World:
        path = Path(shutil.copy(sqlite_template, tmp_path / f"{next(numbers)}.db"))
        engine = make_engine(f"sqlite:///{path}")

        def close() -> None:
            engine.dispose()
            path.unlink()

        return World(engine, close)

    explore(world, examples=60, steps=40)


def test_promises_hold_on_postgresql_whatever_happens_in_whatever_order(
    postgresql_url: str,
) -> None:
    """The same statements, in the other database's words."""
    engine = make_engine(postgresql_url)
    with engine.begin() as connection:
        name = engine.url.database
        connection.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
    engine.dispose()
    tables = ", ".join(table.name for table in schema.metadata.sorted_tables)

    def world() -> World:
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {tables}"))
        return World(engine, lambda: None)

    explore(world, examples=20, steps=40)
    engine.dispose()
