"""A backup that is brought back: the old state of the store must not harm what lives today."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, insert, select

from core.engines import witness
from core.errors import QuotaExceeded, TurnExpired
from core.events import Event, EventKind
from core.host import Host
from core.lifecycle import Keeper
from core.model import Claim, SandboxState, SessionStatus
from core.reaper import Reaper, TeardownOutcome
from core.reconcile import Reconciler
from core.schema import (
    events,
    holds,
    installation,
    orphans,
    providers,
    sandboxes,
    sessions,
    turns,
)
from core.store import Store
from core.store import restore as restore_module
from core.store.guard import Decision, HoldReason
from core.turn import Turn
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock, Idle

LIMITS = policy(backstop=None)
IDLE_TTL, CONFIRM = LIMITS.idle_ttl, LIMITS.confirm_interval
EVERY, GRACE = LIMITS.reconcile_interval, LIMITS.orphan_grace
HOUR = 3600.0
TABLES = (installation, sessions, turns, sandboxes, events, holds, orphans, providers)


@pytest.fixture
def store(engine: Engine, clock: FrozenClock) -> Store:
    """A store with the witness that it has in production."""
    return Store(engine, policy=LIMITS, clock=clock, witness=witness(engine))


@pytest.fixture
def keeper(store: Store, provider: FakeCloud, clock: FrozenClock) -> Keeper:
    """An API server's keeper, without its background work."""
    return Keeper(store, provider, host=Host(loop=Idle, sleep=clock.advance))


@pytest.fixture
def reconciler(store: Store, provider: FakeCloud) -> Reconciler:
    """What compares the test's cloud with the test's store."""
    return Reconciler(store, {"fake": provider}, host=Host(spread=lambda: 0.0))


def backed_up(engine: Engine, scratch: Path) -> Callable[[], None]:
    """Take a backup; what is returned brings it back, into the same database."""
    if engine.dialect.name == "sqlite":
        return _backed_up_file(engine, scratch)
    with engine.connect() as connection:
        rows: Mapping[Any, list[Any]] = {
            table: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in TABLES
        }

    def bring_back() -> None:
        with engine.begin() as connection:
            for table in reversed(TABLES):
                connection.execute(delete(table))
            for table in TABLES:
                if rows[table]:
                    connection.execute(insert(table), rows[table])

    return bring_back


def _backed_up_file(engine: Engine, scratch: Path) -> Callable[[], None]:
    path, backup = Path(str(engine.url.database)), scratch / "backup.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(path, backup)

    def bring_back() -> None:
        engine.dispose()
        for part in ("-wal", "-shm"):
            path.with_name(path.name + part).unlink(missing_ok=True)
        shutil.copyfile(backup, path)

    return bring_back


