"""Forgetting: what is deleted, with all that belongs to it, and what never is."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, func, select

from core.errors import SessionNotFound
from core.lifecycle import Keeper
from core.providers.base import Capability
from core.reaper import Reaper, TeardownOutcome
from core.schema import metadata, sessions
from core.store import Store
from core.store.guard import HoldReason
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock

RETENTION = policy().retention


def rows(engine: Engine) -> dict[str, int]:
    """How many rows each table has."""
    with engine.connect() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in metadata.tables.items()
            if name != "installation"
        }


@pytest.fixture
def gone(keeper: Keeper, reaper: Reaper) -> str:
    """A session of two generations, with turns, all of it over and confirmed."""
    for generation in (1, 2):
        keeper.open("conv")
        with keeper.turn("conv"):
            pass
        keeper.end("conv")
        outcome = reaper.teardown("conv", generation, worker="w").outcome
        assert outcome is TeardownOutcome.GONE
    return "conv"


def test_everything_of_a_session_is_deleted_after_the_retention(
    gone: str, keeper: Keeper, reaper: Reaper, clock: FrozenClock, engine: Engine
) -> None:
    """Its rows, turns, sandboxes and history; of another session nothing."""
    keeper.open("other")
    others = rows(engine)
    clock.advance(RETENTION)

    purged = reaper.purge()

    with pytest.raises(SessionNotFound):
        keeper.get(gone)
    assert purged == 1
    assert keeper.get("other").id == "other"
    assert rows(engine) == {
        **dict.fromkeys(
            (
                "api_tokens",
                "call_slots",
                "earlier_promises",
                "holds",
                "orphans",
                "policies",
                "providers",
                "turns",
                "windows",
            ),
            0,
        ),
        "sessions": 1,
        "sandboxes": 1,
        "events": 2,
        "tallies": 8,  # what happened is still counted
    }
    assert others["sandboxes"] == 3


def test_nothing_is_deleted_before_the_retention(
    gone: str, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """Not a second early."""
    clock.advance(RETENTION - 1)

    assert reaper.purge() == 0
    assert keeper.get(gone).generation == 2


def test_the_retention_counts_from_the_last_sandbox_that_went(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """F17: a teardown that took a month has its full time after it."""
    keeper.open("conv")
    keeper.end("conv")
    clock.advance(2 * RETENTION)
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE
    clock.advance(RETENTION - 1)

    early = reaper.purge()
    clock.advance(1)

    assert early == 0
    assert reaper.purge() == 1


def test_a_session_with_a_sandbox_that_is_not_gone_is_never_forgotten(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """L3: whichever generation it is, and however long it takes."""
    provider.capabilities -= {Capability.TTL}  # nor does it die by itself
    keeper.open("conv")
    keeper.end("conv")
    keeper.open("conv")
    keeper.end("conv")
    assert reaper.teardown("conv", 2, worker="w").outcome is TeardownOutcome.GONE

    clock.advance(10 * RETENTION)

    assert reaper.purge() == 0
    assert len(provider.alive()) == 1


def test_an_active_session_is_never_forgotten(
    gone: str, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: reopened at the last moment, with old sandboxes long gone."""
    clock.advance(RETENTION)
    keeper.open(gone)

    assert reaper.purge() == 0
    assert keeper.get(gone).generation == 3


def test_a_purge_goes_on_until_a_batch_is_short(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """Bounded transactions, and all of it in one call."""
    store = Store(engine, policy=policy(batch=2), clock=clock)
    reaper = Reaper(store, {"fake": provider}, doorbell=lambda _: None)
    keeper = Keeper(store, provider)
    for number in range(5):
        keeper.open(f"conv-{number}")
        keeper.end(f"conv-{number}")
        reaper.teardown(f"conv-{number}", 1, worker="w")
    clock.advance(RETENTION)

    assert reaper.purge() == 5


def test_a_forgotten_id_can_be_opened_again(
    gone: str, keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """S3: its generations start over, its sandboxes' names do not."""
    names = {box.name for box in provider.boxes.values()}
    clock.advance(RETENTION)
    reaper.purge()

    session = keeper.open(gone)

    assert (session.generation, session.reset_reason) == (1, None)
    assert session.sandbox.name not in names
    keeper.end(gone)
    assert reaper.teardown(gone, 1, worker="w").outcome is TeardownOutcome.GONE


def test_a_session_that_somebody_holds_is_left_for_the_next_time(
    gone: str, reaper: Reaper, clock: FrozenClock, engine: Engine
) -> None:
    """A purge waits for nobody."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    clock.advance(RETENTION)

    with engine.connect() as holder:
        holder.execute(select(sessions).where(sessions.c.id == gone).with_for_update())
        held = reaper.purge()

    assert held == 0
    assert reaper.purge() == 1


def test_nothing_is_forgotten_while_everything_is_held(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """H1: the doubt may be about this very database, or its clock."""
    keeper.open("conv")
    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w")
    keeper.store.guard.hold(HoldReason.OPERATOR, {}, actor="op")
    clock.advance(2 * keeper.policy.retention)

    held = reaper.purge()
    keeper.store.guard.approve(HoldReason.OPERATOR, 60.0, actor="op")

    assert (held, reaper.purge()) == (0, 1)
