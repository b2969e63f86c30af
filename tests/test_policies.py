"""Limits in layers: which one decides, and how open sessions follow one that is changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, update

from core.errors import InvalidArgument, RowLocked, StoreError
from core.events import EventKind
from core.layers import Layer, Scope, parse_scope
from core.lifecycle import Keeper
from core.model import SessionStatus
from core.reaper import Reaper
from core.schema import events, sessions
from core.settings import LONGEST
from core.store import Store
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock

EVERYBODY = Scope(layer=Layer.INSTALLATION)
ACME = Scope(layer=Layer.TENANT, name="acme")
BATCH = Scope(layer=Layer.PROFILE, name="batch")
OPERATOR = "operator ada"
HOUR = 3600.0


def give(store: Store, scope: Scope, **values: Any) -> None:
    """Set limits as an operator does."""
    store.policies.set(scope, values, actor=OPERATOR)


def layers(keeper: Keeper, session_id: str) -> dict[str, str | None]:
    """Who set each limit, as explain says it."""
    return {limit.name: limit.layer for limit in keeper.explain(session_id).limits}


def ledger(store: Store) -> list[Any]:
    """All lines, the oldest first."""
    with store.database.look() as look:
        return list(look.all(select(events).order_by(events.c.id)))


def spend(reaper: Reaper, clock: FrozenClock, seconds: float) -> None:
    """So much time, with a sweep every minute."""
    end = clock.now + timedelta(seconds=seconds)
    while clock.now < end:
        clock.advance(60)
        reaper.sweep()


def test_the_strongest_layer_that_has_a_limit_decides_it(keeper: Keeper, store: Store) -> None:
    """installation < tenant < profile < open(), each limit by itself."""
    give(store, EVERYBODY, idle_ttl=1000, max_age=9000, max_turn=500, never_used_ttl=200)
    give(store, ACME, idle_ttl=2000, max_age=8000, max_turn=600)
    give(store, BATCH, idle_ttl=3000, max_age=7000)

    found = keeper.open("conv", tenant="acme", profile="batch", idle_ttl=4000)

    assert (found.idle_ttl, found.max_age, found.max_turn) == (4000, 7000, 600)
    assert (found.never_used_ttl, found.profile) == (200, "batch")
    assert layers(keeper, "conv") == {
        "idle_ttl": "open",
        "max_age": "profile",
        "max_turn": "tenant",
        "never_used_ttl": "installation",
    }


def test_what_no_layer_has_is_decided_by_the_settings(keeper: Keeper) -> None:
    """A database without policies behaves as it always did."""
    found = keeper.open("conv")

    assert (found.idle_ttl, found.max_age) == (policy().idle_ttl, None)
    assert set(layers(keeper, "conv").values()) == {"installation"}


def test_an_explanation_names_whose_policy_it_was(keeper: Keeper, store: Store) -> None:
    """In words that an operator can act on."""
    give(store, ACME, idle_ttl=600)
    give(store, BATCH, max_age=HOUR)
    keeper.open("conv", tenant="acme", profile="batch")

    said = [limit.sentence for limit in keeper.explain("conv").limits]

    assert "idle_ttl is 10 min, set by the policy of tenant acme." in said
    assert "max_age is 1 h, set by the policy of profile batch." in said


def test_a_session_keeps_its_profile(keeper: Keeper, store: Store) -> None:
    """Opened again without one it has the limits of the one that it had."""
    give(store, BATCH, idle_ttl=600)
    keeper.open("conv", profile="batch")
    keeper.end("conv")

    again = keeper.open("conv")

    assert (again.generation, again.profile, again.idle_ttl) == (2, "batch", 600)


def test_a_profile_that_nobody_made_is_refused(keeper: Keeper, store: Store) -> None:
    """A slip of the pen would otherwise be a limit that nobody enforces."""
    give(store, BATCH, idle_ttl=600)

    with pytest.raises(InvalidArgument, match=r"profile 'bacth'.*policies set profile:bacth"):
        keeper.open("conv", profile="bacth")
    with pytest.raises(InvalidArgument, match="profile"):
        keeper.open("conv", profile="no spaces")


def test_a_shorter_idle_ttl_is_followed_within_one_sweep(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """By the sessions of that tenant which are open, and by no others."""
    keeper.open("ours", tenant="acme")
    keeper.open("theirs", tenant="other")
    clock.advance(300)

    give(store, ACME, idle_ttl=120)
    report = reaper.sweep()

    assert report.followed == 1
    assert report.noticed == 1
    assert keeper.get("ours").idle_ttl == 120
    assert keeper.get("theirs").idle_ttl == policy().idle_ttl
    assert layers(keeper, "ours")["idle_ttl"] == "tenant"
    assert store.policies.get(ACME).followed


def test_a_longer_idle_ttl_is_followed_as_well(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """Who was noticed under the shorter one is not ended."""
    keeper.open("conv")
    clock.advance(policy().idle_ttl)
    reaper.sweep()
    assert keeper.get("conv").noticed_at is not None

    give(store, EVERYBODY, idle_ttl=4 * HOUR)
    spend(reaper, clock, 2 * HOUR)

    assert keeper.get("conv").status is SessionStatus.ACTIVE
    spend(reaper, clock, 3 * HOUR)
    assert keeper.get("conv").status is SessionStatus.ENDED


def test_what_open_was_given_stays(keeper: Keeper, store: Store, reaper: Reaper) -> None:
    """The layer of the session is above every policy."""
    keeper.open("conv", tenant="acme", idle_ttl=900)

    give(store, ACME, idle_ttl=120, max_turn=60)
    reaper.sweep()

    found = keeper.get("conv")
    assert (found.idle_ttl, found.max_turn) == (900, 60)


def test_unset_leaves_it_to_the_layer_below(keeper: Keeper, store: Store, reaper: Reaper) -> None:
    """Also for the sessions that are open."""
    give(store, EVERYBODY, idle_ttl=1000)
    give(store, ACME, idle_ttl=500, max_turn=60)
    keeper.open("conv", tenant="acme")

    store.policies.unset(ACME, ["idle_ttl"], actor=OPERATOR)
    reaper.sweep()
    first = keeper.get("conv")
    store.policies.unset(ACME, actor=OPERATOR)
    reaper.sweep()

    assert (first.idle_ttl, first.max_turn) == (1000, 60)
    assert keeper.get("conv").max_turn == policy().max_turn


@pytest.mark.parametrize("promise", ["extend", "pin"])
def test_a_promise_outlasts_a_shorter_policy(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock, promise: str
) -> None:
    """S1: an extension or a pin that was acknowledged is kept, also against a new max age."""
    keeper.open("conv", tenant="acme")
    if promise == "extend":
        until = keeper.extend("conv", 2 * HOUR).extended_until
    else:
        until = keeper.pin("conv", 2 * HOUR, reason="debugging").pinned_until
    assert until is not None
    clock.advance(60)

    give(store, ACME, idle_ttl=60, max_age=120)
    spend(reaper, clock, (until - clock.now).total_seconds())

    assert clock.now == until
    assert keeper.get("conv").status is SessionStatus.ACTIVE
    spend(reaper, clock, 180)
    assert keeper.get("conv").status is SessionStatus.ENDED


def test_an_open_turn_keeps_its_ceiling(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: no policy takes back what a turn was given when it began."""
    keeper.open("conv", tenant="acme", max_turn=HOUR)
    begun = store.turns.begin("turn-1", "conv", "holder")

    give(store, ACME, max_age=60)
    reaper.sweep()
    age_ends = store.evidence.of("conv").age_ends
    assert age_ends is not None
    assert begun.hard_until <= age_ends <= begun.hard_until + timedelta(seconds=0.01)
    while clock.now < begun.hard_until - timedelta(seconds=60):
        clock.advance(60)
        assert store.turns.beat(["turn-1"]) == {}
        reaper.sweep()

    assert keeper.get("conv").status is SessionStatus.ACTIVE
    spend(reaper, clock, 240)
    assert keeper.get("conv").end_reason == "max_age"


