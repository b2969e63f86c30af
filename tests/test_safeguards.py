"""Safeguards that no test of one module's behaviour would miss; each has a mutant."""

from __future__ import annotations

from sqlalchemy import Engine, select

from core.errors import AuthFailed
from core.lifecycle import Keeper
from core.model import SessionStatus
from core.reaper import Reaper, TeardownOutcome
from core.schema import sandboxes
from core.store import Store
from tests.fakes import FakeCloud, FrozenClock


def test_activity_after_a_notice_asks_for_a_new_notice(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """
    S5: no sweep ran from the notice until the session, used once more, was idle again. The old
    notice says nothing of the new silence.
    """
    keeper.open("conv")
    clock.advance(keeper.policy.idle_ttl)
    assert reaper.sweep().noticed == 1
    clock.advance(1)
    keeper.touch("conv")
    clock.advance(keeper.policy.idle_ttl + keeper.policy.confirm_interval)

    report = reaper.sweep()

    assert (report.ended, report.noticed) == (0, 1)
    assert keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_message_names_the_generation_that_it_claims(keeper: Keeper, store: Store) -> None:
    """S3: with two generations closing at once, each message is for its own."""
    for _ in range(2):
        keeper.open("conv")
        keeper.end("conv")

    claim = store.teardowns.claim("conv", 1, "worker")

    assert claim is not None
    assert claim.generation == 1
    other = store.teardowns.claim("conv", 2, "worker")
    assert other is not None
    assert other.key != claim.key


def test_a_live_claim_is_nobody_elses(keeper: Keeper, store: Store, clock: FrozenClock) -> None:
    """S3: a doubled message is refused until the first worker's time has run out, to the second."""
    keeper.open("conv")
    keeper.end("conv")
    first = store.teardowns.claim("conv", 1, "first")

    clock.advance(store.policy.claim_ttl - 1)
    second = store.teardowns.claim("conv", 1, "second")
    impatient = store.teardowns.claim("conv", 1, "second", early=True)
    clock.advance(1)
    third = store.teardowns.claim("conv", 1, "third")

    assert first is not None
    assert (second, impatient) == (None, None)
    assert third is not None
    assert third.token == first.token + 1


def test_the_doorbell_rings_after_the_lease(
    keeper: Keeper, store: Store, provider: FakeCloud, engine: Engine
) -> None:
    """A worker that hears it at once, on another connection, finds the row that it is about."""
    keeper.open("conv")
    keeper.end("conv")
    leases = []

    def answer(pairs: object) -> None:
        with engine.connect() as connection:
            leases.append(connection.execute(select(sandboxes.c.due_at)).scalar_one())

    before = keeper.get("conv").ended_at
    Reaper(store, {"fake": provider}, doorbell=answer).sweep()

    assert before is not None
    assert [lease > before for lease in leases] == [True]


def test_what_is_quarantined_is_published_for_ever(
    keeper: Keeper, reaper: Reaper, provider: FakeCloud, clock: FrozenClock, rung: list[object]
) -> None:
    """L3: it is shown to an operator, and retried all the same until it is gone."""
    keeper.open("conv")
    keeper.end("conv")
    provider.fail("destroy", AuthFailed("403"), times=5)
    rung.clear()
    for _ in range(5):
        reaper.sweep()
        reaper.teardown("conv", 1, worker="w")
        clock.advance(keeper.policy.quarantine_retry)
    assert len(reaper.store.teardowns.quarantined()) == 1

    reaper.sweep()
    last = reaper.teardown("conv", 1, worker="w")

    assert rung == [("conv", 1)] * 6
    assert last.outcome is TeardownOutcome.GONE
