"""
What was promised is kept while the database's clock steps back and is put right again. Time passes
in `seconds`; what the clock shows meanwhile is each test's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select

from core.lifecycle import Keeper
from core.model import SessionStatus
from core.reaper import Reaper
from core.schema import earlier_promises
from core.store import Store
from tests.factories import policy
from tests.fakes import FrozenClock

IDLE = 60.0
MADE = {
    "extension": lambda store, seconds: store.sessions.extend("conv", seconds, actor="ada"),
    "pin": lambda store, seconds: store.pins.pin(
        "conv", seconds, owner="ada", reason="debugging", actor="ada"
    ),
}
Promise = Callable[[Store, float], object]


@pytest.fixture(params=list(MADE.values()), ids=list(MADE))
def promise(request: pytest.FixtureRequest) -> Promise:
    """Either kind. By the store: the provider has a clock of its own."""
    made: Promise = request.param
    return made


def lives(reaper: Reaper, keeper: Keeper, clock: FrozenClock, seconds: float) -> bool:
    """Whether a session lives through so many seconds of sweeps, without activity."""
    end = clock.now + timedelta(seconds=seconds)
    while clock.now < end:
        clock.advance(20)
        reaper.sweep()
    return keeper.get("conv").status is SessionStatus.ACTIVE


def dip(reaper: Reaper, clock: FrozenClock, seconds: float) -> None:
    """The clock steps back, a sweep looks at everything that is due by it."""
    clock.advance(-seconds)
    reaper.sweep()


def set_aside(engine: Engine) -> int:
    """How many promises are remembered."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(earlier_promises)).scalar_one()


@pytest.mark.parametrize(
    "steps",
    [(7200,), (7200, 300, 90), (400, 7200)],
    ids=["far", "thrice", "farther"],
)
def test_a_promise_holds_when_the_clock_is_put_right(
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    promise: Promise,
    steps: tuple[float, ...],
) -> None:
    """S1: it steps back, again and again, sweeps see that, and all of it is taken back."""
    keeper.open("conv", idle_ttl=IDLE)
    promise(keeper.store, 600)
    for seconds in steps:
        dip(reaper, clock, seconds)
    for seconds in reversed(steps):
        clock.advance(seconds)
        reaper.sweep()

    lived = lives(reaper, keeper, clock, 580)

    assert lived
    assert not lives(reaper, keeper, clock, 300)


def test_a_promise_holds_where_the_sweep_came_late(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, promise: Promise
) -> None:
    """S1: it was due before it was made, and is by the clock that stepped back."""
    keeper.open("conv", idle_ttl=IDLE)
    clock.advance(IDLE + 200)
    promise(keeper.store, 600)
    dip(reaper, clock, 150)
    counted_anew = set_aside(keeper.store.database.engine)
    clock.advance(150)

    lived = lives(reaper, keeper, clock, 580)

    assert counted_anew == 1
    assert lived
    assert not lives(reaper, keeper, clock, 300)


def test_a_promise_is_over_after_its_seconds_where_the_clock_stays_behind(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, promise: Promise
) -> None:
    """L1: what is set aside keeps nobody before the clock shows that moment again."""
    keeper.open("conv", idle_ttl=IDLE)
    promise(keeper.store, 600)
    dip(reaper, clock, 86400)

    lived = lives(reaper, keeper, clock, 580)

    assert lived
    assert not lives(reaper, keeper, clock, 300)


def test_one_promise_takes_no_other_s_place_while_the_clock_is_behind(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, promise: Promise
) -> None:
    """S1: what is promised in a dip is over with it, and what was promised before is not."""
    keeper.open("conv", idle_ttl=IDLE)
    promise(keeper.store, 600)
    clock.advance(-1200)
    promise(keeper.store, 700)
    clock.advance(1200)

    assert lives(reaper, keeper, clock, 580)


def test_a_promise_that_changes_nothing_takes_nothing(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, promise: Promise
) -> None:
    """S1: asked for while the clock is ahead for a moment, when less seems to be left."""
    keeper.open("conv", idle_ttl=IDLE)
    promise(keeper.store, 600)
    clock.advance(500)
    promise(keeper.store, 10)
    dip(reaper, clock, 500)

    lived = lives(reaper, keeper, clock, 580)

    assert lived
    assert not lives(reaper, keeper, clock, 300)


def test_what_was_promised_to_one_generation_keeps_no_other(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, promise: Promise
) -> None:
    """F17: the next sandbox starts with its own clock."""
    keeper.open("conv", idle_ttl=IDLE)
    promise(keeper.store, 600)
    dip(reaper, clock, 7200)
    keeper.end("conv")
    keeper.open("conv", idle_ttl=IDLE)
    clock.advance(7200)

    assert not lives(reaper, keeper, clock, 200)


def test_a_pin_that_is_lifted_keeps_nobody_when_the_clock_is_put_right(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """It was lifted by whatever clock; an extension stays."""
    keeper.open("conv", idle_ttl=IDLE)
    MADE["pin"](keeper.store, 2000)
    MADE["extension"](keeper.store, 600)
    dip(reaper, clock, 7200)
    keeper.unpin("conv")
    clock.advance(7200)

    lived = lives(reaper, keeper, clock, 580)

    assert lived
    assert not lives(reaper, keeper, clock, 300)


def test_a_clock_that_never_rests_leaves_nothing_behind(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, promise: Promise, engine: Engine
) -> None:
    """What it leaves is bounded by what may still hold, and goes with the session."""
    keeper.open("conv", idle_ttl=IDLE)
    for _ in range(5):
        promise(keeper.store, 100)
        clock.advance(-600)
        promise(keeper.store, 1)
        clock.advance(600 + 200)
    most = set_aside(engine)
    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w")
    clock.advance(policy().retention)
    purged = reaper.purge()

    assert 1 <= most <= 2
    assert purged == 1
    assert set_aside(engine) == 0
