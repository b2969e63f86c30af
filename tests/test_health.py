"""A provider in trouble: one circuit and one rate for the whole fleet, and nobody else held up."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import Engine, Row, func, insert, select

from core.errors import AuthFailed, Busy, OutcomeUnknown, ProviderError, RateLimited, Unavailable
from core.events import Event, EventKind
from core.host import Host
from core.lifecycle import Keeper
from core.model import SandboxState, SessionStatus
from core.reaper import Reaper, Teardown, TeardownOutcome
from core.schema import providers, sandboxes, sessions
from core.store import Store
from core.store.health import FAILURES, LONGEST_WAIT, Health
from tasks.app import RETRY_WITHIN
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock, TokenBucket

GONE = Teardown(outcome=TeardownOutcome.GONE)
REFUSED = Teardown(outcome=TeardownOutcome.REFUSED)
LIMITS = policy()
DOWN = Unavailable("503")
HOUR = 3600.0


def due(
    engine: Engine,
    clock: FrozenClock,
    count: int,
    *,
    prefix: str = "s",
    provider: str = "fake",
    tenant: str = "default",
    overdue: float = 0.0,
    quarantined: bool = False,
) -> list[str]:
    """Ended sessions whose sandboxes wait to be torn down, the most overdue first; by SQL."""
    ids = [f"{prefix}-{number}" for number in range(count)]
    born = clock.now - timedelta(days=1)
    ended = {
        "tenant": tenant,
        "status": SessionStatus.ENDED.value,
        "generation": 1,
        "turn_count": 0,
        "turns_before": 0,
        "idle_ttl": LIMITS.idle_ttl,
        "max_turn": LIMITS.max_turn,
        "metadata": {},
        **dict.fromkeys(("created_at", "opened_at", "last_activity_at", "due_at"), born),
        "ended_at": born,
        "end_reason": "idle",
    }
    closing = {
        "generation": 1,
        "tenant": tenant,
        "provider": provider,
        "scope": "test-account",
        "spec": {},
        "state": SandboxState.CLOSING.value,
        "attempts": LIMITS.quarantine_after if quarantined else 0,
        "claim_token": 0,
        "created_at": born,
        "closing_at": born,
        "quarantined_at": born if quarantined else None,
    }
    rows = []
    for number, session_id in enumerate(ids):
        moment = clock.now - timedelta(seconds=overdue, milliseconds=count - number)
        key = f"{prefix}x{number}".rjust(26, "a").replace("-", "y")
        rows.append({"key": key, "session_id": session_id, "due_at": moment, "not_before": moment})
    with engine.begin() as connection:
        connection.execute(insert(sessions), [{"id": name, **ended} for name in ids])
        connection.execute(insert(sandboxes), [{**closing, **row} for row in rows])
    return ids


def sandbox_row(engine: Engine, session_id: str) -> Row[Any]:
    """A sandbox as another process sees it."""
    with engine.connect() as connection:
        query = select(sandboxes).where(sandboxes.c.session_id == session_id)
        return connection.execute(query).one()


def tally(engine: Engine) -> dict[str, int]:
    """How many sandboxes are in which state, how many of them in quarantine, and all attempts."""
    b = sandboxes.c
    with engine.connect() as connection:
        by_state = select(b.state, func.count().label("rows")).group_by(b.state)
        states = {row.state: row.rows for row in connection.execute(by_state)}
        attempts = connection.execute(select(func.sum(b.attempts))).scalar_one()
        quarantined = connection.execute(select(func.count(b.quarantined_at))).scalar_one()
    return {**states, "attempts": attempts, "quarantined": quarantined}


@pytest.fixture
def heard() -> list[Event]:
    """Everything that was said."""
    return []


@pytest.fixture
def store(engine: Engine, clock: FrozenClock, heard: list[Event]) -> Store:
    """A store on the test's clock, whose events are heard."""
    return Store(engine, policy=LIMITS, clock=clock, sinks=(heard.append,))


def said(heard: list[Event], kind: EventKind) -> int:
    """How often this was said."""
    return sum(event.kind is kind for event in heard)


