"""The breaker asks before a mass goes; the interlock, before an unknown database destroys."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, select, text, update

from core.engines import make_engine, witness
from core.errors import InvalidArgument, QuotaExceeded, StoreError
from core.events import Event, EventKind
from core.host import Host
from core.lifecycle import Keeper
from core.model import OrphanKind, SandboxState, SessionStatus
from core.policy import Policy
from core.reaper import Reaper, SweepReport, TeardownOutcome
from core.reconcile import Reconciler
from core.schema import events, holds, installation, orphans, sessions
from core.store import Store
from core.store.database import Database
from core.store.guard import Decision, HoldReason
from core.store.inventory import Running
from core.store.orphans import Orphan
from core.witness import SUFFIX, Beside, InMemory
from tests.factories import policy, stray
from tests.fakes import FakeCloud, FrozenClock, Idle
from tests.services import Databases

LIMITS = policy(breaker_min=3, breaker_ratio=0.5, batch=2)
IDLE_TTL, CONFIRM = LIMITS.idle_ttl, LIMITS.confirm_interval
HOUR = 3600.0


@pytest.fixture
def heard() -> list[Event]:
    """What the sinks were told, in order."""
    return []


@pytest.fixture
def store(engine: Engine, clock: FrozenClock, heard: list[Event]) -> Store:
    """A store that is listened to, whose breaker has few to count, in batches of two."""
    return Store(engine, policy=LIMITS, clock=clock, sinks=[heard.append])


@pytest.fixture
def keeper(store: Store, provider: FakeCloud) -> Keeper:
    """An API server's keeper, without its background work."""
    return Keeper(store, provider, host=Host(loop=Idle))


def reaper_of(store: Store, cloud: FakeCloud, rung: list[tuple[str, int]]) -> Reaper:
    """What sweeps and tears down."""
    return Reaper(store, {cloud.name: cloud}, doorbell=rung.extend, host=Host(spread=lambda: 0.0))


def mass(keeper: Keeper, reaper: Reaper, clock: FrozenClock, idle: int, fresh: int = 0) -> None:
    """So many sessions that the next sweep would end, and so many others that are active."""
    for number in range(idle):
        keeper.open(f"idle-{number}")
    clock.advance(IDLE_TTL)
    reaper.sweep()
    for number in range(fresh):
        keeper.open(f"fresh-{number}")
    clock.advance(CONFIRM)


def half_open(keeper: Keeper, provider: FakeCloud, session_id: str) -> None:
    """A session whose creator went away before the provider made anything."""
    provider.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open(session_id)


def count(heard: list[Event], kind: EventKind) -> int:
    """How often the sinks heard of this."""
    return [one.kind for one in heard].count(kind)


def in_ledger(engine: Engine, kind: EventKind) -> int:
    """How often the ledger says it."""
    query = select(func.count()).select_from(events).where(events.c.kind == kind.value)
    with engine.connect() as connection:
        found: int = connection.execute(query).scalar_one()
    return found


def active(engine: Engine) -> int:
    """How many sessions may run turns."""
    query = select(func.count()).select_from(sessions).where(sessions.c.status == "active")
    with engine.connect() as connection:
        found: int = connection.execute(query).scalar_one()
    return found


def reasons(store: Store) -> list[HoldReason]:
    """What is asked now."""
    return [hold.reason for hold in store.guard.holds() if hold.open]


# The breaker: too many ends at once


@pytest.mark.parametrize(
    ("idle", "fresh", "asked"),
    [(3, 0, False), (4, 4, False), (4, 3, True), (4, 0, True), (5, 4, True)],
    ids=["at the number", "at the share", "above both", "everything", "the next"],
)
def test_a_mass_is_above_the_number_and_above_the_share(
    *,
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    store: Store,
    idle: int,
    fresh: int,
    asked: bool,
) -> None:
    """S5: BREAKER_MIN and BREAKER_RATIO are what still goes; counted across batches of two."""
    mass(keeper, reaper, clock, idle, fresh)

    report = reaper.sweep()

    assert reasons(store) == ([HoldReason.MASS_END] if asked else [])
    assert report.ended == (0 if asked else idle)


def test_a_mass_is_held_and_nothing_of_it_ends(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, heard: list[Event]
) -> None:
    """S5, F7: one question with the numbers, in the ledger; it is not asked again."""
    mass(keeper, reaper, clock, 5, 2)

    reports = []
    for _ in range(3):
        reports.append(reaper.sweep())
        clock.advance(CONFIRM)

    (hold,) = store.guard.holds()
    assert [report.ended for report in reports] == [0] * 3
    assert (hold.reason, hold.open, hold.decision) == (HoldReason.MASS_END, True, None)
    assert hold.detail == {"ending": 5, "active": 7}
    assert count(heard, EventKind.DESTRUCTION_HELD) == 1
    assert in_ledger(store.database.engine, EventKind.DESTRUCTION_HELD) == 1
    assert active(store.database.engine) == 7


