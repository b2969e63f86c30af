"""Teardown: one effective end of each sandbox, fenced, confirmed, and never given up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Row, select

from core.errors import AuthFailed, Busy, OutcomeUnknown, RateLimited, Unavailable
from core.host import Host
from core.lifecycle import Keeper
from core.model import SandboxState
from core.reaper import Reaper, Teardown, TeardownOutcome
from core.schema import sandboxes
from core.store import Store
from core.teardown import Undertaker
from tests.factories import claim as made_up_claim
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock
from tests.forks import in_child

GONE = Teardown(outcome=TeardownOutcome.GONE)
REFUSED = Teardown(outcome=TeardownOutcome.REFUSED)
LIMITS = policy()


def sandbox_row(engine: Engine, session_id: str = "conv", generation: int = 1) -> Row[Any]:
    """A sandbox as another process sees it."""
    b = sandboxes.c
    with engine.connect() as connection:
        query = select(sandboxes).where(b.session_id == session_id, b.generation == generation)
        return connection.execute(query).one()


def kinds(store: Store, session_id: str = "conv") -> list[str]:
    """What the ledger says of a session, in order."""
    return [line.kind for line in store.history.of_session(session_id)]


@pytest.fixture
def closing(keeper: Keeper) -> str:
    """An ended session whose sandbox waits to be torn down."""
    keeper.open("conv")
    keeper.end("conv")
    return "conv"


def retry(seconds: float) -> Teardown:
    """The outcome of an attempt that failed."""
    return Teardown(outcome=TeardownOutcome.RETRY, retry_after=seconds)


# What may be torn down


def test_a_closing_sandbox_is_destroyed_and_confirmed_gone(
    closing: str, reaper: Reaper, provider: FakeCloud, engine: Engine, clock: FrozenClock
) -> None:
    """L3: done only when the provider itself says that it is not there."""
    outcome = reaper.teardown(closing, 1, worker="w")

    row = sandbox_row(engine)
    assert outcome == GONE
    assert (row.state, row.gone_at, row.due_at, row.claimed_by) == ("gone", clock.now, None, None)
    assert [call.operation for call in provider.calls] == ["create", "destroy", "get"]
    assert not provider.alive()


def test_a_live_sandbox_is_never_torn_down(
    keeper: Keeper, reaper: Reaper, provider: FakeCloud
) -> None:
    """S1: a message proves nothing; the row decides."""
    keeper.open("conv")

    outcomes = [reaper.teardown("conv", n, worker="w", early=True) for n in (0, 1, 2)]

    assert outcomes == [REFUSED] * 3
    assert reaper.teardown("nobody", 1, worker="w") == REFUSED
    assert provider.count("destroy") == 0


def test_a_sandbox_that_is_gone_is_not_touched_again(
    closing: str, reaper: Reaper, provider: FakeCloud, store: Store
) -> None:
    """S3, F31: a message that is delivered twice has one effect and one event."""
    outcomes = [reaper.teardown(closing, 1, worker="w") for _ in range(3)]

    assert outcomes == [GONE, REFUSED, REFUSED]
    assert provider.count("destroy") == 1
    assert kinds(store).count("sandbox_gone") == 1


def test_many_workers_at_once_are_one_teardown(
    closing: str, reaper: Reaper, provider: FakeCloud, store: Store
) -> None:
    """S3, F31: eight workers hear the same message; one claims."""
    at_once = threading.Barrier(8)

    def call(number: int) -> Teardown:
        at_once.wait(30)
        return reaper.teardown(closing, 1, worker=f"w{number}")

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(call, range(8)))

    assert sorted(outcome.outcome for outcome in outcomes) == ["gone", *["refused"] * 7]
    assert sum(provider.kills.values()) == 1
    assert kinds(store).count("sandbox_gone") == 1


def test_a_sandbox_that_is_not_there_is_gone(
    closing: str, reaper: Reaper, provider: FakeCloud, engine: Engine
) -> None:
    """Not found is success, from the scope that the row names."""
    provider.vanish(provider.alive()[0].name)

    assert reaper.teardown(closing, 1, worker="w") == GONE
    assert sandbox_row(engine).state == "gone"


def test_a_late_message_of_one_generation_never_touches_the_next(
    closing: str, keeper: Keeper, reaper: Reaper, provider: FakeCloud
) -> None:
    """S3, F18: reopened before the worker came: only what is closing goes."""
    following = keeper.open(closing)

    outcomes = [reaper.teardown(closing, 1, worker="w") for _ in range(2)]

    (box,) = provider.alive()
    assert outcomes == [GONE, REFUSED]
    assert box.external_id == following.sandbox.external_id
    assert keeper.get(closing).sandbox.state is SandboxState.RUNNING


# Fencing


def test_a_claim_that_ran_out_is_taken_over_and_its_holder_refused(
    closing: str, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """S3, F9: a worker that was stopped for two minutes neither says gone nor puts it off."""
    first = store.teardowns.claim(closing, 1, "first")
    live = store.teardowns.claim(closing, 1, "impatient", early=True)
    clock.advance(LIMITS.claim_ttl)
    second = store.teardowns.claim(closing, 1, "second")
    assert first is not None
    assert second is not None

    late_gone = store.teardowns.gone(first, actor="first")
    late_release = store.teardowns.release(first, "x", 1.0, actor="first", quarantine=True)

    assert live is None
    assert (second.token, second.attempts) == (2, 2)
    assert not late_gone
    assert not late_release
    assert sandbox_row(engine).claimed_by == "second"
    assert kinds(store)[-1] == "session_ended"
    assert store.teardowns.gone(second, actor="second")


def test_a_worker_that_wakes_up_late_is_refused(
    closing: str, reaper: Reaper, provider: FakeCloud, clock: FrozenClock, store: Store
) -> None:
    """S3, F9: stuck in the provider's call past its claim; the other one's end is the only one."""
    with ThreadPoolExecutor(1) as thread, provider.hang("destroy") as hang:
        stuck = thread.submit(reaper.teardown, closing, 1, worker="stuck")
        assert hang.entered.wait(30)
        clock.advance(LIMITS.claim_ttl)
        finished = reaper.teardown(closing, 1, worker="second")
        hang.release()
        late = stuck.result(30)

    assert (finished, late) == (GONE, REFUSED)
    assert sum(provider.kills.values()) == 1
    assert [e.actor for e in store.history.of_session(closing)][-1] == "second"


def test_a_claim_that_never_was_moves_nothing(closing: str, store: Store, engine: Engine) -> None:
    """The token and the key are the proof, not the session's name."""
    forged = made_up_claim(session_id=closing)

    assert not store.teardowns.gone(forged, actor="w")
    assert not store.teardowns.release(forged, "x", 1.0, actor="w")
    assert sandbox_row(engine).state == "closing"


