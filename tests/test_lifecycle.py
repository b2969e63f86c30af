"""What API servers call: open, touch, extend, end, get. Turns are in test_turns.py."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Row, func, select

from core.errors import (
    AuthFailed,
    ForeignConflict,
    InvalidArgument,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    StoreUnavailable,
    Unavailable,
    Unsupported,
)
from core.host import Host
from core.lifecycle import CREATE_ATTEMPTS, LONGEST_JSON, Keeper
from core.model import SandboxState, SessionStatus
from core.reaper import Reaper, TeardownOutcome
from core.schema import sandboxes, sessions
from core.store import Store
from tests.fakes import Effect, FakeCloud, FrozenClock

YEAR = 366 * 24 * 3600.0


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def sandbox_row(engine: Engine, session_id: str, generation: int = 1) -> Row[Any]:
    """A sandbox as another process sees it: only what is committed."""
    b = sandboxes.c
    with engine.connect() as connection:
        query = select(sandboxes).where(b.session_id == session_id, b.generation == generation)
        return connection.execute(query).one()


def rows(engine: Engine) -> int:
    """How many sessions there are."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(sessions)).scalar_one()


def while_creating(provider: FakeCloud, act: Callable[[], object], *, made: bool = True) -> None:
    """Do this inside the next create, after the sandbox was `made`, or before."""

    def fault(effect: Effect) -> Any:
        if made:
            info = effect()
            act()
            return info
        act()
        return effect()

    provider._plan("create", fault)


def kinds(store: Store, session_id: str) -> list[str]:
    """What the ledger says of a session, in order."""
    return [line.kind for line in store.history.of_session(session_id)]


# Opening


def test_a_new_session_comes_with_a_running_sandbox(keeper: Keeper, provider: FakeCloud) -> None:
    """open() returns what a turn needs, and the provider has exactly that sandbox."""
    session = keeper.open("conv")

    (box,) = provider.alive()
    assert session.status is SessionStatus.ACTIVE
    assert session.sandbox.state is SandboxState.RUNNING
    assert (session.generation, session.turn_count) == (1, 0)
    assert (box.name, box.external_id) == (session.sandbox.name, session.sandbox.external_id)