def health(store: Store, provider: str = "fake") -> Health:
    """What is known of a provider in trouble."""
    (found,) = (each for each in store.health.all() if each.provider == provider)
    return found


def fail_all(reaper: Reaper, provider: FakeCloud, ids: Sequence[str]) -> list[Teardown]:
    """One attempt for each, while the provider is down."""
    provider.fail("destroy", DOWN, times=len(ids))
    outcomes = [reaper.teardown(name, 1, worker="w") for name in ids]
    provider.heal()
    return outcomes


@pytest.fixture
def tripped(reaper: Reaper, provider: FakeCloud, engine: Engine, clock: FrozenClock) -> list[str]:
    """Ten due sandboxes, of which the first five have opened the circuit for `retry_base`."""
    ids = due(engine, clock, 2 * FAILURES)
    fail_all(reaper, provider, ids[:FAILURES])
    provider.calls.clear()
    return ids


# What opens a circuit


def test_failures_of_different_sandboxes_open_the_circuit(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    store: Store,
    engine: Engine,
    clock: FrozenClock,
    heard: list[Event],
) -> None:
    """The fifth in a row says something of the provider, and no attempt is counted from then on."""
    ids = due(engine, clock, FAILURES)

    fail_all(reaper, provider, ids[:-1])
    before = health(store).open_until
    fail_all(reaper, provider, ids[-1:])

    found = health(store)
    assert before is None
    assert found.open_until == clock.now + timedelta(seconds=LIMITS.retry_base)
    assert (found.failures, found.last_error) == (FAILURES, "Unavailable: 503")
    assert said(heard, EventKind.CIRCUIT_OPENED) == 1
    assert [sandbox_row(engine, name).attempts for name in ids] == [1, 1, 1, 1, 0]


def test_a_success_between_them_begins_the_count_anew(
    reaper: Reaper, provider: FakeCloud, store: Store, engine: Engine, clock: FrozenClock
) -> None:
    """Only failures in a row are an outage."""
    ids = due(engine, clock, 2 * FAILURES)

    fail_all(reaper, provider, ids[: FAILURES - 1])
    assert reaper.teardown(ids[FAILURES], 1, worker="w") == GONE
    fail_all(reaper, provider, ids[-FAILURES + 1 :])

    assert health(store).open_until is None


def test_one_sandbox_that_always_fails_opens_nothing_and_is_quarantined(
    reaper: Reaper, provider: FakeCloud, store: Store, engine: Engine, clock: FrozenClock
) -> None:
    """It is no witness against its provider; an operator sees it as always (L3)."""
    (name,) = due(engine, clock, 1)
    provider.fail("destroy", DOWN, times=20)

    for _ in range(20):
        reaper.teardown(name, 1, worker="w")
        clock.advance(LIMITS.quarantine_retry)

    row = sandbox_row(engine, name)
    assert (row.attempts, row.quarantined_at is None) == (20, False)
    assert health(store).open_until is None


def test_what_is_quarantined_opens_nothing(
    reaper: Reaper, provider: FakeCloud, store: Store, engine: Engine, clock: FrozenClock
) -> None:
    """F14: what always fails holds nobody up, however much of it there is."""
    ids = due(engine, clock, 3 * FAILURES, quarantined=True)

    fail_all(reaper, provider, ids)

    assert store.health.all() == []


@pytest.mark.parametrize(
    "error",
    [AuthFailed("401"), Busy("409"), RateLimited(retry_after=1.0), None],
    ids=["AuthFailed", "Busy", "RateLimited", "StillThere"],
)
def test_an_answer_is_no_outage(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    store: Store,
    keeper: Keeper,
    clock: FrozenClock,
    error: ProviderError | None,
) -> None:
    """The provider is there and says no: that is about credentials, or about one sandbox."""
    for number in range(2 * FAILURES):
        keeper.open(f"s-{number}")
        keeper.end(f"s-{number}")
        if error is None:
            provider.lie()
        else:
            provider.fail("destroy", error)
        reaper.teardown(f"s-{number}", 1, worker="w")
        clock.advance(LIMITS.retry_base)

    assert provider.count("destroy") == 2 * FAILURES
    assert [found for found in store.health.all() if found.open_until or found.failures] == []


