"""Maintenance windows: idleness ends nobody in one, and everybody after it."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from core.errors import InvalidArgument
from core.lifecycle import Keeper
from core.model import SessionStatus
from core.reaper import Reaper
from core.store import Store
from tests.factories import policy
from tests.fakes import FrozenClock

HOUR = timedelta(hours=1)
ADA = "operator ada"


def add(store: Store, clock: FrozenClock, *, begins: float = 0.0, hours: float = 2.0) -> datetime:
    """A window that begins so many hours from now; gives its end."""
    from_at = clock.now + begins * HOUR
    until = from_at + hours * HOUR
    store.windows.add("upgrade", from_at, until, reason="a new cluster", actor=ADA)
    return until


def spend(reaper: Reaper, clock: FrozenClock, until: datetime) -> None:
    """Time until then, with a sweep every minute."""
    while clock.now < until:
        clock.advance(60)
        reaper.sweep()


def test_idleness_ends_nobody_in_a_window(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """What fell due in it is ended after it, and it says so meanwhile."""
    keeper.open("conv")
    until = add(store, clock)

    spend(reaper, clock, until - timedelta(minutes=1))
    in_window = keeper.get("conv")
    explained = keeper.explain("conv")
    spend(reaper, clock, until + timedelta(minutes=2))

    assert in_window.status is SessionStatus.ACTIVE
    assert keeper.get("conv").end_reason == "idle"
    (point,) = [point for point in explained.obstacles if point.kind == "window"]
    assert (point.until, point.values["window"]) == (until, "upgrade")
    assert "maintenance window upgrade is open" in (explained.not_reaped or "")
    assert "but not before the maintenance window is over" in explained.next[-1].sentence


def test_max_age_and_an_explicit_end_still_act(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """A window is against idleness alone."""
    keeper.open("old", max_age=300)
    keeper.open("unwanted")
    until = add(store, clock)

    keeper.end("unwanted")
    spend(reaper, clock, until - HOUR)

    assert keeper.get("old").end_reason == "max_age"
    assert keeper.get("unwanted").status is SessionStatus.ENDED


def test_a_window_that_is_to_come_holds_nobody(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """Nor does one that is over."""
    keeper.open("conv")
    add(store, clock, begins=5)

    spend(reaper, clock, clock.now + HOUR)

    assert keeper.get("conv").end_reason == "idle"


def test_what_waits_in_a_window_is_no_mass_end(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """The breaker asks about what a sweep would end, and in a window it would not."""
    for number in range(policy().breaker_min + 1):
        keeper.open(f"conv-{number}")
    until = add(store, clock)

    spend(reaper, clock, until - timedelta(minutes=1))
    in_window = store.guard.holds()
    spend(reaper, clock, until + timedelta(minutes=1))

    assert in_window == []
    assert [hold.reason for hold in store.guard.holds()] == ["mass_end"]


def test_a_window_that_ends_in_a_sweep_is_open_until_its_end(
    keeper: Keeper,
    store: Store,
    reaper: Reaper,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its breaker counted nobody; that of the next one does."""
    for number in range(policy().breaker_min + 1):
        keeper.open(f"conv-{number}")
    until = add(store, clock)
    spend(reaper, clock, until - timedelta(seconds=121))
    clock.now = until - timedelta(seconds=0.5)
    mass_end = store.sweeps.mass_end

    def counted() -> dict[str, int] | None:
        found = mass_end()
        clock.advance(1)
        return found

    with monkeypatch.context() as slow:
        slow.setattr(store.sweeps, "mass_end", counted)
        report = reaper.sweep()
    clock.advance(60)
    reaper.sweep()

    assert report.ended == 0
    assert [hold.reason for hold in store.guard.holds()] == ["mass_end"]


def test_a_window_that_is_taken_away_holds_nobody(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """The next sweeps end what fell due in it."""
    keeper.open("conv")
    add(store, clock)
    spend(reaper, clock, clock.now + HOUR)
    was = store.watch.pulse().window

    removed = store.windows.remove("upgrade", actor=ADA)
    spend(reaper, clock, clock.now + timedelta(minutes=2))

    assert (was, removed.open, store.watch.pulse().window) == ("upgrade", True, None)
    assert keeper.get("conv").end_reason == "idle"
    assert store.windows.all() == []


def test_one_of_the_same_name_takes_its_place(store: Store, clock: FrozenClock) -> None:
    """So that adding it again is safe."""
    add(store, clock)
    until = add(store, clock, hours=3)

    (window,) = store.windows.all()

    assert (window.until_at, window.made_by, window.open) == (until, ADA, True)


@pytest.mark.parametrize(
    ("begins", "hours", "said"),
    [
        (0, 0, "must be after from"),
        (0, -1, "must be after from"),
        (0, 24 * 8, "at most 604800 seconds long"),
        (-5, 2, "is over already"),
    ],
)
def test_a_span_that_makes_no_sense_is_refused(
    store: Store, clock: FrozenClock, begins: float, hours: float, said: str
) -> None:
    """With what was given and what would be right."""
    with pytest.raises(InvalidArgument, match=said):
        add(store, clock, begins=begins, hours=hours)
    assert store.windows.all() == []


def test_a_moment_needs_a_zone_and_a_window_a_name(store: Store, clock: FrozenClock) -> None:
    """Nobody knows what six o'clock is."""
    later = clock.now + HOUR
    naive = clock.now.replace(tzinfo=None)
    with pytest.raises(InvalidArgument, match="give the zone as well"):
        store.windows.add("upgrade", naive, later, reason="x", actor=ADA)
    with pytest.raises(InvalidArgument, match="window 'a b': use"):
        store.windows.add("a b", clock.now, later, reason="x", actor=ADA)
    with pytest.raises(InvalidArgument, match="no window 'upgrade'"):
        store.windows.remove("upgrade", actor=ADA)