def test_a_session_that_never_had_a_turn_goes_earlier(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """The never-used TTL is for those, and for nobody else."""
    give(store, EVERYBODY, never_used_ttl=120)
    keeper.open("unused")
    keeper.open("used")
    with keeper.turn("used"):
        pass

    spend(reaper, clock, 240)

    assert keeper.get("unused").end_reason == "idle"
    assert keeper.get("used").status is SessionStatus.ACTIVE
    taken = keeper.explain("unused").taken or ""
    assert "never-used TTL of 2 min" in taken


def test_a_never_used_ttl_lengthens_nothing(keeper: Keeper, store: Store) -> None:
    """Where it is longer than the idle TTL, that one decides."""
    give(store, EVERYBODY, never_used_ttl=4 * HOUR, idle_ttl=600)
    found = keeper.open("conv")

    assert store.evidence.of("conv").ends_at == found.last_activity_at + timedelta(seconds=600)


def test_a_sweep_follows_in_batches(
    keeper: Keeper, store: Store, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statement names them all, and what one sweep leaves the next goes on with."""
    monkeypatch.setattr(reaper, "policy", policy(batch=2))
    for number in range(5):
        keeper.open(f"conv-{number}", tenant="acme")
    batches: list[int] = []
    follow = store.settling.follow

    def heard(ids: Sequence[str]) -> list[str]:
        batches.append(len(ids))
        return follow(ids)

    monkeypatch.setattr(store.settling, "follow", heard)

    give(store, ACME, idle_ttl=600)
    report = reaper.sweep()

    assert batches == [2, 2, 1]
    assert report.followed == 5
    assert {keeper.get(f"conv-{number}").idle_ttl for number in range(5)} == {600}


def test_a_sweep_that_has_no_time_left_is_gone_on_with(
    keeper: Keeper, store: Store, provider: FakeCloud
) -> None:
    """A walk is bounded by the lease, and goes on behind its cursor."""
    ids = [f"conv-{number}" for number in range(4)]
    for session_id in ids:
        keeper.open(session_id, tenant="acme")
    give(store, ACME, idle_ttl=600)
    change = store.policies.change()
    assert change is not None
    first = store.settling.members(change, 2)
    store.settling.follow(first)
    store.policies.advance(change, first[-1], missed=False)  # and then it was killed

    report = Reaper(store, {provider.name: provider}, doorbell=lambda _: None).sweep()

    assert first == ids[:2]
    assert report.followed == 2
    assert {keeper.get(session_id).idle_ttl for session_id in ids} == {600}


def test_a_change_during_a_walk_begins_it_anew(keeper: Keeper, store: Store) -> None:
    """Who was passed already follows the second change too."""
    keeper.open("conv", tenant="acme")
    give(store, ACME, idle_ttl=600)
    change = store.policies.change()
    assert change is not None
    store.settling.follow(store.settling.members(change, 10))

    give(store, ACME, idle_ttl=700)
    store.policies.advance(change, None, missed=False)

    assert store.policies.change() is not None


def test_who_was_missed_is_looked_for_again(
    keeper: Keeper,
    store: Store,
    reaper: Reaper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row that somebody held for long is not forgotten with the end of the walk."""
    keeper.open("conv", tenant="acme")
    give(store, ACME, idle_ttl=600)

    def held(_: str) -> None:
        raise RowLocked

    with monkeypatch.context() as stuck:
        stuck.setattr(store.settling, "follow", list)
        stuck.setattr(store.settling, "follow_one", held)
        reaper.sweep()
    was = keeper.get("conv").idle_ttl
    reaper.sweep()

    assert was == policy().idle_ttl
    assert keeper.get("conv").idle_ttl == 600
    assert store.policies.get(ACME).followed


def test_a_change_is_not_missed_by_who_is_being_opened(
    keeper: Keeper,
    store: Store,
    reaper: Reaper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The walk was over before the row could be seen: the record settles it once more."""
    create = keeper.provider.create

    def change_meanwhile(*args: Any, **kwargs: Any) -> Any:
        give(store, ACME, idle_ttl=600)
        # As if the walk had found nobody: the row was not committed when it began.
        monkeypatch.setattr(store.settling, "members", lambda *_: [])
        reaper.sweep()
        return create(*args, **kwargs)

    monkeypatch.setattr(keeper.provider, "create", change_meanwhile)

    found = keeper.open("conv", tenant="acme")

    assert store.policies.get(ACME).followed
    assert found.idle_ttl == 600
    assert found.due_at == found.last_activity_at + timedelta(seconds=600)


def test_who_was_opened_by_an_earlier_version_keeps_its_limits(
    keeper: Keeper, store: Store, engine: Engine, reaper: Reaper
) -> None:
    """Nobody knows which of them its open() was given: none is taken back."""
    keeper.open("conv", tenant="acme")
    with engine.begin() as connection:
        connection.execute(
            update(sessions).values(idle_ttl_by=None, max_age_by=None, max_turn_by=None)
        )

    give(store, ACME, idle_ttl=600)
    reaper.sweep()

    assert keeper.get("conv").idle_ttl == policy().idle_ttl
    assert layers(keeper, "conv")["idle_ttl"] == "installation"  # the ledger has it


def test_a_change_is_in_the_ledger(store: Store) -> None:
    """Who, which policy, and what."""
    give(store, ACME, idle_ttl="600")

    line = ledger(store)[-1]

    assert (line.kind, line.actor) == ("policy_changed", OPERATOR)
    assert line.detail == {"policy": "tenant:acme", "idle_ttl": 600.0}


REFUSED: list[tuple[Scope, dict[str, object], str]] = [
    (ACME, {"idle_tll": 600}, "idle_tll is no limit: did you mean idle_ttl"),
    (ACME, {"idle_ttl": 0}, "idle_ttl 0: must be more than 0"),
    (ACME, {"idle_ttl": "soon"}, "idle_ttl 'soon': give"),
    (ACME, {"max_age": LONGEST + 1}, "max_age"),
    (ACME, {"max_turn": True}, "max_turn"),
    (ACME, {"idle_ttl": 10}, "idle_ttl 10 of tenant:acme: must be at least CONFIRM_INTERVAL 60"),
    (EVERYBODY, {"never_used_ttl": 59}, "never_used_ttl 59 of installation: .* HEARTBEAT 15"),
    (ACME, {"max_live": 0}, "max_live 0: give a whole number"),
    (ACME, {"max_live": 1.5}, "max_live 1.5: give a whole number"),
    (ACME, {"when_full": "explode"}, "when_full 'explode': use refuse or evict-oldest-idle"),
    (BATCH, {"max_live": 3}, "max_live of profile:batch: a quota is the tenant's"),
    (ACME, {}, "policy tenant:acme: give at least one of"),
]


@pytest.mark.parametrize(("scope", "values", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_nonsense_is_refused_with_field_value_and_fix(
    store: Store, scope: Scope, values: dict[str, object], said: str
) -> None:
    """A live turn is never harmed by a policy: below the heartbeat's rhythm there is none."""
    with pytest.raises(InvalidArgument, match=said):
        store.policies.set(scope, values, actor=OPERATOR)
    assert store.policies.all() == []


@pytest.mark.parametrize(
    "text", ["", "tenant", "tenant:", "installation:x", "team:a", "tenant:a b"]
)
def test_a_scope_says_what_it_looks_like(text: str) -> None:
    """F24: with what was given."""
    with pytest.raises(InvalidArgument, match="write installation, tenant:NAME or profile:NAME"):
        parse_scope(text)


def test_a_policy_that_nobody_made_cannot_be_unset(store: Store) -> None:
    """A slip of the pen is said, and makes nothing."""
    with pytest.raises(InvalidArgument, match="no policy 'tenant:acme'"):
        store.policies.unset(ACME, actor=OPERATOR)
    assert parse_scope("tenant:acme") == ACME


def test_two_walkers_and_callers_at_once_leave_no_one_behind(
    engine: Engine, provider: FakeCloud
) -> None:
    """Real threads: opens, touches and two sweeps while the policy changes again and again."""
    stores = [Store(engine, policy=policy()), Store(engine, policy=policy())]
    stop = threading.Event()
    failed: list[BaseException] = []

    def attempt(act: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                act()
        except BaseException as error:  # noqa: BLE001 - it is shown below
            failed.append(error)

    keeper = Keeper(stores[0], provider)
    for number in range(20):
        keeper.open(f"conv-{number}", tenant="acme")
    acts: list[Callable[[], object]] = [
        lambda: Reaper(stores[0], {provider.name: provider}, doorbell=lambda _: None).sweep(),
        lambda: Reaper(stores[1], {provider.name: provider}, doorbell=lambda _: None).sweep(),
        lambda: keeper.touch("conv-7"),
    ]
    threads = [threading.Thread(target=attempt, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for seconds in range(600, 610):
        give(stores[1], ACME, idle_ttl=seconds)
        keeper.open(f"late-{seconds}", tenant="acme")
    stop.set()
    for thread in threads:
        thread.join()
    Reaper(stores[0], {provider.name: provider}, doorbell=lambda _: None).sweep()
    keeper.close()

    with stores[0].database.look() as look:
        found = {row.idle_ttl for row in look.all(select(sessions.c.idle_ttl))}
    assert not failed
    assert found == {609.0}
    assert stores[0].policies.get(ACME).followed


def test_following_costs_what_has_changed(
    keeper: Keeper, store: Store, reaper: Reaper, engine: Engine
) -> None:
    """A sweep after the walk sends no statement for it; the one look that it has is enough."""
    keeper.open("conv", tenant="acme")
    give(store, ACME, idle_ttl=600)
    reaper.sweep()
    heard: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: heard.append(args[2]))

    report = reaper.sweep()

    assert report.followed == 0
    assert not [sql for sql in heard if "of_profile" in sql or "UPDATE policies" in sql]


@pytest.mark.parametrize("promise", ["extension", "turn"])
def test_a_promise_of_ten_years_lets_others_follow(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock, promise: str
) -> None:
    """Who is kept for as long as can be asked for is one that no shorter max age can hold up."""
    keeper.open("conv", tenant="acme", max_turn=LONGEST)
    clock.advance(10)
    if promise == "extension":
        keeper.extend("conv", LONGEST)
    else:
        store.turns.begin("turn-1", "conv", "holder")

    give(store, ACME, max_age=2 * HOUR)
    reaper.sweep()

    assert store.policies.get(ACME).followed
    assert keeper.get("conv").max_age == LONGEST


def test_a_row_that_cannot_follow_holds_up_nobody(
    keeper: Keeper, store: Store, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of its batch, nor the policies behind its own; and somebody says so."""
    for name in ("a", "b"):
        keeper.open(name, tenant="acme")
    keeper.open("z", tenant="zed")
    follow, follow_one = store.settling.follow, store.settling.follow_one
    told: list[Any] = []

    def refuse(ids: Sequence[str]) -> None:
        if "a" in ids:
            raise StoreError("the database refused")

    def follow_all(ids: Sequence[str]) -> list[str]:
        refuse(ids)
        return follow(ids)

    def follow_it(session_id: str) -> None:
        refuse([session_id])
        follow_one(session_id)

    give(store, ACME, idle_ttl=600)
    give(store, Scope(layer=Layer.TENANT, name="zed"), idle_ttl=600)
    with monkeypatch.context() as broken:
        broken.setattr(store.settling, "follow", follow_all)
        broken.setattr(store.settling, "follow_one", follow_it)
        broken.setattr(store.database, "tell", lambda *events: told.extend(events))
        reaper.sweep()
    was = [keeper.get(name).idle_ttl for name in ("a", "b", "z")]
    reaper.sweep()

    assert was == [policy().idle_ttl, 600, 600]
    assert [(line.kind, line.session_id) for line in told] == [(EventKind.ROW_POISONED, "a")]
    assert keeper.get("a").idle_ttl == 600


def test_a_new_quota_forgets_nobody_who_was_missed(
    keeper: Keeper, store: Store, reaper: Reaper
) -> None:
    """It begins no walk, and so it must not end what a walk keeps in mind."""
    for name in ("a", "b"):
        keeper.open(name, tenant="acme")
    give(store, ACME, idle_ttl=600)
    change = store.policies.change()
    assert change is not None
    store.policies.advance(change, "a", missed=True)

    give(store, ACME, max_live=100)
    for _ in range(2):
        reaper.sweep()

    assert {keeper.get(name).idle_ttl for name in ("a", "b")} == {600}
    assert store.policies.get(ACME).followed


def test_a_long_walk_keeps_nobody_from_being_ended(
    keeper: Keeper,
    store: Store,
    reaper: Reaper,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L1: its batches are steps, and all of them together no hold-up of anybody's heartbeats."""
    keeper.open("idle")
    for number in range(5):
        keeper.open(f"busy-{number}", tenant="acme", idle_ttl=10 * HOUR)
    clock.advance(policy().idle_ttl)
    reaper.sweep()
    clock.advance(policy().confirm_interval)
    give(store, ACME, max_turn=600)
    monkeypatch.setattr(reaper, "policy", policy(batch=1))
    follow = store.settling.follow

    def slowly(ids: Sequence[str]) -> list[str]:
        clock.advance(policy().confirm_interval / 6)
        return follow(ids)

    monkeypatch.setattr(store.settling, "follow", slowly)
    report = reaper.sweep()

    assert (report.followed, report.ended) == (5, 1)


def test_the_breaker_counts_by_the_policies_that_a_sweep_follows(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """Who was noticed, was given longer, and is given less again: the breaker asks about them."""
    for number in range(policy().breaker_min + 1):
        keeper.open(f"conv-{number}")
    clock.advance(policy().idle_ttl)
    reaper.sweep()
    give(store, EVERYBODY, idle_ttl=2 * HOUR)
    reaper.sweep()
    clock.advance(policy().confirm_interval)

    give(store, EVERYBODY, idle_ttl=policy().idle_ttl)
    report = reaper.sweep()

    assert report.ended == 0
    assert [hold.reason for hold in store.guard.holds()] == ["mass_end"]
