"""What a process takes from its machine: background work that starts, stops and survives a fork."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from core.host import Host, ThreadLoop
from tests.forks import in_child

SOON = 30.0  # seconds that a loaded machine may take; nothing waits that long when all is well
NEVER = 3600.0


class Rounds:
    """A work that counts its rounds, and may be stuck in one."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()
        self.done = 0

    def __call__(self) -> float:
        """One round."""
        self.begun.release()
        assert self.may_end.wait(SOON)
        self.done += 1
        return self.pause


@pytest.fixture
def rounds() -> Rounds:
    """A work that begins again at once."""
    return Rounds()


@pytest.fixture
def loop(rounds: Rounds) -> Iterator[ThreadLoop]:
    """It, on a thread that is stopped after the test."""
    loop = ThreadLoop("a-loop", rounds, 0.0)
    yield loop
    rounds.may_end.set()
    loop.stop()


def threads() -> list[threading.Thread]:
    """The threads of the loop under test."""
    return [thread for thread in threading.enumerate() if thread.name == "a-loop"]


def test_nothing_runs_before_the_start(loop: ThreadLoop, rounds: Rounds) -> None:
    """Making one costs no thread."""
    assert threads() == []


def test_a_second_start_changes_nothing(loop: ThreadLoop, rounds: Rounds) -> None:
    """Whoever needs it starts it, from any thread; there is one."""
    starters = [threading.Thread(target=loop.start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(SOON)

    assert len(threads()) == 1
    assert threads()[0].daemon  # a process that wants to exit may


def test_the_first_round_comes_after_the_first_pause() -> None:
    """A process that lives for a moment does none of it."""
    rounds = Rounds()
    loop = ThreadLoop("a-loop", rounds, NEVER)

    loop.start()
    loop.stop()

    assert rounds.done == 0
    assert threads() == []


def test_the_next_round_comes_after_the_pause_that_the_step_asked_for() -> None:
    """Once now, and then for a long time not."""
    rounds = Rounds(NEVER)
    loop = ThreadLoop("a-loop", rounds, 0.0)

    loop.start()
    assert rounds.begun.acquire(timeout=SOON)
    loop.stop()

    assert rounds.done == 1


def test_a_stop_lets_the_round_end_and_begins_no_other(loop: ThreadLoop, rounds: Rounds) -> None:
    """What runs is never cut off in its middle."""
    rounds.may_end.clear()
    loop.start()
    assert rounds.begun.acquire(timeout=SOON)
    stopper = threading.Thread(target=loop.stop)

    stopper.start()
    stopper.join(0.05)
    waited = stopper.is_alive()
    rounds.may_end.set()
    stopper.join(SOON)

    assert waited
    assert (rounds.done, threads()) == (1, [])


def test_it_can_be_started_again(loop: ThreadLoop, rounds: Rounds) -> None:
    """A keeper that is closed and then used works again."""
    loop.start()
    assert rounds.begun.acquire(timeout=SOON)
    loop.stop()
    done = rounds.done

    loop.start()
    while rounds.done == done:
        assert rounds.begun.acquire(timeout=SOON)

    assert len(threads()) == 1


def test_a_step_may_stop_its_own_loop() -> None:
    """It does not wait for the thread that it is in."""
    stopped: list[threading.Thread] = []
    done = threading.Event()

    def step() -> float:
        quitter.stop()
        stopped.append(threading.current_thread())
        done.set()
        return 0.0

    quitter = ThreadLoop("a-loop", step, 0.0)
    quitter.start()

    assert done.wait(SOON)
    stopped[0].join(SOON)
    assert (len(stopped), threads()) == (1, [])


def test_a_stop_without_a_start_is_nothing(loop: ThreadLoop) -> None:
    """Closing what was never used."""
    loop.stop()
    loop.stop()

    assert threads() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_died_is_begun_again_by_the_next_start() -> None:
    """A step should not raise; one that did must not leave the process without it for ever."""
    rounds, fails = Rounds(), [True]

    def step() -> float:
        if fails.pop() if fails else False:
            raise RuntimeError("a bug")
        return rounds()

    loop = ThreadLoop("a-loop", step, 0.0)
    loop.start()
    for thread in threads():
        thread.join(SOON)

    loop.start()

    assert rounds.begun.acquire(timeout=SOON)
    loop.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_begins_anew(loop: ThreadLoop, rounds: Rounds) -> None:
    """No thread of the parent goes on in it, and a lock that somebody held is held by nobody."""
    loop.start()
    assert rounds.begun.acquire(timeout=SOON)

    def begins_anew() -> bool:
        inherited = (loop._thread, loop._lock.locked())
        rounds.begun, rounds.may_end = threading.Semaphore(0), threading.Event()
        rounds.may_end.set()
        loop.start()
        return inherited == (None, False) and rounds.begun.acquire(timeout=SOON)

    with loop._lock:
        begun_anew = in_child(begins_anew)
    done = rounds.done
    while rounds.done == done:  # the parent's goes on
        assert rounds.begun.acquire(timeout=SOON)

    assert begun_anew


def test_a_machine_has_time_and_chance() -> None:
    """The defaults are the machine's own."""
    host = Host()

    assert abs(host.monotonic() - time.monotonic()) < SOON
    assert abs(host.milliseconds() / 1000 - time.time()) < SOON
    assert 0.0 <= host.spread() < 1.0
    assert {host.randbits(130).bit_length() <= 130 for _ in range(100)} == {True}
    assert isinstance(host.loop("a-loop", lambda: 1.0, 1.0), ThreadLoop)