def swept(reaper: Reaper, clock: FrozenClock, seconds: float) -> int:
    """Sweep every interval for so long; gives how many sessions ended."""
    ended = 0
    for _ in range(int(seconds // CONFIRM)):
        ended += reaper.sweep().ended
        clock.advance(CONFIRM)
    return ended


def compared(reconciler: Reconciler, clock: FrozenClock, seconds: float) -> int:
    """Reconcile every interval for so long; gives how many orphans were torn down."""
    killed = 0
    for _ in range(int(seconds // EVERY)):
        (report,) = reconciler.reconcile()
        killed += report.killed
        clock.advance(EVERY)
    return killed


@dataclass(frozen=True, kw_only=True)
class Story:
    """What an operator has after a restore."""

    turn: Turn  # on the session `live`
    claim: Claim  # of before: a worker still works on it
    new: str  # the id of a sandbox that the backup does not know
    again: str  # likewise: the second generation of a session that it knows
    torn_down: str  # the id of one that it thinks is running


@pytest.fixture
def story(
    *,
    engine: Engine,
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    provider: FakeCloud,
    tmp_path: Path,
) -> Story:
    """Sessions, a backup, an hour in which much happens, and the backup brought back."""
    for name in ("live", "ends", "reopens", "closing", "noticed"):
        keeper.open(name)
    provider.doubt("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("creating")
    turn = keeper.turn("live").begin()
    keeper.end("closing")
    torn_down = str(keeper.get("ends").sandbox.external_id)
    reaper.sweep()
    bring_back = backed_up(engine, tmp_path)

    keeper.open("creating")
    keeper.end("ends")
    keeper.end("reopens")
    for name in ("ends", "reopens"):
        assert reaper.teardown(name, 1, worker="w").outcome is TeardownOutcome.GONE
    again = str(keeper.open("reopens").sandbox.external_id)
    new = str(keeper.open("new").sandbox.external_id)
    for _ in range(int(HOUR // CONFIRM)):
        clock.advance(CONFIRM)
        for name in ("live", "reopens", "new", "noticed", "creating"):
            keeper.touch(name)
        reaper.sweep()
    claim = keeper.store.teardowns.claim("closing", 1, "before")
    assert claim is not None
    bring_back()
    return Story(turn=turn, claim=claim, new=new, again=again, torn_down=torn_down)


def restored(store: Store) -> int:
    """What `db restored` does, the wait for workers aside."""
    store.guard.hold(HoldReason.RESTORE, {"why": "restore"}, actor="op")
    active = store.restore.everything()
    store.restore.finish(actor="op")
    return active


def living(provider: FakeCloud) -> set[str]:
    """The ids of what lives."""
    return {box.external_id for box in provider.alive()}


def test_a_backup_that_is_brought_back_is_noticed(
    story: Story, reaper: Reaper, store: Store, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S5: the sweep remembers more than the database; until somebody says so nothing is done."""
    before = living(provider)

    ended = swept(reaper, clock, 20 * CONFIRM)

    assert [hold.reason for hold in store.guard.holds()] == [HoldReason.REWOUND]
    assert ended == 0
    assert living(provider) == before


def test_after_a_restore_everybody_has_a_full_idle_time(
    story: Story, reaper: Reaper, store: Store, clock: FrozenClock, keeper: Keeper
) -> None:
    """S1, S5: who was active a moment ago is not known any more, so everybody may have been."""
    active = restored(store)

    ended = swept(reaper, clock, IDLE_TTL)
    keeper._beater.once()
    story.turn.check()
    after = swept(reaper, clock, 3 * CONFIRM)

    assert active == 5
    assert ended == 0
    assert keeper.get("live").status is SessionStatus.ACTIVE
    assert after == 3  # noticed, reopens, ends: nobody touched them


def test_a_notice_of_before_the_backup_counts_for_nothing(
    engine: Engine,
    keeper: Keeper,
    reaper: Reaper,
    clock: FrozenClock,
    tmp_path: Path,
) -> None:
    """S5: it was noticed, backed up, and used for an hour: the notice is of another life."""
    keeper.open("conv")
    clock.advance(IDLE_TTL)
    reaper.sweep()
    bring_back = backed_up(engine, tmp_path)
    keeper.touch("conv")
    clock.advance(HOUR)
    bring_back()

    restored(keeper.store)

    assert keeper.get("conv").noticed_at is None
    assert swept(reaper, clock, IDLE_TTL) == 0
    assert keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_claim_of_before_is_worth_nothing(
    story: Story, store: Store, provider: FakeCloud, reaper: Reaper
) -> None:
    """S3: the same number must not be given twice: the late worker would speak for the new one."""
    restored(store)
    now = store.teardowns.claim("closing", 1, "after")
    assert now is not None

    late = store.teardowns.gone(story.claim, actor="before")
    late_release = store.teardowns.release(story.claim, "x", 1.0, actor="before")

    assert not late
    assert not late_release
    assert store.sessions.get("closing").sandbox.state is SandboxState.CLOSING
    assert store.teardowns.gone(now, actor="after")


def test_a_sandbox_that_the_backup_does_not_know_is_kept_until_somebody_says_so(
    story: Story,
    store: Store,
    provider: FakeCloud,
    reconciler: Reconciler,
    clock: FrozenClock,
) -> None:
    """L4, F7: it may be the workspace of somebody who is working in it."""
    restored(store)
    keep = {story.new, story.again}

    kept = compared(reconciler, clock, GRACE + 10 * EVERY)
    there = living(provider)
    store.guard.approve(HoldReason.MASS_ORPHANS, HOUR, actor="op")
    removed = compared(reconciler, clock, EVERY)

    assert kept == 0
    assert keep <= there
    assert removed == 2
    assert not keep & living(provider)


def test_an_approval_right_after_a_restore_still_waits_for_the_grace(
    story: Story,
    store: Store,
    provider: FakeCloud,
    reconciler: Reconciler,
    clock: FrozenClock,
) -> None:
    """L4: two looks and the grace count from the restore; what was sighted before is forgotten."""
    reconciler.reconcile()  # a beat that was not stopped
    clock.advance(GRACE)
    restored(store)
    store.guard.approve(HoldReason.MASS_ORPHANS, 10 * HOUR, actor="op")

    early = compared(reconciler, clock, GRACE)
    late = compared(reconciler, clock, EVERY)

    assert (early, late) == (0, 2)


def test_a_create_of_before_can_be_finished(
    story: Story, store: Store, reaper: Reaper, keeper: Keeper, provider: FakeCloud
) -> None:
    """S1: its row says `creating`, long past its deadline: its sandbox is adopted."""
    (box,) = provider.alive(keeper.get("creating").sandbox.name)
    restored(store)

    expired = reaper.sweep().expired
    session = keeper.open("creating")

    assert expired == 0
    assert session.sandbox.external_id == box.external_id


def test_a_sandbox_that_was_torn_down_since_the_backup_is_lost(
    story: Story, store: Store, reconciler: Reconciler, keeper: Keeper
) -> None:
    """Its next turn is told that the workspace was reset."""
    restored(store)

    (report,) = reconciler.reconcile()

    assert report.lost == 2
    assert (keeper.get("ends").end_reason, keeper.get("reopens").end_reason) == ("lost", "lost")
    assert keeper.open("ends").reset_reason == "lost"


def test_the_whole_procedure_leaves_no_question_but_one_answer(
    story: Story, store: Store, reaper: Reaper, engine: Engine, clock: FrozenClock
) -> None:
    """Everything goes on, and what the backup does not know stays, for good."""
    reaper.sweep()
    restored(store)

    (hold,) = store.guard.holds()
    assert (hold.reason, hold.decision, hold.decided_by, hold.open) == (
        HoldReason.MASS_ORPHANS,
        Decision.DENIED,
        "op",
        False,
    )
    clock.advance(365 * 24 * HOUR)
    assert store.guard.decision(HoldReason.MASS_ORPHANS) is Decision.DENIED
    with engine.connect() as connection:
        told = select(func.count()).where(events.c.kind == EventKind.STORE_RESTORED.value)
        assert connection.execute(told).scalar_one() == 1


def test_a_teardown_that_was_due_is_done_after_the_restore(
    story: Story, store: Store, reaper: Reaper, provider: FakeCloud, rung: list[tuple[str, int]]
) -> None:
    """L1: what the backup condemned is still condemned."""
    restored(store)
    rung.clear()

    reaper.sweep()

    assert ("closing", 1) in rung
    assert reaper.teardown("closing", 1, worker="w").outcome is TeardownOutcome.GONE


def test_the_procedure_can_be_repeated(story: Story, store: Store, reaper: Reaper) -> None:
    """An operator who was interrupted begins again."""
    store.restore.everything()
    restored(store)
    restored(store)

    assert store.teardowns.claim("closing", 1, "w") is not None
    assert not store.guard.is_held()
    assert reaper.sweep().ended == 0


def test_an_approval_that_came_back_with_the_backup_is_no_approval(
    engine: Engine, keeper: Keeper, store: Store, tmp_path: Path
) -> None:
    """S5: what was approved or asked was so for the state of then; a denial stays."""
    for reason in (HoldReason.MASS_MISSING, HoldReason.MASS_END, HoldReason.STORE):
        store.guard.hold(reason, {}, actor="sweep")
    store.guard.approve(HoldReason.MASS_MISSING, HOUR, actor="op")
    store.guard.deny(HoldReason.MASS_END, HOUR, actor="op")
    bring_back = backed_up(engine, tmp_path)
    bring_back()

    restored(store)

    left = {hold.reason: hold.decision for hold in store.guard.holds()}
    assert left == {
        HoldReason.MASS_ORPHANS: Decision.DENIED,
        HoldReason.MASS_END: Decision.DENIED,
    }


def test_many_rows_are_changed_in_batches(
    engine: Engine,
    provider: FakeCloud,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No transaction over a million rows; every one of them has its turn."""
    monkeypatch.setattr(restore_module, "BATCH", 2)
    store = Store(engine, policy=LIMITS, clock=clock)
    keeper = Keeper(store, provider, host=Host(loop=Idle))
    for number in range(5):
        keeper.open(f"conv-{number}")
    keeper.open("ended")
    keeper.end("ended")
    clock.advance(HOUR)
    progress: list[int] = []

    active = store.restore.everything(progress.append)

    with engine.connect() as connection:
        tokens = connection.execute(select(sandboxes.c.claim_token)).scalars().all()
        activity = select(sessions.c.last_activity_at).where(sessions.c.status == "active")
        moments = set(connection.execute(activity).scalars())
    assert (active, progress) == (5, [2, 4, 5])
    assert moments == {clock.now}
    assert tokens == [restore_module.FENCE] * 6


def test_a_turn_that_the_backup_does_not_know_is_told(
    engine: Engine, keeper: Keeper, store: Store, tmp_path: Path
) -> None:
    """S1: its holder gets a typed refusal, and never works on unseen."""
    bring_back = backed_up(engine, tmp_path)
    keeper.open("new")
    turn = keeper.turn("new").begin()
    bring_back()
    restored(store)

    keeper._beater.once()

    with pytest.raises(TurnExpired):
        turn.check()


def test_who_listens_hears_of_a_restore(engine: Engine, clock: FrozenClock) -> None:
    """H1: the operator's word is in the ledger, with who gave it."""
    heard: list[Event] = []
    store = Store(engine, policy=LIMITS, clock=clock, sinks=[heard.append])

    store.restore.finish(actor="ada")

    assert [(e.kind, e.actor) for e in heard] == [(EventKind.STORE_RESTORED, "ada")]


def test_what_was_asked_before_a_restore_holds_nothing_after_it(store: Store) -> None:
    """L1: those questions were about a state that is not there any more."""
    for reason in (HoldReason.STORE, HoldReason.MASS_END, HoldReason.RESTORE):
        store.guard.hold(reason, {}, actor="sweep")

    store.restore.finish(actor="op")

    assert not store.guard.is_held()


def test_a_restore_does_not_lift_an_operators_hold(store: Store) -> None:
    """S5: somebody else may have asked for it, for a reason of his own."""
    store.guard.hold(HoldReason.OPERATOR, {"why": "an incident"}, actor="ada")
    store.guard.hold(HoldReason.RESTORE, {}, actor="bob")

    store.restore.finish(actor="bob")

    (held,) = [hold for hold in store.guard.holds() if hold.open]
    assert (held.reason, dict(held.detail)) == (HoldReason.OPERATOR, {"why": "an incident"})