@pytest.mark.parametrize(
    "error", [DOWN, OutcomeUnknown(), TimeoutError(), KeyError("a bug")], ids=repr
)
def test_whatever_may_be_an_outage_counts(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    store: Store,
    engine: Engine,
    clock: FrozenClock,
    error: Exception,
) -> None:
    """No answer, no route, or an error that nobody foresaw."""
    provider.fail("destroy", error, times=FAILURES)

    for name in due(engine, clock, FAILURES):
        reaper.teardown(name, 1, worker="w")

    assert health(store).open_until is not None


# While it is open


@pytest.mark.parametrize("early", [False, True])
def test_an_open_circuit_is_asked_nothing(
    reaper: Reaper, provider: FakeCloud, tripped: list[str], engine: Engine, *, early: bool
) -> None:
    """A message that comes in meanwhile costs one statement, and the sandbox no attempt (H1)."""
    before = tally(engine)

    outcomes = [reaper.teardown(name, 1, worker="w", early=early) for name in tripped]

    assert outcomes == [REFUSED] * len(tripped)
    assert provider.calls == []
    assert tally(engine) == before


def test_the_sweep_publishes_the_others(
    reaper: Reaper,
    tripped: list[str],
    engine: Engine,
    clock: FrozenClock,
    rung: list[tuple[str, int]],
) -> None:
    """F14: nothing of the provider that is down, quarantined or not, and all of the other one."""
    due(engine, clock, 3, prefix="q", quarantined=True)
    other = due(engine, clock, 3, prefix="other", provider="another")
    other += due(engine, clock, 3, prefix="failing", provider="another", quarantined=True)

    report = reaper.sweep()

    assert [session_id for session_id, _ in rung] == other
    assert report.published == len(other)
    assert not {name for name, _ in rung} & set(tripped)


def test_what_was_not_published_is_due_again_after_the_lease(
    reaper: Reaper,
    tripped: list[str],
    clock: FrozenClock,
    rung: list[tuple[str, int]],
) -> None:
    """L1: the pause costs one lease."""
    reaper.sweep()

    clock.advance(LIMITS.publish_lease)
    reaper.sweep()

    assert sorted(rung) == sorted((name, 1) for name in tripped)


def test_late_failures_of_calls_that_were_under_way_change_nothing(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    store: Store,
    engine: Engine,
    clock: FrozenClock,
    heard: list[Event],
) -> None:
    """
    A fleet has dozens of calls under way when a provider goes down. They are one outage: they
    neither make the pause longer, nor end one that a probe has made longer since.
    """
    ids = due(engine, clock, 4 * FAILURES)
    claims = [store.teardowns.claim(name, 1, "w") for name in ids]
    for claim in claims[:-1]:
        assert claim is not None
        store.health.failed("fake", claim.key, "503", LIMITS.retry_base, actor="w", probe=False)
    first = health(store)
    clock.advance(LIMITS.retry_base)
    assert store.health.admit("fake", probe_for=120.0) == 0.0
    store.health.failed("fake", claims[0].key, "503", 300.0, actor="w", probe=True)  # type: ignore[union-attr]

    straggler = claims[-1]
    assert straggler is not None
    store.health.failed("fake", straggler.key, "503", 5.0, actor="w", probe=False)

    assert first.failures == FAILURES
    assert health(store).failures == FAILURES + 1
    assert health(store).open_until == clock.now + timedelta(seconds=300)
    assert said(heard, EventKind.CIRCUIT_OPENED) == 1


# The probe


