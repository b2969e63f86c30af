"""The sweep: what it notices, ends, expires and publishes, and what it never does."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Row, create_engine, select

from core.engines import prepare
from core.errors import QuotaExceeded, StoreError, StoreUnavailable
from core.events import Event, EventKind
from core.host import Host
from core.lifecycle import Keeper
from core.model import SessionStatus
from core.policy import Policy
from core.reaper import Reaper, SweepReport, TeardownOutcome
from core.schema import sandboxes, sessions
from core.store import Store
from core.store.outlook import Work
from core.timekeeper import Timekeeper
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock, Idle

IDLE_TTL = policy().idle_ttl
CONFIRM = policy().confirm_interval
HEARTBEAT = policy().heartbeat
DAY = 24 * 3600.0


@pytest.fixture
def heard() -> list[Event]:
    """What the sinks were told, in order."""
    return []


@pytest.fixture
def store(engine: Engine, clock: FrozenClock, heard: list[Event]) -> Store:
    """A store that is listened to."""
    return Store(engine, policy=policy(), clock=clock, sinks=[heard.append])


def store_with(engine: Engine, clock: FrozenClock, limits: Policy) -> Store:
    """The store of a process with another policy."""
    return Store(engine, policy=limits, clock=clock)


def sandbox_row(engine: Engine, session_id: str, generation: int = 1) -> Row[Any]:
    """A sandbox as another process sees it."""
    b = sandboxes.c
    with engine.connect() as connection:
        query = select(sandboxes).where(b.session_id == session_id, b.generation == generation)
        return connection.execute(query).one()


def due(engine: Engine, session_id: str) -> datetime:
    """When the sweep looks next."""
    with engine.connect() as connection:
        query = select(sessions.c.due_at).where(sessions.c.id == session_id)
        moment: datetime = connection.execute(query).scalar_one()
    return moment


def count(heard: Iterable[Event], kind: EventKind) -> int:
    """How often the sinks heard of this."""
    return [event.kind for event in heard].count(kind)


def pass_by(seconds: float, *clocks: FrozenClock) -> None:
    """Time goes by for the database and for the process alike."""
    for clock in clocks:
        clock.advance(seconds)


def is_active(keeper: Keeper, session_id: str = "conv") -> bool:
    """Whether it may still run turns."""
    return keeper.get(session_id).status is SessionStatus.ACTIVE


def half_open(keeper: Keeper, provider: FakeCloud, session_id: str) -> None:
    """A session whose creator went away before the provider made anything."""
    provider.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open(session_id)


# Noticing, then ending


def test_an_idle_session_is_noticed_first_and_ended_at_a_later_look(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store
) -> None:
    """S5: two looks, a confirm interval apart; L1: no more than that."""
    keeper.open("conv")

    clock.advance(IDLE_TTL)
    first = reaper.sweep()
    noticed = keeper.get("conv")
    clock.advance(CONFIRM)
    second = reaper.sweep()

    assert first == SweepReport(noticed=1)
    assert (noticed.status, noticed.noticed_at) == (
        SessionStatus.ACTIVE,
        noticed.due_at - timedelta(seconds=CONFIRM),
    )
    assert second == SweepReport(ended=1, published=1)
    assert keeper.get("conv").end_reason == "idle"
    assert [line.kind for line in store.history.of_session("conv")] == [
        "session_opened",
        "sandbox_running",
        "session_noticed",
        "session_ended",
    ]


def test_the_look_between_notice_and_end_does_nothing(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S5: however often the sweep runs."""
    keeper.open("conv")
    clock.advance(IDLE_TTL)
    reaper.sweep()

    clock.advance(CONFIRM - 1)
    reports = [reaper.sweep() for _ in range(3)]

    assert reports == [SweepReport()] * 3
    assert is_active(keeper)


