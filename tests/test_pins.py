"""Pins: kept until their date or until they are lifted, and no promise is broken for them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from core.errors import InvalidArgument, SessionEnded, SessionNotFound
from core.lifecycle import Keeper
from core.model import SessionStatus
from core.reaper import Reaper
from core.store import Store
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock

IDLE = 60.0


def lives(reaper: Reaper, keeper: Keeper, clock: FrozenClock, seconds: float) -> bool:
    """Whether a session lives through so many seconds of sweeps, without activity."""
    end = clock.now + timedelta(seconds=seconds)
    while clock.now < end:
        clock.advance(60)
        reaper.sweep()
    return keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_pin_is_kept_to_the_second(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """S1: an acknowledged pin is never reaped before its date, and is after it."""
    keeper.open("conv", idle_ttl=IDLE)
    granted = keeper.pin("conv", timedelta(hours=1), reason="debugging").pinned_until

    lived = lives(reaper, keeper, clock, 3600)

    assert granted == clock.now
    assert lived
    assert not lives(reaper, keeper, clock, 200)


def test_a_pin_takes_back_a_notice(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """S1: granted in the last second before the end, it still holds."""
    keeper.open("conv", idle_ttl=IDLE)
    clock.advance(IDLE)
    reaper.sweep()
    noticed = keeper.get("conv").noticed_at

    pinned = keeper.pin("conv", 600, reason="debugging")

    assert noticed is not None
    assert pinned.noticed_at is None
    assert lives(reaper, keeper, clock, 600)


def test_who_made_it_and_why_is_kept(keeper: Keeper, store: Store) -> None:
    """On the session for everybody to see, and in the ledger with who acted."""
    keeper.open("conv")

    pinned = keeper.acting_as("operator bob").pin("conv", 60, reason="the parser", owner="ada")
    keeper.acting_as("operator bob").unpin("conv")

    made, lifted = store.history.of_session("conv")[-2:]
    assert (pinned.pinned_by, pinned.pin_reason) == ("ada", "the parser")
    assert (made.kind, made.actor, made.detail["owner"]) == (
        "session_pinned",
        "operator bob",
        "ada",
    )
    assert (lifted.kind, lifted.actor) == ("session_unpinned", "operator bob")


def test_a_pin_that_is_lifted_keeps_nobody(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1: the next sweep looks at what is left, and the session goes as every idle one does."""
    keeper.open("conv", idle_ttl=IDLE)
    keeper.pin("conv", 86400, reason="debugging")
    assert lives(reaper, keeper, clock, 600)

    lifted = keeper.unpin("conv")

    assert (lifted.pinned_until, lifted.pinned_by, lifted.pin_reason) == (None, None, None)
    assert reaper.sweep().noticed == 1
    clock.advance(keeper.policy.confirm_interval)
    assert reaper.sweep().ended == 1


