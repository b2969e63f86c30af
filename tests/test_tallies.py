"""Totals: each line of the ledger is counted once, whoever crashes, waits or counts as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event, func, insert, select, text

from core.engines import make_engine
from core.errors import SchemaOutdated
from core.host import Host
from core.lifecycle import Keeper
from core.model import EndReason
from core.reaper import Reaper, TeardownOutcome
from core.schema import events
from core.store import Store
from core.store.tallies import ASKED, BOUNDS, ENDED, EVENTS, LATENESS, SWEEP, SWEPT, TEARDOWN
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock

LIMIT = 30.0  # seconds; nothing here waits that long unless it is stuck
LINE = insert(events).values(kind="circuit_opened", actor="w", detail={})


def counted(store: Store, name: str) -> dict[str, int]:
    """The totals of one name, by label."""
    found: Counter[str] = Counter()
    for tally in store.tallies.totals().tallies:
        if tally.name == name:
            found[tally.label] += tally.count
    return dict(found)


def buckets(store: Store, name: str) -> dict[str, tuple[int, float]]:
    """A histogram: how many are in each bucket, and their seconds to the millisecond."""
    found = store.tallies.totals().tallies
    return {each.bucket: (each.count, round(each.total, 3)) for each in found if each.name == name}


def fold_all(store: Store, limit: int) -> None:
    """Until nothing is left."""
    for _ in range(100):
        if not store.tallies.fold(limit):
            return
    pytest.fail("there is always more to count")


def ledger(engine: Engine) -> dict[str, int]:
    """What the ledger itself says."""
    by_kind = select(events.c.kind, func.count()).group_by(events.c.kind)
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(by_kind)}


def finish(keeper: Keeper, reaper: Reaper, name: str) -> None:
    """A session from its first moment to its sandbox's last."""
    keeper.open(name)
    keeper.end(name)
    assert reaper.teardown(name, 1, worker="w").outcome is TeardownOutcome.GONE


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What goes to the database."""
    heard: list[str] = []

    def hear(_c: object, _k: object, sql: str, *_more: object) -> None:
        heard.append(sql)

    event.listen(engine, "before_cursor_execute", hear)
    try:
        yield heard
    finally:
        event.remove(engine, "before_cursor_execute", hear)


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_every_line_is_counted_once(
    limit: int, store: Store, keeper: Keeper, reaper: Reaper, engine: Engine
) -> None:
    """H1: in batches of whatever size, and what comes between two of them."""
    finish(keeper, reaper, "a")
    fold_all(store, limit)
    finish(keeper, reaper, "b")
    keeper.open("b")

    fold_all(store, limit)

    assert counted(store, EVENTS) == ledger(engine)
    assert store.tallies.fold() == 0
    assert counted(store, EVENTS) == ledger(engine)


def test_a_sweep_counts_what_is_new(
    store: Store, keeper: Keeper, reaper: Reaper, engine: Engine, clock: FrozenClock
) -> None:
    """And says until then for how long it has been waiting."""
    keeper.open("conv")
    clock.advance(7)
    behind = store.tallies.totals().behind

    reaper.sweep()

    assert behind == pytest.approx(7)
    assert counted(store, EVENTS) == ledger(engine)
    assert store.tallies.totals().behind == 0


def test_a_sweep_with_nothing_new_asks_for_nothing_new(
    keeper: Keeper, reaper: Reaper, engine: Engine
) -> None:
    """The look at what is due tells that as well."""
    keeper.open("conv")
    reaper.sweep()

    with statements(engine) as heard:
        reaper.sweep()

    assert sum("FROM installation" in sql and "told" in sql for sql in heard) == 1
    assert not any("tallies" in sql and "FROM events" in sql for sql in heard)


def test_what_a_crash_interrupts_is_counted_by_the_next(
    store: Store, keeper: Keeper, engine: Engine
) -> None:
    """H1: the cursor moves in the transaction that counts, or neither does."""
    keeper.open("conv")
    moves_on = store.tallies._move_on
    store.tallies._move_on = text("UPDATE nowhere SET told = 1")  # type: ignore[assignment]
    with pytest.raises(SchemaOutdated):
        store.tallies.fold()
    interrupted = counted(store, EVENTS)
    store.tallies._move_on = moves_on

    store.tallies.fold()

    assert interrupted == {}
    assert counted(store, EVENTS) == ledger(engine)


def test_reasons_are_a_few(store: Store, keeper: Keeper) -> None:
    """Ours by name; whatever callers write is one."""
    for name, reason in (("a", "done"), ("b", "user 4711 left"), ("c", EndReason.LOST.value)):
        keeper.open(name)
        keeper.end(name, reason=reason)

    store.tallies.fold()

    assert counted(store, ENDED) == {ASKED: 2, "lost": 1}


def test_a_teardown_counts_from_the_end_and_lateness_from_the_last_right(
    store: Store, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1: an idle session is late from its TTL on, whenever somebody looked."""
    keeper.open("conv")
    clock.advance(keeper.policy.idle_ttl + 40)
    reaper.sweep()
    clock.advance(60)
    assert reaper.sweep().ended == 1
    clock.advance(2)
    reaper.teardown("conv", 1, worker="w")

    store.tallies.fold()

    assert buckets(store, TEARDOWN) == {"2.5": (1, 2.0)}
    assert buckets(store, LATENESS) == {"120": (1, 102.0)}
    assert counted(store, LATENESS) == {"fake": 1}


