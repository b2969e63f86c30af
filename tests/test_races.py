"""
Races, on real connections. Where an order can be forced it is forced: one side is held inside its
transaction until the database itself says that the other waits. The rest is thousands of turns
that come back just as their time runs out, judged afterwards by the cloud's own journal.
"""

from __future__ import annotations

import heapq
import multiprocessing
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Self

import psycopg
import pytest
from sqlalchemy import Engine, func, select, text, update

from core.engines import make_engine
from core.errors import AuthFailed, SandkeeperError, SessionEnded, SessionNotReady, Unavailable
from core.host import Host
from core.lifecycle import Keeper
from core.model import SandboxState, Session, SessionStatus, TurnOutcome
from core.policy import Policy
from core.providers.base import SandboxRef
from core.reaper import Reaper
from core.schema import events, sandboxes, sessions
from core.store import Store
from tests.factories import policy
from tests.fakes import Effect, FakeCloud, FrozenClock

LIMIT = 30.0  # seconds; nothing here waits that long unless it is stuck
GONE = "sandbox_gone"

# The settings refuse limits as short as these; the protocol does not know that they are short.
HOVERING = Policy(
    idle_ttl=0.12,
    max_turn=30.0,
    heartbeat=0.015,
    confirm_interval=0.03,
    create_deadline=10.0,
    claim_ttl=5.0,
    publish_lease=3.0,
    retry_base=0.02,
    retry_max=0.1,
    quarantine_retry=0.2,
    breaker_min=1000,  # on a busy machine all of them go idle at once, and nobody here approves
    batch=20,
)

SLOWLY_HOVERING = replace(HOVERING, idle_ttl=0.6, heartbeat=0.05, confirm_interval=0.1)


def eventually(claim: Callable[[], bool], what: str) -> None:
    """Wait for another thread or process to have come so far."""
    limit = time.monotonic() + LIMIT
    while not claim():
        assert time.monotonic() < limit, f"never happened: {what}"
        time.sleep(0.005)


# Orders that can be forced, on PostgreSQL


@pytest.fixture
def pg_engine(postgresql_url: str) -> Iterator[Engine]:
    """An engine on a fresh PostgreSQL database: SQLite's one writer cannot be interleaved."""
    with closing(psycopg.connect(postgresql_url, autocommit=True)) as connection:
        # No race is about the disk, and without it thousands of turns take seconds.
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off'.encode())
    engine = make_engine(postgresql_url)
    yield engine
    engine.dispose()


@pytest.fixture
def pg_store(pg_engine: Engine, clock: FrozenClock) -> Store:
    """A store on it, with a clock that stands still."""
    return Store(pg_engine, policy=policy(), clock=clock)


@pytest.fixture
def pg_keeper(pg_store: Store, provider: FakeCloud) -> Iterator[Keeper]:
    """A keeper on that store."""
    with Keeper(pg_store, provider, host=Host(sleep=lambda _: None)) as keeper:
        yield keeper


@pytest.fixture
def pg_reaper(pg_store: Store, provider: FakeCloud) -> Reaper:
    """A reaper on that store."""
    return Reaper(
        pg_store, {"fake": provider}, doorbell=lambda _: None, host=Host(spread=lambda: 0.0)
    )


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """The other side of a race."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


def somebody_waits(url: str) -> bool:
    """Whether a connection to this database waits for a lock, by the server's own word."""
    question = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        found = connection.execute(question).fetchone()
    return found is not None and found[0] > 0


@dataclass
class Gate:
    """Holds a thread where it is until the test opens it."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Be held."""
        self.reached.set()
        assert self.opened.wait(LIMIT)


@contextmanager
def held(owner: Any, name: str, *, before: bool) -> Iterator[Gate]:
    """The first call of this method is held, before or after it did its work."""
    real, gate = getattr(owner, name), Gate()

    def method(*args: Any, **kwargs: Any) -> Any:
        first = not gate.reached.is_set()
        if first and before:
            gate.wait()
        result = real(*args, **kwargs)
        if first and not before:
            gate.wait()
        return result

    setattr(owner, name, method)
    try:
        yield gate
    finally:
        gate.opened.set()
        setattr(owner, name, real)