def test_lifting_a_pin_takes_no_extension_back(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: the extension was acknowledged to somebody else."""
    keeper.open("conv", idle_ttl=IDLE)
    keeper.extend("conv", 3600)
    keeper.pin("conv", 86400, reason="debugging")

    keeper.unpin("conv")

    assert lives(reaper, keeper, clock, 3600)


def test_lifting_what_is_not_pinned_changes_nothing(keeper: Keeper, store: Store) -> None:
    """Said twice, or of an ended session; an unknown one is refused."""
    keeper.open("conv")
    before = keeper.get("conv")

    keeper.unpin("conv")
    after = keeper.get("conv")
    keeper.end("conv")
    keeper.unpin("conv")

    assert after == before
    assert [line.kind for line in store.history.of_session("conv")][-1] == "session_ended"
    with pytest.raises(SessionNotFound):
        keeper.unpin("nobody")


def test_a_second_pin_never_shortens_the_first(keeper: Keeper, clock: FrozenClock) -> None:
    """S1: the first was acknowledged; the second has its say about who and why."""
    keeper.open("conv")
    keeper.pin("conv", 5000, reason="first", owner="ada")

    pinned = keeper.pin("conv", 10, reason="second", owner="bob")

    assert pinned.pinned_until == clock.now + timedelta(seconds=5000)
    assert (pinned.pinned_by, pinned.pin_reason) == ("bob", "second")


def test_a_pin_ends_with_the_max_age(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """F5: what was granted is said, and the ceiling always holds."""
    keeper.open("conv", max_age=1000)

    pinned = keeper.pin("conv", 5000, reason="debugging")

    assert pinned.pinned_until == clock.now + timedelta(seconds=1000)
    assert not lives(reaper, keeper, clock, 1200)


def test_a_pinned_session_is_ended_by_end(keeper: Keeper) -> None:
    """A pin is against idleness, and nothing else."""
    keeper.open("conv")
    keeper.pin("conv", 5000, reason="debugging")

    assert keeper.end("conv", reason="too dear").status is SessionStatus.ENDED


def test_a_pinned_session_is_lost_when_its_sandbox_is(keeper: Keeper) -> None:
    """What the provider does not have is not kept by a pin."""
    session = keeper.open("conv")
    keeper.pin("conv", 5000, reason="debugging")

    lost = keeper.store.inventory.lost("conv", session.sandbox.key)

    assert lost
    assert keeper.get("conv").end_reason == "lost"


def test_a_pin_ends_with_its_generation(keeper: Keeper) -> None:
    """F17: the next sandbox is another one."""
    keeper.open("conv")
    keeper.pin("conv", 5000, reason="debugging")
    keeper.end("conv")

    session = keeper.open("conv")

    assert (session.pinned_until, session.pinned_by, session.pin_reason) == (None, None, None)


def test_a_pin_lasts_as_long_as_it_was_asked_for_whatever_the_clock_does(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1, F27: asked for while the clock was two hours ahead, and over ten minutes later."""
    keeper.open("conv", idle_ttl=IDLE)
    clock.advance(7200)
    keeper.store.pins.pin("conv", 600, owner="ada", reason="debugging", actor="somebody")
    clock.advance(-7200)

    lived = lives(reaper, keeper, clock, 600)

    assert lived
    assert not lives(reaper, keeper, clock, 300)


def test_the_provider_is_asked_to_let_it_live_as_long(
    keeper: Keeper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S1: before the caller has our word, as for an extension."""
    keeper.open("conv")

    keeper.pin("conv", 86400, reason="debugging")

    (box,) = provider.boxes.values()
    assert box.expires_at is not None
    assert box.expires_at > clock.now + timedelta(seconds=86400)


def test_a_pin_is_refused_by_type(keeper: Keeper, clock: FrozenClock) -> None:
    """S1: what is over is never acknowledged."""
    keeper.open("ended")
    keeper.end("ended", reason="user left")
    keeper.open("old", max_age=10)
    clock.advance(10)

    with pytest.raises(SessionEnded, match="user left"):
        keeper.pin("ended", 10, reason="debugging")
    with pytest.raises(SessionEnded, match="max_age"):
        keeper.pin("old", 10, reason="debugging")
    with pytest.raises(SessionNotFound):
        keeper.pin("nobody", 10, reason="debugging")


@pytest.mark.parametrize(
    ("for_", "reason", "owner", "said"),
    [
        (0, "debugging", "ada", "for 0"),
        (-1, "debugging", "ada", "for -1"),
        (float("inf"), "debugging", "ada", "for inf"),
        (None, "debugging", "ada", "for None"),
        (policy().longest_pin + 1, "debugging", "ada", "LONGEST_PIN"),
        (60, "", "ada", "reason ''"),
        (60, "two\nlines", "ada", "reason"),
        (60, "debugging", "", "owner ''"),
    ],
)
def test_a_pin_that_makes_no_sense_is_refused(
    keeper: Keeper, for_: Any, reason: str, owner: str, said: str
) -> None:
    """Without a date, a reason or an owner there is no pin, nor one for ever."""
    keeper.open("conv")

    with pytest.raises(InvalidArgument, match=said):
        keeper.pin("conv", for_, reason=reason, owner=owner)

    assert keeper.get("conv").pinned_until is None
