"""The fleet at one look, and which sessions match: the same numbers on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from core.lifecycle import Keeper
from core.model import SandboxState, SessionStatus
from core.reaper import Reaper
from core.store import Store, overdue, selection, standing
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

    of, every = store.standings.of_tenant("other"), store.standings.of_all()

    assert (of.active, of.running, of.closing, of.creating, of.quarantined) == (1, 1, 1, 0, 0)
    assert (every.active, every.running, every.closing, every.orphans) == (2, 2, 1, 0)
    assert of.orphans is None
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
    none = store.overdue.waiting()

    clock.advance(61)
    found = store.overdue.waiting()

    assert (none.sessions, none.closing) == (0, 1)
    assert (found.sessions, found.creating, found.closing, found.untried) == (1, 0, 1, 1)
    assert found.total == 2
    assert {one.id for one in store.selection.page(Wish(overdue=True), limit=9).matches} == {
        "idle",
        "over",
    }


def test_a_teardown_that_is_tried_again_and_again_waits_too_long(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """Each attempt puts its next date off: what counts is since when it is closing."""
    for name in ("stuck", "lately"):
        keeper.open(name)
    keeper.end("stuck")
    waits: list[int] = []
    longest = store.policy.late_after + store.policy.claim_ttl
    while clock() < FrozenClock().now + timedelta(seconds=longest + 60):
        claim = store.teardowns.claim("stuck", 1, "w")
        assert claim is not None
        store.teardowns.release(claim, "Unavailable: 503", 20, actor="w")
        waits.append(store.overdue.waiting().total)
        clock.advance(20)
    keeper.end("lately")

    found = store.overdue.waiting()

    assert waits[0] == 0
    assert waits[-1] == 1
    assert (found.sessions, found.creating, found.closing, found.untried) == (0, 0, 1, 0)
    assert found.worst is not None
    assert (found.worst.session_id, found.worst.last_error) == ("stuck", "Unavailable: 503")
    assert found.worst.seconds >= longest
    matches = store.selection.page(Wish(overdue=True), limit=9).matches
    assert [one.id for one in matches] == ["stuck"]
    assert store.selection.count(Wish(overdue=True)) == (1, False)


def test_what_is_beyond_counting_is_told_by_statistics(
    keeper: Keeper, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL roughly how many, on SQLite that there are more; never a row of each."""
    for number in range(12):
        keeper.open(f"s-{number}", tenant="acme")
    monkeypatch.setattr(standing, "MOST", 5)
    monkeypatch.setattr(standing, "MOST_OF_TENANT", 3)
    with store.database.move() as move:
        move.connection.execute(text("ANALYZE"))

    every, of = store.standings.of_all(), store.standings.of_tenant("acme")

    known = 12 if store.database.single_statement else 5
    assert (every.active, every.running, every.most) == (5, 5, 5)
    assert every.about == {"active": known, "running": known}
    assert (of.active, of.running, of.most, of.about) == (3, 3, 3, {})


@pytest.mark.parametrize("few", [2000, 2])
def test_what_is_overdue_is_found_at_once(
    keeper: Keeper,
    store: Store,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
    few: int,
) -> None:
    """The one among many is on the first page, whatever its id; many are found either way."""
    monkeypatch.setattr(selection, "STRETCH", 2)
    monkeypatch.setattr(selection, "STEPS", 2)
    for number in range(20):
        keeper.open(f"s-{number:02}", tenant="acme", idle_ttl=9e6 if number != 18 else 60)
    keeper.open("s-19-over", idle_ttl=9e6)
    keeper.end("s-19-over")
    clock.advance(store.policy.late_after + 120)
    monkeypatch.setattr(overdue, "FEW", few)
    fresh = Store(store.database.engine, policy=store.policy, clock=lambda: clock.now)

    def ids(**wish: Any) -> list[str]:
        after: str | None = ""
        found: list[str] = []
        steps = 0
        while after is not None and steps < 99:
            part = fresh.selection.page(Wish(overdue=True, **wish), after=after, limit=9)
            found += [one.id for one in part.matches]
            after, steps = part.behind, steps + 1
            if few > 2:
                assert after is None
        return found

    assert ids() == ["s-18", "s-19-over"]
    assert ids(tenant="acme") == ["s-18"]
    assert ids(status=SessionStatus.ENDED) == ["s-19-over"]
    assert ids(state=SandboxState.CLOSING) == ["s-19-over"]
    assert ids(prefix="s-19") == ["s-19-over"]
    assert fresh.selection.count(Wish(overdue=True), steps=99) == (2, False)


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