def test_one_caller_of_a_fleet_probes(
    *,
    store: Store,
    provider: FakeCloud,
    tripped: list[str],
    engine: Engine,
    clock: FrozenClock,
) -> None:
    """Many workers find the pause over at the same moment; the provider hears of one."""
    callers = 8
    clock.advance(LIMITS.retry_base)
    at_once = threading.Barrier(callers)

    def call(name: str) -> Teardown:
        fleet = Reaper(store, {"fake": provider}, doorbell=lambda _: None)  # a process of its own
        at_once.wait(30)
        return fleet.teardown(name, 1, worker=name)

    with ThreadPoolExecutor(callers) as threads, provider.hang("destroy") as hang:
        calls = [threads.submit(call, name) for name in tripped[:callers]]
        others = [each.result() for each in itertools.islice(as_completed(calls, 30), callers - 1)]
        called = provider.count("destroy")
        hang.release()
        outcomes = [each.result(30) for each in calls]

    assert called == 1
    assert TeardownOutcome.GONE not in {each.outcome for each in others}
    assert min(each.outcome for each in outcomes) == "gone"
    assert sum(sandbox_row(engine, name).attempts for name in tripped[FAILURES:callers]) <= 1


def test_a_probe_that_succeeds_closes_the_circuit_once(
    *,
    reaper: Reaper,
    store: Store,
    tripped: list[str],
    engine: Engine,
    clock: FrozenClock,
    heard: list[Event],
) -> None:
    """And all that waited is torn down."""
    clock.advance(LIMITS.retry_base)

    outcomes = [reaper.teardown(name, 1, worker="w") for name in tripped]

    assert outcomes == [GONE] * len(tripped)
    assert said(heard, EventKind.CIRCUIT_CLOSED) == 1
    assert (health(store).failures, health(store).open_until) == (0, None)
    assert tally(engine)["gone"] == len(tripped)


def test_a_probe_that_fails_opens_it_longer_up_to_a_limit(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    store: Store,
    tripped: list[str],
    clock: FrozenClock,
    heard: list[Event],
) -> None:
    """Whichever sandbox it is that the probe is made with: the same one again, too."""
    provider.fail("destroy", DOWN, times=100)

    pauses = []
    for _ in range(10):
        until = health(store).open_until
        assert until is not None
        pauses.append((until - clock.now).total_seconds())
        clock.now = until
        reaper.teardown(tripped[-1], 1, worker="w", early=True)

    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    assert provider.count("destroy") == 10
    assert said(heard, EventKind.CIRCUIT_OPENED) == 1


@pytest.mark.usefixtures("tripped")
def test_many_callers_at_once_are_one_probe(store: Store, clock: FrozenClock) -> None:
    """Whatever they knew when they asked."""
    clock.advance(LIMITS.retry_base)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: store.health.admit("fake", probe_for=120.0), range(16)))

    assert (found.count(0.0), found.count(None)) == (1, 15)


def test_a_probe_that_nobody_reports_does_not_keep_it_shut(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    tripped: list[str],
    clock: FrozenClock,
) -> None:
    """Its worker was killed in the middle of it: the next one may after a claim's time."""
    killed: Any = Stopped()
    clock.advance(LIMITS.retry_base)
    provider.fail("destroy", killed)
    with pytest.raises(Stopped):
        reaper.teardown(tripped[-2], 1, worker="killed")

    clock.advance(LIMITS.claim_ttl - 1)
    meanwhile = reaper.teardown(tripped[-1], 1, worker="w")
    clock.advance(1)

    assert meanwhile == REFUSED
    assert reaper.teardown(tripped[-1], 1, worker="w") == GONE


def test_a_probe_that_was_answered_with_a_no_is_an_answer(
    *, reaper: Reaper, provider: FakeCloud, store: Store, tripped: list[str], clock: FrozenClock
) -> None:
    """Its sandbox is not gone, but its provider is there: nobody else waits for another probe."""
    clock.advance(LIMITS.retry_base)
    provider.fail("destroy", Busy("409"))

    reaper.teardown(tripped[-1], 1, worker="w")

    assert health(store).open_until is None
    assert reaper.teardown(tripped[-2], 1, worker="w") == GONE


@pytest.mark.parametrize("back", [-HOUR, -30 * 86400.0])
def test_a_clock_that_stepped_back_does_not_keep_it_shut(
    *, reaper: Reaper, store: Store, tripped: list[str], clock: FrozenClock, back: float
) -> None:
    """A date that no healthy clock can have written is not waited for."""
    store.health.limited("fake", LIMITS.retry_base)

    clock.advance(back)
    reaper.sweep()
    clock.advance(LIMITS.retry_base)

    assert reaper.teardown(tripped[-1], 1, worker="w", early=True) == GONE


