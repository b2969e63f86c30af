"""The bound on the calls of a provider that a whole fleet has under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update

from core.engines import make_engine
from core.errors import RateLimited, StoreUnavailable, Unavailable
from core.host import Host
from core.reaper import Reaper, Teardown, TeardownOutcome
from core.schema import call_slots, sandboxes
from core.store import Store
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock
from tests.test_health import due, sandbox_row

BOUND = 3
LIMITS = policy(provider_concurrency=BOUND)
GONE = Teardown(outcome=TeardownOutcome.GONE)
REFUSED = Teardown(outcome=TeardownOutcome.REFUSED)


def bounded_store(engine: Engine, clock: FrozenClock, bound: int | None = BOUND) -> Store:
    """A process that was told this bound."""
    return Store(engine, policy=policy(provider_concurrency=bound), clock=clock)


def reaper_of(store: Store, provider: FakeCloud, rung: list[tuple[str, int]]) -> Reaper:
    """Its reaper."""
    host = Host(spread=lambda: 0.0)
    return Reaper(store, {"fake": provider}, doorbell=rung.extend, host=host)


@pytest.fixture
def bounded(engine: Engine, clock: FrozenClock) -> Store:
    """A store that knows a bound of three."""
    return bounded_store(engine, clock)


@pytest.fixture
def busy(bounded: Store) -> Store:
    """The same, with all of its slots taken."""
    assert all(bounded.calls.take("fake", f"w{number}") for number in range(BOUND))
    return bounded


def test_a_slot_that_was_given_back_is_free_by_any_clock(
    bounded: Store, clock: FrozenClock
) -> None:
    """L1: where the clock steps back, nobody waits for when it was given back."""
    for slot in [bounded.calls.take("fake", "w") for _ in range(BOUND)]:
        assert slot is not None
        bounded.calls.give(slot)

    clock.advance(-600)

    assert all(bounded.calls.take("fake", "w") for _ in range(BOUND))


def test_there_are_as_many_slots_as_the_bound(bounded: Store) -> None:
    """Of each provider; and a slot that was given back is there again."""
    slots = [bounded.calls.take("fake", "w") for _ in range(BOUND + 1)]
    given = slots[1]
    assert given is not None
    bounded.calls.give(given)

    again = bounded.calls.take("fake", "w")

    assert [slot and slot.slot for slot in slots] == [0, 1, 2, None]
    assert again is not None
    assert (again.slot, again.token) == (1, given.token + 1)
    assert bounded.calls.take("fake", "w") is None
    assert bounded.calls.take("another", "w") is not None


def test_the_slot_of_a_worker_that_died_runs_out(busy: Store, clock: FrozenClock) -> None:
    """L1: with its claim, and not before."""
    clock.advance(LIMITS.claim_ttl - 1)
    before = busy.calls.take("fake", "w")
    clock.advance(1)

    assert before is None
    assert [busy.calls.take("fake", "w") is not None for _ in range(BOUND + 1)] == [
        *[True] * BOUND,
        False,
    ]


def test_a_late_worker_gives_back_nothing(bounded: Store, clock: FrozenClock) -> None:
    """S3: it ran out, and is somebody else's by now."""
    late = bounded.calls.take("fake", "late")
    assert late is not None
    clock.advance(LIMITS.claim_ttl)
    assert all(bounded.calls.take("fake", "w") for _ in range(BOUND))

    bounded.calls.give(late)

    assert bounded.calls.take("fake", "w") is None


def test_the_bound_can_be_changed(engine: Engine, busy: Store, clock: FrozenClock) -> None:
    """By a restart with another setting: more slots at once, or fewer as they are given back."""
    more = bounded_store(engine, clock, BOUND + 1)
    fourth = more.calls.take("fake", "w")
    assert fourth is not None
    clock.advance(LIMITS.claim_ttl)

    fewer = bounded_store(engine, clock, 1)

    assert fourth.slot == BOUND
    assert [fewer.calls.take("fake", "w") is None for _ in range(3)] == [False, True, True]


def test_a_clock_that_stepped_back_keeps_no_slot(busy: Store, clock: FrozenClock) -> None:
    """The sweep brings dates back that no healthy clock can have written."""
    clock.advance(-86400)
    assert busy.calls.take("fake", "w") is None

    Reaper(busy, {}, doorbell=lambda _: None).sweep()

    assert busy.calls.take("fake", "w") is not None