def test_a_mass_that_was_noticed_over_some_time_is_one_mass(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, engine: Engine
) -> None:
    """S5: batches are noticed one after the other, and come due one after the other."""
    for number in range(10):
        keeper.open(f"idle-{number}")
    clock.advance(IDLE_TTL)
    event.listen(engine, "commit", lambda _: clock.advance(0.01))
    began = clock.now
    reaper.sweep()
    clock.now = began
    clock.advance(CONFIRM + 0.015)  # only the first batch is due

    report = reaper.sweep()

    assert report.ended == 0
    assert reasons(store) == [HoldReason.MASS_END]


def slow_batches(reaper: Reaper, clock: FrozenClock, seconds: float) -> list[float]:
    """Each batch of this reaper takes so long. Gives when each began, as far as they have."""
    batch, began = reaper.store.sweeps.sessions, list[float]()

    def slow(*arguments: Any, **options: Any) -> tuple[int, int, int, int]:
        began.append(clock.monotonic())
        assert len(began) < 200, "the sweep goes round in circles"
        clock.advance(seconds)
        return batch(*arguments, **options)

    reaper.store.sweeps.sessions = slow  # type: ignore[method-assign]
    return began


def test_a_sweep_that_takes_longer_than_the_confirmation_ends_nobody_unasked(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store
) -> None:
    """S5: those that it noticed first are due before it is done, and no breaker counted them."""
    for number in range(10):
        keeper.open(f"idle-{number}")
    clock.advance(IDLE_TTL)
    slow_batches(reaper, clock, CONFIRM / 5)

    first = reaper.sweep()
    clock.advance(CONFIRM)
    second = reaper.sweep()

    assert (first.noticed, first.ended, second.ended) == (10, 0, 0)
    assert reasons(store) == [HoldReason.MASS_END]


