"""Which differences between two clocks are a jump."""

from __future__ import annotations

from datetime import timedelta

import pytest

from core.timekeeper import EVER, Timekeeper
from tests.fakes import FrozenClock

TOLERANCE = 15.0


@pytest.fixture
def timekeeper(world: FrozenClock) -> Timekeeper:
    """One that has not looked yet."""
    return Timekeeper(world.monotonic, TOLERANCE)


def test_the_first_look_believes_what_it_sees(timekeeper: Timekeeper, clock: FrozenClock) -> None:
    """Nothing is known to compare it with: a process that has just started ends sessions too."""
    assert timekeeper.watch(clock).since == EVER


@pytest.mark.parametrize("off", [0.0, TOLERANCE, -1.0, -7200.0])
def test_what_differs_by_little_or_went_back_is_no_jump(
    timekeeper: Timekeeper, clock: FrozenClock, world: FrozenClock, off: float
) -> None:
    """A slow correction, or a step back, which the dates themselves show."""
    timekeeper.watch(clock)
    world.advance(3600)
    clock.advance(3600 + off)

    assert timekeeper.watch(clock).since == EVER


def test_a_jump_is_remembered_by_the_sweeps_that_follow(
    timekeeper: Timekeeper, clock: FrozenClock, world: FrozenClock
) -> None:
    """Whatever was noticed before it proves nothing any more."""
    timekeeper.watch(clock)
    clock.advance(TOLERANCE + 0.1)
    jumped_at = clock.now

    found = timekeeper.watch(clock)
    clock.advance(60)
    world.advance(60)

    assert found.since == jumped_at
    assert timekeeper.watch(clock).since == jumped_at


def test_a_long_sweep_goes_on_as_long_as_no_step_is_held_up(
    timekeeper: Timekeeper, clock: FrozenClock, world: FrozenClock
) -> None:
    """Between two steps everybody else has its turn; within one that takes long, nobody has."""
    began, latest = clock.now, timekeeper.watch(clock).latest
    steps = []
    for seconds in (TOLERANCE, TOLERANCE, TOLERANCE + 1, 1.0, TOLERANCE):
        world.advance(seconds)
        steps.append((latest() - began).total_seconds() - TOLERANCE)

    assert steps == [TOLERANCE, 2 * TOLERANCE, 2 * TOLERANCE, 2 * TOLERANCE, 2 * TOLERANCE]


def test_a_jump_after_a_step_back_is_one(timekeeper: Timekeeper, clock: FrozenClock) -> None:
    """It is put right again, and not to be taken for time that passed."""
    timekeeper.watch(clock)
    clock.advance(-3600)
    timekeeper.watch(clock)
    clock.advance(3600)

    assert timekeeper.watch(clock).since == clock.now


def test_a_jump_that_was_taken_back_is_no_reason_to_wait_for_it(
    timekeeper: Timekeeper, clock: FrozenClock
) -> None:
    """L1: or every notice would be from before the jump, until the clock comes there again."""
    timekeeper.watch(clock)
    clock.advance(7200)
    timekeeper.watch(clock)
    clock.advance(-7200)

    assert timekeeper.watch(clock).since == clock.now


def test_a_look_that_takes_long_is_no_jump(
    timekeeper: Timekeeper, clock: FrozenClock, world: FrozenClock
) -> None:
    """The database may be busy; its clock goes on meanwhile, as ours does."""

    def slow(seconds: float) -> None:
        clock.advance(seconds)
        world.advance(seconds)

    timekeeper.watch(clock)

    def look() -> object:
        slow(120)
        return clock.now

    found = timekeeper.watch(look)  # type: ignore[arg-type]

    assert found.since == EVER


def test_the_latest_time_goes_on_with_the_process(
    timekeeper: Timekeeper, clock: FrozenClock, world: FrozenClock
) -> None:
    """What a sweep asks in each of its batches."""
    watched = timekeeper.watch(clock)
    world.advance(TOLERANCE)

    assert watched.latest() == clock.now + timedelta(seconds=2 * TOLERANCE)