def make_due(keeper: Keeper, reaper: Reaper, clock: FrozenClock, session_id: str) -> None:
    """Bring a session to where the next sweep ends it."""
    keeper.open(session_id)
    clock.advance(keeper.policy.idle_ttl)
    assert reaper.sweep().noticed == 1
    clock.advance(keeper.policy.confirm_interval)


CALLS: dict[str, Callable[[Keeper], object]] = {
    "begin": lambda keeper: keeper.store.turns.begin("turn", "conv", "holder"),
    "touch": lambda keeper: keeper.touch("conv"),
    "extend": lambda keeper: keeper.extend("conv", 60),
    "pin": lambda keeper: keeper.pin("conv", 60, reason="debugging"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_waits_for_a_sweep_learns_that_it_lost(
    call: str,
    *,
    pg_keeper: Keeper,
    pg_reaper: Reaper,
    clock: FrozenClock,
    postgresql_url: str,
    threads: ThreadPoolExecutor,
) -> None:
    """S1: the sweep's end is not committed yet; the caller waits, and gets the typed refusal."""
    make_due(pg_keeper, pg_reaper, clock, "conv")
    with held(pg_reaper.store.sweeps._endings, "close", before=False) as gate:
        sweep = threads.submit(pg_reaper.sweep)
        assert gate.reached.wait(LIMIT)
        caller = threads.submit(CALLS[call], pg_keeper)
        eventually(lambda: somebody_waits(postgresql_url), "the caller waits for the row")

        gate.opened.set()

        assert sweep.result(LIMIT).ended == 1
        with pytest.raises(SessionEnded, match="idle"):
            caller.result(LIMIT)


@pytest.mark.parametrize("call", CALLS)
def test_a_sweep_passes_over_a_session_that_a_caller_is_changing(
    call: str,
    *,
    pg_keeper: Keeper,
    pg_reaper: Reaper,
    clock: FrozenClock,
    pg_engine: Engine,
    threads: ThreadPoolExecutor,
) -> None:
    """S1: the caller has the row and has not committed; the sweep neither waits nor ends it."""
    make_due(pg_keeper, pg_reaper, clock, "conv")
    with pg_engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM sessions FOR UPDATE"))
        during = threads.submit(pg_reaper.sweep).result(LIMIT)
    CALLS[call](pg_keeper)

    after = pg_reaper.sweep()

    assert (during.ended, during.noticed, during.rearmed) == (0, 0, 0)
    assert (after.ended, after.noticed, after.rearmed) == (0, 0, 1)
    assert pg_keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_turn_that_waits_for_the_next_generation_never_gets_the_old_sandbox(
    pg_keeper: Keeper,
    pg_engine: Engine,
    clock: FrozenClock,
    postgresql_url: str,
    threads: ThreadPoolExecutor,
) -> None:
    """S3: a statement that began before the reopening judges by the row as it is afterwards."""
    pg_keeper.open("conv", max_age=100)
    clock.advance(99)
    openings = pg_keeper.store.openings
    with held(openings, "_opened", before=True) as gate:
        clock.advance(1)
        opening = threads.submit(pg_keeper.open, "conv")
        assert gate.reached.wait(LIMIT)
        clock.advance(-1)
        turn = threads.submit(pg_keeper.store.turns.begin, "turn", "conv", "holder")
        eventually(lambda: somebody_waits(postgresql_url), "the turn waits for the row")

        gate.opened.set()

        assert opening.result(LIMIT).generation == 2
        try:
            begun = turn.result(LIMIT)
        except (SessionEnded, SessionNotReady):
            return
        assert begun.session.generation == 2  # it looked again, and the new one was up


def test_who_waited_for_anothers_extension_does_not_extend(
    pg_keeper: Keeper,
    pg_engine: Engine,
    clock: FrozenClock,
    postgresql_url: str,
    threads: ThreadPoolExecutor,
) -> None:
    """Its statement began before the other's claim, and goes on after the other's grant."""
    pg_keeper.open("conv")
    backstop_ttl = pg_keeper.policy.backstop_ttl(pg_keeper.policy.idle_ttl)
    assert backstop_ttl is not None
    clock.advance(backstop_ttl / 4 + 1)
    pg_keeper.touch("conv")
    backstops = pg_keeper.store.backstops
    granted = clock() + timedelta(seconds=backstop_ttl)
    extended = update(sandboxes).values(
        expires_at=granted, extend_at=clock() + timedelta(seconds=backstop_ttl / 4)
    )
    with pg_engine.begin() as other:
        other.execute(extended)
        claim = threads.submit(backstops.claim, ["conv"])
        eventually(lambda: somebody_waits(postgresql_url), "the claim waits for the row")

    assert claim.result(LIMIT) == []
    clock.advance(backstop_ttl / 4 + 1)
    pg_keeper.touch("conv")
    assert len(backstops.claim(["conv"])) == 1


def test_heartbeats_pass_over_a_session_that_is_held_and_reach_the_others(
    pg_keeper: Keeper,
    pg_reaper: Reaper,
    clock: FrozenClock,
    threads: ThreadPoolExecutor,
) -> None:
    """One stuck transaction must not make the turns of a whole process miss their beats."""
    make_due(pg_keeper, pg_reaper, clock, "conv")
    pg_keeper.open("other")
    turns = pg_keeper.store.turns
    clock.advance(-1)
    turns.begin("held", "conv", "holder")
    turns.begin("free", "other", "holder")
    clock.advance(pg_keeper.policy.idle_ttl + 1)
    for _ in ("notices", "looks again"):
        pg_reaper.sweep()
        clock.advance(pg_keeper.policy.confirm_interval)
    ends = pg_reaper.store.sweeps
    with held(ends._endings, "close", before=False) as gate:
        sweep = threads.submit(ends.sessions, 1, only="conv")
        assert gate.reached.wait(LIMIT)

        during = threads.submit(turns.beat, ["held", "free"]).result(LIMIT)
        gate.opened.set()
        sweep.result(LIMIT)
        after = turns.beat(["held", "free"])

    assert during == {}
    assert set(after) == {"held"}
    assert pg_keeper.get("other").last_activity_at == clock.now


def test_activity_never_goes_back(
    pg_engine: Engine, provider: FakeCloud, postgresql_url: str, threads: ThreadPoolExecutor
) -> None:
    """
    S1: now() is when a statement began. One that waited for a lock since, and writes last, must
    not undo what a later call was promised.
    """
    store = Store(pg_engine, policy=policy())
    with Keeper(store, provider) as keeper:
        keeper.open("conv")
        with store.database.move() as first:
            first.connection.execute(select(sessions).with_for_update())
            waiting = threads.submit(keeper.touch, "conv")
            eventually(lambda: somebody_waits(postgresql_url), "the touch waits for the row")
            first.run(store.turns._count, {"session_id": "conv"})
            later = first.connection.execute(select(sessions.c.last_activity_at)).scalar_one()
        waiting.result(LIMIT)

        assert keeper.get("conv").last_activity_at >= later


def test_a_sweep_that_was_stopped_takes_nobody_s_dates_for_the_future(
    pg_engine: Engine, provider: FakeCloud
) -> None:
    """S1: its transaction had begun, and a session was opened before its next statement."""
    store = Store(pg_engine, policy=policy())
    clamps = store.clamps
    with Keeper(store, provider) as keeper, store.database.move() as stopped:
        stopped.connection.execute(text("SELECT now()"))
        time.sleep(1.5)  # more than the second that clocks may differ by: nothing to wait for
        keeper.open("conv")
        before = keeper.get("conv")
        far = stopped.all(clamps._lock_far, {"limit": 10})

    assert before.sandbox.state is SandboxState.RUNNING
    assert far == []


def test_a_late_failure_of_one_create_leaves_a_session_that_another_made_alone(
    keeper: Keeper, store: Store, provider: FakeCloud
) -> None:
    """
    S1: two callers open one session; one of them is refused by the provider for ever, but after
    the other's sandbox came up and a turn began. Giving up must not end that turn.
    """

    def others_first(effect: Effect) -> Any:
        keeper.open("conv")
        store.turns.begin("turn", "conv", "holder")
        raise AuthFailed("this process has the wrong credentials")

    provider._plan("create", others_first)

    with pytest.raises(AuthFailed):
        keeper.open("conv")

    assert store.turns.beat(["turn"]) == {}
    assert keeper.get("conv").sandbox.state is SandboxState.RUNNING


def test_an_open_that_waits_for_a_purge_makes_a_new_session(
    pg_keeper: Keeper,
    pg_reaper: Reaper,
    clock: FrozenClock,
    postgresql_url: str,
    threads: ThreadPoolExecutor,
) -> None:
    """The row was there at its first look and is deleted at the second: it begins again."""
    pg_keeper.open("conv")
    pg_keeper.end("conv")
    pg_reaper.teardown("conv", 1, worker="w")
    pg_reaper.store.tallies.fold()  # what was not counted is not purged
    clock.advance(pg_keeper.policy.retention + 1)
    purged = pg_reaper.store.retention._forgettable
    with pg_reaper.store.database.move() as move:
        (row,) = move.all(purged, {"limit": 1})
        opening = threads.submit(pg_keeper.open, row.id)
        eventually(lambda: somebody_waits(postgresql_url), "the open waits for the row")
        for statement in pg_reaper.store.retention._deletes:
            move.run(statement, {"ids": [row.id]})

    assert opening.result(LIMIT).generation == 1


def test_a_refusal_says_why_although_the_session_was_reopened_since(
    keeper: Keeper, store: Store
) -> None:
    """The touch came too late, and the look for the reason too: it is no max age."""
    keeper.open("conv", max_age=3600)
    keeper.end("conv", reason="user left")
    get = store.sessions.get

    def reopened_first(session_id: str) -> Session:
        keeper.open(session_id, max_age=3600)
        return get(session_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.sessions, "get", reopened_first)
        with pytest.raises(SessionEnded, match="user left"):
            keeper.touch("conv")


def test_an_extension_that_was_acknowledged_survives_the_notice_before_it(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: what the sweep noticed is forgotten, on both databases."""
    make_due(keeper, reaper, clock, "conv")
    keeper.extend("conv", 3600)

    reports = []
    for _ in range(3):
        reports.append(reaper.sweep())
        clock.advance(keeper.policy.confirm_interval)

    assert [report.ended for report in reports] == [0, 0, 0]


# Many at once


def race(count: int, act: Callable[[int], Any]) -> list[Any]:
    """All of them start together."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait(LIMIT)
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        running: list[Future[Any]] = [pool.submit(run, number) for number in range(count)]
        return [future.result(2 * LIMIT) for future in running]


@pytest.mark.parametrize("reopened", [False, True], ids=["new", "reopened"])
def test_openers_with_engines_of_their_own_make_one_sandbox(
    database_url: str, *, reopened: bool
) -> None:
    """Eight API servers get the same request at once."""
    cloud = FakeCloud()
    engines = [make_engine(database_url) for _ in range(8)]
    keepers = [Keeper(Store(engine), cloud) for engine in engines]
    if reopened:
        keepers[0].open("conv")
        keepers[0].end("conv")

    opened = race(8, lambda number: keepers[number].open("conv"))

    generation = 2 if reopened else 1
    assert {session.generation for session in opened} == {generation}
    assert len({session.sandbox.external_id for session in opened}) == 1
    assert len(cloud.alive()) == generation  # the first one is closing, and nobody tears down here
    for keeper, engine in zip(keepers, engines, strict=True):
        keeper.close()
        engine.dispose()


def test_sweeps_at_the_same_time_move_every_row_once(database_url: str) -> None:
    """Two beats, a queue that doubled its messages: each session is noticed and ended once."""
    cloud, rung = FakeCloud(), queue.SimpleQueue[tuple[str, int]]()
    # A pause of this process of a quarter of that looks like a jump of the clock: a second notice.
    tight = policy(idle_ttl=0.001, confirm_interval=2.0, batch=7, breaker_min=1000)
    engines = [make_engine(database_url) for _ in range(4)]
    stores = [Store(engine, policy=tight) for engine in engines]

    def ring(pairs: Sequence[tuple[str, int]]) -> None:
        for pair in pairs:
            rung.put(pair)

    reapers = [Reaper(store, {"fake": cloud}, doorbell=ring) for store in stores]
    with Keeper(stores[0], cloud) as keeper:
        for number in range(60):
            keeper.open(f"conv-{number}")

    def swept() -> int:
        race(4, lambda number: reapers[number].sweep())
        return sum(line.kind == "session_ended" for line in ledger(engines[0]))

    eventually(lambda: swept() >= 60, "all are ended")

    kinds = Counter((line.kind, line.session_id) for line in ledger(engines[0]))
    assert [each for each, times in kinds.items() if times > 1] == []
    published = [rung.get() for _ in range(rung.qsize())]
    assert sorted(published) == sorted((f"conv-{number}", 1) for number in range(60))
    for engine in engines:
        engine.dispose()


def ledger(engine: Engine) -> list[Any]:
    """Every event, in order."""
    with engine.connect() as connection:
        return list(connection.execute(select(events).order_by(events.c.id)))


# Thousands of turns at the edge of their time


@dataclass(frozen=True)
class Promise:
    """A call on this sandbox was acknowledged: it has to live until then (seconds, host clock)."""

    name: str
    until: float
    call: str


class TimedCloud(FakeCloud):
    """Knows when each sandbox was killed, and fails now and then."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.killed_at: dict[str, float] = {}
        self.dice = random.Random(seed)

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """Kill, and write down when; one in ten fails first."""
        if self.dice.random() < 0.1:
            raise Unavailable("503")
        self.killed_at.setdefault(ref.name, time.time())
        super().destroy(ref, deadline=deadline)
        with self._lock:  # thousands of dead ones would make every look slow
            self.boxes = {box.external_id: box for box in self.alive()}


@dataclass
class Record:
    """What one caller saw."""

    promises: list[Promise] = field(default_factory=list)
    refused: int = 0
    attempts: int = 0


class Caller:
    """Some sessions of its own, each called again just as its time runs out."""

    def __init__(self, store: Store, number: int, names: dict[str, str]) -> None:
        self.store = store
        self.names = names  # of the sandboxes, by session
        self.idle_ttl = store.policy.idle_ttl
        self.dice = random.Random(number)
        self.record = Record()
        self.turns: dict[str, str] = {}
        self.numbers = iter(range(10**9))
        self.number = number
        start = time.time()
        self.agenda = [(start + self.dice.random() * self.idle_ttl, name) for name in names]
        heapq.heapify(self.agenda)

    def run(self, stop: Callable[[], bool], reopen: Callable[[str], str | None]) -> Record:
        """Call until it is time to stop. `reopen` gives the next sandbox of a session, or None."""
        while self.agenda and not stop():
            when, session_id = heapq.heappop(self.agenda)
            late = time.time() - when
            if late > self.idle_ttl / 2 and len(self.agenda) > 1:
                continue  # a slow machine: with fewer sessions the others are called in time
            time.sleep(max(0.0, -late))
            if not self.call(session_id):
                name = reopen(session_id)
                if name is None:
                    continue
                self.names[session_id] = name
            edge = self.dice.uniform(0.9, 2.4) * self.idle_ttl
            heapq.heappush(self.agenda, (time.time() + edge, session_id))
        return self.record

    def call(self, session_id: str) -> bool:
        """One call, written down with what it promised; False when it was refused."""
        call = self.dice.choice([self.touch, self.extend, self.begin, self.end_turn])
        self.record.attempts += 1
        asked = time.time()
        try:
            kept = call(session_id)
        except SessionEnded:
            self.record.refused += 1
            self.turns.pop(session_id, None)
            return False
        promise = Promise(self.names[session_id], asked + kept, call.__name__)
        self.record.promises.append(promise)
        return True

    def touch(self, session_id: str) -> float:
        self.store.sessions.touch(session_id)
        return self.idle_ttl

    def extend(self, session_id: str) -> float:
        by = self.dice.uniform(0.5, 2.0) * self.idle_ttl
        self.store.sessions.extend(session_id, by, actor="caller")
        return by

    def begin(self, session_id: str) -> float:
        turn_id = f"turn-{self.number}-{next(self.numbers)}"
        self.store.turns.begin(turn_id, session_id, "caller")
        self.turns[session_id] = turn_id
        return self.idle_ttl

    def end_turn(self, session_id: str) -> float:
        turn_id = self.turns.pop(session_id, None)
        if turn_id is None:
            return self.touch(session_id)
        self.store.turns.end(turn_id, session_id, TurnOutcome.COMPLETED)
        return self.idle_ttl


class Background:
    """Sweepers and workers, for as long as the block lasts. What they raise is kept."""

    def __init__(self, store: Store, cloud: FakeCloud, *, sweepers: int, workers: int) -> None:
        self.bells: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self.reaper = Reaper(store, {"fake": cloud}, doorbell=self.ring)
        self.stopping = threading.Event()
        self.raised: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self.guarded, args=(act,))
            for act in [self.sweep] * sweepers + [self.tear_down] * workers
        ]

    def ring(self, pairs: Any) -> None:
        """The first message of a batch arrives twice."""
        for pair in [*pairs, pairs[0]]:
            self.bells.put(pair)

    def guarded(self, act: Callable[[], None]) -> None:
        try:
            while not self.stopping.is_set():
                act()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.raised.append(error)

    def sweep(self) -> None:
        self.reaper.sweep()
        self.stopping.wait(0.02)

    def tear_down(self) -> None:
        try:
            session_id, generation = self.bells.get(timeout=0.1)
        except queue.Empty:
            return
        self.reaper.teardown(session_id, generation, worker=threading.current_thread().name)

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(LIMIT)
        for error in self.raised:
            raise error


def judge(cloud: TimedCloud, records: list[Record]) -> None:
    """S1: nobody was promised what was killed. S3: nothing was killed twice."""
    broken = [
        (promise.call, round(promise.until - cloud.killed_at[promise.name], 4))
        for record in records
        for promise in record.promises
        if cloud.killed_at.get(promise.name, promise.until) < promise.until
    ]
    assert not broken, f"{len(broken)} promises were broken, by seconds: {broken[:5]}"
    assert set(cloud.kills.values()) <= {1}


def unfinished(engine: Engine) -> int:
    """How many sandboxes are not confirmed gone."""
    with engine.connect() as connection:
        count = select(func.count()).select_from(sandboxes).where(sandboxes.c.state != "gone")
        return connection.execute(count).scalar_one()


def test_no_acknowledged_call_ever_meets_a_dying_sandbox(pg_engine: Engine) -> None:
    """
    S1, S3: more than three thousand calls right at the end of the idle TTL, against two sweeps
    and two workers. Losers are refused by type, winners keep their sandbox, and nothing deadlocks.
    """
    cloud = TimedCloud(seed=1)
    store = Store(pg_engine, policy=HOVERING)
    keepers = [Keeper(store, cloud) for _ in range(4)]
    limit = time.monotonic() + LIMIT
    callers = []
    for number, keeper in enumerate(keepers):
        ids = [f"conv-{number}-{index}" for index in range(8)]
        callers.append(Caller(store, number, {id_: keeper.open(id_).sandbox.name for id_ in ids}))

    def enough() -> bool:
        return time.monotonic() > limit or sum(c.record.attempts for c in callers) >= 3200

    def run(number: int) -> Record:
        return callers[number].run(enough, lambda id_: keepers[number].open(id_).sandbox.name)

    with Background(store, cloud, sweepers=2, workers=2):
        records = race(len(callers), run)
        eventually(lambda: unfinished(pg_engine) == 0, "everything is gone")

    judge(cloud, records)
    refused, attempts = sum(r.refused for r in records), sum(r.attempts for r in records)
    assert attempts >= 1000, "the machine was too slow to race"
    assert refused > 50, "the calls came too early to race with anything"
    assert attempts - refused > 200, "the calls came too late to race with anything"
    gone = Counter((e.session_id, e.generation) for e in ledger(pg_engine) if e.kind == GONE)
    assert set(gone.values()) == {1}
    assert len(gone) == len(cloud.killed_at)
    for keeper in keepers:
        keeper.close()


def test_a_turn_that_beats_is_never_ended_however_often_it_is_swept(pg_engine: Engine) -> None:
    """S1: beats race with sweeps that hold, notice and re-arm the same rows, all the time."""
    cloud, store = TimedCloud(seed=2), Store(pg_engine, policy=SLOWLY_HOVERING)
    ids = [f"conv-{number}" for number in range(40)]
    with Keeper(store, cloud) as keeper:
        for session_id in ids:
            keeper.open(session_id)
    turns = [store.turns.begin(f"turn-{id_}", id_, "h").turn_id for id_ in ids]
    assert store.turns.beat(turns) == {}
    with Background(store, cloud, sweepers=3, workers=1):
        slowest, last, refused = 0.0, time.monotonic(), dict[str, SandkeeperError]()
        for _ in range(150):
            began = time.monotonic()
            refused |= store.turns.beat(turns)
            slowest, last = max(slowest, time.monotonic() - last), began
            time.sleep(HOVERING.heartbeat)  # a race wants many

        # On a machine that stood still for a TTL the sweep was right.
        assert not refused or slowest > SLOWLY_HOVERING.idle_ttl / 2, refused
        assert len(cloud.alive()) == len(ids) or slowest > SLOWLY_HOVERING.idle_ttl / 2


def call_from_another_process(url: str, number: int, inbox: Any, outbox: Any) -> None:
    """What a process of the SQLite race does: call until all of its sessions are lost."""
    engine = make_engine(url)
    store = Store(engine, policy=SLOWLY_HOVERING)
    outbox.put("ready")
    caller = Caller(store, number, inbox.get())
    for session_id in caller.names:  # a slow machine may have taken long to open them
        store.sessions.touch(session_id)
    outbox.put("touched")
    limit = time.monotonic() + LIMIT
    outbox.put(caller.run(lambda: time.monotonic() > limit, lambda _: None))
    engine.dispose()


def test_processes_on_sqlite_keep_their_promises_too(sqlite_url: str) -> None:
    """S1, S3 on the embedded default: callers in processes of their own, two sweeps, a worker."""
    cloud, engine = TimedCloud(seed=3), make_engine(sqlite_url)
    store = Store(engine, policy=SLOWLY_HOVERING)
    context = multiprocessing.get_context("spawn")
    inboxes, outbox = [context.Queue() for _ in range(2)], context.Queue()
    processes = [
        context.Process(target=call_from_another_process, args=(sqlite_url, number, inbox, outbox))
        for number, inbox in enumerate(inboxes)
    ]
    for process in processes:
        process.start()
    assert [outbox.get(timeout=LIMIT) for _ in processes] == ["ready", "ready"]

    with Keeper(store, cloud) as keeper:
        for number, inbox in enumerate(inboxes):
            ids = [f"conv-{number}-{index}" for index in range(30)]
            inbox.put({session_id: keeper.open(session_id).sandbox.name for session_id in ids})
    assert [outbox.get(timeout=LIMIT) for _ in processes] == ["touched", "touched"]
    with Background(store, cloud, sweepers=2, workers=1):
        records = [outbox.get(timeout=2 * LIMIT) for _ in processes]
        eventually(lambda: unfinished(engine) == 0, "everything is gone")
    for process in processes:
        process.join(LIMIT)

    judge(cloud, records)
    assert sum(record.refused for record in records) > 0
    assert sum(len(record.promises) for record in records) > 30
    engine.dispose()