def test_a_sweep_under_a_hold_comes_to_its_end(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1, H2: those that have to wait are due again before it is done; none is looked at twice."""
    mass(keeper, reaper, clock, 10)
    began = slow_batches(reaper, clock, CONFIRM / 5)

    reaper.sweep()

    assert len(began) == 6  # five batches of two, and one that found none
    assert reaper.store.history.swept_at() == clock.now


def test_creates_that_expire_while_a_sweep_goes_on_are_the_next_ones(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, provider: FakeCloud
) -> None:
    """S5: the breaker counted one of them; the others would go without a question."""
    half_open(keeper, provider, "first")
    clock.advance(CONFIRM)
    for number in range(4):
        half_open(keeper, provider, f"half-{number}")
    clock.advance(LIMITS.create_deadline - CONFIRM)
    slow_batches(reaper, clock, CONFIRM)

    swept = [reaper.sweep().expired for _ in range(2)]

    assert swept == [1, 0]
    assert reasons(store) == [HoldReason.MASS_END]


def test_expired_creates_are_part_of_the_mass(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, provider: FakeCloud
) -> None:
    """S5, F27: a clock that stepped ahead makes every create look late."""
    for number in range(2):
        keeper.open(f"idle-{number}")
    clock.advance(IDLE_TTL - LIMITS.create_deadline)
    for number in range(2):
        half_open(keeper, provider, f"half-{number}")
    clock.advance(LIMITS.create_deadline)
    reaper.sweep()  # notices two, expires two: not more than three
    expired = store.sessions.get("half-0").status
    for number in range(2, 6):
        half_open(keeper, provider, f"half-{number}")
    clock.advance(LIMITS.create_deadline)

    held = reaper.sweep()
    store.guard.approve(HoldReason.MASS_END, HOUR, actor="op")
    clock.advance(CONFIRM)
    approved = reaper.sweep()

    assert expired is SessionStatus.ENDED
    assert (held.ended, held.expired) == (0, 0)
    assert (approved.ended, approved.expired) == (2, 4)


def test_while_something_is_held_nothing_is_destroyed(
    *,
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    store: Store,
    provider: FakeCloud,
    rung: list[tuple[str, int]],
) -> None:
    """S5: no end, no publication, no claim of a teardown or an orphan, nothing lost."""
    running = keeper.open("running").sandbox
    keeper.open("closing")
    keeper.end("closing")
    orphan = late_orphan(store, provider, keeper, reaper)
    mass(keeper, reaper, clock, 1)
    half_open(keeper, provider, "half")
    clock.advance(LIMITS.create_deadline)
    provider.vanish(running.name)
    store.guard.hold(HoldReason.OPERATOR, {"why": "x"}, actor="op")
    rung.clear()

    swept = reaper.sweep()
    compared = Reconciler(store, {"fake": provider}).reconcile()

    assert (swept.ended, swept.expired, swept.published, rung) == (0, 0, 0, [])
    assert [(r.late, r.killed, r.missing, r.lost) for r in compared] == [(1, 0, 1, 0)]
    assert store.sweeps.sessions(10)[3] == 0  # also when it was held after the breaker's look
    assert store.sweeps.expired_creates(10) == 0
    assert [store.publications.take(room, 10) for room in store.publications.rooms()] == [[]]
    assert store.publications.failing(10) == (0, [])
    assert store.teardowns.claim("closing", 1, "w", early=True) is None
    assert not store.orphans.claim(orphan)
    absent = missing(store, keeper, "running")
    assert not store.inventory.lost(absent.session_id, absent.key)
    assert reaper.teardown("closing", 1, worker="w").outcome is TeardownOutcome.REFUSED
    assert provider.count("destroy") == 1  # the one before
    store.guard.approve(HoldReason.OPERATOR, HOUR, actor="op")
    assert store.orphans.claim(orphan)
    assert store.teardowns.claim("closing", 1, "w") is not None


def late_orphan(store: Store, provider: FakeCloud, keeper: Keeper, reaper: Reaper) -> Orphan:
    """A sandbox whose row is gone."""
    sandbox = keeper.open("late").sandbox
    keeper.end("late")
    reaper.teardown("late", 1, worker="w")
    provider.plant(sandbox.name, provider.boxes[str(sandbox.external_id)].labels)
    store.orphans.sight(
        [
            {
                "of_provider": "fake",
                "of_external_id": f"box-{len(provider.boxes):06}",
                "of_key": sandbox.key,
                "of_scope": "test-account",
                "of_kind": OrphanKind.LATE.value,
            }
        ]
    )
    (orphan,) = store.orphans.all()
    return orphan


def missing(store: Store, keeper: Keeper, session_id: str) -> Running:
    """The row of a sandbox that its provider does not have."""
    sandbox = keeper.get(session_id).sandbox
    return Running(
        key=sandbox.key,
        name=sandbox.name,
        session_id=session_id,
        external_id=str(sandbox.external_id),
    )


def test_while_something_is_held_callers_go_on(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store
) -> None:
    """Users open, run turns and end; what they end waits to be torn down."""
    mass(keeper, reaper, clock, 4)
    reaper.sweep()
    assert store.guard.is_held()

    keeper.open("new")
    with keeper.turn("idle-0"):
        keeper.touch("idle-1")
    ended = keeper.end("idle-2")
    again = keeper.open("idle-2")

    assert ended.sandbox.state is SandboxState.CLOSING
    assert (again.generation, again.status) == (2, SessionStatus.ACTIVE)
    assert active(store.database.engine) == 5


def test_what_is_held_is_looked_at_again_and_never_twice_in_one_sweep(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, engine: Engine
) -> None:
    """L2: full batches of held rows are no loop; each is due again in a moment, and not before."""
    mass(keeper, reaper, clock, 6)

    reaper.sweep()

    with engine.connect() as connection:
        dues = set(connection.execute(select(sessions.c.due_at)).scalars())
    assert {(due - clock.now).total_seconds() for due in dues} == {CONFIRM}
    assert reaper.sweep() == SweepReport()


def test_an_approved_mass_ends(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, heard: list[Event]
) -> None:
    """The operator's answer is in the ledger with who gave it, and the mass goes."""
    mass(keeper, reaper, clock, 5)
    reaper.sweep()

    store.guard.approve(HoldReason.MASS_END, HOUR, actor="ada")
    clock.advance(CONFIRM)
    report = reaper.sweep()

    (hold,) = store.guard.holds()
    assert report.ended == 5
    assert (hold.open, hold.decision, hold.decided_by) == (False, Decision.APPROVED, "ada")
    assert [(e.actor, e.detail) for e in heard if e.kind is EventKind.HOLD_DECIDED] == [
        ("ada", {"reason": "mass_end", "decision": "approved"})
    ]
    assert in_ledger(store.database.engine, EventKind.HOLD_DECIDED) == 1


def test_an_approval_runs_out_and_the_next_mass_is_asked_about(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, heard: list[Event]
) -> None:
    """S5: yesterday's answer is not today's."""
    mass(keeper, reaper, clock, 4)
    reaper.sweep()
    store.guard.approve(HoldReason.MASS_END, IDLE_TTL + 2 * CONFIRM, actor="op")
    clock.advance(CONFIRM)
    first = reaper.sweep().ended
    mass(keeper, reaper, clock, 4)

    second = reaper.sweep()

    assert (first, second.ended) == (4, 0)
    assert reasons(store) == [HoldReason.MASS_END]
    assert count(heard, EventKind.DESTRUCTION_HELD) == 2


def test_a_denied_mass_is_left_alone_and_the_rest_goes_on(
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    store: Store,
    rung: list[tuple[str, int]],
) -> None:
    """Deny: nobody of the mass ends for so long; teardowns and smaller ends go on."""
    mass(keeper, reaper, clock, 5)
    reaper.sweep()
    store.guard.deny(HoldReason.MASS_END, HOUR, actor="op")

    keeper.end("idle-4")
    clock.advance(CONFIRM)
    denied = reaper.sweep()
    gone = reaper.teardown("idle-4", 1, worker="w")
    for number in range(3):
        keeper.touch(f"idle-{number}")
    clock.advance(CONFIRM)
    smaller = [reaper.sweep() for _ in range(2)]
    clock.advance(CONFIRM)
    smaller.append(reaper.sweep())

    assert (denied.ended, denied.published) == (0, 1)
    assert gone.outcome is TeardownOutcome.GONE
    assert sum(report.ended for report in smaller) == 1
    assert store.sessions.get("idle-3").end_reason == "idle"
    assert active(store.database.engine) == 3


def test_a_denial_runs_out_and_it_is_asked_again(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store
) -> None:
    """S5: the mass is still there: the operator is asked, and not passed over."""
    mass(keeper, reaper, clock, 5)
    reaper.sweep()
    store.guard.deny(HoldReason.MASS_END, 10 * CONFIRM, actor="op")

    ended = 0
    for _ in range(11):
        clock.advance(CONFIRM)
        ended += reaper.sweep().ended

    assert ended == 0
    assert reasons(store) == [HoldReason.MASS_END]


def test_two_sweeps_at_once_ask_once(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, store: Store, heard: list[Event]
) -> None:
    """F31: and neither of them ends anything."""
    mass(keeper, reaper, clock, 6)
    at_once = threading.Barrier(4)

    def sweep(_: int) -> SweepReport:
        at_once.wait(30)
        return reaper.sweep()

    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(sweep, range(4)))

    assert [report.ended for report in reports] == [0] * 4
    assert count(heard, EventKind.DESTRUCTION_HELD) == 1
    assert in_ledger(store.database.engine, EventKind.DESTRUCTION_HELD) == 1