def test_an_outage_of_an_hour_is_a_handful_of_calls(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    engine: Engine,
    clock: FrozenClock,
    rung: list[tuple[str, int]],
) -> None:
    """200 sandboxes are due: nobody is quarantined for it (H1), and all are gone soon after."""
    due(engine, clock, 200)
    provider.fail("destroy", DOWN, times=10_000)

    def minute() -> None:
        rung.clear()
        reaper.sweep()
        for session_id, generation in rung:
            reaper.teardown(session_id, generation, worker="w")
        clock.advance(60)

    for _ in range(60):
        minute()
    during = tally(engine)
    calls = provider.count("destroy")
    provider.heal()
    for _ in range(8):
        minute()

    assert calls < 40
    assert (during["closing"], during["quarantined"]) == (200, 0)
    assert during["attempts"] == FAILURES - 1  # those that were made before it was an outage
    assert tally(engine)["gone"] == 200


# A rate limit


class Stopped(BaseException):
    """What a worker is told when it has to stop."""


class Actor(threading.Thread):
    """Somebody who works when it is told to, and then says for how long it sleeps."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.go = threading.Semaphore(0)
        self.paused = threading.Semaphore(0)
        self.stopped = False
        self.error: BaseException | None = None
        self._work = work

    def run(self) -> None:
        """From the first go on."""
        self.go.acquire()
        try:
            self._work()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by whoever told it to go on
            self.error = error
        self.paused.release()


class Fleet:
    """Workers in virtual time: while one sleeps or waits for an answer the others go on."""

    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock
        self._actors: list[Actor] = []
        self._timers: list[tuple[datetime, int, Actor]] = []
        self._numbers = itertools.count()

    def spawn(self, work: Callable[[], object]) -> None:
        """Somebody who begins now."""
        actor = Actor(work)
        self._actors.append(actor)
        self._wake(0.0, actor)
        actor.start()

    def sleep(self, seconds: float) -> None:
        """Of whoever calls."""
        actor = threading.current_thread()
        assert isinstance(actor, Actor)
        self._wake(seconds, actor)
        actor.paused.release()
        actor.go.acquire()
        if actor.stopped:
            raise Stopped

    def run(self, until: Callable[[], bool], *, at_most: float) -> None:
        """Let time pass. One works at a time."""
        end = self.clock.now + timedelta(seconds=at_most)
        while not until() and self.clock.now < end:
            moment, _, actor = heapq.heappop(self._timers)
            self.clock.now = max(self.clock.now, moment)
            actor.go.release()
            actor.paused.acquire()
            if actor.error is not None:
                raise actor.error

    def close(self) -> None:
        """Send everybody home."""
        for actor in self._actors:
            actor.stopped = True
            actor.go.release()
            actor.join(30)

    def _wake(self, seconds: float, actor: Actor) -> None:
        moment = self.clock.now + timedelta(seconds=seconds)
        heapq.heappush(self._timers, (moment, next(self._numbers), actor))


class RemoteCloud(FakeCloud):
    """A cloud that takes 50 ms to answer."""

    sleep: Callable[[float], None]

    def _call(self, *arguments: Any) -> Any:
        self.sleep(0.05)
        return super()._call(*arguments)


class Workers:
    """A fleet of worker processes, their sweep, and the messages between them."""

    def __init__(self, store: Store, clock: FrozenClock, bucket: TokenBucket) -> None:
        self.fleet = Fleet(clock)
        self.clock = clock
        self.host = Host(monotonic=clock.monotonic, sleep=self.fleet.sleep, spread=lambda: 0.5)
        self.cloud = RemoteCloud(clock=clock, monotonic=self.host.monotonic)
        self.cloud.sleep = self.fleet.sleep
        self.cloud.bucket = bucket
        self.store = store
        self.messages: list[tuple[datetime, str]] = []
        self.gone = 0

    def start(self, workers: int) -> None:
        """So many workers, and one that sweeps every minute."""
        for number in range(workers):
            self.fleet.spawn(lambda worker=f"w{number}": self._work(worker))  # type: ignore[misc]
        self.fleet.spawn(self._sweep)

    def _ring(self, due: Sequence[tuple[str, int]]) -> None:
        for session_id, _ in due:
            heapq.heappush(self.messages, (self.clock.now, session_id))

    def _reaper(self) -> Reaper:
        return Reaper(self.store, {"fake": self.cloud}, doorbell=self._ring, host=self.host)

    def _sweep(self) -> None:
        reaper = self._reaper()
        while True:
            reaper.sweep()
            self.fleet.sleep(60)

    def _work(self, worker: str) -> None:
        reaper = self._reaper()
        while True:
            if not self.messages or self.messages[0][0] > self.clock.now:
                self.fleet.sleep(0.5)
                continue
            _, session_id = heapq.heappop(self.messages)
            done = reaper.teardown(session_id, 1, worker=worker)
            self.gone += done == GONE
            after = done.retry_after
            if after is not None and after <= RETRY_WITHIN:
                again = self.clock.now + timedelta(seconds=math.ceil(after))
                heapq.heappush(self.messages, (again, session_id))


@pytest.fixture
def workers(store: Store, clock: FrozenClock) -> Iterator[Workers]:
    """A fleet at a provider that serves 20 calls a second, and 20 at once after a pause."""
    workers = Workers(store, clock, TokenBucket(clock, rate=20.0, burst=20, retry_after=5.0))
    yield workers
    workers.fleet.close()


def test_a_fleet_keeps_to_a_limit_that_it_was_told(
    workers: Workers, engine: Engine, clock: FrozenClock
) -> None:
    """
    F20: 16 workers that could make 320 calls a second. They find the rate, few calls are refused,
    none costs an attempt, and the provider is kept busy all the same.
    """
    count = 500
    due(engine, clock, count)
    bucket, began = workers.cloud.bucket, clock.now
    assert bucket is not None

    workers.start(16)
    workers.fleet.run(lambda: workers.gone == count, at_most=2 * HOUR)

    took = (clock.now - began).total_seconds()
    found = tally(engine)
    assert (found["gone"], found["attempts"], found["quarantined"]) == (count, count, 0)
    assert bucket.refused < 0.05 * bucket.served
    assert took < 15 * bucket.served / bucket.rate


def test_five_minutes_of_refusals_cost_no_attempt(
    workers: Workers, engine: Engine, clock: FrozenClock
) -> None:
    """F20, suna#7194: everything is answered 429 for five minutes, and all is done after them."""
    count = 60
    due(engine, clock, count)
    open_again, bucket = workers.cloud.bucket, TokenBucket(clock, 0.0, burst=0, retry_after=30.0)
    workers.cloud.bucket = bucket

    workers.start(16)
    workers.fleet.run(lambda: False, at_most=300.0)
    during = tally(engine)
    workers.cloud.bucket = open_again
    workers.fleet.run(lambda: workers.gone == count, at_most=HOUR)

    assert bucket.refused <= 16 * 300 / 30
    assert (during["quarantined"], during["closing"]) == (0, count)
    assert tally(engine)["gone"] == tally(engine)["attempts"] == count


