"""The store's edges: the driver's errors by their code, the database's clock, the lists."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, select

from core.engines import make_engine
from core.errors import SchemaOutdated, StoreError, StoreUnavailable
from core.lifecycle import Keeper
from core.schema import sessions
from core.store import Store
from core.store.sql import Earliest, Latest, later
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock


def test_the_databases_own_clock_is_used_without_a_tests(
    engine: Engine, provider: FakeCloud
) -> None:
    """F27: aware UTC, and about what this host says."""
    before = datetime.now(UTC) - timedelta(seconds=5)

    session = Keeper(Store(engine, policy=policy()), provider).open("conv")

    assert before < session.created_at < before + timedelta(seconds=60)
    assert session.due_at > session.created_at + timedelta(seconds=1700)


def test_moments_are_computed_alike_on_both_databases(store: Store, clock: FrozenClock) -> None:
    """Fractions, negative seconds, years; and no seconds make no moment."""
    now, soon = store.database.now, later(store.database.now, 1.5)
    asked = [
        soon,
        later(now, -0.25),
        later(now, 315_576_000),
        later(now, None),
        Earliest(soon, now),
        Latest(soon, now),
    ]

    with store.database.look() as look:
        found = list(look.all(select(*asked))[0])

    second = timedelta(seconds=1)
    assert found == [
        clock.now + 1.5 * second,
        clock.now - 0.25 * second,
        clock.now + 315_576_000 * second,
        None,
        clock.now,
        clock.now + 1.5 * second,
    ]


def test_a_table_that_is_missing_is_an_outdated_schema(store: Store, engine: Engine) -> None:
    """By the driver's code, with what to do."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE turns")

    with pytest.raises(SchemaOutdated, match=r"turns.*sandkeeper db upgrade"):
        store.history.lines()


def test_what_a_user_wrote_is_never_taken_for_the_databases_words(
    store: Store, engine: Engine
) -> None:
    """F13: a refusal quotes the row; neither "full" nor "does not exist" in it is an outage."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX by_hand ON sessions (tenant)")
    row = {
        "id": "full",
        "tenant": "read-only.full.no-such-table",
        "status": "does not exist"[:8],
        "generation": 1,
        "turn_count": 0,
        "turns_before": 0,
        "idle_ttl": 1.0,
        "max_turn": 1.0,
        "metadata": {"x": "it does not exist, it is full, no such table, read-only"},
        **dict.fromkeys(("created_at", "opened_at", "last_activity_at", "due_at"), NOW),
    }

    with pytest.raises(StoreError) as refused, store.database.move() as move:
        move.run(sessions.insert(), row)

    assert type(refused.value) is StoreError


NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_no_free_connection_is_unavailable(database_url: str) -> None:
    """It is tried again; the pool is what is short, not the database."""
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    engine = make_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    store = Store(engine)

    with engine.connect(), pytest.raises(StoreUnavailable, match="no free connection"):
        store.history.lines()

    assert store.history.lines() == []
    engine.dispose()


def test_a_list_shows_sessions_by_id_and_goes_on_behind_one(keeper: Keeper) -> None:
    """With the turns that are open on them."""
    for name in "cab":
        keeper.open(name)
    keeper.end("b", reason="user left")

    with keeper.turn("a"):
        lines = keeper.store.history.lines(limit=2)
    rest = keeper.store.history.lines(after="b")
    ended = keeper.store.history.lines(status="ended")

    assert [(line.id, line.turns_open, line.sandbox) for line in lines] == [
        ("a", 1, "running"),
        ("b", 0, "closing"),
    ]
    assert [line.id for line in rest] == ["c"]
    assert [(line.id, line.end_reason) for line in ended] == [("b", "user left")]