def test_who_finds_no_slot_stands_back(
    *,
    engine: Engine,
    busy: Store,
    provider: FakeCloud,
    clock: FrozenClock,
    rung: list[tuple[str, int]],
) -> None:
    """No call, no attempt, no message of its own: it is due at once, and the sweep rings again."""
    (name,) = due(engine, clock, 1)
    reaper = reaper_of(busy, provider, rung)

    outcome = reaper.teardown(name, 1, worker="w")

    row = sandbox_row(engine, name)
    assert outcome == REFUSED
    assert provider.calls == []
    assert (row.attempts, row.claimed_by, row.due_at, row.last_error) == (0, None, clock.now, None)
    assert reaper.sweep().published == 1
    clock.advance(LIMITS.claim_ttl)
    assert reaper.teardown(name, 1, worker="w") == GONE


@pytest.mark.parametrize(
    "error", [None, Unavailable("503"), RateLimited(), KeyError("x")], ids=repr
)
def test_a_slot_is_given_back_whatever_happens(
    *, engine: Engine, bounded: Store, provider: FakeCloud, clock: FrozenClock, error: Any
) -> None:
    """Or a few failures would leave no call to anybody."""
    reaper = reaper_of(bounded, provider, [])
    for name in due(engine, clock, BOUND):
        if error is not None:
            provider.fail("destroy", error)
        reaper.teardown(name, 1, worker="w")
        clock.advance(1)

    assert all(bounded.calls.take("fake", "w") for _ in range(BOUND))


def test_a_slot_that_cannot_be_given_back_hides_no_outcome(
    *,
    engine: Engine,
    bounded: Store,
    provider: FakeCloud,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sandbox is gone, and says so; the slot runs out."""

    def down(_slot: object) -> None:
        raise StoreUnavailable("down")

    monkeypatch.setattr(bounded.calls, "give", down)
    (name,) = due(engine, clock, 1)

    assert reaper_of(bounded, provider, []).teardown(name, 1, worker="w") == GONE


def test_without_a_bound_there_is_no_slot(
    engine: Engine, store: Store, provider: FakeCloud, clock: FrozenClock
) -> None:
    """And no statement for one."""
    (name,) = due(engine, clock, 1)

    assert reaper_of(store, provider, []).teardown(name, 1, worker="w") == GONE
    with engine.connect() as connection:
        assert connection.execute(select(call_slots)).all() == []


# Races, on PostgreSQL


@pytest.fixture
def pg_engine(postgresql_url: str) -> Iterator[Engine]:
    """SQLite's one writer cannot be interleaved."""
    engine = make_engine(postgresql_url)
    yield engine
    engine.dispose()


class Crowded(FakeCloud):
    """Counts how many of its destroys are under way at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = 0
        self._count = threading.Lock()

    def destroy(self, ref: Any, *, deadline: float) -> None:
        with self._count:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.01)
        super().destroy(ref, deadline=deadline)
        with self._count:
            self.under_way -= 1


def test_a_fleet_never_passes_its_bound(pg_engine: Engine) -> None:
    """
    Twelve workers, each with a store of its own and on the database's clock, hear of sixty
    teardowns again and again: never more than three calls at a time, and all of them are done.
    """
    clock = FrozenClock()
    stores = [Store(pg_engine, policy=LIMITS) for _ in range(12)]
    cloud = Crowded()
    names = due(pg_engine, clock, 60)
    with pg_engine.begin() as connection:  # `due` wrote another clock's time
        connection.execute(update(sandboxes).values(due_at=text("now()"), not_before=text("now()")))
    began, limit = threading.Barrier(len(stores)), time.monotonic() + 60

    def work(store: Store) -> None:
        reaper = reaper_of(store, cloud, [])
        began.wait(30)
        while any(sandbox_state != "gone" for sandbox_state in states(pg_engine)):
            assert time.monotonic() < limit, "it does not come to an end"
            for name in names:
                reaper.teardown(name, 1, worker=threading.current_thread().name)

    with ThreadPoolExecutor(len(stores)) as threads:
        list(threads.map(work, stores))

    assert cloud.most == BOUND
    assert cloud.count("destroy") == 60


def states(engine: Engine) -> list[str]:
    """Of all sandboxes."""
    with engine.connect() as connection:
        return list(connection.execute(select(sandboxes.c.state)).scalars())


def test_who_finds_a_slot_locked_takes_another(pg_engine: Engine, clock: FrozenClock) -> None:
    """Somebody is about to take the first one, and has not committed: nobody waits for that."""
    store = bounded_store(pg_engine, clock, 2)
    first = store.calls.take("fake", "w")
    assert first is not None
    store.calls.give(first)

    with pg_engine.begin() as connection:
        connection.execute(
            update(call_slots)
            .where(call_slots.c.slot == 0)
            .values(until=clock.now + timedelta(seconds=60))
        )
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(store.calls.take, "fake", "w").result(5)

    assert second is not None
    assert second.slot == 1
    assert store.calls.take("fake", "w") is None
