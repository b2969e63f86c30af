"""Turns: what begins them, keeps them alive, refuses them, and how their holders hear of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Row, event, select

from core.errors import (
    InvalidArgument,
    QuotaExceeded,
    SandkeeperError,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    StoreUnavailable,
    TurnExpired,
)
from core.events import Event, EventKind
from core.host import Host
from core.identifiers import new_id
from core.lifecycle import Keeper
from core.model import Session, SessionStatus, TurnOutcome
from core.reaper import Reaper, TeardownOutcome
from core.schema import sessions, turns
from core.store import BegunTurn, Store
from core.turn import Turn
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock
from tests.forks import in_child


@pytest.fixture
def heard() -> list[Event]:
    """What the sinks were told, in order."""
    return []


@pytest.fixture
def store(engine: Engine, clock: FrozenClock, heard: list[Event]) -> Store:
    """A store that is listened to."""
    return Store(engine, policy=policy(), clock=clock, sinks=[heard.append])


def beat(keeper: Keeper) -> None:
    """One round of heartbeats, as the background thread does it."""
    assert keeper._beater.once()


def turn_row(engine: Engine, turn_id: str) -> Row[Any]:
    """A turn as another process sees it."""
    with engine.connect() as connection:
        return connection.execute(select(turns).where(turns.c.id == turn_id)).one()


@contextmanager
def outage(engine: Engine) -> Iterator[None]:
    """The database refuses every statement."""

    def refuse(*_: object, **__: object) -> None:
        raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.dialect, "do_execute", refuse)
        yield


def idle_sweeps(reaper: Reaper, clock: FrozenClock, seconds: float) -> None:
    """So many seconds of sweeps, one a minute."""
    end = clock.now + timedelta(seconds=seconds)
    while clock.now < end:
        clock.advance(60)
        reaper.sweep()


# Beginning


def test_a_turn_counts_and_moves_the_last_activity(
    keeper: Keeper, clock: FrozenClock, engine: Engine
) -> None:
    """The session is what it was at that moment, the new turn included."""
    keeper.open("conv")
    clock.advance(100)

    with keeper.turn("conv", holder="request-7") as turn:
        seen = keeper.get("conv")

    assert (seen.turn_count, seen.last_activity_at) == (1, clock.now)
    assert turn.session.turn_count == 1
    assert turn.sandbox == seen.sandbox
    assert turn_row(engine, turn.id).holder == "request-7"


def test_a_turn_is_refused_on_a_session_that_ended(keeper: Keeper) -> None:
    """S1: with the reason, so that the caller can say it to a person."""
    keeper.open("conv")
    keeper.end("conv", reason="user left")

    with pytest.raises(SessionEnded) as refused, keeper.turn("conv"):
        pytest.fail("it has begun")

    assert refused.value.reason == "user left"
    assert keeper.get("conv").turn_count == 0


def test_a_turn_is_refused_on_a_session_that_is_too_old(keeper: Keeper, clock: FrozenClock) -> None:
    """F5: the ceiling holds before the sweep has come by."""
    keeper.open("conv", max_age=100)
    clock.advance(100)

    with pytest.raises(SessionEnded, match="max_age"), keeper.turn("conv"):
        pytest.fail("it has begun")


def test_a_turn_is_refused_while_the_sandbox_is_made(keeper: Keeper, provider: FakeCloud) -> None:
    """A type of its own: waiting helps."""
    provider.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("conv")

    with pytest.raises(SessionNotReady, match="'conv'"), keeper.turn("conv"):
        pytest.fail("it has begun")


def test_a_turn_is_refused_on_an_unknown_session(keeper: Keeper) -> None:
    """With its id."""
    with pytest.raises(SessionNotFound, match="'nobody'"), keeper.turn("nobody"):
        pytest.fail("it has begun")


def test_a_sandbox_that_becomes_ready_meanwhile_is_never_called_ended(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """
    S1 said honestly: a turn that was refused because the sandbox was still being made, and looks
    again to say why, must not take the running one that it then sees for one that ended.
    """
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    provider.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("conv")
    armed = [True]

    @event.listens_for(engine, "after_cursor_execute")
    def record_meanwhile(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if armed and "turn_count=" in statement.replace(" ", ""):
            armed.clear()
            keeper.open("conv")

    try:
        with keeper.turn("conv") as turn:
            assert turn.sandbox.external_id
    except SessionNotReady:
        pass

    assert not armed
    assert keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_turn_begins_once(keeper: Keeper) -> None:
    """A second entry would share its heartbeats with the first."""
    keeper.open("conv")
    turn = keeper.turn("conv")

    with turn, pytest.raises(InvalidArgument, match="begun already"):
        turn.begin()


def test_a_turn_that_was_not_begun_says_so(keeper: Keeper) -> None:
    """Everything that it cannot answer yet is InvalidArgument; nothing calls it lost."""
    turn = keeper.turn("conv")

    for ask in (lambda: turn.sandbox, lambda: turn.session, turn.end, turn.check):
        with pytest.raises(InvalidArgument, match="not begun"):
            ask()
    assert not turn.lost.is_set()


# Living


def test_a_silent_turn_that_beats_is_never_reaped(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """S1, F2: ten idle TTLs without a word, and the sandbox stands."""
    keeper.open("conv", idle_ttl=60)

    with keeper.turn("conv") as turn:
        for _ in range(60):
            clock.advance(10)
            beat(keeper)
            reaper.sweep()
        turn.check()

    assert keeper.get("conv").status is SessionStatus.ACTIVE
    assert len(provider.alive()) == 1


def test_a_turn_that_no_longer_beats_is_reaped(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1, F5: its process was killed; idle TTL and two sweeps later the session has ended."""
    keeper.open("conv", idle_ttl=300)
    keeper.turn("conv").begin()

    idle_sweeps(reaper, clock, 299)
    before = keeper.get("conv").status
    idle_sweeps(reaper, clock, 120)

    assert before is SessionStatus.ACTIVE
    assert keeper.get("conv").end_reason == "idle"


