"""Why is it still there, and why was it taken: each case by the real moves, on both databases."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from sqlalchemy import Engine, update

from core.errors import AuthFailed, RateLimited, SessionEnded, SessionNotFound, Unavailable
from core.explain import Explanation, Point
from core.explain.said import moment, span
from core.layers import LIMITS
from core.lifecycle import Keeper
from core.reaper import Reaper, TeardownOutcome
from core.schema import events, installation, sessions
from core.store import Store, Wanted
from core.store.guard import HoldReason
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock

IDLE, CONFIRM = policy().idle_ttl, policy().confirm_interval


def kinds(points: tuple[Point, ...]) -> list[str]:
    """What is said, in order."""
    return [point.kind for point in points]


def one(points: tuple[Point, ...], kind: str) -> Point:
    """The one of this kind."""
    (found,) = (point for point in points if point.kind == kind)
    return found


def intend(store: Store, **own: float) -> None:
    """An open() whose process died before the provider was asked."""
    wanted = Wanted(
        session_id="conv",
        tenant="default",
        idle_ttl=IDLE,
        max_age=None,
        max_turn=60.0,
        metadata=None,
        provider="fake",
        scope="test-account",
        spec={},
        own=tuple(own),
    )
    store.openings.open(wanted, actor="api-1")


def notice(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """Open a session and let the sweep notice it."""
    keeper.open("conv")
    clock.advance(IDLE)
    assert reaper.sweep().noticed == 1


def closed(keeper: Keeper) -> None:
    """A session whose sandbox waits to be torn down."""
    keeper.open("conv")
    keeper.end("conv", reason="user left")


# The cases


def test_a_live_turn(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """Who holds it, since when, until when at most, and that the sweep finds it not over."""
    keeper.open("conv", max_turn=600)
    reaper.sweep()
    clock.advance(30)
    began = clock.now
    turn = keeper.store.turns.begin("turn-1", "conv", "api-1")
    clock.advance(60)

    found = keeper.explain("conv")

    (held,) = found.turns
    assert (found.state, held.holder, held.live) == ("in_turn", "api-1", True)
    assert (held.started_at, held.hard_until) == (began, turn.hard_until)
    assert "api-1 holds turn turn-1 since 2026-03-01 12:00:30 UTC (1 min ago)" in held.sentence
    assert (found.activity.source, found.activity.at) == ("begin", began)
    assert found.not_reaped is not None
    assert "it was active after that" in found.not_reaped
    assert found.taken is None


def test_a_heartbeat_is_not_told_from_a_touch(keeper: Keeper, clock: FrozenClock) -> None:
    """Neither leaves a line: the time is known, and that its source is not recorded is said."""
    keeper.open("conv")
    keeper.store.turns.begin("turn-1", "conv", "api-1")
    clock.advance(15)
    keeper.store.turns.beat(["turn-1"])

    beaten = keeper.explain("conv").activity
    keeper.open("other")
    clock.advance(15)
    keeper.touch("other")
    touched = keeper.explain("other").activity

    assert (beaten.source, touched.source) == (None, None)
    assert "a heartbeat of an open turn" in beaten.sentence
    assert "heartbeat" not in touched.sentence
    assert "which of them is not recorded" in touched.sentence


def test_a_turn_that_ended(keeper: Keeper, clock: FrozenClock) -> None:
    """The end of a turn is activity that the rows have; nobody holds it any more."""
    keeper.open("conv")
    with keeper.turn("conv", holder="api-1"):
        clock.advance(45)
    clock.advance(5)

    found = keeper.explain("conv")

    assert (found.activity.source, found.turns) == ("end", ())
    assert "of api-1 ended" in found.activity.sentence


def test_idle_but_not_due(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """What comes, in order and with its time: the notice, then the end."""
    keeper.open("conv", idle_ttl=600)
    opened = clock.now
    clock.advance(120)
    reaper.sweep()

    found = keeper.explain("conv")

    assert found.state == "active"
    assert [(step.kind, step.at) for step in found.next] == [
        ("notice", opened + timedelta(seconds=600)),
        ("end", opened + timedelta(seconds=600 + CONFIRM)),
    ]
    assert "(in 8 min)" in found.sentence
    assert found.not_reaped is not None
    assert "its last activity keeps it until 2026-03-01 12:10:00 UTC" in found.not_reaped
    assert found.activity.source == "open"


def test_due_and_active_since(keeper: Keeper, clock: FrozenClock) -> None:
    """A date that has come is no end: the next sweep finds it active, and looks again later."""
    keeper.open("conv")
    clock.advance(IDLE - 10)
    keeper.touch("conv")
    clock.advance(20)

    found = keeper.explain("conv")

    assert found.state == "active"
    assert kinds(found.next) == ["rearm", "notice", "end"]
    assert found.next[0].at == clock.now


def test_idle_and_not_noticed(keeper: Keeper, clock: FrozenClock) -> None:
    """Nothing is ended at first sight, and no sweep has seen it yet."""
    keeper.open("conv")
    clock.advance(IDLE + 5)

    found = keeper.explain("conv")

    assert (found.state, kinds(found.next)) == ("idle", ["notice", "end"])
    assert found.not_reaped == "No sweep ever ran."


def test_noticed_and_about_to_end(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """With the moment from which the sweep may end it, and why it has not yet."""
    notice(keeper, reaper, clock)
    clock.advance(20)

    found = keeper.explain("conv")

    assert (found.state, kinds(found.next)) == ("noticed", ["end"])
    assert found.next[0].at == clock.now + timedelta(seconds=CONFIRM - 20)
    assert found.not_reaped is not None
    assert "it was noticed 2026-03-01 12:30:00 UTC (20 s ago)" in found.not_reaped


def test_extended(keeper: Keeper, clock: FrozenClock) -> None:
    """Idle, and kept: until when, and that it is the extension that does it."""
    keeper.open("conv")
    keeper.extend("conv", 7200)
    clock.advance(IDLE + 60)

    found = keeper.explain("conv")

    assert (found.state, kinds(found.kept)) == ("kept", ["extension"])
    assert one(found.kept, "extension").until == keeper.get("conv").extended_until
    assert "kept by its extension" in found.sentence


def test_pinned(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """Whose pin it is and why, beside until when."""
    keeper.open("conv")
    keeper.pin("conv", 86400, reason="debugging the parser", owner="ada")
    clock.advance(IDLE + 60)
    reaper.sweep()

    found = keeper.explain("conv")

    pin = one(found.kept, "pin")
    assert pin.values == {"owner": "ada", "reason": "debugging the parser"}
    assert "ada has pinned it until 2026-03-02 12:00:00 UTC (in 23 h 29 min)" in pin.sentence
    assert found.not_reaped is not None
    assert "a pin keeps it" in found.not_reaped


def test_held_by_the_breaker(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """An open question holds up the end, and the step says so."""
    notice(keeper, reaper, clock)
    keeper.store.guard.hold(HoldReason.MASS_END, {"ending": 30}, actor="sweep")
    clock.advance(CONFIRM + 1)
    reaper.sweep()

    found = keeper.explain("conv")

    assert one(found.obstacles, "hold").values["reason"] == "mass_end"
    assert "breaker status" in one(found.obstacles, "hold").sentence
    assert one(found.next, "end").values["held"] is True
    assert "not before the hold is answered" in one(found.next, "end").sentence
    assert found.not_reaped is not None
    assert "nothing may be ended while there is a hold" in found.not_reaped


def test_what_an_operator_denied_is_said_and_holds_nothing_else(keeper: Keeper) -> None:
    """Whose answer it is and until when; a single end is not held by it."""
    keeper.open("conv")
    keeper.store.guard.hold(HoldReason.MASS_END, {"ending": 30}, actor="sweep")
    keeper.store.guard.deny(HoldReason.MASS_END, 600, actor="operator ada")

    found = keeper.explain("conv")

    denied = one(found.obstacles, "denied")
    assert denied.values["decided_by"] == "operator ada"
    assert "(in 10 min)" in denied.sentence
    assert one(found.next, "end").values["held"] is False


def test_held_by_the_identity_of_the_database(keeper: Keeper, engine: Engine) -> None:
    """Before the sweep has asked an operator, the statements refuse already."""
    closed(keeper)
    with engine.begin() as connection:
        connection.execute(update(installation).values(identity="another"))

    found = keeper.explain("conv")

    assert kinds(found.obstacles) == ["identity"]
    assert one(found.next, "publish").values["held"] is True


def test_a_create_under_way(store: Store, keeper: Keeper, clock: FrozenClock) -> None:
    """Until when it may be made, and what then."""
    intend(store)
    clock.advance(10)

    found = keeper.explain("conv")

    assert (found.state, kinds(found.next)) == ("creating", ["create_deadline"])
    assert found.next[0].at == clock.now + timedelta(seconds=store.policy.create_deadline - 10)


def test_a_create_that_is_overdue(store: Store, keeper: Keeper, clock: FrozenClock) -> None:
    """Nobody finished it: the next sweep ends it."""
    intend(store)
    clock.advance(store.policy.create_deadline + 1)

    found = keeper.explain("conv")

    assert (found.state, found.next[0].at) == ("create_overdue", clock.now)


def test_a_create_that_was_ended_for_being_overdue(
    store: Store, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """By the sweep, and in words."""
    intend(store)
    clock.advance(store.policy.create_deadline + 1)
    reaper.sweep()

    found = keeper.explain("conv")

    assert found.taken is not None
    assert "by sweep 2026-03-01 12:05:01 UTC (now)" in found.taken
    assert "nobody finished creating its sandbox in time" in found.taken


def test_ended_by_idleness(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """Why it was taken: its TTL, its last activity and when it was noticed, all still there."""
    notice(keeper, reaper, clock)
    clock.advance(CONFIRM)
    reaper.sweep()

    found = keeper.explain("conv")

    assert (found.state, found.not_reaped) == ("closing", None)
    assert found.taken is not None
    assert "idle for longer than its idle TTL of 30 min" in found.taken
    assert "Its last activity was 2026-03-01 12:00:00 UTC" in found.taken
    assert "it was noticed 2026-03-01 12:30:00 UTC (1 min ago)" in found.taken


def test_ended_by_a_person(keeper: Keeper) -> None:
    """Who it was, and the reason in their own words; the sandbox waits for a worker."""
    keeper.open("conv")
    keeper.acting_as("operator ada").end("conv", reason="too dear")

    found = keeper.explain("conv")

    assert (found.state, kinds(found.next)) == ("closing", ["publish"])
    assert found.taken is not None
    assert "by operator ada" in found.taken
    assert "'too dear'" in found.taken


def test_claimed_by_a_worker(keeper: Keeper, clock: FrozenClock) -> None:
    """Who tears it down, and until when nobody else may."""
    closed(keeper)
    keeper.store.teardowns.claim("conv", 1, "worker-3")
    until = clock.now + timedelta(seconds=keeper.policy.claim_ttl)

    found = keeper.explain("conv")

    assert (found.state, one(found.next, "claim").until) == ("claimed", until)
    assert "worker-3 is tearing its sandbox down" in found.sentence


def test_a_claim_that_ran_out(keeper: Keeper, clock: FrozenClock) -> None:
    """Its worker died: another one is asked."""
    closed(keeper)
    keeper.store.teardowns.claim("conv", 1, "worker-3")
    clock.advance(keeper.policy.claim_ttl + 1)

    found = keeper.explain("conv")

    assert kinds(found.next) == ["publish"]
    assert "The claim of worker-3 has run out" in found.next[0].sentence


def test_retrying_after_an_error(keeper: Keeper, reaper: Reaper, provider: FakeCloud) -> None:
    """With the provider's words, and when the next attempt is due."""
    closed(keeper)
    provider.fail("destroy", Unavailable("502 from the edge"))
    teardown = reaper.teardown("conv", 1, worker="w")

    found = keeper.explain("conv")

    assert teardown.outcome is TeardownOutcome.RETRY
    assert found.state == "retrying"
    assert "502 from the edge" in found.sentence
    retry = one(found.next, "retry")
    assert retry.at == found.seen_at + timedelta(seconds=keeper.policy.retry_base)
    assert retry.values["attempts"] == 1