@pytest.mark.parametrize(
    ("wished", "kept"),
    [
        (0.0, LIMITS.retry_base),
        (-7.0, LIMITS.retry_base),
        (1e-9, LIMITS.retry_base),
        (42.0, 42.0),
        (365 * 86400.0, LIMITS.longest_pause),
        (math.inf, LIMITS.longest_pause),
        (-math.inf, LIMITS.retry_base),
        (math.nan, LIMITS.retry_base),
        (None, LIMITS.retry_base),
    ],
)
def test_a_wish_that_is_absurd_is_bounded(
    *,
    reaper: Reaper,
    provider: FakeCloud,
    engine: Engine,
    clock: FrozenClock,
    wished: float | None,
    kept: float,
) -> None:
    """F20: whatever a header says, it is neither a storm nor a standstill, for nobody."""
    first, second = due(engine, clock, 2)
    provider.fail("destroy", RateLimited(retry_after=wished))

    outcome = reaper.teardown(first, 1, worker="w")
    clock.advance(kept - 0.01)
    before = reaper.teardown(second, 1, worker="w")
    clock.advance(0.01)

    assert outcome == Teardown(outcome=TeardownOutcome.RETRY, retry_after=kept)
    assert before == REFUSED
    assert sandbox_row(engine, first).attempts == 0
    assert reaper.teardown(second, 1, worker="w") == GONE


