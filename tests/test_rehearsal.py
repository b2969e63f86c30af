"""The dry run of a sweep: the same pass, and nothing of it is left."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, select

from core.lifecycle import Keeper
from core.reaper import Reaper
from core.schema import metadata
from core.store import Store
from core.store.guard import HoldReason
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock
from tests.test_explain import intend


def everything(engine: Engine) -> dict[str, list[Any]]:
    """All rows of all tables."""
    with engine.connect() as connection:
        return {
            name: sorted(map(repr, connection.execute(select(table))))
            for name, table in metadata.tables.items()
        }


@pytest.fixture
def busy(keeper: Keeper, reaper: Reaper, clock: FrozenClock, rung: list[Any]) -> Keeper:
    """Something for every rule: to re-arm, notice, end, expire and publish."""
    keeper.open("noticed")
    clock.advance(policy().idle_ttl - 300)
    keeper.open("idle", idle_ttl=100)
    clock.advance(300)
    reaper.sweep()
    intend(keeper.store)
    clock.advance(policy().idle_ttl)
    keeper.store.sweeps.sessions(100, ending=False)
    clock.advance(policy().confirm_interval)
    keeper.open("active", idle_ttl=200)
    clock.advance(150)
    keeper.touch("active")
    keeper.open("late", idle_ttl=1)
    clock.advance(60)
    keeper.open("closing")
    keeper.end("closing")
    rung.clear()
    return keeper


def test_nothing_is_written_and_nothing_published(
    busy: Keeper, reaper: Reaper, engine: Engine, rung: list[Any]
) -> None:
    """Whole tables are what they were, the ledger and the pulse too, and no doorbell rang."""
    before = everything(engine)

    found = reaper.rehearse()

    assert everything(engine) == before
    assert rung == []
    report = found.report
    assert min(report.rearmed, report.noticed, report.ended, report.expired, report.published) > 0


def test_it_says_what_the_sweep_does_then(
    busy: Keeper, reaper: Reaper, store: Store, rung: list[Any]
) -> None:
    """The same report, the same teardowns, the same lines in the ledger."""
    rehearsed = reaper.rehearse()

    swept = reaper.sweep()

    assert rehearsed.report == swept
    assert list(rehearsed.rung) == rung
    told = {(event.kind.value, event.session_id) for event in rehearsed.events if event.session_id}
    assert all(
        kind in [line.kind for line in store.history.of_session(str(name))] for kind, name in told
    )


def test_it_sees_what_it_would_have_done_before(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """Batch after batch, as the sweep: a rehearsal of a single batch would never come to an end."""
    store = Store(engine, policy=policy(batch=2), clock=clock)
    keeper = Keeper(store, provider)
    for number in range(5):
        keeper.open(f"conv-{number}")
    clock.advance(store.policy.idle_ttl)

    found = Reaper(store, {"fake": provider}, doorbell=lambda _: None).rehearse()

    assert found.report.noticed == 5
    assert len(found.events) == 5


def test_a_question_that_it_would_ask_is_said_and_not_asked(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """The breaker: an operator finds out beforehand that a sweep would stop there."""
    store = Store(engine, policy=policy(breaker_min=1), clock=clock)
    keeper = Keeper(store, provider)
    reaper = Reaper(store, {"fake": provider}, doorbell=lambda _: None)
    for number in range(3):
        keeper.open(f"conv-{number}")
    clock.advance(store.policy.idle_ttl)
    reaper.sweep()
    clock.advance(store.policy.confirm_interval)

    found = reaper.rehearse()

    assert found.report.ended == 0
    assert [event.detail["reason"] for event in found.events] == [HoldReason.MASS_END.value]
    assert store.guard.holds() == []


def test_after_it_the_process_writes_again(
    busy: Keeper, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was stopped by an error in the middle."""

    def broken() -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(reaper.store.outlook, "work", broken)
        with pytest.raises(ZeroDivisionError):
            reaper.rehearse()
    busy.open("after")

    assert busy.get("after").generation == 1
    assert reaper.sweep().ended > 0
