"""How many live sandboxes a tenant may have, whoever opens; and nobody in use is taken for it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event

from core.engines import make_engine
from core.errors import TenantFull
from core.host import Host
from core.layers import Layer, Scope, WhenFull
from core.lifecycle import Keeper
from core.model import SandboxState, SessionStatus
from core.store import Store
from core.store.guard import HoldReason
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock, Idle

EVERYBODY = Scope(layer=Layer.INSTALLATION)
ACME = Scope(layer=Layer.TENANT, name="acme")
EVICT = WhenFull.EVICT.value


def give(store: Store, scope: Scope = ACME, **values: Any) -> None:
    """Set a quota as an operator does."""
    store.policies.set(scope, values, actor="operator ada")


def fill(keeper: Keeper, clock: FrozenClock, *names: str, tenant: str = "acme") -> None:
    """Open these, a second apart: the first is idle for longest."""
    for name in names:
        keeper.open(name, tenant=tenant)
        clock.advance(1)


def active(keeper: Keeper, *names: str) -> list[str]:
    """Those that were not ended."""
    return [name for name in names if keeper.get(name).status is SessionStatus.ACTIVE]


def test_a_full_tenant_is_refused(keeper: Keeper, store: Store) -> None:
    """With what to do; nothing is left behind, and other tenants go on."""
    give(store, max_live=2)
    keeper.open("a", tenant="acme")
    keeper.open("b", tenant="acme")

    with pytest.raises(TenantFull, match=r"'acme' has 2 live sandboxes and may have 2: end\(\)"):
        keeper.open("c", tenant="acme")

    lines = store.history.lines(status=None, after="", limit=10)
    assert [line.id for line in lines] == ["a", "b"]
    assert keeper.open("d", tenant="other").generation == 1
    assert keeper.open("a", tenant="acme").generation == 1  # it has its place


def test_room_is_made_by_an_end(keeper: Keeper, store: Store) -> None:
    """What is being torn down is no live sandbox; who reopens needs a place as well."""
    give(store, max_live=1)
    keeper.open("a", tenant="acme")
    keeper.end("a")

    keeper.open("b", tenant="acme")

    with pytest.raises(TenantFull):
        keeper.open("a", tenant="acme")
    assert keeper.get("a").generation == 1


def test_a_quota_of_the_installation_is_each_tenants(keeper: Keeper, store: Store) -> None:
    """The tenant's own is above it, field by field."""
    give(store, EVERYBODY, max_live=1, when_full=EVICT)
    give(store, ACME, max_live=2)

    keeper.open("a", tenant="acme")
    keeper.open("b", tenant="acme")
    keeper.open("c", tenant="acme")
    keeper.open("x", tenant="other")
    keeper.open("y", tenant="other")

    assert len(active(keeper, "a", "b", "c")) == 2
    assert len(active(keeper, "x", "y")) == 1


def test_the_one_that_was_idle_for_longest_makes_room(
    keeper: Keeper, store: Store, clock: FrozenClock, rung: list[tuple[str, int]]
) -> None:
    """By the ordinary end: its sandbox closes, the ledger says why, its teardown is rung for."""
    give(store, max_live=2, when_full=EVICT)
    fill(keeper, clock, "a", "b")
    keeper.touch("a")

    keeper.open("c", tenant="acme")

    gone = keeper.get("b")
    assert active(keeper, "a", "b", "c") == ["a", "c"]
    assert (gone.end_reason, gone.sandbox.state) == ("evicted", SandboxState.CLOSING)
    assert rung == [("b", 1)]
    line = store.history.of_session("b")[-1]
    assert (line.kind, line.detail) == ("session_ended", {"reason": "evicted"})
    assert "its tenant was full" in (keeper.explain("b").taken or "")


@pytest.mark.parametrize("kept", ["turn", "extension", "pin", "hold"])
def test_nobody_who_is_kept_is_evicted(
    keeper: Keeper, store: Store, clock: FrozenClock, kept: str
) -> None:
    """S1: not one with an open turn, an extension or a pin; and none while anything is held."""
    give(store, max_live=1, when_full=EVICT)
    fill(keeper, clock, "a")
    if kept == "turn":
        store.turns.begin("turn-1", "a", "holder")
    elif kept == "extension":
        keeper.extend("a", 600)
    elif kept == "pin":
        keeper.pin("a", 600, reason="debugging")
    else:
        store.guard.hold(HoldReason.OPERATOR, {"why": "look"}, actor="ada")

    with pytest.raises(TenantFull):
        keeper.open("b", tenant="acme")

    assert active(keeper, "a") == ["a"]


