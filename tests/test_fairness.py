"""A backlog: no tenant waits for more than its share of another's, and no queue gets long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update

from core.errors import Unavailable
from core.host import Host
from core.lifecycle import Keeper
from core.reaper import Reaper, Teardown, TeardownOutcome
from core.schema import providers, sandboxes
from core.store import Store
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock
from tests.test_health import due, sandbox_row

BOUND, BATCH = 100, 40
Rung = list[tuple[str, int]]
MakeReaper = Callable[..., Reaper]


@pytest.fixture
def make_reaper(engine: Engine, provider: FakeCloud, clock: FrozenClock, rung: Rung) -> MakeReaper:
    """A reaper of any policy, which rings into `rung`."""

    def make(spread: float = 0.0, **overrides: Any) -> Reaper:
        limits = policy(**{"in_flight": BOUND, "batch": BATCH, **overrides})
        store = Store(engine, policy=limits, clock=clock)
        doorbell, host = rung.extend, Host(spread=lambda: spread)
        return Reaper(store, {"fake": provider}, doorbell=doorbell, host=host)

    return make


@pytest.fixture
def tight(make_reaper: MakeReaper) -> Reaper:
    """A reaper that has a hundred teardowns in flight at most."""
    return make_reaper()


def rung_of(rung: Rung, prefix: str) -> list[str]:
    """Those of one backlog, in order."""
    return [name for name, _ in rung if name.startswith(f"{prefix}-")]


def tear_down(reaper: Reaper, rung: Rung) -> list[Teardown]:
    """What workers do with what was rung for so far."""
    pairs = list(rung)
    rung.clear()
    return [reaper.teardown(*pair, worker="w") for pair in pairs]


def test_a_small_tenant_has_its_share_beside_a_big_one(
    tight: Reaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """F14: ten that have just come due, behind a thousand of a day ago: in the first batch."""
    big = due(engine, clock, 1000, prefix="big", tenant="big", overdue=86400)
    small = due(engine, clock, 10, prefix="small", tenant="small")

    report = tight.sweep()

    assert report.published == len(rung) == BOUND
    assert rung_of(rung[:BATCH], "small") == small
    assert rung_of(rung, "big") == big[: BOUND - len(small)]


def test_what_one_tenant_does_not_use_is_for_the_others(
    tight: Reaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """The work goes on at full speed, each tenant's most overdue first."""
    backlogs = {
        tenant: due(engine, clock, count, prefix=tenant, tenant=tenant)
        for tenant, count in (("big", 1000), ("other", 30), ("third", 1))
    }

    report = tight.sweep()

    assert report.published == BOUND
    for tenant, backlog in backlogs.items():
        mine = rung_of(rung, tenant)
        assert mine == backlog[: len(mine)]
    assert Counter(name.partition("-")[0] for name, _ in rung[:BATCH]) == {
        "big": 20,
        "other": 19,
        "third": 1,
    }
    assert len(rung_of(rung, "other")) == 30


@pytest.mark.parametrize("room", [1, 7, 30])
def test_more_tenants_than_room_take_turns(
    *, make_reaper: MakeReaper, engine: Engine, clock: FrozenClock, rung: Rung, room: int
) -> None:
    """After each sweep none of thirty has had two more than another one, whatever their names."""
    reaper = make_reaper(in_flight=room)
    tenants = [f"t{number}" for number in range(30)]
    for number, tenant in enumerate(tenants):
        due(engine, clock, 3, prefix=tenant, tenant=tenant, overdue=3600.0 * (number % 7))
    had: Counter[str] = Counter()

    while had.total() < 60:
        reaper.sweep()
        assert 0 < len(rung) <= room
        had.update(name.partition("-")[0] for name, _ in rung)
        turns = [had[tenant] for tenant in tenants]
        assert max(turns) - min(turns) <= 1
        tear_down(reaper, rung)


