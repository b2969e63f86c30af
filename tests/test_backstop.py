"""The provider's own TTL: never shorter than a live session, and the end of it when all is dead."""

from __future__ import annotations

import heapq
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Row, select

from core.errors import (
    AuthFailed,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    SessionEnded,
    StoreUnavailable,
    Unavailable,
)
from core.events import Event, EventKind
from core.host import Host
from core.lifecycle import Keeper
from core.providers.base import Capability
from core.reconcile import Reconciler
from core.schema import sandboxes
from core.store import Store
from core.store.guard import HoldReason
from tests.factories import policy
from tests.fakes import Box, FakeCloud, FrozenClock, LoopByHand

ROOT = Path(__file__).parents[1]
LIMITS = policy(heartbeat=30.0)
TTL = LIMITS.backstop_ttl(LIMITS.idle_ttl) or 0.0
QUARTER = TTL / 4
ASKED = TTL + LIMITS.create_deadline  # what a create asks for
WEEK = 7 * 86400.0
WITHOUT_TTL = frozenset(Capability) - {Capability.TTL}


@pytest.fixture
def heard() -> list[Event]:
    """Everything that was said."""
    return []


@pytest.fixture
def store(engine: Engine, clock: FrozenClock, heard: list[Event]) -> Store:
    """A store that is listened to."""
    return Store(engine, policy=LIMITS, clock=clock, sinks=(heard.append,))


@pytest.fixture
def provider(world: FrozenClock) -> FakeCloud:
    """A cloud that lives in the world, and not in the database."""
    return FakeCloud(clock=world, monotonic=world.monotonic)


class Process:
    """An API process: its keeper, and its background work by hand."""

    def __init__(
        self, store: Store, provider: FakeCloud, world: FrozenClock, **options: Any
    ) -> None:
        self.loops: dict[str, LoopByHand] = {}

        def loop(*arguments: Any) -> LoopByHand:
            made = LoopByHand(*arguments)
            self.loops[made.name] = made
            return made

        host = Host(
            monotonic=world.monotonic,
            sleep=world.advance,
            spread=lambda: 0.0,
            loop=loop,
        )
        self.keeper = Keeper(store, provider, host=host, **options)

    def look(self) -> float:
        """One look of the backstop."""
        return self.loops["sandkeeper-backstop"].step()

    def beat(self) -> float:
        """One heartbeat."""
        return self.loops["sandkeeper-beater"].step()


@pytest.fixture
def process(store: Store, provider: FakeCloud, world: FrozenClock) -> Process:
    """One API process."""
    return Process(store, provider, world)


@pytest.fixture
def keeper(process: Process) -> Iterator[Keeper]:
    """Its keeper."""
    with process.keeper as keeper:
        yield keeper


Pass = Callable[[float], None]


@pytest.fixture
def later(clock: FrozenClock, world: FrozenClock) -> Pass:
    """Let time pass, for the database and for everybody else."""

    def both(seconds: float) -> None:
        clock.advance(seconds)
        world.advance(seconds)

    return both


def row(engine: Engine, session_id: str = "conv") -> Row[Any]:
    """The newest sandbox of a session."""
    b = sandboxes.c
    query = select(sandboxes).where(b.session_id == session_id).order_by(b.generation.desc())
    with engine.connect() as connection:
        return connection.execute(query.limit(1)).one()


def box(provider: FakeCloud) -> Box:
    """The one sandbox that lives."""
    (found,) = provider.alive()
    return found


def left(provider: FakeCloud, world: FrozenClock) -> float:
    """Seconds until the one sandbox dies by itself."""
    expires_at = box(provider).expires_at
    assert expires_at is not None
    return (expires_at - world.now).total_seconds()


def failures(heard: list[Event]) -> list[str]:
    """What was said of extensions."""
    return [str(e.detail["error"]) for e in heard if e.kind is EventKind.EXTEND_FAILED]


# Creating


@pytest.mark.parametrize("idle_ttl", [1.0, LIMITS.idle_ttl, 86400.0])
def test_a_sandbox_is_made_with_a_ttl_of_a_multiple_of_its_sessions(
    keeper: Keeper, provider: FakeCloud, world: FrozenClock, idle_ttl: float
) -> None:
    """And as much more as the create may take: one that is adopted late must have as much left."""
    keeper.open("conv", idle_ttl=idle_ttl)

    backstop = LIMITS.backstop_ttl(idle_ttl)
    assert backstop is not None
    assert left(provider, world) == backstop + LIMITS.create_deadline
    assert backstop >= 4 * idle_ttl