def test_the_provider_is_never_called_on_a_claim_that_may_have_run_out(
    closing: str, store: Store
) -> None:
    """S3: its deadline counts from before the claim, and ends before it."""
    deadlines: list[float] = []

    class Recorder(FakeCloud):
        def destroy(self, ref: Any, *, deadline: float) -> None:
            deadlines.append(deadline)
            super().destroy(ref, deadline=deadline)

    cloud = Recorder(monotonic=lambda: 1000.0)
    reaper = Reaper(
        store, {"fake": cloud}, doorbell=lambda _: None, host=Host(monotonic=lambda: 1000.0)
    )

    reaper.teardown(closing, 1, worker="w")

    assert 1000.0 < deadlines[0] < 1000.0 + LIMITS.claim_ttl


# Failing


@pytest.mark.parametrize(
    "error",
    [Unavailable("503"), OutcomeUnknown(), Busy(), KeyError("a bug"), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_teardown_is_due_again(
    *,
    closing: str,
    reaper: Reaper,
    provider: FakeCloud,
    clock: FrozenClock,
    engine: Engine,
    error: Exception,
) -> None:
    """L3, F3: whatever was raised, a provider's bug too; it is never dropped, never a success."""
    provider.fail("destroy", error)

    outcome = reaper.teardown(closing, 1, worker="w")

    row = sandbox_row(engine)
    assert outcome == retry(LIMITS.retry_base)
    assert (row.state, row.claimed_by, row.attempts) == ("closing", None, 1)
    assert row.due_at == row.not_before == clock.now + timedelta(seconds=LIMITS.retry_base)
    assert type(error).__name__ in row.last_error
    clock.advance(LIMITS.retry_base)
    assert reaper.teardown(closing, 1, worker="w") == GONE


def test_a_pause_holds_off_messages_and_ends_early_for_its_own_retry(
    closing: str, reaper: Reaper, provider: FakeCloud
) -> None:
    """F20, F31: a repeated message does not shorten the backoff; whoever may says so."""
    provider.fail("destroy", Unavailable("503"))
    reaper.teardown(closing, 1, worker="w")

    message = reaper.teardown(closing, 1, worker="w")
    early = reaper.teardown(closing, 1, worker="w", early=True)

    assert (message, early) == (REFUSED, GONE)


def test_an_accepted_destroy_is_not_believed(
    closing: str, reaper: Reaper, provider: FakeCloud, clock: FrozenClock, engine: Engine
) -> None:
    """L3, F3: it said yes, and the sandbox is still there: retried until it is not."""
    provider.delay("destroy", accepted=True)

    first = reaper.teardown(closing, 1, worker="w")
    state = sandbox_row(engine).state
    provider.land()
    clock.advance(LIMITS.retry_base)

    assert first.outcome is TeardownOutcome.RETRY
    assert state == "closing"
    assert "still says running" in sandbox_row(engine).last_error
    assert reaper.teardown(closing, 1, worker="w") == GONE


def test_a_provider_that_lies_is_asked_until_it_is_true(
    closing: str, reaper: Reaper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """L3, F3: every lie costs one pause; H1: none is counted as a success."""
    provider.lie(times=5)

    outcomes = []
    for _ in range(6):
        outcomes.append(reaper.teardown(closing, 1, worker="w").outcome)
        clock.advance(LIMITS.retry_max)

    assert outcomes == [TeardownOutcome.RETRY] * 5 + [TeardownOutcome.GONE]
    assert not provider.alive()


def test_a_look_that_fails_confirms_nothing(
    closing: str, reaper: Reaper, provider: FakeCloud, engine: Engine
) -> None:
    """S4: "I could not read it" is never "it is not there"."""
    provider.fail("get", Unavailable("503"))

    outcome = reaper.teardown(closing, 1, worker="w")

    assert outcome.outcome is TeardownOutcome.RETRY
    assert sandbox_row(engine).state == "closing"


def test_the_pauses_grow_and_then_stay(
    closing: str, reaper: Reaper, provider: FakeCloud, clock: FrozenClock, engine: Engine
) -> None:
    """L3: doubled to a limit, then quarantined and retried for ever, slower."""
    provider.fail("destroy", Unavailable("503"), times=100)

    pauses, quarantined = [], []
    for _ in range(10):
        pause = reaper.teardown(closing, 1, worker="w").retry_after
        assert pause is not None
        pauses.append(pause)
        quarantined.append(sandbox_row(engine).quarantined_at is not None)
        clock.advance(pause)

    assert pauses == [5, 10, 20, 40, 80, 160, 300, 900, 900, 900]
    assert quarantined == [False] * 7 + [True] * 3
    provider.heal()
    assert reaper.teardown(closing, 1, worker="w") == GONE


def test_a_rate_limit_costs_no_attempt_and_its_wait_is_kept(
    closing: str, reaper: Reaper, provider: FakeCloud, engine: Engine, clock: FrozenClock
) -> None:
    """F20: 429 says nothing of the sandbox; many of them never reach quarantine."""
    provider.fail("destroy", RateLimited(retry_after=42), times=20)

    for _ in range(20):
        assert reaper.teardown(closing, 1, worker="w") == retry(42)
        clock.advance(42)

    row = sandbox_row(engine)
    assert (row.attempts, row.quarantined_at) == (0, None)
    assert reaper.teardown(closing, 1, worker="w") == GONE


def test_a_wait_that_is_absurd_is_bounded(
    closing: str, reaper: Reaper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """L1: neither a storm nor a wait of a week."""
    for asked, kept in ((0.0, LIMITS.retry_base), (7 * 86400.0, LIMITS.longest_pause), (None, 5.0)):
        provider.fail("destroy", RateLimited(retry_after=asked))

        assert reaper.teardown(closing, 1, worker="w") == retry(kept)
        clock.advance(kept)


def test_an_error_that_no_retry_mends_is_shown_at_once_and_still_retried(
    closing: str, reaper: Reaper, provider: FakeCloud, engine: Engine, clock: FrozenClock
) -> None:
    """S4, L3, F30: a failed login never means gone; an operator sees it, and it heals by itself."""
    provider.fail("destroy", AuthFailed("401"))

    first = reaper.teardown(closing, 1, worker="w")
    (shown,) = reaper.store.teardowns.quarantined()
    clock.advance(LIMITS.quarantine_retry)

    assert first == retry(LIMITS.quarantine_retry)
    assert (shown.session_id, shown.attempts, shown.last_error) == (closing, 1, "AuthFailed: 401")
    assert reaper.teardown(closing, 1, worker="w") == GONE
    assert reaper.store.teardowns.quarantined() == []


def test_a_provider_that_this_worker_does_not_have_is_shown(
    closing: str, store: Store, engine: Engine
) -> None:
    """S2, S4: another worker may have it; nothing is concluded."""
    outcome = Reaper(store, {}, doorbell=lambda _: None).teardown(closing, 1, worker="w")

    row = sandbox_row(engine)
    assert outcome.outcome is TeardownOutcome.RETRY
    assert row.quarantined_at is not None
    assert "no provider 'fake'" in row.last_error


def test_a_not_found_from_another_account_is_never_believed(
    closing: str, reaper: Reaper, provider: FakeCloud, engine: Engine
) -> None:
    """S2, S4: the credentials were changed; the sandbox lives on in the first account."""
    provider.account = "another-account"

    outcome = reaper.teardown(closing, 1, worker="w")

    assert outcome.outcome is TeardownOutcome.RETRY
    assert provider.count("destroy") == 0
    assert "scope 'test-account'" in sandbox_row(engine).last_error
    provider.account = "test-account"
    reaper.store.teardowns.retry_now(closing)
    assert reaper.teardown(closing, 1, worker="w") == GONE


def test_an_operator_can_end_the_pauses_of_what_is_quarantined(
    keeper: Keeper, reaper: Reaper, provider: FakeCloud, rung: list[tuple[str, int]]
) -> None:
    """One or all of them; a live claim is left alone."""
    for name in "abc":
        keeper.open(name)
        keeper.end(name)
        provider.fail("destroy", AuthFailed())
        reaper.teardown(name, 1, worker="w")
    rung.clear()
    held = reaper.store.teardowns.claim("c", 1, "w", early=True)

    one = reaper.store.teardowns.retry_now("a")
    every = reaper.store.teardowns.retry_now()

    assert held is not None
    assert (one, every) == (1, 2)
    reaper.sweep()
    assert sorted(rung) == [("a", 1), ("b", 1)]


def test_an_error_in_words_that_no_database_can_keep_is_still_an_error(
    closing: str, reaper: Reaper, provider: FakeCloud, engine: Engine
) -> None:
    """L3, F13: a message with raw bytes in it must not keep the row from being released."""
    for words in ("\x00", "half \ud800", "x" * 10_000):
        provider.fail("destroy", Unavailable(words))

        outcome = reaper.teardown(closing, 1, worker="w", early=True)

        assert outcome.outcome is TeardownOutcome.RETRY
        assert sandbox_row(engine).claimed_by is None
    assert reaper.teardown(closing, 1, worker="w", early=True) == GONE


def test_an_attempt_that_kills_its_worker_is_counted(
    closing: str, store: Store, reaper: Reaper, provider: FakeCloud, clock: FrozenClock
) -> None:
    """L3: a sandbox whose teardown never returns still reaches quarantine, at its next failure."""
    for _ in range(LIMITS.quarantine_after):
        assert store.teardowns.claim(closing, 1, "a worker that dies")
        clock.advance(LIMITS.claim_ttl)
    provider.fail("destroy", Unavailable("503"))

    reaper.teardown(closing, 1, worker="w")

    assert [shown.session_id for shown in store.teardowns.quarantined()] == [closing]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_counts_no_calls_of_its_parent(store: Store, provider: FakeCloud) -> None:
    """A worker that forks while calls are under way has all of its room in the child."""
    undertaker = Undertaker(store, {"fake": provider, "other": provider}, host=Host(), at_once=1)

    def has_room() -> bool:
        with undertaker._room("fake") as room:
            return room

    with undertaker._room("fake"):
        assert not has_room()
        assert in_child(has_room)