def test_a_session_that_was_never_used_is_reaped_at_its_ttl_and_not_before(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """F8: no turn ever began; its clock runs from its opening all the same."""
    keeper.open("conv", idle_ttl=600)

    clock.advance(599)
    before = reaper.sweep()
    clock.advance(1)
    at = reaper.sweep()

    assert before.noticed == 0
    assert at.noticed == 1


def test_a_ttl_longer_than_the_installations_is_kept(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """The looks come sooner, and each only re-arms."""
    keeper.open("conv", idle_ttl=3 * IDLE_TTL)

    clock.advance(3 * IDLE_TTL - 1)
    early = reaper.sweep()
    clock.advance(1)

    assert early == SweepReport(rearmed=1)
    assert reaper.sweep() == SweepReport(noticed=1)


def test_activity_between_notice_and_end_wins(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1, F4: a touch in the last second is enough, and a whole new idle time begins with it."""
    keeper.open("conv")
    clock.advance(IDLE_TTL)
    reaper.sweep()
    clock.advance(CONFIRM - 1)
    keeper.touch("conv")

    clock.advance(1)
    report = reaper.sweep()

    assert report == SweepReport(rearmed=1)
    assert keeper.get("conv").noticed_at is None
    assert keeper.get("conv").due_at == clock.now + timedelta(seconds=IDLE_TTL - 1)


@pytest.mark.parametrize("in_a_turn", [True, False], ids=["beat", "touch"])
def test_activity_while_the_clock_was_back_wins(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, *, in_a_turn: bool
) -> None:
    """
    S1: a clock that steps back and is put right again. What was acknowledged in between is not
    later than what was known before, and all the same it is activity.
    """
    keeper.open("conv", idle_ttl=60)
    clock.advance(300)
    reaper.sweep()
    clock.advance(30 - 400)
    if in_a_turn:
        turn = keeper.turn("conv").begin()
        assert keeper.store.turns.beat([turn.id]) == {}
    else:
        keeper.touch("conv")
    clock.advance(40 + 400)

    report = reaper.sweep()

    assert report.ended == 0
    assert keeper.get("conv").status == "active"


def test_a_row_that_somebody_holds_stops_no_other(postgresql_url: str, clock: FrozenClock) -> None:
    """F13: a lock that nobody lets go of, as of an operator's open transaction."""
    engine = prepare(
        create_engine(postgresql_url, connect_args={"options": "-c lock_timeout=200ms"})
    )
    cloud = FakeCloud(clock=clock)
    store = Store(engine, policy=policy(), clock=clock)
    reaper = Reaper(store, {cloud.name: cloud}, doorbell=lambda _: None)
    with Keeper(store, cloud, host=Host(loop=Idle)) as keeper:
        for number in range(4):
            keeper.open(f"conv-{number}", idle_ttl=60)
        clock.advance(100)
        reaper.sweep()
        clock.advance(61)
        with engine.begin() as connection:
            connection.execute(
                select(sandboxes).where(sandboxes.c.session_id == "conv-0").with_for_update()
            )
            report = reaper.sweep()
            states = [keeper.get(f"conv-{number}").status for number in range(4)]
        after = reaper.sweep()
    engine.dispose()

    assert (report.ended, report.poisoned) == (3, 1)
    assert states == ["active", "ended", "ended", "ended"]
    assert after.ended == 1


def test_a_turn_that_begins_after_the_notice_is_not_killed_by_it(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: also when the next look comes only after its idle time has passed again."""
    keeper.open("conv")
    clock.advance(IDLE_TTL)
    reaper.sweep()
    with keeper.turn("conv"):
        pass

    clock.advance(IDLE_TTL)
    report = reaper.sweep()

    assert report == SweepReport(noticed=1)


def test_touches_leave_the_due_date_alone_and_the_sweep_rearms_it(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, engine: Engine
) -> None:
    """A touch writes no indexed column; one look an idle time is the price."""
    keeper.open("conv")
    armed = due(engine, "conv")
    clock.advance(IDLE_TTL - 10)
    keeper.touch("conv")
    touched = due(engine, "conv")

    clock.advance(10)
    report = reaper.sweep()

    assert touched == armed
    assert report == SweepReport(rearmed=1)
    assert due(engine, "conv") == armed + timedelta(seconds=IDLE_TTL - 10)


def test_the_max_age_ends_an_active_session_in_two_looks(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """F5, S5: whatever its activity, with its own reason."""
    keeper.open("conv", max_age=600)
    clock.advance(590)
    keeper.touch("conv")

    clock.advance(10)
    first = reaper.sweep()
    clock.advance(CONFIRM)
    second = reaper.sweep()

    assert (first.noticed, second.ended) == (1, 1)
    assert keeper.get("conv").end_reason == "max_age"


def test_the_sweep_is_cheap_when_nothing_is_due(
    keeper: Keeper, reaper: Reaper, heard: list[Event]
) -> None:
    """Nothing moves and nothing is said."""
    keeper.open("conv")
    heard.clear()

    report = reaper.sweep()

    assert report == SweepReport()
    assert heard == []


def test_a_sweep_leaves_its_pulse(reaper: Reaper, store: Store, clock: FrozenClock) -> None:
    """H2: what the watchdog reads."""
    before = store.history.swept_at()

    reaper.sweep()

    assert before is None
    assert store.history.swept_at() == clock.now


def test_batches_go_on_until_one_is_short(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, rung: list[tuple[str, int]]
) -> None:
    """F14: more rows than one batch are one sweep's work, most overdue first."""
    store = store_with(engine, clock, policy(batch=2))
    keeper = Keeper(store, provider)
    reaper = Reaper(store, {"fake": provider}, doorbell=rung.extend)
    for number in range(5):
        keeper.open(f"conv-{number}")
        clock.advance(1)

    clock.advance(IDLE_TTL)
    first = reaper.sweep()
    clock.advance(CONFIRM)
    second = reaper.sweep()

    assert first == SweepReport(noticed=5)
    assert second == SweepReport(ended=5, published=5)
    assert len(rung) == 5


def test_four_sweeps_at_once_end_each_session_once(
    engine: Engine,
    provider: FakeCloud,
    clock: FrozenClock,
    rung: list[tuple[str, int]],
    heard: list[Event],
) -> None:
    """S3, F31: no lock is needed: N sweeps are one end and one publication each."""
    store = Store(engine, policy=policy(batch=3), clock=clock, sinks=[heard.append])
    keeper = Keeper(store, provider)
    reaper = Reaper(store, {"fake": provider}, doorbell=rung.extend)
    for number in range(20):
        keeper.open(f"conv-{number}")
    at_once = threading.Barrier(4)

    def sweep(_: int) -> SweepReport:
        at_once.wait(30)
        return reaper.sweep()

    with ThreadPoolExecutor(4) as threads:
        clock.advance(IDLE_TTL)
        noticed = sum((r for r in threads.map(sweep, range(4))), SweepReport())
        reaper.sweep()
        clock.advance(CONFIRM)
        list(threads.map(sweep, range(4)))
        reaper.sweep()

    assert noticed.noticed <= 20
    assert count(heard, EventKind.SESSION_NOTICED) == 20
    assert count(heard, EventKind.SESSION_ENDED) == 20
    assert sorted(rung) == sorted((f"conv-{number}", 1) for number in range(20))


def test_sweeping_again_ends_nothing_again(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, heard: list[Event]
) -> None:
    """F31: safe to run twice."""
    keeper.open("conv")
    clock.advance(IDLE_TTL)
    reaper.sweep()
    clock.advance(CONFIRM)

    reports = [reaper.sweep() for _ in range(3)]

    assert sum(report.ended for report in reports) == 1
    assert count(heard, EventKind.SESSION_ENDED) == 1


# Clocks that jump


def test_a_clock_that_jumps_ahead_ends_no_live_turn(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S5, F27: two hours forward make everything idle at once; the first look only notices."""
    keeper.open("conv")
    keeper.open("idle")
    keeper.turn("conv").begin()

    clock.advance(2 * 3600)
    first = reaper.sweep()
    clock.advance(15)
    keeper._beater.once()
    clock.advance(CONFIRM)
    second = reaper.sweep()

    assert (first.ended, first.noticed) == (0, 2)
    assert is_active(keeper)
    assert (second.ended, second.rearmed) == (1, 1)


def test_a_clock_that_steps_back_delays_nothing_beyond_one_idle_time(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, engine: Engine
) -> None:
    """L1, F27: dates that no healthy clock can have written are brought back."""
    keeper.open("conv")
    clock.advance(-DAY)

    report = reaper.sweep()
    clock.advance(IDLE_TTL)
    reaper.sweep()
    clock.advance(CONFIRM)
    reaper.sweep()

    assert (report.clamped, report.ended) == (1, 0)
    assert keeper.get("conv").end_reason == "idle"


def test_the_clamp_ends_no_live_turn(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """S1: one hour back, and the heartbeats go on."""
    keeper.open("conv")
    keeper.turn("conv").begin()
    clock.advance(-3600)

    for _ in range(80):
        reaper.sweep()
        clock.advance(30)
        keeper._beater.once()

    assert is_active(keeper)


@pytest.fixture
def watchful(store: Store, provider: FakeCloud, world: FrozenClock) -> Reaper:
    """A reaper of a process that has swept before."""
    timekeeper = Timekeeper(world.monotonic, CONFIRM / 4)
    reaper = Reaper(
        store, {provider.name: provider}, doorbell=lambda _: None, timekeeper=timekeeper
    )
    reaper.sweep()
    return reaper


@pytest.mark.parametrize("jump", [CONFIRM, 7200.0])
def test_a_clock_that_jumps_ahead_after_a_notice_leaves_time_for_a_heartbeat(
    keeper: Keeper, watchful: Reaper, clock: FrozenClock, world: FrozenClock, jump: float
) -> None:
    """
    S1, F27: nobody could write for longer than the idle TTL, and the standby that took over has
    another clock. The turn is noticed, and its heartbeat still has to come.
    """
    keeper.open("conv")
    turn = keeper.turn("conv").begin()
    pass_by(IDLE_TTL, clock, world)
    noticed = watchful.sweep().noticed

    clock.advance(jump)
    world.advance(1)
    after = watchful.sweep()

    assert (noticed, after.ended, after.noticed) == (1, 0, 1)
    assert keeper.store.turns.beat([turn.id]) == {}
    pass_by(CONFIRM, clock, world)
    assert watchful.sweep().ended == 0


def test_a_clock_that_jumps_ahead_delays_an_end_by_one_confirmation(
    keeper: Keeper, watchful: Reaper, clock: FrozenClock, world: FrozenClock
) -> None:
    """L1: who is silent is ended all the same."""
    keeper.open("conv")
    pass_by(IDLE_TTL, clock, world)
    watchful.sweep()
    clock.advance(7200)
    watchful.sweep()

    pass_by(CONFIRM, clock, world)

    assert watchful.sweep().ended == 1


def test_a_clock_that_jumps_ahead_in_a_sweep_ends_nobody_in_it(
    *,
    keeper: Keeper,
    watchful: Reaper,
    clock: FrozenClock,
    world: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S1, F27: after its look at the time, and before its first batch."""
    keeper.open("conv")
    pass_by(IDLE_TTL, clock, world)
    watchful.sweep()
    pass_by(CONFIRM, clock, world)  # its time has come
    work = watchful.store.outlook.work

    def jumps() -> Work:
        clock.advance(7200)
        return work()

    with monkeypatch.context() as patch:
        patch.setattr(watchful.store.outlook, "work", jumps)
        during = watchful.sweep().ended
    pass_by(CONFIRM, clock, world)
    next_one = watchful.sweep()

    assert (during, next_one.ended, next_one.noticed) == (0, 0, 1)


def test_the_first_sweep_after_an_outage_ends_no_live_turn(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: noticed before the outage; the sweeps come back first, and the heartbeat after them."""
    keeper.open("conv")
    keeper.turn("conv").begin()
    clock.advance(IDLE_TTL)
    reaper.sweep()
    clock.advance(10 * CONFIRM)
    before_it = [reaper.sweep().ended, reaper.sweep().ended]
    clock.advance(HEARTBEAT / 2 - 1)
    before_it.append(reaper.sweep().ended)
    keeper._beater.once()
    clock.advance(CONFIRM)
    after_it = reaper.sweep().ended

    assert (before_it, after_it) == ([0, 0, 0], 0)
    assert is_active(keeper)


@pytest.mark.parametrize("every", [HEARTBEAT / 2, CONFIRM])
def test_a_turn_whose_holder_died_is_ended_by_the_third_look(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, every: float
) -> None:
    """L1: noticed, looked at again, ended: within three sweeps."""
    keeper.open("conv")
    keeper.turn("conv").begin()
    clock.advance(IDLE_TTL)
    looks = [reaper.sweep()]
    clock.advance(CONFIRM - 1)
    looks.append(reaper.sweep())
    clock.advance(every)
    looks.append(reaper.sweep())

    assert [look.noticed for look in looks] == [1, 0, 0]
    assert [look.ended for look in looks] == [0, 0, 1]


@pytest.mark.parametrize(("part", "call"), [("database", "move"), ("outlook", "work")])
def test_a_sweep_that_was_held_up_ends_nobody(
    *,
    keeper: Keeper,
    watchful: Reaper,
    clock: FrozenClock,
    world: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    call: str,
) -> None:
    """
    S5: what kept it waiting, before it began or before it looks at sessions, has kept the
    heartbeats waiting too; the next sweep ends.
    """
    for name in ("conv-1", "conv-2"):
        keeper.open(name)
    pass_by(IDLE_TTL, clock, world)
    watchful.sweep()
    pass_by(CONFIRM, clock, world)  # their time has come
    where = getattr(watchful.store, part)
    awaited = getattr(where, call)

    def held_up() -> object:
        pass_by(CONFIRM, clock, world)
        return awaited()

    with monkeypatch.context() as patch:
        patch.setattr(where, call, held_up)
        during = watchful.sweep().ended
    pass_by(CONFIRM, clock, world)

    assert (during, watchful.sweep().ended) == (0, 2)


def test_a_notice_from_the_future_does_not_hold_up_the_end(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1, F27: noticed while the clock was two hours ahead, ended within one idle time."""
    keeper.open("conv")
    clock.advance(IDLE_TTL + 7200)
    reaper.sweep()
    clock.advance(-7200)

    for _ in range(int(IDLE_TTL / 60) + 5):
        reaper.sweep()
        clock.advance(60)

    assert keeper.get("conv").end_reason == "idle"


def test_a_last_activity_from_the_future_does_not_make_immortal(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1, F27: touched while the clock was a year ahead, it is idle when nothing happens since."""
    keeper.open("conv")
    clock.advance(365 * DAY)
    keeper.touch("conv")
    clock.advance(-365 * DAY)

    for _ in range(2 * int(IDLE_TTL / 60) + 5):
        reaper.sweep()
        clock.advance(60)

    assert keeper.get("conv").end_reason == "idle"


def test_a_create_from_the_future_expires_all_the_same(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """L1, L2: its deadline was written by a clock that was a day ahead."""
    half_open(keeper, provider, "conv")
    clock.advance(-DAY)

    for _ in range(10):
        reaper.sweep()
        clock.advance(60)

    assert keeper.get("conv").end_reason == "create_expired"


def test_a_closing_sandbox_from_the_future_is_published_now(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, rung: list[tuple[str, int]]
) -> None:
    """L1: a claim that was written by a clock that was a day ahead holds nobody off."""
    keeper.open("conv")
    keeper.end("conv")
    assert keeper.store.teardowns.claim("conv", 1, "a worker that died")
    rung.clear()
    clock.advance(-DAY)

    report = reaper.sweep()

    assert (report.clamped, rung) == (1, [("conv", 1)])
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE


def test_healthy_dates_are_never_clamped(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """Whatever wrote them: an open, a notice, an extension, a long pause, a Retry-After."""
    keeper.open("long", idle_ttl=10 * DAY, max_age=20 * DAY)
    keeper.extend("long", 15 * DAY)
    half_open(keeper, provider, "creating")
    keeper.open("closing")
    keeper.end("closing")
    claim = keeper.store.teardowns.claim("closing", 1, "w")
    assert claim is not None
    keeper.store.teardowns.release(claim, "x", keeper.policy.longest_pause, actor="w")

    for _ in range(5):
        assert reaper.sweep().clamped == 0
        clock.advance(IDLE_TTL / 2)


def test_a_longer_confirm_interval_applies_to_what_was_noticed_before(
    keeper: Keeper, clock: FrozenClock, engine: Engine, provider: FakeCloud
) -> None:
    """
    S5, L2: deployed while sessions are noticed, it makes them wait, each with a date of its own:
    a full batch of rows that are due and cannot move would be one endless sweep.
    """
    keeper.open("conv")
    clock.advance(IDLE_TTL)
    Reaper(keeper.store, {}, doorbell=lambda _: None).sweep()
    slower = store_with(engine, clock, policy(confirm_interval=600))
    clock.advance(CONFIRM)

    early = Reaper(slower, {}, doorbell=lambda _: None).sweep()
    waiting_until = due(engine, "conv")
    clock.advance(540)
    late = Reaper(slower, {}, doorbell=lambda _: None).sweep()

    assert early.ended == 0
    assert waiting_until == clock.now
    assert late.ended == 1


# Creates that nobody finished


def test_a_create_that_nobody_finished_is_closed_at_its_deadline(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud, engine: Engine
) -> None:
    """F1, L2: a crash between intent and record costs the create deadline."""
    half_open(keeper, provider, "conv")

    clock.advance(keeper.policy.create_deadline - 1)
    before = reaper.sweep()
    clock.advance(1)
    at = reaper.sweep()

    assert before.expired == 0
    assert (at.expired, at.published) == (1, 1)
    assert keeper.get("conv").end_reason == "create_expired"
    assert sandbox_row(engine, "conv").state == "closing"


def test_a_create_that_is_joined_again_and_again_still_expires(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """L2: callers that come back are activity of the session, not time for the create."""
    half_open(keeper, provider, "conv")

    for _ in range(9):
        clock.advance(keeper.policy.create_deadline / 10)
        half_open(keeper, provider, "conv")
        reaper.sweep()
    clock.advance(keeper.policy.create_deadline / 10)
    reaper.sweep()

    assert keeper.get("conv").end_reason == "create_expired"


def test_joining_a_create_that_is_past_its_deadline_opens_the_next_generation(
    keeper: Keeper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """F25: nobody waits for the sweep to give up a create that nobody may finish any more."""
    half_open(keeper, provider, "conv")

    clock.advance(keeper.policy.create_deadline)
    session = keeper.open("conv")

    assert (session.generation, session.reset_reason) == (2, "create_expired")
    assert session.sandbox.state == "running"


def test_a_sandbox_that_was_made_in_doubt_is_torn_down_after_its_create_expired(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """F1, L1: made, and nobody was told: found by its name."""
    provider.doubt("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("conv")
    assert len(provider.alive()) == 1

    clock.advance(keeper.policy.create_deadline)
    reaper.sweep()
    reaper.teardown("conv", 1, worker="w")

    assert not provider.alive()


# Publishing


def test_a_published_teardown_is_not_published_again_before_its_lease_has_run_out(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, rung: list[tuple[str, int]]
) -> None:
    """F31: a slow worker is no reason for a second message."""
    keeper.open("conv")
    keeper.end("conv")
    rung.clear()
    reaper.sweep()

    clock.advance(keeper.policy.publish_lease - 1)
    reaper.sweep()
    before = list(rung)
    clock.advance(1)
    reaper.sweep()

    assert before == [("conv", 1)]
    assert rung == [("conv", 1)] * 2


def test_a_doorbell_that_fails_leaves_the_rows_due(
    *,
    keeper: Keeper,
    store: Store,
    provider: FakeCloud,
    clock: FrozenClock,
    rung: list[tuple[str, int]],
    heard: list[Event],
) -> None:
    """L1: no broker costs one lease, is said, and fails no sweep."""
    keeper.open("conv")
    keeper.end("conv")
    rung.clear()

    def broken(_: object) -> None:
        raise ConnectionError("no broker")

    report = Reaper(store, {"fake": provider}, doorbell=broken).sweep()
    clock.advance(keeper.policy.publish_lease)
    Reaper(store, {"fake": provider}, doorbell=rung.extend).sweep()

    assert report.published == 0
    assert count(heard, EventKind.FAN_OUT_FAILED) == 1
    assert store.history.swept_at() == clock.now
    assert rung == [("conv", 1)]


def test_a_claimed_teardown_is_not_published_while_its_claim_lives(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, rung: list[tuple[str, int]]
) -> None:
    """F9: and it is, once that worker must be dead."""
    keeper.open("conv")
    keeper.end("conv")
    reaper.store.teardowns.claim("conv", 1, "w")
    rung.clear()

    clock.advance(keeper.policy.claim_ttl - 1)
    reaper.sweep()
    before = list(rung)
    clock.advance(1)
    reaper.sweep()

    assert before == []
    assert rung == [("conv", 1)]


# Poison


def poison(engine: Engine, session_id: str) -> None:
    """A row whose next look cannot be computed: its last activity is where the calendar ends."""
    end = (
        "294276-12-31 23:59:59+00" if engine.dialect.name == "postgresql" else "9999-12-31 23:59:59"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE sessions SET last_activity_at = '{end}' WHERE id = '{session_id}'"  # noqa: S608
        )


def test_a_poison_row_stops_no_other_and_is_shown(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, heard: list[Event], engine: Engine
) -> None:
    """F13: one corrupt row, and all others end in time."""
    for name in "abc":
        keeper.open(name)
    poison(engine, "b")

    clock.advance(IDLE_TTL)
    first = reaper.sweep()
    clock.advance(CONFIRM)
    second = reaper.sweep()

    assert (first.noticed, first.poisoned, second.ended) == (2, 1, 2)
    assert [keeper.get(name).end_reason for name in "ac"] == ["idle", "idle"]
    assert [e.session_id for e in heard if e.kind is EventKind.ROW_POISONED] == ["b"]


def refuse_updates(engine: Engine, session_id: str, words: str) -> None:
    """Every UPDATE of this row fails from now on, with these words."""
    if engine.dialect.name == "postgresql":
        statements = [
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{words}'; END $$",
            "CREATE TRIGGER refuse BEFORE UPDATE ON sessions FOR EACH ROW "
            f"WHEN (old.id = '{session_id}') EXECUTE FUNCTION refuse()",
        ]
    else:
        statements = [
            f"CREATE TRIGGER refuse BEFORE UPDATE ON sessions WHEN old.id = '{session_id}' "
            f"BEGIN SELECT RAISE(ABORT, '{words}'); END"
        ]
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize("words", ["corrupt", "the column is full, it does not exist"])
def test_a_row_that_refuses_every_update_stops_no_other(
    *,
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    heard: list[Event],
    engine: Engine,
    words: str,
    rung: list[tuple[str, int]],
) -> None:
    """
    F13: not even putting it off works, and still the others end and are published. What the
    database's message says, with a user's text in it, is no reason to take it for an outage.
    """
    for name in "abc":
        keeper.open(name)
    refuse_updates(engine, "b", words)

    clock.advance(IDLE_TTL)
    reaper.sweep()
    clock.advance(CONFIRM)
    reaper.sweep()

    assert [keeper.get(name).end_reason for name in "abc"] == ["idle", None, "idle"]
    assert sorted(rung) == [("a", 1), ("c", 1)]
    assert {e.session_id for e in heard if e.kind is EventKind.ROW_POISONED} == {"b"}


def test_a_create_that_refuses_every_update_stops_no_other(
    *,
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    heard: list[Event],
    engine: Engine,
    provider: FakeCloud,
    rung: list[tuple[str, int]],
) -> None:
    """F13, L1: the others expire, and what is closing is published, sweep after sweep."""
    for name in "abc":
        provider.fail("create", QuotaExceeded())
        with pytest.raises(QuotaExceeded):
            keeper.open(name)
    keeper.open("closing")
    keeper.end("closing")
    rung.clear()
    refuse_updates(engine, "b", "corrupt")

    clock.advance(keeper.policy.create_deadline)
    report = reaper.sweep()

    assert (report.expired, report.poisoned) == (2, 2)  # its session was due as well
    assert sorted(rung) == [("a", 1), ("c", 1), ("closing", 1)]
    assert {e.session_id for e in heard if e.kind is EventKind.ROW_POISONED} == {"b"}
    assert reaper.store.history.swept_at() == clock.now


def test_a_create_that_cannot_be_ended_is_put_off(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """F13: it makes one batch fail, and not the batch of every sweep from then on."""
    provider.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("conv")
    clock.advance(keeper.policy.create_deadline)

    def refuse(_move: object, ended: Sequence[object], _actor: str) -> None:
        if ended:
            raise StoreError("corrupt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reaper.store.sweeps._endings, "close", refuse)
        first = reaper.sweep()
        second = reaper.sweep()
    clock.advance(keeper.policy.longest_look)
    last = reaper.sweep()

    assert [report.poisoned for report in (first, second)] == [1, 0]
    assert last.expired == 1


def test_an_outage_ends_the_sweep_and_concludes_nothing(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, engine: Engine
) -> None:
    """S4: raised to whoever retries; nothing is called poisoned, and there is no pulse."""
    keeper.open("conv")
    clock.advance(IDLE_TTL)

    def refuse(*_: object, **__: object) -> None:
        raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.dialect, "do_execute", refuse)
        with pytest.raises(StoreUnavailable):
            reaper.sweep()

    assert reaper.store.history.swept_at() is None
    assert replace(reaper.sweep(), noticed=0) == SweepReport()