def test_a_turn_ends_at_its_hard_ceiling(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, engine: Engine
) -> None:
    """F5: a wedged turn whose heartbeats go on does not keep its sandbox for ever."""
    keeper.open("conv", max_turn=1000, idle_ttl=300)
    turn = keeper.turn("conv").begin()
    last = clock.now + timedelta(seconds=990)

    for _ in range(160):
        clock.advance(10)
        beat(keeper)
        reaper.sweep()

    assert isinstance(turn.lost.error, TurnExpired)
    assert keeper.get("conv").last_activity_at == last
    assert keeper.get("conv").end_reason == "idle"
    assert turn_row(engine, turn.id).hard_until == last + timedelta(seconds=10)


def test_the_max_age_is_a_ceiling_too(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """F5: a turn never outlives its sandbox's age, and the session ends with that reason."""
    keeper.open("conv", max_age=500)
    turn = keeper.turn("conv").begin()

    for _ in range(60):
        clock.advance(10)
        beat(keeper)
        reaper.sweep()

    assert turn.lost.is_set()
    assert keeper.get("conv").end_reason == "max_age"
    assert keeper.get("conv").last_activity_at < keeper.get("conv").opened_at + timedelta(
        seconds=500
    )


def test_two_turns_of_one_session_live_side_by_side(keeper: Keeper, clock: FrozenClock) -> None:
    """One process, one statement a round; the end of one is not the end of the other."""
    keeper.open("conv")

    with keeper.turn("conv") as first:
        with keeper.turn("conv") as second:
            clock.advance(10)
            beat(keeper)
        clock.advance(10)
        beat(keeper)
        first.check()

    assert first.id != second.id
    assert not second.lost.is_set()
    assert keeper.get("conv").turn_count == 2


def test_a_late_turn_of_one_generation_never_extends_the_next(
    keeper: Keeper, clock: FrozenClock
) -> None:
    """S3, F18: neither its heartbeat nor its end is activity of another sandbox."""
    keeper.open("conv")
    late = keeper.turn("conv").begin()
    keeper.end("conv", reason="user left")
    keeper.open("conv")
    reopened = clock.now
    clock.advance(10)

    refused = keeper.store.turns.beat([late.id])
    with pytest.raises(SessionEnded) as ended:
        late.end()

    assert isinstance(refused[late.id], SessionEnded)
    assert ended.value.reason == "user left"
    assert keeper.get("conv").last_activity_at == reopened


def test_a_batch_of_beats_answers_for_each(keeper: Keeper, clock: FrozenClock) -> None:
    """F26: refused by type where it may not go on, whatever the others are; none is overlooked."""
    lives, over, done, old = (keeper.open(name).id for name in ("lives", "over", "done", "old"))
    ids = {name: keeper.turn(name).begin().id for name in (lives, over, done)}
    keeper.open(old, max_turn=5)
    keeper.end(old)
    keeper.open(old, max_turn=5)
    ids[old] = keeper.turn(old).begin().id
    keeper.end(over)
    keeper.store.turns.end(ids[done], done, TurnOutcome.COMPLETED)
    unknown = new_id(Host())
    clock.advance(10)

    refused = keeper.store.turns.beat([*ids.values(), unknown])

    assert {turn_id: type(error) for turn_id, error in refused.items()} == {
        ids[over]: SessionEnded,
        ids[done]: TurnExpired,
        ids[old]: TurnExpired,
        unknown: TurnExpired,
    }
    assert keeper.get(lives).last_activity_at == clock.now
    assert keeper.get(over).last_activity_at < clock.now
    assert keeper.get(done).last_activity_at < clock.now
    assert keeper.get(old).last_activity_at < clock.now


def test_a_beat_of_a_purged_turn_is_refused(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """F26: a process that slept for a month hears it too."""
    keeper.open("conv")
    turn = keeper.turn("conv").begin()
    keeper.end("conv")
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE
    clock.advance(keeper.policy.retention + 1)
    assert reaper.purge() == 1

    refused = keeper.store.turns.beat([turn.id])

    assert isinstance(refused[turn.id], TurnExpired)


def test_a_row_that_somebody_holds_is_skipped_and_not_refused(
    keeper: Keeper, clock: FrozenClock, engine: Engine
) -> None:
    """S1: a process that stopped with a lock neither ends nor delays the other live turns."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    began = clock.now
    ids = {name: (keeper.open(name), keeper.turn(name).begin().id)[1] for name in "abc"}
    clock.advance(10)

    with engine.connect() as holder:
        holder.execute(select(sessions).where(sessions.c.id == "b").with_for_update())
        refused = keeper.store.turns.beat(list(ids.values()))

    assert refused == {}
    assert [keeper.get(name).last_activity_at for name in "ac"] == [clock.now] * 2
    assert keeper.get("b").last_activity_at == began


# Hearing that it is lost


@pytest.fixture
def lost_turn(keeper: Keeper) -> Turn:
    """A turn whose session was ended, and whose next heartbeat has not come yet."""
    keeper.open("conv")
    turn = keeper.turn("conv").begin()
    keeper.end("conv", reason="user left")
    return turn


def test_the_next_beat_tells_the_holder(
    keeper: Keeper, lost_turn: Turn, heard: list[Event]
) -> None:
    """F26: an event to wait on, a callback, an error to raise, and a line in the log."""
    told: list[SandkeeperError] = []
    lost_turn.lost.on(told.append)
    lost_turn.check()

    beat(keeper)

    assert lost_turn.lost.wait(0)
    (error,) = told
    with pytest.raises(SessionEnded, match="user left") as raised:
        lost_turn.check()
    assert raised.value is error
    assert [e.session_id for e in heard if e.kind is EventKind.TURN_LOST] == ["conv"]


def test_a_lost_turn_is_told_once_and_beats_no_more(
    keeper: Keeper, lost_turn: Turn, heard: list[Event]
) -> None:
    """The second refusal says nothing new."""
    told: list[SandkeeperError] = []
    lost_turn.lost.on(told.append)

    beat(keeper)
    beat(keeper)

    assert len(told) == 1
    assert [e.kind for e in heard].count(EventKind.TURN_LOST) == 1


def test_a_callback_that_comes_late_is_called_at_once(keeper: Keeper, lost_turn: Turn) -> None:
    """There is no moment at which the news can be missed."""
    beat(keeper)
    told: list[SandkeeperError] = []

    lost_turn.lost.on(told.append)

    assert told == [lost_turn.lost.error]


def test_a_callback_that_fails_harms_no_other_turn(keeper: Keeper, lost_turn: Turn) -> None:
    """One holder's bug must not stop the heartbeats of the process."""
    keeper.open("other")
    other = keeper.turn("other").begin()
    keeper.end("other")
    told: list[str] = []
    lost_turn.lost.on(lambda _: 1 / 0)
    lost_turn.lost.on(lambda _: told.append("conv"))
    other.lost.on(lambda _: told.append("other"))

    beat(keeper)

    assert sorted(told) == ["conv", "other"]


def test_check_knows_the_ceiling_by_itself(store: Store) -> None:
    """F5: also when the store cannot be asked; its own monotonic clock is enough."""
    time = [100.0]
    keeper = Keeper(
        store, FakeCloud(monotonic=lambda: time[0]), host=Host(monotonic=lambda: time[0])
    )
    keeper.open("conv", max_turn=50)

    with pytest.raises(TurnExpired), keeper.turn("conv") as turn:  # noqa: PT012
        time[0] = 149.0
        turn.check()
        time[0] = 150.0
        turn.check()

    assert turn.lost.is_set()
    keeper.close()


def test_a_turn_that_is_over_before_it_is_handed_out_is_refused(store: Store) -> None:
    """S1: its process was stopped in begin(), and its sandbox may have been torn down since."""
    time = [100.0]

    def stopped(_: Session) -> None:
        time[0] = 150.0

    keeper = Keeper(
        store, FakeCloud(monotonic=lambda: time[0]), host=Host(monotonic=lambda: time[0])
    )
    keeper.open("conv", max_turn=50)
    turn = keeper.turn("conv")
    turn._tell_begun = stopped  # the last that it does

    with pytest.raises(TurnExpired, match="hard ceiling"):
        turn.begin()

    assert turn.lost.is_set()
    keeper.close()


def test_an_interrupt_on_the_way_into_the_block_leaves_no_turn_that_beats(
    keeper: Keeper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """L1: nobody holds it, and nobody will leave the block; its session goes idle."""
    keeper.open("conv")
    ttl = keeper.policy.backstop_ttl(keeper.policy.idle_ttl)
    assert ttl is not None
    clock.advance(ttl + keeper.policy.create_deadline - 1)  # the provider is asked for more first

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    provider._plan("extend", interrupt)
    with pytest.raises(KeyboardInterrupt), keeper.turn("conv"):
        pytest.fail("it was never entered")

    assert keeper._beater.sessions() == {}


def test_a_clock_that_steps_back_gives_no_turn_more_time(
    store: Store, clock: FrozenClock, world: FrozenClock
) -> None:
    """S3, F5: its process knows the ceiling, and beats for it no longer; its holder hears of it."""
    cloud = FakeCloud(monotonic=world.monotonic)
    keeper = Keeper(store, cloud, host=Host(monotonic=world.monotonic))
    keeper.open("conv", max_turn=50)
    turn = keeper.turn("conv").begin()
    world.advance(51)
    clock.advance(51 - 3600)
    before = keeper.get("conv").last_activity_at

    beat(keeper)

    assert turn.lost.is_set()
    assert keeper.get("conv").last_activity_at == before
    keeper.close()


# Ending


def test_the_end_of_a_turn_is_activity_and_is_recorded(
    keeper: Keeper, clock: FrozenClock, engine: Engine
) -> None:
    """The idle time counts from the end of the work."""
    keeper.open("conv")

    with keeper.turn("conv") as turn:
        clock.advance(100)

    row = turn_row(engine, turn.id)
    assert (row.outcome, row.ended_at) == ("completed", clock.now)
    assert keeper.get("conv").last_activity_at == clock.now


def test_a_turn_that_raised_is_recorded_as_failed(keeper: Keeper, engine: Engine) -> None:
    """And the exception is the caller's own."""
    keeper.open("conv")
    turn = keeper.turn("conv")

    with pytest.raises(ZeroDivisionError), turn:
        raise ZeroDivisionError

    assert turn_row(engine, turn.id).outcome == "failed"


def test_work_on_a_lost_turn_is_never_taken_for_done(keeper: Keeper, clock: FrozenClock) -> None:
    """S1: leaving normally raises, whether or not a heartbeat had said so before."""
    keeper.open("ended")
    keeper.open("over", max_turn=5)

    with pytest.raises(SessionEnded, match="user left"), keeper.turn("ended"):
        keeper.end("ended", reason="user left")
    with pytest.raises(TurnExpired, match="hard ceiling"), keeper.turn("over"):
        clock.advance(5)


def test_a_turn_that_was_ended_already_says_so(keeper: Keeper) -> None:
    """By its id, over HTTP for instance."""
    keeper.open("conv")

    with pytest.raises(TurnExpired, match="it was ended"), keeper.turn("conv") as turn:
        keeper.store.turns.end(turn.id, "conv", TurnOutcome.COMPLETED)


def test_an_exception_is_never_replaced_by_the_loss(keeper: Keeper) -> None:
    """What the caller's code raised says more."""
    keeper.open("conv")

    with pytest.raises(ZeroDivisionError), keeper.turn("conv"):  # noqa: PT012
        keeper.end("conv")
        raise ZeroDivisionError


def test_an_outage_at_the_end_loses_no_work(
    keeper: Keeper, engine: Engine, heard: list[Event]
) -> None:
    """The answer that the turn produced is worth more than its end's record; sinks hear of it."""
    keeper.open("conv")

    turn = keeper.turn("conv").begin()
    with outage(engine):
        turn.__exit__(None, None, None)

    assert [e.kind for e in heard][-1] is EventKind.TURN_END_FAILED
    assert keeper._beater._turns == {}


def test_an_outage_at_the_end_does_not_hide_that_it_was_lost(
    keeper: Keeper, engine: Engine, lost_turn: Turn
) -> None:
    """S1: a heartbeat had said that the sandbox is going; not being able to ask again is no yes."""
    beat(keeper)

    with outage(engine), pytest.raises(SessionEnded, match="user left"):
        lost_turn.__exit__(None, None, None)


def test_an_outage_refuses_no_turn(
    keeper: Keeper, engine: Engine, heard: list[Event], clock: FrozenClock
) -> None:
    """S4: "I could not ask" is never "no": after the outage the turn lives on."""
    keeper.open("conv")
    turn = keeper.turn("conv").begin()

    with outage(engine):
        asked = keeper._beater.once()
    clock.advance(10)
    beat(keeper)

    assert not asked
    assert [e.kind for e in heard].count(EventKind.BEAT_FAILED) == 1
    turn.check()
    assert keeper.get("conv").last_activity_at == clock.now


def test_a_refused_begin_leaves_nothing(keeper: Keeper, engine: Engine) -> None:
    """No row, no heartbeat."""
    keeper.open("conv")
    keeper.end("conv")

    with pytest.raises(SessionEnded):
        keeper.turn("conv").begin()

    with engine.connect() as connection:
        assert connection.execute(select(turns)).all() == []
    assert keeper._beater._turns == {}


def test_a_callback_that_exits_stops_nobody_elses_heartbeats(keeper: Keeper) -> None:
    """S1: SystemExit would end the thread that beats for all turns of the process."""
    keeper.open("conv")
    turn = keeper.turn("conv").begin()
    heard: list[SandkeeperError] = []
    turn.lost.on(lambda _: sys.exit(1))
    turn.lost.on(heard.append)

    turn.lose(SessionEnded("conv", reason="enough"))

    assert len(heard) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_leaves_the_block_ends_nothing(keeper: Keeper) -> None:
    """S1: a child that exits unwinds its parent's `with`."""
    keeper.open("conv")
    with keeper.turn("conv") as turn:

        def leaves() -> bool:
            turn.__exit__(SystemExit, SystemExit(0), None)
            return True

        assert in_child(leaves)
        assert keeper.store.turns.beat([turn.id]) == {}


def test_a_begin_whose_answer_was_lost_can_be_tried_again(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first turn's row is there, holds nobody, and goes idle by itself."""
    keeper.open("conv")
    turn = keeper.turn("conv")
    begin = keeper.store.turns.begin

    def lost(*arguments: str) -> BegunTurn:
        begin(*arguments)
        raise StoreUnavailable("no answer to COMMIT")

    with monkeypatch.context() as patch:
        patch.setattr(keeper.store.turns, "begin", lost)
        with pytest.raises(StoreUnavailable):
            turn.begin()

    with turn:
        assert turn.session.generation == 1
