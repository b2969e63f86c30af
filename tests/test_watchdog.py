"""The watchdog: a sweep that is late is said by who does not run it, and stood in for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from core import Lifecycle
from core.events import Event, EventKind
from core.host import Host
from core.lifecycle import Keeper
from core.reaper import Reaper
from core.schema import sandboxes
from core.store import Store
from core.watchdog import WARNINGS, Watchdog
from core.wiring import System, watchdog
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock, LoopByHand

ROOT = Path(__file__).parents[1]
LIMITS = policy()
LATE = LIMITS.late_after
FAKE = "tests.fakes:FakeCloud"


@pytest.fixture
def heard() -> list[Event]:
    """Everything that was said."""
    return []


@pytest.fixture
def store(engine: Engine, clock: FrozenClock, heard: list[Event]) -> Store:
    """A store that is listened to."""
    return Store(engine, policy=LIMITS, clock=clock, sinks=(heard.append,))


@pytest.fixture
def stood_in() -> list[str]:
    """Who swept in place of the scheduled sweep."""
    return []


Watch = Callable[..., Watchdog]


@pytest.fixture
def watch(store: Store, stood_in: list[str]) -> Watch:
    """A watchdog of a process of this name, whose rounds are run by hand."""

    def made(name: str = "api", during: Callable[[], object] = lambda: None) -> Watchdog:
        def stand_in() -> None:
            stood_in.append(name)
            during()
            store.sweeps.pulse(stood_in=True)

        host = Host(spread=lambda: 0.0, loop=LoopByHand)
        return Watchdog(store, stand_in=stand_in, host=host, actor=name)

    return made


def warnings(heard: list[Event]) -> list[str]:
    """What was said of the sweep."""
    return [str(e.detail["error"]) for e in heard if e.kind is EventKind.SWEEP_LATE]


def outage(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """No statement reaches the database from now on."""

    def refuse(*_: object, **__: object) -> None:
        raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection")

    patch.setattr(engine.dialect, "do_execute", refuse)


# What it says


def test_a_sweep_that_never_ran_is_said_at_the_first_look(
    watch: Watch, heard: list[Event], stood_in: list[str]
) -> None:
    """F12: shipped without a worker and beat: with what to start. It may come up yet."""
    watch().look()

    (warning,) = warnings(heard)
    assert warning.startswith("no sweep ever ran")
    assert "celery -A tasks worker" in warning
    assert "celery -A tasks beat" in warning
    assert stood_in == []


def test_a_sweep_in_time_is_not_mentioned(
    watch: Watch, store: Store, clock: FrozenClock, heard: list[Event], stood_in: list[str]
) -> None:
    """Nothing when nothing is wrong, to the second."""
    store.sweeps.pulse()
    dog = watch()

    for _ in range(10):
        dog.look()
    clock.advance(LATE)
    dog.look()

    assert (warnings(heard), stood_in) == ([], [])


def test_a_late_sweep_is_said_once_and_then_rarely(
    watch: Watch, store: Store, clock: FrozenClock, heard: list[Event]
) -> None:
    """H2, F12: an alarm that repeats itself every minute is switched off."""
    store.sweeps.pulse()
    clock.advance(LATE + 1)
    dog = watch()

    looks = []
    for _ in range(2 * WARNINGS + 1):
        dog.look()
        looks.append(len(warnings(heard)))
        clock.advance(60)

    assert looks == [1] * WARNINGS + [2] * WARNINGS + [3]
    assert warnings(heard)[0].startswith(f"the last sweep was {LATE + 1:.0f} s ago")


def test_a_pulse_that_returns_is_the_end_of_it(
    watch: Watch, store: Store, clock: FrozenClock, heard: list[Event], stood_in: list[str]
) -> None:
    """And the next time that it is late is news again."""
    dog = watch()
    clock.advance(LATE + 1)
    dog.look()
    store.sweeps.pulse()
    dog.look()
    quiet = (len(warnings(heard)), len(stood_in))
    clock.advance(LATE + 1)
    dog.look()

    assert quiet == (1, 1)
    assert (len(warnings(heard)), len(stood_in)) == (2, 2)


@pytest.fixture
def overdue(
    store: Store, keeper: Keeper, clock: FrozenClock, engine: Engine
) -> Callable[[], float]:
    """How long the most overdue row has waited."""
    return lambda: store.watch.pulse().overdue


def test_nothing_is_overdue_before_its_date(
    keeper: Keeper, overdue: Callable[[], float], clock: FrozenClock
) -> None:
    """Not even in the very second."""
    empty = overdue()
    session = keeper.open("conv")
    clock.now = session.due_at

    assert (empty, overdue()) == (0.0, 0.0)


def test_an_idle_session_is_overdue_since_its_date(
    keeper: Keeper, overdue: Callable[[], float], clock: FrozenClock
) -> None:
    """In seconds; the oldest counts."""
    first = keeper.open("first")
    clock.advance(100)
    keeper.open("second")
    clock.now = first.due_at + timedelta(seconds=500)

    assert overdue() == 500.0


def test_a_teardown_is_overdue_and_one_in_quarantine_is_not(
    keeper: Keeper, overdue: Callable[[], float], clock: FrozenClock, engine: Engine
) -> None:
    """What always fails is shown elsewhere: it must not hide that the sweep is well."""
    keeper.open("conv")
    keeper.end("conv")
    clock.advance(70)
    waiting = overdue()
    with engine.begin() as connection:
        connection.execute(update(sandboxes).values(quarantined_at=clock.now))

    assert (waiting, overdue()) == (70.0, 0.0)


def test_a_create_that_nobody_finished_is_overdue(
    keeper: Keeper, provider: FakeCloud, overdue: Callable[[], float], clock: FrozenClock
) -> None:
    """From its deadline on."""
    provider.fail("create", RuntimeError("the process died here"))
    with pytest.raises(RuntimeError):
        keeper.open("conv")
    clock.advance(LIMITS.create_deadline + 30)

    assert overdue() == 30.0


def test_the_warning_says_how_much_is_overdue(
    watch: Watch, keeper: Keeper, clock: FrozenClock, heard: list[Event]
) -> None:
    """So that an alarm can tell a restart from a disaster."""
    session = keeper.open("conv")
    clock.now = session.due_at + timedelta(seconds=12.34)

    watch().look()

    assert [e.detail["overdue"] for e in heard if e.kind is EventKind.SWEEP_LATE] == [12.3]


# Standing in


def test_one_of_several_processes_sweeps_in_its_place(
    watch: Watch, store: Store, clock: FrozenClock, stood_in: list[str]
) -> None:
    """The first to look does; the others see that it did."""
    store.sweeps.pulse()
    dogs = [watch(f"api-{number}") for number in range(5)]
    clock.advance(LATE + 1)

    for dog in dogs:
        dog.look()
    once = list(stood_in)
    clock.advance(LATE + 1)
    for dog in reversed(dogs):
        dog.look()

    assert once == ["api-0"]
    assert stood_in == ["api-0", "api-4"]


def test_who_stands_in_never_looks_like_a_sweep(
    *,
    store: Store,
    keeper: Keeper,
    provider: FakeCloud,
    clock: FrozenClock,
    heard: list[Event],
    rung: list[tuple[str, int]],
) -> None:
    """H2: the sessions end all the same, and everybody goes on saying that nobody sweeps."""
    keeper.open("conv")
    dog = watchdog(store, {"fake": provider}, rung.extend)
    dog.look()

    clock.advance(LIMITS.idle_ttl)
    dog.look()
    clock.advance(LATE + 1)
    dog.look()

    pulse = store.watch.pulse()
    assert keeper.get("conv").end_reason == "idle"
    assert rung == [("conv", 1)]
    assert (pulse.swept_at, pulse.stand_in_age) == (None, 0.0)
    assert pulse.late(LATE)
    assert not pulse.needs_stand_in(LATE)


def test_a_stand_in_counts_as_a_sweep_of_this_database(
    store: Store, provider: FakeCloud, clock: FrozenClock
) -> None:
    """The interlock's count goes on, or a restored database would not be noticed."""
    reaper = Reaper(store, {"fake": provider}, doorbell=lambda _: None)

    reaper.sweep(stand_in=True)
    reaper.sweep(stand_in=True)

    assert store.guard.witness.recall() == 2