def test_a_question_and_its_record_are_one_transaction(store: Store, engine: Engine) -> None:
    """H1: where the ledger cannot be written nothing is asked, and nothing answered."""
    store.guard.hold(HoldReason.MASS_END, {}, actor="op")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE events RENAME TO elsewhere"))

    with pytest.raises(StoreError):
        store.guard.hold(HoldReason.OPERATOR, {}, actor="op")
    with pytest.raises(StoreError):
        store.guard.approve(HoldReason.MASS_END, HOUR, actor="op")

    assert reasons(store) == [HoldReason.MASS_END]


@pytest.mark.parametrize("reason", list(HoldReason))
def test_an_answer_without_a_question_is_refused(store: Store, reason: HoldReason) -> None:
    """An approval in advance would be forgotten, and let a mass pass that nobody has seen."""
    for answer in (store.guard.approve, store.guard.deny):
        with pytest.raises(InvalidArgument, match="nothing is held"):
            answer(reason, HOUR, actor="op")

    assert store.guard.holds() == []


def test_one_answer_leaves_the_other_questions_open(store: Store) -> None:
    """Everything waits for the last of them."""
    store.guard.hold(HoldReason.MASS_END, {}, actor="op")
    store.guard.hold(HoldReason.STORE, {}, actor="op")

    store.guard.approve(HoldReason.MASS_END, HOUR, actor="op")

    assert store.guard.is_held()
    assert reasons(store) == [HoldReason.STORE]
    store.guard.deny(HoldReason.STORE, HOUR, actor="op")
    assert not store.guard.is_held()


def test_an_answer_can_be_changed(store: Store, clock: FrozenClock) -> None:
    """Until it has run out."""
    store.guard.hold(HoldReason.MASS_END, {}, actor="op")
    store.guard.approve(HoldReason.MASS_END, HOUR, actor="op")
    store.guard.deny(HoldReason.MASS_END, HOUR, actor="op")
    denied = store.guard.decision(HoldReason.MASS_END)

    clock.advance(HOUR)

    assert denied is Decision.DENIED
    assert store.guard.decision(HoldReason.MASS_END) is None
    assert store.guard.holds() == []


# The interlock: another database


def test_an_identity_that_is_not_the_databases_holds_everything(
    keeper: Keeper, reaper: Reaper, store: Store, engine: Engine
) -> None:
    """S5: at once, by every statement; a sweep then asks, and an approval adopts."""
    keeper.open("conv")
    keeper.end("conv")
    with engine.begin() as connection:
        connection.execute(update(installation).values(identity="another:1"))

    claimed = store.teardowns.claim("conv", 1, "w")
    held = store.guard.is_held()
    asked_before = reasons(store)
    reaper.sweep()

    assert (claimed, held, asked_before) == (None, True, [])
    assert reasons(store) == [HoldReason.DATABASE]
    store.guard.deny(HoldReason.DATABASE, 1.0, actor="op")
    assert store.guard.is_held()
    store.guard.approve(HoldReason.DATABASE, HOUR, actor="op")
    assert not store.guard.is_held()
    reaper.sweep()
    assert store.guard.holds() == []
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE


@pytest.mark.parametrize("reason", [HoldReason.DATABASE, HoldReason.REWOUND, HoldReason.OPERATOR])
def test_a_denial_of_what_is_no_mass_holds_for_good(
    store: Store, clock: FrozenClock, reason: HoldReason, heard: list[Event]
) -> None:
    """The wrong database stays wrong, however long ago somebody said so."""
    store.guard.hold(reason, {}, actor="op")
    store.guard.deny(reason, 1.0, actor="ada")

    clock.advance(100 * 24 * HOUR)
    store.guard.hold(reason, {}, actor="sweep")

    (hold,) = store.guard.holds()
    assert (hold.open, hold.decision, hold.decided_by) == (True, Decision.DENIED, "ada")
    assert store.guard.is_held()
    assert count(heard, EventKind.DESTRUCTION_HELD) == 1


def other_store(engine: Engine, clock: FrozenClock, remembered: int) -> Store:
    """The store of another process, which has seen so many sweeps."""
    memory = InMemory()
    memory.remember(remembered)
    return Store(engine, policy=LIMITS, clock=clock, witness=memory)


def test_a_database_that_went_back_is_noticed_by_who_saw_it(
    engine: Engine, clock: FrozenClock
) -> None:
    """S5: a process remembers more sweeps than the database; a few may be lost in a power cut."""
    store = other_store(engine, clock, 0)
    for _ in range(3):
        store.sweeps.pulse()

    other_store(engine, clock, 3 + 2).guard.check(actor="sweep")
    few = reasons(store)
    other_store(engine, clock, 3 + 3).guard.check(actor="sweep")

    assert few == []
    (hold,) = store.guard.holds()
    assert (hold.reason, hold.detail) == (HoldReason.REWOUND, {"sweeps": 3, "seen": 6})


@pytest.mark.parametrize("first", [0, 1], ids=["who saw less asks", "who saw more asks"])
def test_an_approved_rewind_is_approved_for_every_process(
    engine: Engine, clock: FrozenClock, first: int
) -> None:
    """One answer: also a process that remembers more than the one that asked goes on."""
    processes = [other_store(engine, clock, remembered) for remembered in (50, 1000)]
    operator = other_store(engine, clock, 0)
    processes[first].guard.check(actor="sweep")
    operator.guard.approve(HoldReason.REWOUND, HOUR, actor="op")

    for _ in range(3):
        for process in processes:
            process.guard.check(actor="sweep")
            process.guard.witness.remember(process.sweeps.pulse())

    assert operator.guard.holds() == []
    other_store(engine, clock, 10**9).guard.check(actor="sweep")
    assert reasons(operator) == [HoldReason.REWOUND]


def test_every_sweep_is_remembered(store: Store, reaper: Reaper, engine: Engine) -> None:
    """The database counts, and who swept knows how far."""
    for _ in range(3):
        reaper.sweep()

    assert store.guard.witness.recall() == 3
    assert other_store(engine, FrozenClock(), 0).sweeps.pulse() == 4


# The interlock on PostgreSQL


@pytest.fixture
def closing_postgresql(
    postgresql_url: str, clock: FrozenClock, provider: FakeCloud
) -> Iterator[tuple[str, Callable[[str], Store]]]:
    """A database with a sandbox that waits for its teardown, and what opens a store on a URL."""
    engines: list[Engine] = []

    def opened(url: str) -> Store:
        engines.append(make_engine(url))
        return Store(engines[-1], policy=LIMITS, clock=clock)

    keeper = Keeper(opened(postgresql_url), provider, host=Host(loop=Idle))
    keeper.open("conv")
    keeper.end("conv")
    engines[-1].dispose()  # CREATE DATABASE wants nobody connected
    yield postgresql_url, opened
    for engine in engines:
        engine.dispose()


def test_a_clone_destroys_nothing(
    closing_postgresql: tuple[str, Callable[[str], Store]],
    postgresql_databases: Databases,
    provider: FakeCloud,
) -> None:
    """S5: CREATE DATABASE … TEMPLATE: a staging copy of production, with production's cloud."""
    url, opened = closing_postgresql
    original = url.rpartition("/")[2].partition("?")[0]
    postgresql_databases._do(f"CREATE DATABASE {original}_clone TEMPLATE {original}")
    try:
        clone = opened(url.replace(original, f"{original}_clone"))
        claimed = clone.teardowns.claim("conv", 1, "w", early=True)
        before = reasons(clone)
        reaper_of(clone, provider, []).sweep()

        assert (claimed, before) == (None, [])
        assert reasons(clone) == [HoldReason.DATABASE]
        assert not opened(url).guard.is_held()
        clone.guard.approve(HoldReason.DATABASE, HOUR, actor="op")
        assert clone.teardowns.claim("conv", 1, "w") is not None
        assert not opened(url).guard.is_held()
    finally:
        postgresql_databases._do(f"DROP DATABASE {original}_clone WITH (FORCE)")


def test_a_dump_that_was_restored_destroys_nothing(
    closing_postgresql: tuple[str, Callable[[str], Store]], provider: FakeCloud, tmp_path: Path
) -> None:
    """S5: pg_dump and psql, or any tool that makes the tables again."""
    url, opened = closing_postgresql
    if not dumped_and_restored(url, tmp_path):
        by_hand(opened(url).database.engine)

    store = opened(url)
    claimed = store.teardowns.claim("conv", 1, "w", early=True)
    reaper_of(store, provider, []).sweep()

    assert claimed is None
    assert reasons(store) == [HoldReason.DATABASE]
    assert store.sessions.get("conv").sandbox.state is SandboxState.CLOSING