def test_a_lowered_quota_is_come_down_to_step_by_step(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """No change of a number is a mass end: each open ends one more than it needs."""
    names = [f"conv-{number}" for number in range(6)]
    fill(keeper, clock, *names)
    give(store, max_live=2, when_full=EVICT)

    left = []
    for number in range(5):
        keeper.open(f"new-{number}", tenant="acme")
        clock.advance(1)
        opened = [f"new-{each}" for each in range(number + 1)]
        left.append(len(active(keeper, *names, *opened)))

    assert left == [5, 4, 3, 2, 2]


@pytest.mark.parametrize("how", ["turn", "touch"])
def test_who_comes_back_while_he_is_chosen_is_not_taken(postgresql_url: str, how: str) -> None:
    """S1: between the look of a statement and its lock; the one that is idle now makes room."""
    engine, slow = make_engine(postgresql_url), make_engine(postgresql_url)
    store, other = Store(engine, policy=policy()), Store(slow, policy=policy())
    keeper = Keeper(store, FakeCloud(), host=Host(loop=Idle))
    for name in ("a", "b"):
        keeper.open(name, tenant="acme")
    give(store, max_live=2, when_full=EVICT)
    looked = threading.Event()

    @event.listens_for(slow, "before_cursor_execute", retval=True)
    def hold_up(*call: Any) -> tuple[str, Any]:
        """The first choice has its snapshot, and takes its locks a while later."""
        statement, parameters = call[2], call[3]
        if "SKIP LOCKED" in statement and not looked.is_set():
            looked.set()
            held = "WHERE (SELECT pg_sleep(1)) IS NOT NULL AND "
            statement = statement.replace("WHERE ", held, 1)
        return statement, parameters

    opener = Keeper(other, keeper.provider, host=Host(loop=Idle))
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(opener.open, "c", tenant="acme")
        assert looked.wait(10)
        time.sleep(0.3)  # its snapshot is taken by then
        if how == "turn":
            store.turns.begin("turn-1", "a", "holder")
        else:
            keeper.touch("a")
        opening.result(10)

    assert active(keeper, "a", "b", "c") == ["a", "c"]
    for each in (engine, slow):
        each.dispose()


def test_who_cannot_make_enough_room_ends_nobody(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """The refusal takes the eviction back."""
    fill(keeper, clock, "a", "b")
    store.turns.begin("turn-1", "b", "holder")
    give(store, max_live=1, when_full=EVICT)

    with pytest.raises(TenantFull):
        keeper.open("c", tenant="acme")

    assert active(keeper, "a", "b") == ["a", "b"]


@pytest.mark.parametrize("when_full", list(WhenFull))
def test_two_servers_that_open_at_once_keep_the_quota(
    engine: Engine, database_url: str, when_full: WhenFull
) -> None:
    """Real threads on real connections: the tenant never has one too many."""
    other = make_engine(database_url)
    cloud = FakeCloud()
    stores = [Store(each, policy=policy()) for each in (engine, other)]
    keepers = [Keeper(store, cloud) for store in stores]
    give(stores[0], max_live=3, when_full=when_full.value)
    outcomes: Counter[str] = Counter()
    most: list[int] = []
    start = threading.Barrier(8)

    def open_some(number: int) -> None:
        keeper = keepers[number % 2]
        start.wait()
        for turn in range(5):
            try:
                keeper.open(f"conv-{number}-{turn}", tenant="acme")
                outcomes["opened"] += 1
            except TenantFull:
                outcomes["refused"] += 1
            except Exception as error:  # noqa: BLE001 - evicted while it was made, or worse
                outcomes[type(error).__name__] += 1
            lines = stores[0].history.lines(status="active", after="", limit=100)
            most.append(len(lines))

    threads = [threading.Thread(target=open_some, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for keeper in keepers:
        keeper.close()
    other.dispose()

    assert max(most) <= 3
    assert set(outcomes) <= {"opened", "refused"}
    assert outcomes["opened"] >= 3
    if when_full is WhenFull.REFUSE:
        assert outcomes == {"opened": 3, "refused": 37}