def test_without_a_doorbell_sessions_end_all_the_same(
    *,
    store: Store,
    keeper: Keeper,
    reaper: Reaper,
    provider: FakeCloud,
    clock: FrozenClock,
    rung: list[tuple[str, int]],
) -> None:
    """Nobody hears it; whoever sweeps next finds the rows due after their lease."""
    keeper.open("conv")
    dog = watchdog(store, {"fake": provider}, None)
    for _ in range(2):
        clock.advance(LIMITS.idle_ttl)
        dog.look()

    clock.advance(LIMITS.publish_lease)
    reaper.sweep()

    assert rung == [("conv", 1)]


# Whatever happens, it goes on


def test_a_database_that_is_away_does_not_end_the_watch(
    *,
    watch: Watch,
    store: Store,
    engine: Engine,
    clock: FrozenClock,
    heard: list[Event],
    stood_in: list[str],
) -> None:
    """It says so, concludes nothing, and looks again."""
    dog = watch()
    store.sweeps.pulse()
    clock.advance(LATE + 1)

    with pytest.MonkeyPatch.context() as patch:
        outage(engine, patch)
        pause = dog.look()
    during = list(stood_in)
    dog.look()

    assert pause == LATE / 4
    assert "cannot be used now" in warnings(heard)[0]
    assert (during, stood_in) == ([], ["api"])


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), KeyError("x"), ConnectionError()], ids=repr
)
def test_a_stand_in_that_fails_does_not_end_the_watch(
    watch: Watch, clock: FrozenClock, heard: list[Event], stood_in: list[str], error: Exception
) -> None:
    """It is said with its kind, and tried again at the next look: it has not swept."""

    def fail() -> None:
        raise error

    dog = watch("api", fail)
    clock.advance(LATE + 1)

    pauses = [dog.look(), dog.look()]

    assert pauses == [LATE / 4] * 2
    assert stood_in == ["api", "api"]
    assert sum(type(error).__name__ in warning for warning in warnings(heard)) == 2