def test_callers_of_a_slow_provider_take_turns(
    store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """Each is given a moment of its own, and nobody is asked to wait for longer than a little."""
    store.health.limited("fake", 1.0)
    clock.advance(1.0)
    callers = 60

    with ThreadPoolExecutor(8) as threads:
        waits = list(
            threads.map(lambda _: store.health.admit("fake", probe_for=1.0), range(callers))
        )

    given = sorted(wait for wait in waits if wait is not None)
    assert given == pytest.approx([0.1 * number for number in range(len(given))], abs=0.01)
    assert len(given) == LONGEST_WAIT / 0.1 + 1
    assert waits.count(None) == callers - len(given)


def test_who_waited_for_its_turn_looks_again(
    store: Store, provider: FakeCloud, engine: Engine, clock: FrozenClock
) -> None:
    """F20: another worker may have been refused meanwhile, and a queue would follow it."""

    def refused_meanwhile(seconds: float) -> None:
        clock.advance(seconds)
        store.health.limited("fake", 60.0)

    host = Host(sleep=refused_meanwhile, spread=lambda: 0.0)
    reaper = Reaper(store, {"fake": provider}, doorbell=lambda _: None, host=host)
    store.health.limited("fake", 1.0)
    clock.advance(1.0)
    assert store.health.admit("fake", probe_for=1.0) == 0.0  # the first turn is taken
    (name,) = due(engine, clock, 1)

    outcome = reaper.teardown(name, 1, worker="w")

    assert outcome == Teardown(outcome=TeardownOutcome.RETRY, retry_after=LIMITS.retry_base)
    assert (provider.calls, sandbox_row(engine, name).attempts) == ([], 0)


def test_nobody_waits_for_its_turn_past_its_claim(engine: Engine, clock: FrozenClock) -> None:
    """S3: with a short claim the wait is short too, and the call comes before the claim ends."""
    store = Store(engine, policy=policy(claim_ttl=4.0), clock=clock)
    store.health.limited("fake", 1.0)
    clock.advance(1.0)

    waits = [store.health.admit("fake", probe_for=4.0) for _ in range(60)]

    assert max(wait for wait in waits if wait is not None) <= 2.0


def test_a_provider_that_is_well_again_is_not_slowed_down_for_ever(
    reaper: Reaper, store: Store, engine: Engine, clock: FrozenClock, provider: FakeCloud
) -> None:
    """In good health it costs no statement; so it has to come back to it."""
    store.health.limited("fake", 1.0)
    clock.advance(1.0)

    for name in due(engine, clock, 500):
        assert reaper.teardown(name, 1, worker="w") == GONE
        clock.advance(1.0)

    assert health(store).spacing == 0.0


# Two providers


def test_a_provider_that_hangs_delays_no_other(
    store: Store, provider: FakeCloud, engine: Engine, clock: FrozenClock
) -> None:
    """F14: with four threads, two of them stuck: the other's teardowns are done at once."""
    stuck_cloud = FakeCloud(name="hung", clock=clock)
    clouds = {"hung": stuck_cloud, "fake": provider}
    reaper = Reaper(store, clouds, doorbell=lambda _: None, at_once=2)
    hanging = due(engine, clock, 4, prefix="hung", provider="hung")
    others = due(engine, clock, 20)

    with ThreadPoolExecutor(4) as threads, ExitStack() as stack:
        hangs = [stack.enter_context(stuck_cloud.hang("destroy")) for _ in range(2)]
        stuck = [threads.submit(reaper.teardown, name, 1, worker="w") for name in hanging]
        done = [threads.submit(reaper.teardown, name, 1, worker="w") for name in others]
        outcomes = [each.result(30) for each in done]
        list(islice(as_completed(stuck, timeout=30), 2))  # those that there was no room for
        for hang in hangs:
            hang.release()
        late = [each.result(30) for each in stuck]

    assert outcomes == [GONE] * 20
    assert sorted(each.outcome for each in late) == ["gone", "gone", "retry", "retry"]
    assert [sandbox_row(engine, name).attempts for name in hanging] == [
        1 if each == GONE else 0 for each in late
    ]


def test_a_provider_that_is_alone_has_all_the_room(
    store: Store, provider: FakeCloud, engine: Engine, clock: FrozenClock
) -> None:
    """There is nobody to leave room for."""
    reaper = Reaper(store, {"fake": provider}, doorbell=lambda _: None, at_once=1)
    ids = due(engine, clock, 3)

    with ThreadPoolExecutor(3) as threads, ExitStack() as stack:
        hangs = [stack.enter_context(provider.hang("destroy")) for _ in ids]
        calls = [threads.submit(reaper.teardown, name, 1, worker="w") for name in ids]
        assert all(hang.entered.wait(30) for hang in hangs)
        for hang in hangs:
            hang.release()

        assert [each.result(30) for each in calls] == [GONE] * 3


@pytest.mark.parametrize("error", [DOWN, KeyError("x"), RateLimited(), Stopped()], ids=repr)
def test_room_is_given_back_whatever_happens(
    *,
    store: Store,
    provider: FakeCloud,
    engine: Engine,
    clock: FrozenClock,
    error: Any,
) -> None:
    """Or a provider that failed once would never be called again by this process."""
    another = FakeCloud(name="another", clock=clock)
    clouds = {"fake": provider, "another": another}
    reaper = Reaper(store, clouds, doorbell=lambda _: None, at_once=1)
    first, second = due(engine, clock, 2)
    provider.fail("destroy", error)

    try:
        reaper.teardown(first, 1, worker="w")
    except Stopped as stopped:
        assert stopped is error  # noqa: PT017 - only one of the cases raises
    clock.advance(HOUR)

    assert reaper.teardown(second, 1, worker="w") == GONE
    assert reaper.teardown(first, 1, worker="w") == GONE


def test_room_is_given_back_when_the_database_refuses(
    *,
    store: Store,
    provider: FakeCloud,
    engine: Engine,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same, for what comes after the provider's answer."""
    another = FakeCloud(name="another", clock=clock)
    clouds = {"fake": provider, "another": another}
    reaper = Reaper(store, clouds, doorbell=lambda _: None, at_once=1)
    (name,) = due(engine, clock, 1)

    with monkeypatch.context() as patch:
        patch.setattr(store.teardowns, "gone", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reaper.teardown(name, 1, worker="w")
    clock.advance(LIMITS.claim_ttl)

    assert reaper.teardown(name, 1, worker="w") == GONE


# Starvation


def test_what_always_fails_holds_nobody_up(
    *,
    reaper: Reaper,
    engine: Engine,
    clock: FrozenClock,
    rung: list[tuple[str, int]],
) -> None:
    """
    F14: 10,000 that always fail are overdue for a day when 100 come due. The 100 are first, the
    most overdue of them at the head; of the others a batch a sweep, and each in its turn.
    """
    failing = due(engine, clock, 10_000, prefix="f", overdue=86400, quarantined=True)
    fresh = due(engine, clock, 100)

    report = reaper.sweep()

    assert report.published == 100 + LIMITS.batch
    assert [name for name, _ in rung] == fresh + failing[: LIMITS.batch]
    for _ in range(10_000 // LIMITS.batch - 1):
        clock.advance(1)
        reaper.sweep()
    assert [name for name, _ in rung] == fresh + failing


def test_what_was_never_in_trouble_has_no_row(
    reaper: Reaper, engine: Engine, clock: FrozenClock
) -> None:
    """In good health a provider's state is neither written nor read."""
    for name in due(engine, clock, 3):
        assert reaper.teardown(name, 1, worker="w") == GONE

    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(providers)).scalar_one() == 0