def test_what_somebody_ends_in_time_is_late_from_then_on(
    store: Store, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """Its TTL had not run out: somebody was entitled to it until the end."""
    keeper.open("conv")
    clock.advance(keeper.policy.idle_ttl - 1)
    keeper.end("conv")
    clock.advance(4)
    reaper.teardown("conv", 1, worker="w")

    store.tallies.fold()

    assert buckets(store, LATENESS) == {"5": (1, 4.0)}


def test_a_clock_that_steps_back_takes_nothing_from_a_total(
    store: Store, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """A total that shrinks looks like a restart, and all of it counts again."""
    keeper.open("conv")
    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w", early=True)
    with store.database.move() as move:
        move.run(text("UPDATE sandboxes SET gone_at = '2000-01-01 00:00:00+00:00'"))

    store.tallies.fold()

    assert buckets(store, TEARDOWN) == {"0.5": (1, 0.0)}


def test_a_sweep_says_how_long_it_took_and_what_it_did(
    store: Store, keeper: Keeper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """By its own clock, with its pulse."""
    hands = iter([10.0, 10.3, 20.0, 20.0, 99.0])
    reaper = Reaper(
        store, {"fake": provider}, doorbell=lambda _: None, host=Host(monotonic=lambda: next(hands))
    )
    keeper.open("conv")
    clock.advance(keeper.policy.idle_ttl)

    reaper.sweep()
    reaper.sweep(stand_in=True)

    assert buckets(store, SWEEP) == {
        "0.5": (1, 0.3),
        BOUNDS[SWEEP][0]: (1, 0.0),
    }
    assert counted(store, SWEPT) == {"noticed": 1}


def test_no_history_is_deleted_before_it_was_counted(
    store: Store, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """H1: nothing else has it."""
    finish(keeper, reaper, "conv")
    clock.advance(keeper.policy.retention)

    early = store.retention.purge(10)
    store.tallies.fold()

    assert (early, store.retention.purge(10)) == (0, 1)
    assert counted(store, EVENTS)["sandbox_gone"] == 1


def test_a_purge_counts_what_it_deletes(
    store: Store, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """Where nobody sweeps, too."""
    finish(keeper, reaper, "conv")
    clock.advance(keeper.policy.retention)

    assert reaper.purge() == 1
    assert counted(store, EVENTS)["sandbox_gone"] == 1


def test_what_comes_after_a_purge_of_everything_is_counted(
    store: Store, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """SQLite gives the numbers of deleted last lines again."""
    finish(keeper, reaper, "conv")
    clock.advance(keeper.policy.retention)
    assert reaper.purge() == 1
    finish(keeper, reaper, "conv")

    store.tallies.fold()

    assert counted(store, EVENTS)["sandbox_gone"] == 2


# Orders that can be forced, on PostgreSQL


@pytest.fixture
def pg_engine(postgresql_url: str) -> Iterator[Engine]:
    """An engine on a fresh PostgreSQL database: SQLite's one writer cannot be interleaved."""
    engine = make_engine(postgresql_url)
    yield engine
    engine.dispose()


@pytest.fixture
def pg_store(pg_engine: Engine, clock: FrozenClock) -> Store:
    """A store on it, with a clock that stands still."""
    return Store(pg_engine, policy=policy(), clock=clock)


def test_a_line_that_is_committed_late_is_counted(
    pg_store: Store, pg_engine: Engine, clock: FrozenClock
) -> None:
    """H1: its number is smaller than one that can be seen already."""
    line = LINE.values(at=clock())
    with pg_engine.connect() as slow:
        slow.execute(line)
        with pg_engine.begin() as quick:
            quick.execute(line)
        early = [pg_store.tallies.fold(), pg_store.tallies.fold()]
        slow.commit()

    late = pg_store.tallies.fold()

    assert (early, late) == ([0, 0], 2)
    assert counted(pg_store, EVENTS) == {"circuit_opened": 2}


def test_writers_that_come_later_are_not_waited_for(
    pg_store: Store, pg_engine: Engine, clock: FrozenClock
) -> None:
    """Or a busy fleet would never be counted: only who wrote when a line was seen can hide one."""
    line = LINE.values(at=clock())
    with pg_engine.connect() as first, pg_engine.connect() as second:
        first.execute(line)
        with pg_engine.begin() as quick:
            quick.execute(line)
        early = pg_store.tallies.fold()
        second.execute(line)
        first.commit()
        late = pg_store.tallies.fold()
        second.commit()

    assert (early, late) == (0, 2)
    assert pg_store.tallies.fold() == 1


def test_a_line_that_was_taken_back_holds_nothing_up(
    pg_store: Store, pg_engine: Engine, clock: FrozenClock
) -> None:
    """Its number never comes."""
    line = LINE.values(at=clock())
    with pg_engine.connect() as slow:
        slow.execute(line)
        slow.rollback()
    with pg_engine.begin() as quick:
        quick.execute(line)

    assert pg_store.tallies.fold() == 1
    assert counted(pg_store, EVENTS) == {"circuit_opened": 1}


def test_two_sweepers_count_nothing_twice(
    pg_store: Store, pg_engine: Engine, clock: FrozenClock
) -> None:
    """H1: while one is in the middle of it, the other leaves it alone and waits for nobody."""
    with pg_engine.begin() as connection:
        connection.execute(LINE.values(at=clock()))
    other = Store(pg_engine, policy=policy(), clock=clock)
    with ThreadPoolExecutor(1) as threads, pg_store.database.move() as move:
        row = move.one(pg_store.tallies._lock)
        assert row is not None
        folded = threads.submit(other.tallies.fold)

        assert folded.result(LIMIT) == 0

    assert pg_store.tallies.fold() == 1
    assert counted(pg_store, EVENTS) == {"circuit_opened": 1}
