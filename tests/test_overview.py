"""The fleet at one look, and which sessions match: the same numbers on both databases."""

from __future__ import annotations

import pytest

from core.lifecycle import Keeper
from core.model import SandboxState, SessionStatus
from core.reaper import Reaper
from core.store import Store, selection
from core.store.overview import IDLE, MINUTES
from core.store.selection import Wish
from tests.fakes import FrozenClock


def test_the_forecast_says_when_who_stays_idle_ends(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """By the minute, what is over in the first; what is extended ends later."""
    keeper.open("over", idle_ttl=100)
    keeper.open("soon", idle_ttl=1000)
    keeper.open("kept", idle_ttl=1000)
    keeper.open("aged", idle_ttl=9000, max_age=1300)
    clock.advance(400)
    keeper.extend("kept", 900)
    keeper.open("ended")
    keeper.end("ended")

    found = store.overview.forecast(4)

    assert {minute: n for minute, n in enumerate(found.ends) if n} == {0: 1, 10: 1, 15: 2}
    assert len(found.ends) == MINUTES
    assert [n for n in found.idle if n] == [4]
    assert found.idle[IDLE.index(900.0)] == 4
    assert found.sampled is None


def test_one_tenant_s_fleet_has_nothing_of_another_s(keeper: Keeper, store: Store) -> None:
    """Counts, turns and the forecast."""
    for name, tenant in (("a", "acme"), ("b", "other"), ("c", "other")):
        keeper.open(name, tenant=tenant)
        keeper.remote.begin(name, holder="h")
    keeper.end("c")

    of = store.overview.of_tenant("other")

    assert (of.running, of.closing, of.creating, of.quarantined) == (1, 1, 0, 0)
    assert store.overview.in_turn("other") == 1
    assert store.overview.in_turn() == 2
    assert sum(store.overview.forecast(1, "other").idle) == 1


def test_what_waits_is_what_no_sweep_in_time_left(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """Due for longer than LATE_AFTER; a teardown that nobody has tried is told apart."""
    keeper.open("idle", idle_ttl=60)
    keeper.open("over")
    keeper.end("over")
    clock.advance(store.policy.late_after)
    none = store.overview.waiting()

    clock.advance(61)
    found = store.overview.waiting()

    assert (none.sessions, none.closing) == (0, 1)
    assert (found.sessions, found.creating, found.closing, found.untried) == (1, 0, 1, 1)
    assert found.total == 2
    assert {one.id for one in store.selection.page(Wish(overdue=True), limit=9).matches} == {
        "idle",
        "over",
    }


def test_what_is_far_apart_is_found_in_several_steps(
    keeper: Keeper, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that has looked far enough says where it came to; going on from there finds all."""
    monkeypatch.setattr(selection, "STRETCH", 2)
    for number in range(30):
        keeper.open(f"s-{number:02}", tenant="rare" if number in {3, 17, 29} else "usual")
        if number % 10 == 9:
            keeper.end(f"s-{number:02}")
    wishes = {
        "prefix": Wish(prefix="s-2"),
        "running": Wish(state=SandboxState.RUNNING),
        "closing": Wish(state=SandboxState.CLOSING),
        "ended": Wish(status=SessionStatus.ENDED),
        "rare": Wish(tenant="rare", state=SandboxState.RUNNING),
    }

    found = {}
    for name, wish in wishes.items():
        after: str | None = ""
        ids: list[str] = []
        while after is not None:
            part = store.selection.page(wish, after=after, limit=4)
            ids += [one.id for one in part.matches]
            after = part.behind
        found[name] = ids

    everybody = [f"s-{number:02}" for number in range(30)]
    over = ["s-09", "s-19", "s-29"]
    assert found["prefix"] == everybody[20:]
    assert found["running"] == [name for name in everybody if name not in over]
    assert (found["closing"], found["ended"], found["rare"]) == (over, over, ["s-03", "s-17"])
    assert store.selection.count(Wish(prefix="s-2"), steps=100) == (10, False)
    assert store.selection.count(Wish(idle=0.0), steps=2) == (4, True)