@pytest.mark.parametrize("spread", [0.0, 0.5, 0.999])
def test_looks_are_spread_and_several_fit_into_the_limit(store: Store, spread: float) -> None:
    """Of many processes that were started together one is the first; late is noticed soon."""
    loops: list[LoopByHand] = []

    def loop(*arguments: Any) -> LoopByHand:
        loops.append(LoopByHand(*arguments))
        return loops[-1]

    host = Host(spread=lambda: spread, loop=loop)
    dog = Watchdog(store, stand_in=lambda: None, host=host, actor="api")

    assert dog.look() == pytest.approx(LATE / 3 * (0.75 + spread / 2))
    assert loops[0].first_pause <= 1.0
    assert not loops[0].runs


# In whom it runs


def threads() -> list[threading.Thread]:
    """The watchdogs' threads of this process."""
    return [thread for thread in threading.enumerate() if thread.name == "sandkeeper-watchdog"]


def environ(url: str) -> dict[str, str]:
    """The environment of a process on this database."""
    return {"SANDKEEPER_DATABASE_URL": url, "SANDKEEPER_PROVIDER": FAKE}


@pytest.mark.parametrize("call", ["open", "turn"])
def test_it_starts_with_the_first_call_and_stops_with_the_close(sqlite_url: str, call: str) -> None:
    """A process that imports us and does nothing has no thread, and none is left behind."""
    with Lifecycle.from_env(environ(sqlite_url)) as keeper:
        idle = len(threads())
        getattr(keeper, call)("conv")
        keeper.open("another")
        used = len(threads())

    assert (idle, used, len(threads())) == (0, 1, 0)


def test_ones_own_engine_is_watched_too(engine: Engine) -> None:
    """However the lifecycle was made."""
    with Lifecycle(engine=engine, provider=FakeCloud(), sinks=()) as keeper:
        keeper.open("conv")

        assert len(threads()) == 1
    assert threads() == []


def test_a_command_does_not_watch(sqlite_url: str) -> None:
    """An operator's command lives for a second, and is no API server."""
    system = System.from_env(environ(sqlite_url))
    with system.keeper() as keeper:
        keeper.open("conv")

        assert threads() == []
    system.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_it_begins_anew_in_a_forked_server(sqlite_url: str) -> None:
    """A server that loads its application and then forks has a watchdog in each child."""
    script = f"""
import os, threading
from core import Lifecycle
keeper = Lifecycle.from_env({environ(sqlite_url)!r})
keeper.open("parent")
watches = lambda: [t.name for t in threading.enumerate()].count("sandkeeper-watchdog")
child = os.fork()
if child == 0:
    before = watches()
    keeper.touch("parent")
    os._exit(10 if (before, watches()) == (0, 1) else 11)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, watches())
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

    assert done.stdout.split()[-2:] == ["10", "1"], done.stderr


def test_a_pulse_from_the_future_is_no_pulse(
    store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """H2: a clock that stepped back must not make a dead sweep look alive for an hour."""
    reaper.sweep()
    clock.advance(-3600)

    pulse = store.watch.pulse()

    assert pulse.late(store.policy.late_after)
    assert pulse.needs_stand_in(store.policy.late_after)