def dumped_and_restored(url: str, scratch: Path) -> bool:
    """By pg_dump, if there is one that is not older than the server."""
    if not (shutil.which("pg_dump") and shutil.which("psql")):
        return False
    dump = scratch / "dump.sql"
    for command in (
        ["pg_dump", "--clean", "--if-exists", "--file", str(dump), url],
        ["psql", "--quiet", "--set=ON_ERROR_STOP=1", "--file", str(dump), url],
    ):
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return False
    return True


def by_hand(engine: Engine) -> None:
    """The same for the table that matters, in one transaction."""
    with engine.begin() as connection:
        rows = [dict(row) for row in connection.execute(select(installation)).mappings()]
        installation.drop(connection)
        installation.create(connection)
        connection.execute(insert(installation), rows)


# The interlock on SQLite


@contextmanager
def sqlite_store(path: Path, clock: FrozenClock, **options: Any) -> Iterator[Store]:
    """A store as a process has it, its witness included; nothing is open after it."""
    engine = make_engine(f"sqlite:///{path}")
    try:
        yield Store(engine, policy=LIMITS, clock=clock, witness=witness(engine), **options)
    finally:
        engine.dispose()


def swept(store: Store, cloud: FakeCloud, times: int = 1) -> list[HoldReason]:
    """Sweep; what is asked then."""
    for _ in range(times):
        reaper_of(store, cloud, []).sweep()
    return reasons(store)


def copied(source: Path, target: Path) -> None:
    """As a backup does it: one file that has everything."""
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for part in ("-wal", "-shm"):
        target.with_name(target.name + part).unlink(missing_ok=True)
    shutil.copyfile(source, target)


@pytest.fixture
def home(sqlite_template: Path, tmp_path: Path, clock: FrozenClock, provider: FakeCloud) -> Path:
    """A SQLite database that was swept, with a sandbox that waits for its teardown."""
    path = tmp_path / "home" / "sandkeeper.db"
    path.parent.mkdir()
    shutil.copy(sqlite_template, path)
    with sqlite_store(path, clock) as store:
        keeper = Keeper(store, provider, host=Host(loop=Idle))
        keeper.open("conv")
        keeper.end("conv")
        assert swept(store, provider) == []
    return path


def test_the_same_file_is_the_same_database(
    home: Path, clock: FrozenClock, provider: FakeCloud
) -> None:
    """However often it is opened."""
    for _ in range(3):
        with sqlite_store(home, clock) as store:
            assert swept(store, provider) == []
    with sqlite_store(home, clock) as store:
        assert store.teardowns.claim("conv", 1, "w", early=True) is not None


@pytest.mark.parametrize("also", ["", SUFFIX], ids=["alone", "with its witness"])
def test_a_copy_of_a_file_destroys_nothing(
    home: Path, clock: FrozenClock, provider: FakeCloud, tmp_path: Path, also: str
) -> None:
    """S5: at once, and a sweep asks; approved, it is a database of its own."""
    copy = tmp_path / "copy" / home.name
    copy.parent.mkdir()
    copied(home, copy)
    if also:
        shutil.copyfile(f"{home}{also}", f"{copy}{also}")

    with sqlite_store(copy, clock) as store:
        claimed = store.teardowns.claim("conv", 1, "w", early=True)
        asked = swept(store, provider)
        store.guard.approve(HoldReason.DATABASE, HOUR, actor="op")
        after = swept(store, provider, 3)
        assert store.teardowns.claim("conv", 1, "w", early=True) is not None

    assert (claimed, asked, after) == (None, [HoldReason.DATABASE], [])
    with sqlite_store(home, clock) as original:
        assert swept(original, provider) == []


def test_a_backup_that_was_copied_back_is_older_than_what_was_seen(
    home: Path, clock: FrozenClock, provider: FakeCloud, tmp_path: Path
) -> None:
    """S5: the very file, and fewer sweeps in it than its witness remembers."""
    backup = tmp_path / "backup.db"
    copied(home, backup)
    with sqlite_store(home, clock) as store:
        swept(store, provider, 5)
    copied(backup, home)

    with sqlite_store(home, clock) as store:
        asked = swept(store, provider)
        claimed = store.teardowns.claim("conv", 1, "w", early=True)
        store.guard.approve(HoldReason.REWOUND, HOUR, actor="op")
        after = swept(store, provider, 3)

    assert (asked, claimed, after) == ([HoldReason.REWOUND], None, [])


def test_a_backup_that_was_moved_into_place_is_another_database(
    home: Path, clock: FrozenClock, provider: FakeCloud, tmp_path: Path
) -> None:
    """S5: another file under the name of the first, and no sweep of either is missing."""
    backup = tmp_path / "backup.db"
    copied(home, backup)
    backup.replace(home)

    with sqlite_store(home, clock) as store:
        assert store.teardowns.claim("conv", 1, "w", early=True) is None
        assert swept(store, provider) == [HoldReason.DATABASE]