class Asked(FakeCloud):
    """A cloud that notes what TTL it was asked for."""

    ttls: list[float | None]

    def create(self, name: str, labels: Mapping[str, str], spec: Any, **options: Any) -> Any:
        self.ttls = [*getattr(self, "ttls", []), options["ttl"]]
        return super().create(name, labels, spec, **options)


@pytest.mark.parametrize(
    ("capabilities", "backstop"), [(WITHOUT_TTL, 4.0), (frozenset(Capability), None)]
)
def test_no_ttl_is_asked_for_where_there_is_none(
    *,
    engine: Engine,
    clock: FrozenClock,
    world: FrozenClock,
    capabilities: frozenset[Capability],
    backstop: float | None,
) -> None:
    """A provider that has none, or an operator who wants none: then nothing is ever extended."""
    cloud = Asked(clock=world, capabilities=capabilities, monotonic=lambda: 0.0)
    store = Store(engine, policy=policy(backstop=backstop), clock=clock)
    process = Process(store, cloud, world)

    process.keeper.open("conv")
    process.look()
    process.keeper.extend("conv", WEEK)

    assert cloud.ttls == [None]
    assert cloud.count("extend") == 0
    assert (row(engine).expires_at, row(engine).extend_at) == (None, None)
    assert not process.loops["sandkeeper-backstop"].runs


@pytest.mark.parametrize(
    ("skew", "longest", "tells", "kept"),
    [
        (0.0, None, True, ASKED),
        (0.0, None, False, TTL),
        (0.0, 1000.0, True, 1000.0),
        (600.0, None, True, ASKED),
        (-600.0, None, True, ASKED - 600),
        (-600.0, 1000.0, True, 400.0),
    ],
    ids=["as asked", "not told", "shorter", "clock ahead", "clock behind", "shorter and behind"],
)
def test_what_was_granted_is_kept(
    *,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    clock: FrozenClock,
    engine: Engine,
    skew: float,
    longest: float | None,
    tells: bool,
    kept: float,
) -> None:
    """F27: never later than was asked for, whatever a provider's clock says."""
    provider.longest_ttl, provider.tells_expiry = longest, tells
    world.advance(skew)

    keeper.open("conv")

    assert row(engine).expires_at == clock.now + timedelta(seconds=kept)


# Extending


def run(
    process: Process,
    pass_time: Pass,
    seconds: float,
    after_each: Callable[[], object] = lambda: None,
) -> None:
    """Let a process's background work do what it does, for so long."""
    numbers, now = itertools.count(), 0.0
    timers = [(each.first_pause, next(numbers), each) for each in process.loops.values()]
    heapq.heapify(timers)
    while timers[0][0] <= seconds:
        moment, _, loop = heapq.heappop(timers)
        pass_time(moment - now)
        now = moment
        if loop.runs:
            pause = loop.step()
            after_each()
        else:
            pause = loop.first_pause
        heapq.heappush(timers, (now + pause, next(numbers), loop))
    pass_time(seconds - now)


