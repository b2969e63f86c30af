"""The beater: one thread that keeps all open turns of a process alive, and only those."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pytest

from core.beater import BATCH, Beater
from core.errors import SandkeeperError, SessionEnded, StoreUnavailable
from core.events import Event, EventKind
from core.host import Host, Loop, Step, ThreadLoop
from core.model import Session
from tests.forks import in_child

SOON = 30.0  # seconds that a loaded machine may take; nothing waits that long when all is well


class Holder:
    """A turn as the beater knows it."""

    def __init__(self, turn_id: str) -> None:
        self.id = turn_id
        self.errors: list[SandkeeperError] = []

    @property
    def session(self) -> Session:
        """Nobody asks for it here."""
        raise NotImplementedError

    def expire(self) -> bool:
        """Its ceiling is far away."""
        return False

    def lose(self, error: SandkeeperError) -> None:
        """Hear of the loss."""
        self.errors.append(error)


class Beats:
    """A store: what was beaten, and what it answers."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.refused: dict[str, SandkeeperError] = {}
        self.outages = 0
        self.during: Callable[[], object] = lambda: None
        self.beaten = threading.Semaphore(0)

    def __call__(self, turn_ids: Sequence[str]) -> dict[str, SandkeeperError]:
        """One statement for these turns."""
        self.rounds.append(list(turn_ids))
        self.during()
        self.beaten.release()
        if self.outages:
            self.outages -= 1
            raise StoreUnavailable("no database")
        return {name: error for name, error in self.refused.items() if name in turn_ids}


@contextmanager
def beating(beats: Beats, interval: float, told: list[Event] | None = None) -> Iterator[Beater]:
    """A beater that is closed at the end."""
    beater = Beater(
        beats, interval, host=Host(), tell=(told if told is not None else []).append, actor="me"
    )
    yield beater
    beater.close()


def threads() -> list[threading.Thread]:
    """The beaters' threads of this process."""
    return [thread for thread in threading.enumerate() if thread.name == "sandkeeper-beater"]


def test_the_thread_starts_with_the_first_turn_and_ends_with_the_close() -> None:
    """A process without turns has no thread; one that closed has none left."""
    before = len(threads())
    with beating(Beats(), 3600) as beater:
        unused = len(threads())
        beater.add(Holder("a"))
        beater.add(Holder("b"))
        used = len(threads())

    assert (unused - before, used - before) == (0, 1)
    assert len(threads()) == before


def test_all_open_turns_beat_in_one_statement() -> None:
    """However many there are, until they are ended."""
    beats = Beats()
    with beating(beats, 3600) as beater:
        first, second = Holder("a"), Holder("b")
        beater.add(first)
        beater.add(second)
        beater.once()
        beater.remove(first)
        beater.once()

    assert beats.rounds == [["a", "b"], ["b"]]


def test_the_thread_beats_by_itself() -> None:
    """S1, F2: its holder may be silent as long as it likes."""
    beats = Beats()
    with beating(beats, 0.001) as beater:
        beater.add(Holder("a"))

        assert all(beats.beaten.acquire(timeout=SOON) for _ in range(3))


def test_very_many_turns_beat_in_batches() -> None:
    """No statement has more parameters than a database takes."""
    beats = Beats()
    with beating(beats, 3600) as beater:
        for number in range(BATCH + 1):
            beater.add(Holder(str(number)))
        beater.once()

    assert [len(ids) for ids in beats.rounds] == [BATCH, 1]


def test_a_round_without_turns_asks_nothing() -> None:
    """An idle process costs the database nothing."""
    beats = Beats()
    with beating(beats, 3600) as beater:
        assert beater.once()

    assert beats.rounds == []


def test_a_refused_turn_hears_why_and_the_others_nothing() -> None:
    """F26: exactly the one that was refused."""
    beats, lost, lives = Beats(), Holder("a"), Holder("b")
    beats.refused["a"] = SessionEnded("conv", reason="idle")
    with beating(beats, 3600) as beater:
        beater.add(lost)
        beater.add(lives)
        beater.once()

    assert lost.errors == [beats.refused["a"]]
    assert lives.errors == []


def test_a_turn_that_ended_while_we_asked_is_not_called_lost() -> None:
    """Its holder has left; the refusal says only that it ended."""
    beats, ended = Beats(), Holder("a")
    beats.refused["a"] = SessionEnded("conv", reason="idle")
    with beating(beats, 3600) as beater:
        beats.during = lambda: beater.remove(ended)
        beater.add(ended)
        beater.once()

    assert ended.errors == []


def test_an_outage_loses_nobody_and_is_said() -> None:
    """S4: "I could not ask" is no refusal."""
    beats, holder, told = Beats(), Holder("a"), list[Event]()
    beats.outages = 1
    with beating(beats, 3600, told) as beater:
        beater.add(holder)
        first, second = beater.once(), beater.once()

    assert (first, second) == (False, True)
    assert holder.errors == []
    assert [event.kind for event in told] == [EventKind.BEAT_FAILED]
    assert told[0].detail["turns"] == 1


def test_after_an_outage_it_is_tried_again_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: the first heartbeat after an outage comes before the second look of the sweep."""
    beats, rounds = Beats(), list[Step]()
    beats.outages = 2

    def by_hand(name: str, step: Step, first_pause: float) -> Loop:
        rounds.append(step)
        assert first_pause == 60
        return ThreadLoop(name, step, 3600)

    host = Host(loop=by_hand)
    beater = Beater(beats, 60, host=host, tell=lambda _: None, actor="me")
    beater.add(Holder("a"))
    pauses = [rounds[0]() for _ in range(4)]
    beater.close()

    assert pauses == [15, 15, 60, 60]


def test_it_can_be_used_again_after_it_was_closed() -> None:
    """A keeper that is closed and then used beats again."""
    beats = Beats()
    with beating(beats, 0.001) as beater:
        beater.add(Holder("a"))
        beater.close()
        beats.rounds.clear()
        beater.add(Holder("b"))
        while not beats.rounds:
            assert beats.beaten.acquire(timeout=SOON)

    assert beats.rounds[0] == ["b"]


def test_a_callback_may_close_it() -> None:
    """A holder that gives up on the first loss does not wait for the thread that it is in."""
    beats, closed = Beats(), threading.Event()
    beats.refused["a"] = SessionEnded("conv", reason="idle")

    class Quitter(Holder):
        def lose(self, error: SandkeeperError) -> None:
            beater.close()
            closed.set()

    with beating(beats, 0.001) as beater:
        beater.add(Quitter("a"))

        assert closed.wait(SOON)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_beat_for_its_parent() -> None:
    """F5: a child that outlives its parent does not keep its turns alive; its own it does."""
    beats = Beats()
    with beating(beats, 0.001) as beater:

        def begins_anew() -> bool:
            inherited = (dict(beater._turns), cast("ThreadLoop", beater._loop)._thread)
            mine = Beats()
            beater._beat = mine
            beater.add(Holder("childs"))
            beaten = mine.beaten.acquire(timeout=SOON)
            return inherited == ({}, None) and beaten and mine.rounds[0] == ["childs"]

        beater.add(Holder("parents"))
        assert beats.beaten.acquire(timeout=SOON)
        begun_anew = in_child(begins_anew)
        beats.rounds.clear()
        while not beats.rounds:
            assert beats.beaten.acquire(timeout=SOON)

    assert begun_anew
    assert beats.rounds[0] == ["parents"]