@pytest.mark.parametrize(
    "left",
    [None, b"", b"garbage \xff", b"[]", b"null", b'{"installation": "a"}', b'{"epoch": "many"}'],
    ids=["lost", "empty", "garbage", "a list", "null", "half", "wrong"],
)
def test_a_witness_that_cannot_be_read_vouches_for_nothing(
    home: Path, clock: FrozenClock, provider: FakeCloud, left: bytes | None
) -> None:
    """S4: it makes the database a stranger; an approval writes a new one."""
    beside = home.with_name(home.name + SUFFIX)
    if left is None:
        beside.unlink()
    else:
        beside.write_bytes(left)

    with sqlite_store(home, clock) as store:
        claimed = store.teardowns.claim("conv", 1, "w", early=True)
        asked = swept(store, provider, 3)
        store.guard.approve(HoldReason.DATABASE, HOUR, actor="op")
        after = swept(store, provider, 3)

    assert (claimed, asked, after) == (None, [HoldReason.DATABASE], [])
    assert json.loads(beside.read_text())["installation"] == store.installation


def test_the_witness_of_another_database_does_not_vouch(
    home: Path, clock: FrozenClock, provider: FakeCloud, sqlite_template: Path, tmp_path: Path
) -> None:
    """S5: two databases never share a token."""
    other = tmp_path / "other.db"
    shutil.copy(sqlite_template, other)
    with sqlite_store(other, clock) as store:
        assert swept(store, provider) == []
    shutil.copy(f"{other}{SUFFIX}", f"{home}{SUFFIX}")

    with sqlite_store(home, clock) as store:
        assert store.teardowns.claim("conv", 1, "w", early=True) is None
        assert swept(store, provider) == [HoldReason.DATABASE]


def test_a_database_that_was_begun_anew_works_beside_an_old_witness(
    home: Path, clock: FrozenClock, provider: FakeCloud, sqlite_template: Path
) -> None:
    """A new installation has nothing of the old one to destroy."""
    home.unlink()
    copied(sqlite_template, home)

    with sqlite_store(home, clock) as store:
        keeper = Keeper(store, provider, host=Host(loop=Idle))
        keeper.open("conv")
        keeper.end("conv")
        asked = swept(store, provider, 3)
        assert store.teardowns.claim("conv", 1, "w", early=True) is not None

    assert asked == []


def test_a_database_that_was_emptied_under_its_old_name_destroys_nothing(
    home: Path, clock: FrozenClock, provider: FakeCloud, sqlite_template: Path
) -> None:
    """F7: SANDKEEPER_INSTALLATION says that it is the old one; its witness knows better."""
    with sqlite_store(home, clock) as store:
        name = store.installation
    home.unlink()
    copied(sqlite_template, home)

    with sqlite_store(home, clock, installation=name) as store:
        assert store.guard.is_held()
        assert swept(store, provider) == [HoldReason.DATABASE]


def test_two_first_processes_vouch_for_one_database(
    sqlite_url: str, clock: FrozenClock, provider: FakeCloud
) -> None:
    """A worker, a beat and an API server start at once on a new database: nobody is a stranger."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    arrived, done = threading.Event(), threading.Event()

    class Slow(Beside):
        """Between the look and the file it is overtaken, if that is possible."""

        def establish(self, installation: str) -> bool:
            arrived.set()
            done.wait(1)
            return super().establish(installation)

    def start_slowly() -> None:
        engine = make_engine(sqlite_url)
        Store(engine, policy=LIMITS, clock=clock, witness=Slow(path))
        engine.dispose()

    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(start_slowly)
        assert arrived.wait(30)
        with sqlite_store(path, clock) as store:
            done.set()
            slow.result(30)
            assert not store.guard.is_held()
            assert swept(store, provider, 2) == []


def test_many_first_processes_vouch_for_one_database(
    sqlite_url: str, clock: FrozenClock, provider: FakeCloud
) -> None:
    """The same without a hand in it."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    at_once = threading.Barrier(6)

    def start(_: int) -> bool:
        at_once.wait(30)
        with sqlite_store(path, clock) as store:
            return store.guard.is_held()

    with ThreadPoolExecutor(6) as threads:
        held = list(threads.map(start, range(6)))

    assert held == [False] * 6
    with sqlite_store(path, clock) as store:
        assert swept(store, provider) == []