def test_quarantined(keeper: Keeper, reaper: Reaper, provider: FakeCloud) -> None:
    """That it is tried again all the same, and what the provider says."""
    closed(keeper)
    provider.fail("destroy", AuthFailed("401 bad key"))
    reaper.teardown("conv", 1, worker="w")

    found = keeper.explain("conv")

    assert found.state == "quarantined"
    assert "401 bad key" in found.sentence
    assert "It is tried again all the same" in found.sentence
    assert kinds(found.next) == ["retry"]


def test_the_circuit_of_its_provider_is_open(keeper: Keeper, clock: FrozenClock) -> None:
    """No call may be made: the teardown waits for that date."""
    closed(keeper)
    for number in range(5):
        keeper.store.health.failed("fake", f"key-{number}", "503", 30, actor="w", probe=False)

    found = keeper.explain("conv")

    circuit = one(found.obstacles, "circuit")
    assert circuit.until == clock.now + timedelta(seconds=30)
    assert (circuit.values["failures"], circuit.values["last_error"]) == (5, "503")
    assert "(in 30 s)" in one(found.next, "publish").sentence
    assert one(found.next, "publish").values["held"] is True


def test_its_provider_wants_fewer_calls(
    keeper: Keeper, reaper: Reaper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """Until when, as it asked for; no attempt was counted."""
    closed(keeper)
    provider.fail("destroy", RateLimited("429", retry_after=40.0))
    reaper.teardown("conv", 1, worker="w")

    found = keeper.explain("conv")

    assert one(found.obstacles, "rate_limit").until == clock.now + timedelta(seconds=40)
    assert one(found.next, "retry").values == {"attempts": 0, "claimed_by": None, "held": True}


def test_gone(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """Nothing more happens, until it is forgotten."""
    closed(keeper)
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE
    clock.advance(60)

    found = keeper.explain("conv")

    retention = timedelta(seconds=keeper.policy.retention)
    assert found.state == "gone"
    assert [(step.kind, step.at) for step in found.next] == [
        ("purge", clock.now - timedelta(seconds=60) + retention)
    ]
    assert [line.kind for line in found.history][-1] == "sandbox_gone"


def test_lost_and_opened_again(keeper: Keeper) -> None:
    """The one before was lost, and its sandbox is still to be confirmed gone."""
    session = keeper.open("conv")
    keeper.store.inventory.lost("conv", session.sandbox.key)
    lost = keeper.explain("conv")
    keeper.open("conv")

    found = keeper.explain("conv")

    assert lost.taken is not None
    assert "its provider said that the sandbox is not there" in lost.taken
    assert found.taken is not None
    assert "(lost)" in found.taken
    assert [(point.kind, point.values["generation"]) for point in found.earlier] == [("closing", 1)]
    assert found.generation == 2


def test_max_age_is_reached(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """However active it is, and the sweep still notices it first."""
    keeper.open("conv", max_age=100)
    clock.advance(90)
    keeper.touch("conv")
    before = keeper.explain("conv")
    clock.advance(11)

    found = keeper.explain("conv")

    assert one(before.next, "notice").at == keeper.get("conv").opened_at + timedelta(seconds=100)
    assert (found.state, kinds(found.next)) == ("idle", ["notice", "end"])
    assert "older than its max age" in found.sentence
    reaper.sweep()
    clock.advance(CONFIRM)
    reaper.sweep()
    assert "its max age of 1 min 40 s was over" in (keeper.explain("conv").taken or "")


def test_max_turn_is_reached(keeper: Keeper, clock: FrozenClock) -> None:
    """A turn past its ceiling keeps nobody, and is shown as what it is."""
    keeper.open("conv", max_turn=60)
    keeper.store.turns.begin("turn-1", "conv", "api-1")
    clock.advance(61)

    found = keeper.explain("conv")

    (held,) = found.turns
    assert (held.live, found.state) == (False, "active")
    assert "its ceiling was 2026-03-01 12:01:00 UTC (1 s ago)" in held.sentence


def test_the_sweep_is_dead(keeper: Keeper, reaper: Reaper, clock: FrozenClock) -> None:
    """For so many intervals, and since when: nothing scheduled moves it on."""
    keeper.open("conv")
    reaper.sweep()
    swept_at = clock.now
    clock.advance(keeper.policy.late_after + CONFIRM)

    found = keeper.explain("conv")

    late = one(found.obstacles, "sweep_late")
    assert (late.at, late.values["intervals"]) == (swept_at, 4)
    assert "it ran 2026-03-01 12:00:00 UTC (4 min ago), which is 4 confirm" in late.sentence


def test_a_stand_in_does_not_hide_that_the_sweep_is_dead(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """An API process swept instead: it is said, and so is that none was scheduled ever."""
    keeper.open("conv")
    clock.advance(keeper.policy.late_after + 1)
    reaper.sweep(stand_in=True)

    late = one(keeper.explain("conv").obstacles, "sweep_late")

    assert json.loads(json.dumps(dict(late.values)))["stood_in_at"] == clock.now.isoformat()
    assert "none ran since it was installed" in late.sentence
    assert "a stand-in swept 2026-03-01 12:03:01 UTC (now)" in late.sentence


def test_due_at_the_last_sweep_and_left(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, engine: Engine
) -> None:
    """What nobody recorded is not guessed; what the database said of the row is quoted."""
    keeper.open("conv")
    clock.advance(IDLE)
    keeper.store.sweeps.pulse()

    left = keeper.explain("conv")
    keeper.store.sweeps.postpone("conv", "division by zero")
    with engine.begin() as connection:
        connection.execute(update(sessions).values(due_at=clock.now))
    poisoned = keeper.explain("conv")

    assert "which is not recorded" in (left.not_reaped or "")
    assert "the database refused to move it (division by zero)" in (poisoned.not_reaped or "")


# What all have in common


def test_each_limit_says_which_layer_set_it(keeper: Keeper) -> None:
    """The session's own open(), the installation's default; of another generation it is asked."""
    keeper.open("conv", idle_ttl=IDLE)  # what the default is, and yet its own
    keeper.end("conv")
    first = keeper.explain("conv")
    keeper.open("conv", max_age=3600)

    found = keeper.explain("conv")

    def layers(of: Explanation) -> dict[str, str | None]:
        return {limit.name: limit.layer for limit in of.limits}

    ours = "installation"
    others = {"max_turn": ours, "never_used_ttl": ours}
    assert layers(first) == {"idle_ttl": "open", "max_age": ours, **others}
    assert layers(found) == {"idle_ttl": ours, "max_age": "open", **others}
    assert first.limits[1].sentence == "max_age is none, set by the installation's default."


def test_a_limit_of_an_earlier_version_is_of_nobody_known(keeper: Keeper, engine: Engine) -> None:
    """Its opening did not record who set it, and a value alone proves nothing."""
    keeper.open("conv", idle_ttl=60)
    with engine.begin() as connection:
        connection.execute(update(events).values(detail={}))
        connection.execute(update(sessions).values({f"{name}_by": None for name in LIMITS}))

    assert {limit.layer for limit in keeper.explain("conv").limits} == {None}


def test_nobody_is_not_explained(keeper: Keeper) -> None:
    """By the same error as every other call."""
    with pytest.raises(SessionNotFound):
        keeper.explain("nobody")


def test_explaining_is_no_activity(keeper: Keeper, clock: FrozenClock) -> None:
    """A look keeps nobody, also of a session that refuses everything else."""
    keeper.open("conv", max_age=10)
    before = keeper.get("conv")
    clock.advance(10)

    keeper.explain("conv")

    assert keeper.get("conv") == before
    with pytest.raises(SessionEnded):
        keeper.touch("conv")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "now"), (59, "in 59 s"), (-180, "3 min ago"), (7500, "in 2 h 5 min"), (86401, "in 1 d")],
)
def test_moments_are_absolute_and_relative(clock: FrozenClock, seconds: float, said: str) -> None:
    """In UTC, and from the database's now."""
    at = clock.now + timedelta(seconds=seconds)

    assert moment(at, clock.now) == f"{at:%Y-%m-%d %H:%M:%S} UTC ({said})"
    assert span(0.25) == "0.25 s"