def test_batches_of_one_sweep_take_turns_as_well(
    make_reaper: MakeReaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """What the second batch publishes is behind what the first one has."""
    reaper = make_reaper(in_flight=20, batch=10)
    for number in range(30):
        due(engine, clock, 3, prefix=f"t{number}", tenant=f"t{number}")

    reaper.sweep()

    assert len(rung) == len({name.partition("-")[0] for name, _ in rung}) == 20


def test_more_tenants_take_turns_where_there_is_room(
    *,
    make_reaper: MakeReaper,
    engine: Engine,
    clock: FrozenClock,
    rung: Rung,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where one statement cannot ask them all: nobody twice, and nobody left out."""
    monkeypatch.setattr("core.store.publications.AT_ONCE", 4)
    reaper = make_reaper()
    for number in range(10):
        due(engine, clock, 2, prefix=f"t{number}", tenant=f"t{number}")

    report = reaper.sweep()

    assert report.published == 20
    assert len(set(rung)) == 20


def test_no_more_is_in_flight_than_the_bound(
    tight: Reaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """The broker's queue is first come, first served: it is kept short, and filled up again."""
    due(engine, clock, 1000)
    tight.sweep()
    assert len(rung) == BOUND
    first, second, *_ = rung
    rung.clear()

    assert tight.sweep().published == 0
    assert tight.store.teardowns.claim(*first, "w") is not None  # claimed is in flight too
    assert tight.sweep().published == 0
    tight.teardown(*second, worker="w")
    report = tight.sweep()

    assert report.published == len(rung) == 1
    assert second not in rung


def test_messages_that_were_lost_leave_their_room(
    tight: Reaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """L1: the broker lost all of them; after the lease they are published again."""
    due(engine, clock, BOUND)
    tight.sweep()
    lost = list(rung)
    rung.clear()
    clock.advance(tight.policy.publish_lease)

    report = tight.sweep()

    assert report.published == BOUND
    assert sorted(rung) == sorted(lost)


def test_what_pauses_after_a_failure_takes_no_room(
    tight: Reaper, engine: Engine, clock: FrozenClock, provider: FakeCloud, rung: Rung
) -> None:
    """It is in no queue, and nobody works on it."""
    due(engine, clock, 2 * BOUND)
    tight.sweep()
    pair, *_ = rung
    rung.clear()
    provider.fail("destroy", Unavailable("503"))
    assert tight.teardown(*pair, worker="w").outcome is TeardownOutcome.RETRY

    assert tight.sweep().published == 1


def test_what_is_in_quarantine_takes_no_room(
    make_reaper: MakeReaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """F14: it is published a batch a sweep, and many of it would fill a small bound for ever."""
    reaper = make_reaper(provider_concurrency=3)
    due(engine, clock, 10, prefix="failing", quarantined=True)
    ids = due(engine, clock, 5)
    reaper.sweep()
    first, second, third, *failing = rung

    reaper.follow_up(reaper.teardown(*first, worker="w"))

    assert [name for name, _ in (first, second, third, rung[-1])] == ids[:4]
    assert {name for name, _ in failing[:10]} == set(rung_of(rung, "failing"))


def test_each_provider_has_a_bound_of_its_own(
    tight: Reaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """F14: one that hangs, with all of its bound in flight, takes nothing from another."""
    due(engine, clock, 500, prefix="hung", provider="hung", overdue=86400)
    tight.sweep()
    assert len(rung_of(rung, "hung")) == BOUND
    rung.clear()
    others = due(engine, clock, 10, prefix="other")

    report = tight.sweep()

    assert report.published == 10
    assert rung_of(rung, "other") == others


def test_who_is_done_makes_room_for_more(
    tight: Reaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """A backlog of many bounds is done without another sweep."""
    ids = due(engine, clock, 5 * BOUND + 7)
    tight.sweep()
    seen: list[str] = []

    while rung:
        pair = rung.pop(0)
        seen.append(pair[0])
        tight.follow_up(tight.teardown(*pair, worker="w"))
        assert len(rung) <= BOUND

    assert seen == ids
    with engine.connect() as connection:
        left = select(func.count()).select_from(sandboxes).where(sandboxes.c.state == "closing")
        assert connection.execute(left).scalar_one() == 0


def test_what_failed_makes_no_room(
    tight: Reaper, engine: Engine, clock: FrozenClock, provider: FakeCloud, rung: Rung
) -> None:
    """It would call for more that fails, as fast as workers can: that is for the sweep."""
    due(engine, clock, 2 * BOUND)
    tight.sweep()
    pair, *_ = rung
    rung.clear()
    provider.fail("destroy", Unavailable("503"))

    assert tight.follow_up(tight.teardown(*pair, worker="w")) == 0
    assert tight.follow_up(tight.teardown("nobody", 1, worker="w")) == 0
    assert rung == []


@pytest.mark.parametrize(("spread", "published"), [(0.0, 1), (0.19, 1), (0.2, 0), (0.99, 0)])
def test_a_share_of_the_attempts_rings_for_all_of_them(
    *,
    make_reaper: MakeReaper,
    engine: Engine,
    clock: FrozenClock,
    rung: Rung,
    spread: float,
    published: int,
) -> None:
    """Twenty times in a bound, so that following up costs next to nothing."""
    reaper = make_reaper(spread)
    due(engine, clock, 2 * BOUND)
    reaper.sweep()

    assert reaper.follow_up(reaper.teardown(*rung[0], worker="w")) == published


def test_what_cannot_be_called_anyway_is_not_published(
    make_reaper: MakeReaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """With a bound on calls, that many; and each that is done makes room for the next one."""
    reaper = make_reaper(0.99, provider_concurrency=3)
    ids = due(engine, clock, 10)

    reaper.sweep()
    assert [name for name, _ in rung] == ids[:3]
    reaper.follow_up(reaper.teardown(*rung[0], worker="w"))

    assert [name for name, _ in rung] == ids[:4]


def test_a_session_s_sandbox_is_of_its_tenant(keeper: Keeper, engine: Engine) -> None:
    """In every generation."""
    for _ in range(2):
        keeper.open("conv", tenant="acme")
        keeper.end("conv")

    with engine.connect() as connection:
        assert connection.execute(select(sandboxes.c.tenant)).all() == [("acme",), ("acme",)]


def test_a_backlog_that_fits_writes_nothing_else(
    tight: Reaper, engine: Engine, clock: FrozenClock
) -> None:
    """Whose turn it is only matters where not everybody has one."""
    for number in range(5):
        due(engine, clock, 3, prefix=f"t{number}", tenant=f"t{number}")

    tight.sweep()

    with engine.connect() as connection:
        assert connection.execute(select(providers)).all() == []


def test_a_newcomer_waits_no_longer_than_its_share(
    *, make_reaper: MakeReaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """
    By a clock: workers do ten a second, sweeps are a minute apart, and 5,000 wait when a tenant
    ends ten. They are gone when the bound that was in flight is, and its own share.
    """
    reaper = make_reaper(batch=500)
    due(engine, clock, 5000, prefix="big", tenant="big", overdue=3600)
    reaper.sweep()
    for _ in range(50):
        reaper.follow_up(reaper.teardown(*rung.pop(0), worker="w"))
        clock.advance(0.1)
    small = set(due(engine, clock, 10, prefix="small", tenant="small"))
    began = clock.now

    while small:
        pair = rung.pop(0)
        reaper.follow_up(reaper.teardown(*pair, worker="w"))
        small.discard(pair[0])
        clock.advance(0.1)

    assert (clock.now - began).total_seconds() <= (BOUND + 2 * 10 + 10) * 0.1


def test_a_tenant_from_before_is_in_the_default_one_s_share(
    tight: Reaper, engine: Engine, clock: FrozenClock, rung: Rung
) -> None:
    """A version that knows of no tenants on sandboxes writes the column's default."""
    (name,) = due(engine, clock, 1, tenant="acme")
    with engine.begin() as connection:
        connection.execute(update(sandboxes).values(tenant="default"))

    tight.sweep()

    assert rung == [(name, 1)]
    assert sandbox_row(engine, name).tenant == "default"