def test_a_database_behind_a_link_has_one_witness(
    sqlite_url: str, clock: FrozenClock, provider: FakeCloud, tmp_path: Path
) -> None:
    """S5: begun through a symbolic link, it is a database that can be told from its copy."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    link = tmp_path / "current.db"
    link.symlink_to(path)
    with sqlite_store(link, clock) as store:
        assert swept(store, provider) == []
    copied(path, tmp_path / "copy.db")

    with sqlite_store(tmp_path / "copy.db", clock) as store:
        assert store.guard.is_held()


def test_a_witness_never_forgets_what_it_saw(tmp_path: Path) -> None:
    """A late process that remembers less takes nothing back."""
    (tmp_path / "x.db").touch()
    for memory in (InMemory(), Beside(tmp_path / "x.db")):
        assert memory.establish("testtest")
        memory.remember(5)
        memory.remember(3)
        assert memory.recall() == 5


def test_what_was_written_before_this_version_is_known_from_its_first_start(
    engine: Engine, clock: FrozenClock, provider: FakeCloud
) -> None:
    """An installation that is upgraded has no identity yet: nothing is held."""
    Store(engine, policy=LIMITS, clock=clock)
    with engine.begin() as connection:
        connection.execute(update(installation).values(identity=None))
    store = Store(engine, policy=LIMITS, clock=clock, witness=witness(engine))

    assert swept(store, provider) == []
    assert not store.guard.is_held()
    with engine.connect() as connection:
        assert connection.execute(select(installation.c.identity)).scalar_one() is not None
        assert connection.execute(select(func.count()).select_from(holds)).scalar_one() == 0


def test_orphans_that_nobody_may_claim_stay_noted(
    keeper: Keeper, reaper: Reaper, store: Store, provider: FakeCloud, engine: Engine
) -> None:
    """A hold postpones; when it is over they go in the next pass."""
    late_orphan(store, provider, keeper, reaper)
    store.guard.hold(HoldReason.OPERATOR, {}, actor="op")
    reconciler = Reconciler(store, {"fake": provider})
    (held,) = reconciler.reconcile()
    store.guard.approve(HoldReason.OPERATOR, HOUR, actor="op")

    (after,) = reconciler.reconcile()

    assert (held.killed, held.kept) == (0, 1)
    assert after.killed == 1
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(orphans)).scalar_one() == 0


def test_a_policy_that_never_asks_never_asks(
    engine: Engine, clock: FrozenClock, provider: FakeCloud, rung: list[tuple[str, int]]
) -> None:
    """BREAKER_RATIO 1: all of them is not more than all of them."""
    limits: Policy = policy(breaker_min=1, breaker_ratio=1.0)
    store = Store(engine, policy=limits, clock=clock)
    keeper = Keeper(store, provider, host=Host(loop=Idle))
    reaper = reaper_of(store, provider, rung)
    mass(keeper, reaper, clock, 4)
    for _ in range(3):
        provider.plant(*stray(store.installation))

    assert reaper.sweep().ended == 4
    assert store.guard.holds() == []


def test_what_a_store_cannot_know_is_denied_for_good(store: Store, clock: FrozenClock) -> None:
    """S1: a wrong database looks right once the sandboxes that it cannot know have gone."""
    store.guard.hold(HoldReason.STORE, {}, actor="reconcile")

    store.guard.deny(HoldReason.STORE, HOUR, actor="op")

    clock.advance(1000 * HOUR)
    assert store.guard.decision(HoldReason.STORE) is Decision.DENIED
    store.guard.approve(HoldReason.STORE, HOUR, actor="op")
    assert store.guard.decision(HoldReason.STORE) is Decision.APPROVED


def test_the_same_answer_again_shortens_nothing(store: Store, clock: FrozenClock) -> None:
    """S5: after a restore what is rowless is kept for good, whoever denies it for an hour."""
    store.restore.finish(actor="op")
    store.guard.deny(HoldReason.MASS_ORPHANS, HOUR, actor="another")

    clock.advance(2 * HOUR)

    assert store.guard.decision(HoldReason.MASS_ORPHANS) is Decision.DENIED
    store.guard.approve(HoldReason.MASS_ORPHANS, HOUR, actor="another")
    assert store.guard.decision(HoldReason.MASS_ORPHANS) is Decision.APPROVED


@pytest.mark.parametrize("reason", [HoldReason.DATABASE, HoldReason.REWOUND])
def test_an_answer_is_not_held_again_by_a_sweep_that_looked_before_it(
    reason: HoldReason, engine: Engine, clock: FrozenClock, store: Store, heard: list[Event]
) -> None:
    """The operator's word stands: the sweep's doubt is from before it."""
    with engine.begin() as connection:
        other = {"identity": "another"} if reason is HoldReason.DATABASE else {"epoch": 0}
        connection.execute(update(installation).values(**other))
    store.guard.witness.remember(100)
    store.guard.check(actor="sweep")
    assert reasons(store) == [reason]
    operator = Store(engine, policy=LIMITS, clock=clock, witness=store.guard.witness)
    answered: list[HoldReason] = []

    def answered_first() -> Any:
        if not answered:
            answered.append(reason)
            operator.guard.approve(reason, HOUR, actor="op")
        return Database.move(store.database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.database, "move", answered_first)
        store.guard.check(actor="sweep")

    assert answered
    assert reasons(store) == []
    assert count(heard, EventKind.DESTRUCTION_HELD) == 1