def test_the_row_is_committed_before_the_provider_is_called(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """F1, S2: a crash inside create leaves a row that names what may exist, with a deadline."""
    seen: list[Row[Any]] = []
    while_creating(provider, lambda: seen.append(sandbox_row(engine, "conv")), made=False)

    session = keeper.open("conv")

    (row,) = seen
    assert (row.state, row.key) == ("creating", session.sandbox.key)
    assert row.due_at == row.created_at + timedelta(seconds=keeper.policy.create_deadline)
    assert row.external_id is None


def test_all_our_labels_are_on_the_sandbox(
    keeper: Keeper, store: Store, provider: FakeCloud
) -> None:
    """S2: what a reconcile looks for is there from the first moment."""
    session = keeper.open("conv")

    (box,) = provider.alive()
    assert box.labels["sandkeeper-installation"] == store.installation
    assert box.labels["sandkeeper-key"] == session.sandbox.key
    assert box.labels["sandkeeper-generation"] == "1"
    assert len(box.labels) == 6


def test_opening_an_active_session_returns_it_and_counts_as_activity(
    keeper: Keeper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """One sandbox however often it is asked for."""
    first = keeper.open("conv")
    clock.advance(100)

    again = keeper.open("conv")

    assert again.sandbox == first.sandbox
    assert again.last_activity_at == clock.now
    assert provider.count("create") == 1


def test_a_session_is_fresh_until_its_first_turn_has_begun(keeper: Keeper) -> None:
    """Whoever runs the first turn of a generation knows that the workspace is empty."""
    opened = keeper.open("conv")
    reopened = keeper.open("conv")
    with keeper.turn("conv") as first:
        pass
    with keeper.turn("conv") as second:
        pass

    assert opened.fresh
    assert reopened.fresh
    assert first.session.fresh
    assert not second.session.fresh
    assert not keeper.get("conv").fresh


def test_a_reopened_session_is_fresh_again_and_says_why_for_good(keeper: Keeper) -> None:
    """`reset_reason` is kept with the generation, not only told once."""
    keeper.open("conv")
    with keeper.turn("conv"):
        pass
    keeper.end("conv", reason="user left")

    session = keeper.open("conv")

    with keeper.turn("conv") as turn:
        assert turn.session.fresh
    assert session.fresh
    assert (session.generation, session.reset_reason) == (2, "user left")
    assert keeper.get("conv").reset_reason == "user left"
    assert keeper.get("conv").turn_count == 2


def test_the_first_generation_has_no_reset_reason(keeper: Keeper) -> None:
    """Nothing was there before it."""
    assert keeper.open("conv").reset_reason is None


def test_a_create_whose_answer_was_lost_is_adopted(keeper: Keeper, provider: FakeCloud) -> None:
    """F1: the retry after a doubt adopts by name; it never makes two."""
    provider.doubt("create", OutcomeUnknown("connection reset"))

    session = keeper.open("conv")

    (box,) = provider.alive()
    assert box.external_id == session.sandbox.external_id
    assert provider.count("create") == 2


def test_a_create_is_retried_a_bounded_number_of_times(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """The caller gets the provider's error, and the row waits for the next open or its deadline."""
    for error in (Unavailable("503"), OutcomeUnknown(), RateLimited()):
        session_id = type(error).__name__
        before = provider.count("create")
        provider.fail("create", error, times=CREATE_ATTEMPTS)

        with pytest.raises(type(error)):
            keeper.open(session_id)

        assert provider.count("create") == before + CREATE_ATTEMPTS
        assert sandbox_row(engine, session_id).state == "creating"


def test_a_failed_create_is_joined_by_the_next_open(keeper: Keeper, provider: FakeCloud) -> None:
    """F25: the same name is asked for again, so that no second sandbox can come of it."""
    provider.fail("create", Unavailable("503"), times=CREATE_ATTEMPTS)
    with pytest.raises(Unavailable):
        keeper.open("conv")

    session = keeper.open("conv")

    assert session.generation == 1
    assert {call.name for call in provider.calls} == {session.sandbox.name}


def test_retries_of_a_create_send_the_same_bytes(keeper: Keeper, provider: FakeCloud) -> None:
    """Name, labels and spec come from the row, whoever retries, and however much later."""
    asked: list[tuple[object, ...]] = []

    class Recorder(FakeCloud):
        def create(self, name: str, labels: Any, spec: Any, **limits: Any) -> Any:
            asked.append((name, dict(labels), spec))
            return super().create(name, labels, spec, **limits)

    cloud = Recorder()
    cloud.fail("create", Unavailable("503"), times=CREATE_ATTEMPTS)
    first = Keeper(keeper.store, cloud, spec={"image": "one"}, host=Host(sleep=lambda _: None))
    with pytest.raises(Unavailable):
        first.open("conv")

    Keeper(keeper.store, cloud, spec={"image": "two"}).open("conv")

    assert len(asked) == CREATE_ATTEMPTS + 1
    assert all(request == asked[0] for request in asked)


def test_no_quota_is_said_at_once(keeper: Keeper, provider: FakeCloud) -> None:
    """F20: more calls would not make room; the caller decides when to ask again."""
    provider.fail("create", QuotaExceeded("10 of 10"))

    with pytest.raises(QuotaExceeded):
        keeper.open("conv")

    assert provider.count("create") == 1
    assert keeper.open("conv").generation == 1


def test_what_can_never_be_made_ends_its_generation(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """The row is closed for teardown to look, and the next open makes the next generation."""
    for error in (InvalidSpec(), AuthFailed(), ForeignConflict(), Unsupported()):
        session_id = type(error).__name__
        provider.fail("create", error)
        with pytest.raises(type(error)):
            keeper.open(session_id)
        failed = keeper.get(session_id)

        session = keeper.open(session_id)

        assert (failed.status, failed.end_reason) == (SessionStatus.ENDED, "create_failed")
        assert sandbox_row(engine, session_id, 1).state == "closing"
        assert (session.generation, session.reset_reason) == (2, "create_failed")


def test_a_provider_without_an_id_is_a_doubt(keeper: Keeper, store: Store) -> None:
    """A sandbox that we could not name later is never called running."""

    class Nameless(FakeCloud):
        def create(self, *arguments: Any, **options: Any) -> Any:
            from dataclasses import replace

            info = super().create(*arguments, **options)
            return replace(info, ref=replace(info.ref, external_id=None))

    with pytest.raises(OutcomeUnknown, match="gave no id"):
        Keeper(store, Nameless()).open("conv")

    assert store.sessions.get("conv").sandbox.state is SandboxState.CREATING


@pytest.mark.parametrize("ended_before", [False, True], ids=["new", "reopened"])
def test_concurrent_opens_make_one_sandbox(
    keeper: Keeper,
    store: Store,
    provider: FakeCloud,
    ended_before: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """S3: eight callers at once get one generation and one sandbox, and no error."""
    if ended_before:
        keeper.open("conv")
        keeper.end("conv")
    at_once = threading.Barrier(8)

    def call(_: int) -> tuple[int, str | None]:
        at_once.wait(30)
        session = keeper.open("conv")
        return session.generation, session.sandbox.external_id

    with ThreadPoolExecutor(8) as threads:
        answers = set(threads.map(call, range(8)))

    generation = 2 if ended_before else 1
    name = keeper.get("conv").sandbox.name
    assert answers == {(generation, provider.alive(name)[0].external_id)}
    assert len(provider.alive(name)) == 1
    assert kinds(store, "conv").count("session_opened") == 1
    assert kinds(store, "conv").count("session_reopened") == generation - 1


def test_a_session_whose_sandbox_is_closing_reopens_at_once(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """F25: nobody waits for a teardown; the next generation has a name of its own."""
    first = keeper.open("conv")
    keeper.end("conv")

    second = keeper.open("conv")

    assert second.generation == 2
    assert second.sandbox.name != first.sandbox.name
    assert sandbox_row(engine, "conv", 1).state == "closing"
    assert len(provider.alive()) == 2


def test_a_create_that_expired_meanwhile_is_refused(
    keeper: Keeper, reaper: Reaper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S3: the late caller gets SessionEnded and destroys nothing; teardown does."""

    def expire() -> None:
        clock.advance(keeper.policy.create_deadline)
        reaper.sweep()

    while_creating(provider, expire)

    with pytest.raises(SessionEnded) as refused:
        keeper.open("conv")

    assert refused.value.reason == "create_expired"
    assert provider.count("destroy") == 0
    assert len(provider.alive()) == 1
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE
    assert not provider.alive()


def test_a_session_ended_while_it_was_made_is_refused_with_that_reason(
    keeper: Keeper, provider: FakeCloud
) -> None:
    """S1: the loser of the race gets a typed refusal, never a dead sandbox."""
    while_creating(provider, lambda: keeper.end("conv", reason="user left"))

    with pytest.raises(SessionEnded) as refused:
        keeper.open("conv")

    assert refused.value.reason == "user left"
    assert provider.count("destroy") == 0


def test_a_late_create_never_becomes_the_next_generation(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """S3, F18: ended and reopened while it was made, it stays the sandbox of the first."""

    def end_and_reopen() -> None:
        keeper.end("conv")
        keeper.open("conv")

    while_creating(provider, end_and_reopen)

    with pytest.raises(SessionEnded):
        keeper.open("conv")

    assert keeper.get("conv").generation == 2
    assert sandbox_row(engine, "conv", 1).external_id is None
    assert sandbox_row(engine, "conv", 1).state == "closing"
    assert sandbox_row(engine, "conv", 2).state == "running"


def test_a_lost_answer_to_the_commit_of_record_harms_nothing(
    keeper: Keeper, provider: FakeCloud, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: nothing is cleaned up on one's own error; opening again finds the sandbox running."""
    commit = engine.dialect.do_commit

    def committed_but_unanswered(connection: Any) -> None:
        commit(connection)
        monkeypatch.undo()
        raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection")

    while_creating(
        provider,
        lambda: monkeypatch.setattr(engine.dialect, "do_commit", committed_but_unanswered),
    )
    with pytest.raises(StoreUnavailable):
        keeper.open("conv")

    session = keeper.open("conv")

    assert session.sandbox.state is SandboxState.RUNNING
    assert (len(provider.alive()), provider.count("create")) == (1, 1)
    assert provider.count("destroy") == 0


def test_a_lost_answer_to_the_first_commit_is_joined(
    keeper: Keeper, provider: FakeCloud, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: the intent was written; whoever opens next makes that very sandbox."""
    commit = engine.dialect.do_commit

    def committed_but_unanswered(connection: Any) -> None:
        commit(connection)
        monkeypatch.undo()
        raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection")

    monkeypatch.setattr(engine.dialect, "do_commit", committed_but_unanswered)
    with pytest.raises(StoreUnavailable):
        keeper.open("conv")
    intended = sandbox_row(engine, "conv").key

    session = keeper.open("conv")

    assert session.sandbox.key == intended
    assert len(provider.alive()) == 1


def test_another_tenants_session_is_refused(keeper: Keeper, clock: FrozenClock) -> None:
    """An id is not a key: knowing it neither shows nor keeps alive what is another's."""
    opened = keeper.open("conv", tenant="acme")
    clock.advance(10)

    with pytest.raises(InvalidArgument, match="another tenant"):
        keeper.open("conv", tenant="evil")

    assert keeper.get("conv") == opened


def test_a_limit_that_makes_no_sense_is_refused(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """F24: named with its value, before anything is written or made."""
    nonsense: list[Any] = [0, -1, float("nan"), float("inf"), True, "soon", 11 * YEAR, timedelta(0)]
    for name in ("idle_ttl", "max_age", "max_turn"):
        for value in nonsense:
            with pytest.raises(InvalidArgument, match=name):
                keeper.open("conv", **{name: value})

    assert (rows(engine), provider.calls) == (0, [])


def test_metadata_that_cannot_be_kept_is_refused(keeper: Keeper, engine: Engine) -> None:
    """It is JSON of a bounded size, or InvalidArgument."""
    for value in (object(), float("nan"), "y" * LONGEST_JSON, {1, 2}):
        with pytest.raises(InvalidArgument, match="metadata"):
            keeper.open("conv", metadata={"x": value})

    assert rows(engine) == 0


def test_metadata_comes_back_as_it_was_given(keeper: Keeper) -> None:
    """Whatever JSON can say, on every database."""
    metadata: dict[str, object] = {"a": [1, None, {"ü": "\x00 \ud800"}]}

    keeper.open("conv", metadata=metadata)

    assert keeper.get("conv").metadata == metadata


def test_an_id_that_cannot_be_an_id_is_refused(keeper: Keeper) -> None:
    """The same words from every call that takes one."""
    malformed: list[Any] = ["", "x" * 129, "a b", "ü", "a/b", "a\n", 7]
    for session_id in malformed:
        for call in (keeper.open, keeper.turn, keeper.touch, keeper.end, keeper.get):
            with pytest.raises(InvalidArgument, match="session id"):
                call(session_id)
        with pytest.raises(InvalidArgument, match="session id"):
            keeper.extend(session_id, 1)


def test_an_id_is_generated_when_none_is_given(keeper: Keeper) -> None:
    """UUIDv7: unique, and sorted by the moment it was made."""
    first, second = keeper.open().id, keeper.open().id

    assert [uuid.UUID(made).version for made in (first, second)] == [7, 7]
    assert uuid.UUID(first).variant == uuid.RFC_4122
    assert first != second


def test_opening_a_session_that_is_too_old_makes_the_next_generation(
    keeper: Keeper, engine: Engine, clock: FrozenClock
) -> None:
    """The caller gets a usable sandbox without waiting for the sweep."""
    keeper.open("conv", max_age=100)
    clock.advance(100)

    session = keeper.open("conv", max_age=100)

    assert (session.generation, session.reset_reason) == (2, "max_age")
    assert session.opened_at == clock.now
    assert sandbox_row(engine, "conv", 1).state == "closing"


def test_a_spec_that_is_none_is_refused(
    keeper: Keeper, engine: Engine, provider: FakeCloud
) -> None:
    """Before anything is written, in words that name the field."""
    malformed: list[tuple[dict[str, object], str]] = [
        ({"imag": "x"}, "'imag' is unknown"),
        ({"image": 3}, "image 3 is not a string"),
        ({"command": "ls -l"}, "command 'ls -l' is not a list"),
        ({"command": ["ls", 1]}, "is not a list of strings"),
        ({"env": {"A": 1}}, "env is not an object of strings"),
        ({"env": ["A"]}, "env is not an object of strings"),
        ({"options": []}, "options"),
    ]
    for spec, says in malformed:
        with pytest.raises(InvalidSpec, match=says):
            keeper.open("conv", spec=spec)

    assert (rows(engine), provider.calls) == (0, [])


def test_a_spec_that_is_not_json_is_refused(keeper: Keeper, engine: Engine) -> None:
    """It is kept in its row: what cannot be written there is InvalidSpec, not a driver's error."""
    for value in (object(), float("nan")):
        with pytest.raises(InvalidSpec):
            keeper.open("conv", spec={"options": {"x": value}})

    assert rows(engine) == 0


@pytest.mark.parametrize("elsewhere", ["provider", "account"])
def test_a_create_is_never_joined_at_another_provider(
    keeper: Keeper, store: Store, reaper: Reaper, provider: FakeCloud, elsewhere: str
) -> None:
    """
    S3, L1: a row says where its sandbox is made. A process that is logged in elsewhere must not
    make it there: teardown would ask the first, hear that nothing is there, and believe it.
    """
    provider.fail("create", Unavailable("503"), times=CREATE_ATTEMPTS)
    with pytest.raises(Unavailable):
        keeper.open("conv")
    other = FakeCloud(account="other-account")
    if elsewhere == "provider":
        other.name, other.account = "other", provider.account

    with pytest.raises(ProviderError):
        Keeper(store, other).open("conv")

    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w")
    assert not other.alive()


def test_a_running_session_keeps_its_limits_and_the_next_generation_takes_new_ones(
    keeper: Keeper,
) -> None:
    """Limits are those of a generation."""
    keeper.open("conv", idle_ttl=timedelta(minutes=1), max_age=1000, max_turn=50)

    same = keeper.open("conv", idle_ttl=5)
    keeper.end("conv")
    following = keeper.open("conv", idle_ttl=5)

    assert (same.idle_ttl, same.max_age, same.max_turn) == (60.0, 1000.0, 50.0)
    assert (following.idle_ttl, following.max_age) == (5.0, keeper.policy.max_age)


# Touching


def test_a_touch_moves_the_last_activity(keeper: Keeper, clock: FrozenClock) -> None:
    """F16: acknowledged means written."""
    keeper.open("conv")
    clock.advance(50)

    keeper.touch("conv")

    assert keeper.get("conv").last_activity_at == clock.now


def test_a_touch_is_refused_by_type(keeper: Keeper, clock: FrozenClock) -> None:
    """F26: a write of zero rows is an answer that nobody can overlook."""
    keeper.open("ended")
    keeper.end("ended", reason="user left")
    keeper.open("old", max_age=10)
    clock.advance(10)

    with pytest.raises(SessionEnded) as ended:
        keeper.touch("ended")
    with pytest.raises(SessionEnded) as old:
        keeper.touch("old")
    with pytest.raises(SessionNotFound):
        keeper.touch("nobody")

    assert (ended.value.reason, old.value.reason) == ("user left", "max_age")


# Extending


def survives(reaper: Reaper, keeper: Keeper, clock: FrozenClock, seconds: float) -> bool:
    """Whether a session lives through so many seconds of sweeps, without activity."""
    end = clock.now + timedelta(seconds=seconds)
    while clock.now < end:
        clock.advance(60)
        reaper.sweep()
    return keeper.get("conv").status is SessionStatus.ACTIVE


def test_an_extension_is_kept_to_the_second(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1, F4: an acknowledged extension is never reaped before its date, and is after it."""
    keeper.open("conv", idle_ttl=60)
    granted = keeper.extend("conv", timedelta(hours=1)).extended_until

    lived = survives(reaper, keeper, clock, 3600)

    assert granted == clock.now
    assert lived
    assert not survives(reaper, keeper, clock, 200)


def test_an_extension_takes_back_a_notice(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: granted in the last second before the end, it still holds."""
    keeper.open("conv")
    clock.advance(keeper.policy.idle_ttl)
    reaper.sweep()
    noticed = keeper.get("conv").noticed_at

    extended = keeper.extend("conv", 600)

    assert noticed is not None
    assert extended.noticed_at is None
    assert survives(reaper, keeper, clock, 600)


def test_an_extension_ends_with_the_max_age(keeper: Keeper, clock: FrozenClock) -> None:
    """F5: what was granted is said, and the ceiling always holds."""
    keeper.open("conv", max_age=1000)

    extended = keeper.extend("conv", 5000)

    assert extended.extended_until == clock.now + timedelta(seconds=1000)


def test_an_extension_never_shortens_an_earlier_one(keeper: Keeper, clock: FrozenClock) -> None:
    """S1: the first was acknowledged."""
    keeper.open("conv")
    keeper.extend("conv", 5000)

    extended = keeper.extend("conv", 10)

    assert extended.extended_until == clock.now + timedelta(seconds=5000)


def test_an_extension_ends_with_its_generation(keeper: Keeper) -> None:
    """F17: the next sandbox starts with its own clock."""
    keeper.open("conv")
    keeper.extend("conv", 5000)
    keeper.end("conv")

    assert keeper.open("conv").extended_until is None


def test_an_extension_lasts_as_long_as_it_was_asked_for_whatever_the_clock_does(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """L1, F27: asked for while the clock was two hours ahead, and over ten minutes later."""
    keeper.open("conv", idle_ttl=60)
    clock.advance(7200)
    keeper.store.sessions.extend("conv", 600, actor="somebody")  # not the provider, whose clock is
    clock.advance(-7200)

    lived = survives(reaper, keeper, clock, 600)

    assert lived
    assert not survives(reaper, keeper, clock, 300)


def test_activity_while_the_clock_was_ahead_takes_no_extension_back(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: what was promised before the clock went wrong is not touched when it is put right."""
    keeper.open("conv", idle_ttl=60)
    keeper.extend("conv", 3600)
    clock.advance(3000)
    keeper.touch("conv")
    clock.advance(-3000)

    assert survives(reaper, keeper, clock, 3600)


def test_an_extension_is_refused_by_type(keeper: Keeper, clock: FrozenClock) -> None:
    """S1: what is over is never acknowledged."""
    keeper.open("ended")
    keeper.end("ended", reason="user left")
    keeper.open("old", max_age=10)
    clock.advance(10)

    with pytest.raises(SessionEnded, match="user left"):
        keeper.extend("ended", 10)
    with pytest.raises(SessionEnded, match="max_age"):
        keeper.extend("old", 10)
    with pytest.raises(SessionNotFound):
        keeper.extend("nobody", 10)


def test_an_extension_that_makes_no_sense_is_refused(keeper: Keeper) -> None:
    """F24: it may not shorten a life either."""
    keeper.open("conv")

    nonsense: list[Any] = [0, -5, timedelta(seconds=-1), float("inf"), None]
    for by in nonsense:
        with pytest.raises(InvalidArgument, match="by"):
            keeper.extend("conv", by)


# Ending


def test_an_end_closes_the_sandbox_and_rings_after_the_commit(
    store: Store, provider: FakeCloud, engine: Engine
) -> None:
    """A worker that hears the doorbell always finds the row closing."""
    heard: list[tuple[str, list[tuple[str, int]]]] = []
    keeper = Keeper(
        store,
        provider,
        doorbell=lambda pairs: heard.append((sandbox_row(engine, "conv").state, pairs)),
    )
    keeper.open("conv")

    session = keeper.end("conv", reason="user left")

    assert (session.status, session.end_reason) == (SessionStatus.ENDED, "user left")
    assert heard == [("closing", [("conv", 1)])]
    assert provider.count("destroy") == 0


def test_ending_twice_changes_nothing(keeper: Keeper, clock: FrozenClock, store: Store) -> None:
    """The first reason and moment stand."""
    keeper.open("conv")
    first = keeper.end("conv", reason="user left")
    clock.advance(10)

    second = keeper.end("conv", reason="again")

    assert second == first
    assert kinds(store, "conv").count("session_ended") == 1


def test_a_late_end_of_one_generation_never_ends_the_next(keeper: Keeper, store: Store) -> None:
    """S3, F18: the generation is the fencing token."""
    keeper.open("conv")
    keeper.end("conv")
    keeper.open("conv")

    session = store.sessions.end("conv", "late", actor="a slow process", generation=1)

    assert (session.status, session.generation) == (SessionStatus.ACTIVE, 2)


def test_a_session_can_be_ended_while_its_sandbox_is_made(
    keeper: Keeper, provider: FakeCloud, engine: Engine
) -> None:
    """L2: no state waits for somebody's memory; the create's caller is refused later."""
    provider.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("conv")

    keeper.end("conv")

    assert sandbox_row(engine, "conv").state == "closing"


def test_the_end_of_an_unknown_session_says_so(keeper: Keeper) -> None:
    """Not silently done."""
    with pytest.raises(SessionNotFound, match="nobody"):
        keeper.end("nobody")


def test_a_doorbell_that_fails_does_not_fail_the_end(
    store: Store, provider: FakeCloud, engine: Engine
) -> None:
    """The move is committed; the next sweep covers what was not heard."""

    def broken(_: object) -> None:
        raise ConnectionError("no broker")

    keeper = Keeper(store, provider, doorbell=broken)
    keeper.open("conv")

    session = keeper.end("conv")

    assert session.status is SessionStatus.ENDED
    assert sandbox_row(engine, "conv").state == "closing"


def test_a_reason_that_cannot_be_kept_is_refused(keeper: Keeper) -> None:
    """It is shown to people and written to logs."""
    keeper.open("conv")

    malformed: list[Any] = ["", "x" * 201, "a\nb", "a\x00", 7]
    for reason in malformed:
        with pytest.raises(InvalidArgument, match="reason"):
            keeper.end("conv", reason=reason)

    assert keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_reason_that_no_encoding_can_write_is_refused(keeper: Keeper) -> None:
    """Half a surrogate pair is no text: refused by us, not by the driver."""
    keeper.open("conv")

    with pytest.raises(InvalidArgument, match="reason"):
        keeper.end("conv", reason="half \ud800")


# Looking


def test_a_look_changes_nothing(keeper: Keeper, clock: FrozenClock) -> None:
    """F15: reading is no activity."""
    opened = keeper.open("conv")
    clock.advance(100)

    assert keeper.get("conv") == opened


def test_a_session_that_is_not_there_is_not_found(keeper: Keeper) -> None:
    """With its id and what to do."""
    with pytest.raises(SessionNotFound, match=r"'nobody'.*open it first"):
        keeper.get("nobody")


@pytest.fixture
def half_open(keeper: Keeper, provider: FakeCloud) -> str:
    """A session whose sandbox is being created, by nobody any more."""
    provider.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("conv")
    return "conv"


def test_a_session_that_is_being_made_is_not_ready_for_turns(
    keeper: Keeper, half_open: str
) -> None:
    """Neither ended nor usable: a type of its own."""
    with pytest.raises(SessionNotReady, match="'conv'"), keeper.turn(half_open):
        pytest.fail("a turn has begun without a sandbox")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"idle_ttl": 10**400}, InvalidArgument),
        ({"spec": 5}, InvalidSpec),
        ({"metadata": {"deep": nested(5000)}}, InvalidArgument),
    ],
    ids=["huge", "no object", "deep"],
)
def test_what_makes_python_stumble_is_refused_by_name(
    keeper: Keeper, wrong: dict[str, Any], error: type[Exception]
) -> None:
    """H2: an error of ours, that names the argument, and no row."""
    with pytest.raises(error, match=next(iter(wrong))):
        keeper.open("conv", **wrong)

    with pytest.raises(SessionNotFound):
        keeper.get("conv")