def test_a_live_turn_never_sees_the_providers_ttl_run_out(
    *, process: Process, keeper: Keeper, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """F2: a turn of ten idle times without a sound, and at most one extension a quarter."""
    least: list[float] = []
    keeper.open("conv")

    with keeper.turn("conv") as turn:
        long = 10 * LIMITS.idle_ttl
        run(process, later, long, lambda: least.append(left(provider, world)))
        turn.check()

    assert min(least) >= 0.75 * TTL - LIMITS.extend_interval - LIMITS.heartbeat
    assert 1 <= provider.count("extend") <= long / QUARTER


def test_the_slower_of_two_extensions_takes_nothing_back(
    *, store: Store, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """S1: four hours are asked for, forty are granted meanwhile, and the four land last."""
    slow, quick = (Process(store, provider, world) for _ in range(2))
    slow.keeper.open("conv")
    with provider.hang("extend") as hang, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow.keeper.extend, "conv", 4 * 3600)
        assert hang.entered.wait(30)
        later(1)
        promised = quick.keeper.extend("conv", 40 * 3600).extended_until
        hang.release()
        asked.result(30)

    for _ in range(3):
        later(LIMITS.extend_interval)
        slow.look()
        quick.look()

    expires_at = box(provider).expires_at
    assert promised is not None
    assert expires_at is not None
    assert expires_at >= promised


def test_an_extension_that_lands_late_takes_nothing_back(
    *, process: Process, keeper: Keeper, provider: FakeCloud, later: Pass
) -> None:
    """S1: nobody heard whether it was done; forty hours were granted before it was."""
    keeper.open("conv")
    later(QUARTER + 1)
    keeper.touch("conv")
    provider.delay("extend")
    process.look()
    promised = keeper.extend("conv", 40 * 3600).extended_until
    for _ in range(2):
        later(LIMITS.extend_interval)
        process.look()
    assert provider.land() == 1

    later(LIMITS.extend_interval)
    process.look()

    expires_at = box(provider).expires_at
    assert promised is not None
    assert expires_at is not None
    assert expires_at >= promised


def test_who_cannot_extend_keeps_it_from_nobody(
    *, store: Store, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """S1: a process in another account looks first, every time."""
    elsewhere = Process(store, FakeCloud(clock=world, account="another"), world)
    here = Process(store, provider, world)
    here.keeper.open("conv")
    with here.keeper.turn("conv"), elsewhere.keeper.turn("conv"):
        for _ in range(30):
            later(600)
            here.beat()
            elsewhere.look()
            here.look()
            assert provider.alive()

    assert left(provider, world) > TTL / 2


@pytest.mark.parametrize("longest", [TTL / 2, 900.0])
def test_a_provider_that_grants_less_is_asked_more_often(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
    longest: float,
) -> None:
    """Every quarter of what it grants; what comes after the turn is kept as well."""
    keeper.open("conv")
    provider.longest_ttl = longest
    least: list[float] = []

    with keeper.turn("conv"):
        run(process, later, 2 * TTL, lambda: least.append(left(provider, world)))

    assert min(least) >= 0.75 * longest - LIMITS.extend_interval - LIMITS.heartbeat
    assert provider.count("extend") <= 4 * 2 * TTL / longest + 1


def test_a_session_that_goes_idle_is_kept_where_less_was_granted(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
) -> None:
    """Its idle time is promised: a cap of the provider's does not end it sooner."""
    keeper.open("conv")
    provider.longest_ttl = 900.0
    later(QUARTER + 1)
    keeper.touch("conv")
    least: list[float] = []

    run(process, later, LIMITS.idle_ttl, lambda: least.append(left(provider, world)))

    assert min(least) > 900.0 / 2


def test_a_create_that_is_granted_less_is_extended_in_time(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
) -> None:
    """A quarter of what was granted, from the first moment."""
    provider.longest_ttl = 900.0
    keeper.open("conv")
    least: list[float] = []

    with keeper.turn("conv"):
        run(process, later, 2000.0, lambda: least.append(left(provider, world)))

    assert min(least) > 900.0 / 2


def test_a_touch_keeps_the_sandbox_too(
    *, process: Process, keeper: Keeper, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """Activity without a turn: seen at the next look of the process that it came to."""
    keeper.open("conv")
    later(QUARTER + 1)
    keeper.touch("conv")

    process.look()

    assert left(provider, world) == ASKED
    assert provider.count("extend") == 1


def test_an_extension_never_shortens(
    *, process: Process, keeper: Keeper, provider: FakeCloud, world: FrozenClock, clock: FrozenClock
) -> None:
    """S1: the database's clock goes an hour ahead, so that all that was granted looks over."""
    keeper.open("conv")
    clock.advance(3600.0)
    keeper.touch("conv")

    process.look()

    assert provider.count("extend") == 1
    assert left(provider, world) >= ASKED


def test_nothing_is_extended_twice_within_a_quarter(
    *, process: Process, keeper: Keeper, provider: FakeCloud, later: Pass
) -> None:
    """However much activity there is."""
    keeper.open("conv")
    later(QUARTER)
    for _ in range(20):
        keeper.touch("conv")
        process.look()
        later(ASKED / 4 / 21)
    within = provider.count("extend")
    later(ASKED / 4 / 21 + 1)
    keeper.touch("conv")
    process.look()

    assert (within, provider.count("extend")) == (1, 2)


def test_an_idle_session_is_left_alone(
    *, process: Process, keeper: Keeper, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """Nobody pays for a sandbox that nobody uses: what it has left outlasts the idle time."""
    keeper.open("conv")
    for _ in range(10):
        process.look()
        later(QUARTER)
        if not provider.alive():
            break

    assert provider.count("extend") == 0


def test_an_ended_session_is_left_alone(
    *, process: Process, keeper: Keeper, provider: FakeCloud, later: Pass
) -> None:
    """Its sandbox is on its way out."""
    keeper.open("conv")
    later(QUARTER + 1)
    keeper.touch("conv")
    keeper.end("conv")

    process.look()

    assert provider.count("extend") == 0


def test_two_processes_extend_once(
    *, store: Store, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """Each has a turn on the session; one is given the right to extend it."""
    both = [Process(store, provider, world) for _ in range(2)]
    both[0].keeper.open("conv")
    turns = [each.keeper.turn("conv").begin() for each in both]
    later(QUARTER + 1)
    for each in both:
        each.beat()
    at_once = threading.Barrier(2)

    def look(process: Process) -> None:
        at_once.wait(30)
        process.look()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(look, both))

    assert provider.count("extend") == 1
    for turn in turns:
        turn.end()


def test_very_many_sessions_are_extended_in_one_look(
    *, process: Process, keeper: Keeper, provider: FakeCloud, later: Pass, monkeypatch: Any
) -> None:
    """In batches that a statement can hold."""
    monkeypatch.setattr("core.backstop.BATCH", 3)
    names = [f"conv-{number}" for number in range(10)]
    for name in names:
        keeper.open(name)
    later(QUARTER + 1)
    for name in names:
        keeper.touch(name)

    process.look()

    assert provider.count("extend") == 10


# Clocks


@pytest.mark.parametrize("skew", [-600.0, 600.0])
def test_a_providers_clock_that_is_wrong_ends_no_turn(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
    skew: float,
) -> None:
    """F27: ten minutes ahead or behind, for longer than the TTL."""
    world.advance(skew)
    keeper.open("conv")
    least: list[float] = []

    with keeper.turn("conv"):
        run(process, later, 2 * TTL, lambda: least.append(left(provider, world)))

    assert min(least) > TTL / 2


@pytest.mark.parametrize("step", [TTL - 60, TTL + QUARTER, 10 * TTL])
def test_a_clock_that_steps_forward_shortens_nobodys_life(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    clock: FrozenClock,
    later: Pass,
    step: float,
) -> None:
    """
    S5: what the database then knows of the last activity is old. Asked for what is left of that,
    a provider would end a live sandbox within a minute, or at once.
    """
    keeper.open("conv", max_turn=WEEK)
    turn = keeper.turn("conv").begin()
    later(QUARTER + 1)
    process.beat()

    clock.advance(step)  # the database's alone
    process.look()  # and the look comes before the next heartbeat

    assert left(provider, world) >= 0.75 * TTL
    turn.end()


def test_a_grant_of_a_clock_that_was_ahead_is_not_believed_when_it_is_put_right(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    clock: FrozenClock,
    later: Pass,
) -> None:
    """
    S1, F27: extended while the database's clock was ahead, its row says that the sandbox lives
    until long after the provider ends it.
    """
    keeper.open("conv", max_turn=WEEK)
    least: list[float] = []

    with keeper.turn("conv"):
        clock.advance(10 * TTL)
        run(process, later, QUARTER + 1, lambda: None)
        clock.advance(-10 * TTL)
        run(process, later, 2 * TTL, lambda: least.append(left(provider, world)))

    assert min(least) > TTL / 2


def test_a_sandbox_that_ended_while_all_were_away_is_not_handed_out(
    keeper: Keeper, provider: FakeCloud, later: Pass
) -> None:
    """Everybody was down for longer than its TTL, and opens before any reconcile has looked."""
    dead = keeper.open("conv").sandbox
    later(ASKED + 1)

    session = keeper.open("conv")

    assert (session.generation, session.reset_reason, session.fresh) == (2, "lost", True)
    assert box(provider).external_id == session.sandbox.external_id
    assert session.sandbox.external_id != dead.external_id


@pytest.mark.parametrize(
    "answer", ["is there", "fails", "of another account", "all is held"], ids=lambda text: text
)
def test_a_sandbox_is_not_lost_because_its_date_has_passed(
    *, keeper: Keeper, provider: FakeCloud, clock: FrozenClock, answer: str
) -> None:
    """Dates are the database's, whose clock may be wrong; only the provider's own no counts."""
    opened = keeper.open("conv").sandbox
    clock.advance(ASKED + 1)  # the database's alone
    if answer == "fails":
        provider.fail("get", Unavailable("503"))
    if answer == "of another account":
        provider.account = "another"
    if answer == "all is held":
        provider.vanish(opened.name)
        keeper.store.guard.hold(HoldReason.OPERATOR, {}, actor="somebody")

    session = keeper.open("conv")

    assert (session.generation, session.sandbox.external_id) == (1, opened.external_id)


# A promise to a caller


def test_an_extension_is_the_providers_before_it_is_the_callers(
    keeper: Keeper, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """S1: whoever was told that a session is kept for a week has a sandbox for a week."""
    keeper.open("conv")
    later(1)

    session = keeper.extend("conv", WEEK)

    assert session.extended_until is not None
    assert left(provider, world) == WEEK + TTL
    assert left(provider, world) > (session.extended_until - world.now).total_seconds()


def test_an_extension_is_at_once_and_not_once_a_quarter(
    *, process: Process, keeper: Keeper, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """Although it was extended a moment ago, and another process is at it."""
    keeper.open("conv")
    later(QUARTER + 1)
    keeper.touch("conv")
    process.look()

    keeper.extend("conv", WEEK)

    assert left(provider, world) == WEEK + TTL


def test_an_extension_that_is_shorter_than_what_is_there_asks_nobody(
    keeper: Keeper, provider: FakeCloud, later: Pass
) -> None:
    """A later call for less takes nothing back."""
    keeper.open("conv")
    keeper.extend("conv", WEEK)
    later(1)

    keeper.extend("conv", 60.0)

    assert provider.count("extend") == 1


@pytest.mark.parametrize(
    "error", [Unavailable("503"), OutcomeUnknown(), AuthFailed("401")], ids=repr
)
def test_an_extension_that_the_provider_refused_is_not_promised(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
    error: ProviderError,
) -> None:
    """The caller hears it, and may ask again; this process asks again anyhow."""
    keeper.open("conv")
    provider.fail("extend", error)

    with pytest.raises(type(error)):
        keeper.extend("conv", WEEK)

    later(LIMITS.extend_interval)
    process.look()
    assert left(provider, world) > WEEK


def test_a_cap_of_the_provider_is_kept_up_with_for_as_long_as_was_promised(
    *, process: Process, keeper: Keeper, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """S1: an idle session that was extended for a week, where no TTL is longer than a day."""
    provider.longest_ttl = 86400.0
    keeper.open("conv")
    keeper.extend("conv", WEEK)
    least: list[float] = []

    for _ in range(7 * 24):
        later(3600)
        process.look()
        least.append(left(provider, world))

    assert min(least) >= TTL - LIMITS.create_deadline
    assert provider.count("extend") <= 4 * 7 + 1


def test_an_extension_of_what_has_ended_asks_nobody(keeper: Keeper, provider: FakeCloud) -> None:
    """S1: by type."""
    keeper.open("conv")
    keeper.end("conv")

    with pytest.raises(SessionEnded):
        keeper.extend("conv", WEEK)
    assert provider.count("extend") == 0


# Failing


def test_one_that_fails_holds_up_no_other_and_is_tried_again(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    later: Pass,
    heard: list[Event],
) -> None:
    """F13: it is said with the session's id; nothing is recorded as granted."""
    for name in "abc":
        keeper.open(name)
    later(QUARTER + 1)
    for name in "abc":
        keeper.touch(name)
    provider.fail("extend", Unavailable("503"))

    process.look()
    first = (provider.count("extend"), failures(heard))
    later(LIMITS.extend_interval)
    process.look()

    assert first == (3, ["Unavailable: 503"])
    assert provider.count("extend") == 4
    assert len(failures(heard)) == 1
    (failed,) = [e.session_id for e in heard if e.kind is EventKind.EXTEND_FAILED]
    assert failed in {"a", "b", "c"}


def test_one_that_hangs_is_taken_over(
    *, store: Store, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """The process that is stuck in the call had its time; another one does it."""
    stuck, other = (Process(store, provider, world) for _ in range(2))
    stuck.keeper.open("conv")
    later(QUARTER + 1)
    for each in (stuck, other):
        each.keeper.touch("conv")

    with ThreadPoolExecutor(1) as thread, provider.hang("extend") as hang:
        looking = thread.submit(stuck.look)
        assert hang.entered.wait(30)
        other.look()
        meanwhile = provider.count("extend")
        later(LIMITS.extend_claim)
        other.keeper.touch("conv")
        other.look()
        after = provider.count("extend")
        hang.release()
        looking.result(30)

    assert (meanwhile, after) == (1, 2)


@pytest.mark.parametrize("error", [Unavailable("x"), RuntimeError("a bug")], ids=repr)
def test_a_look_that_fails_is_said_and_forgets_nobody(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    later: Pass,
    heard: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """An exception that left it would be the end of the thread, and nobody would know."""
    keeper.open("conv")
    later(QUARTER + 1)
    keeper.touch("conv")

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(keeper.store.backstops, "claim", refuse)
        pause = process.look()
    process.look()

    assert pause == LIMITS.extend_interval
    assert failures(heard) == [f"{type(error).__name__}: {error}"]
    assert provider.count("extend") == 1


def test_an_outage_of_the_database_ends_no_turn(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine,
) -> None:
    """S5: the turns of this process go on, longer than their provider's TTL if need be."""
    keeper.open("conv", max_turn=WEEK)
    turn = keeper.turn("conv").begin()
    least: list[float] = []

    def refuse(*_: object, **__: object) -> None:
        raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection")

    with monkeypatch.context() as patch:
        patch.setattr(engine.dialect, "do_execute", refuse)
        run(process, later, 2 * TTL, lambda: least.append(left(provider, world)))

    assert min(least) > TTL / 2
    assert provider.count("extend") <= 8 * 2 + 1
    turn.end()


def test_an_outage_of_the_database_takes_back_no_promise(
    *,
    process: Process,
    keeper: Keeper,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S1: a session that was extended for a week has a turn on it when the database goes away."""
    keeper.open("conv")
    keeper.extend("conv", WEEK)
    turn = keeper.turn("conv").begin()
    later(TTL / 8 + 60)

    def refuse(*_: object) -> None:
        raise StoreUnavailable("no database")

    with monkeypatch.context() as patch:
        patch.setattr(keeper.store.backstops, "claim", refuse)
        process.look()

    assert provider.count("extend") == 2
    assert left(provider, world) >= WEEK
    turn.end()


def test_a_promise_that_an_outage_took_back_is_made_good_however_often_it_fails(
    *,
    store: Store,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    S1: one process promised a week. Another, which did not know, extended for less while the
    database was away; the row still says a week, and the first try to put it right is refused.
    """
    here, elsewhere = (Process(store, provider, world) for _ in range(2))
    here.keeper.open("conv")
    here.keeper.turn("conv").begin()
    promised = elsewhere.keeper.extend("conv", WEEK).extended_until
    later(TTL / 8 + 60)

    def refuse(*_: object) -> None:
        raise StoreUnavailable("no database")

    with monkeypatch.context() as patch:
        patch.setattr(store.backstops, "claim", refuse)
        here.look()
    taken_back = left(provider, world)
    provider.fail("extend", RateLimited("429"), times=2)
    for _ in range(3):
        later(LIMITS.extend_interval)
        here.look()

    expires_at = box(provider).expires_at
    assert taken_back < WEEK
    assert promised is not None
    assert expires_at is not None
    assert expires_at >= promised


def test_a_doubt_that_comes_up_during_a_look_is_for_the_next(
    *, store: Store, provider: FakeCloud, world: FrozenClock, later: Pass
) -> None:
    """S1: two callers extend one session, and nobody knows whom the provider heard last."""
    process = Process(store, provider, world)
    process.keeper.open("conv")
    process.keeper.open("other")
    process.look()
    later(QUARTER + 1)
    process.keeper.touch("other")
    backstop = process.keeper._backstop
    provider.before("extend", lambda: backstop._ask_again("conv", again=False))

    process.look()
    before = provider.count("extend", process.keeper.get("conv").sandbox.name)
    process.look()

    assert before == 0
    assert provider.count("extend", process.keeper.get("conv").sandbox.name) == 1


def test_a_sandbox_of_another_provider_is_extended_there_or_not_at_all(
    *,
    store: Store,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
    heard: list[Event],
) -> None:
    """S2: by the provider and in the account that are on its row; the others go on."""
    old = FakeCloud(name="old", clock=world, monotonic=world.monotonic)
    Process(store, old, world).keeper.open("old")
    only_new = Process(store, provider, world)
    only_new.keeper.open("new")
    later(QUARTER + 1)
    for name in ("new", "old"):
        only_new.keeper.touch(name)

    only_new.look()

    (failure,) = failures(heard)
    assert "the sandbox is at old in scope 'test-account'" in failure
    assert (old.count("extend"), provider.count("extend")) == (0, 1)
    both = Process(store, provider, world, providers={"old": old})
    later(LIMITS.extend_claim)
    both.keeper.touch("old")
    both.look()
    assert old.count("extend") == 1


def test_a_sandbox_of_another_account_is_not_extended(
    *, process: Process, keeper: Keeper, provider: FakeCloud, later: Pass, heard: list[Event]
) -> None:
    """Its name might be somebody else's there."""
    keeper.open("conv")
    later(QUARTER + 1)
    keeper.touch("conv")
    provider.account = "another-account"

    process.look()

    assert "AuthFailed" in failures(heard)[0]
    assert provider.count("extend") == 0


# When all of us are dead


def test_the_bill_stops_by_itself(
    *,
    process: Process,
    keeper: Keeper,
    store: Store,
    provider: FakeCloud,
    world: FrozenClock,
    later: Pass,
) -> None:
    """
    Killed inside a turn, and nothing of Sandkeeper ever comes back: the sandbox dies. If it does
    come back, the row is found to be wrong, and whoever opens the session is told.
    """
    keeper.open("conv")
    keeper.turn("conv").begin()
    run(process, later, TTL)

    later(ASKED)

    assert provider.alive() == []
    host = Host(monotonic=world.monotonic)
    (report,) = Reconciler(store, {"fake": provider}, host=host).reconcile()
    assert report.lost == 1
    again = keeper.open("conv")
    assert (again.generation, again.reset_reason) == (2, "lost")


def test_what_dies_by_itself_outlives_its_idle_session(
    *, process: Process, keeper: Keeper, provider: FakeCloud, later: Pass
) -> None:
    """S1: whenever the last activity was, the idle time and the confirmation come first."""
    keeper.open("conv")
    with keeper.turn("conv"):
        run(process, later, QUARTER - 1)
    # This process is dead now: no look ever comes.

    later(LIMITS.idle_ttl + 3 * LIMITS.confirm_interval)

    assert len(provider.alive()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_begins_anew(sqlite_url: str) -> None:
    """It has none of its parent's sessions, and a lock that somebody held is held by nobody."""
    environ = {
        "SANDKEEPER_DATABASE_URL": sqlite_url,
        "SANDKEEPER_PROVIDER": "tests.fakes:FakeCloud",
    }
    script = f"""
import os, signal
from core import Lifecycle
keeper = Lifecycle.from_env({environ!r})
keeper.open("parent")
backstop = keeper._backstop
with backstop._lock:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        forgotten = not backstop._watched
        keeper.touch("parent")
        os._exit(10 if forgotten and list(backstop._watched) == ["parent"] else 11)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), list(backstop._watched))
keeper.close()
"""

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.stdout.splitlines()[-1:] == ["10 ['parent']"], done.stderr


def test_looks_are_often_enough() -> None:
    """Several into each quarter, for any settings that are allowed."""
    for backstop in (3.0, 4.0, 1000.0):
        for confirm in (0.5, 60.0, 600.0):
            limits = policy(
                backstop=backstop, confirm_interval=confirm, heartbeat=confirm / 2, idle_ttl=confirm
            )
            ttl = limits.backstop_ttl(confirm)
            assert ttl is not None
            assert limits.extend_interval <= ttl / 8
            assert limits.extend_claim <= limits.extend_interval


def test_a_moment_of_the_past_is_no_expiry(
    *,
    keeper: Keeper,
    provider: FakeCloud,
    process: Process,
    engine: Engine,
    later: Pass,
    clock: FrozenClock,
    world: FrozenClock,
) -> None:
    """A provider whose clock is a day behind: it is asked at each look, and nothing breaks."""
    keeper.open("conv")
    later(QUARTER + 1)
    world.advance(-86400.0)
    keeper.touch("conv")

    process.look()

    found = row(engine)
    assert isinstance(found.expires_at, datetime)
    assert found.extend_at <= clock.now
    assert provider.count("extend") == 1
