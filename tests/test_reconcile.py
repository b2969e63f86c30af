"""Reconcile: what is an orphan and what is lost, and everything that must never be taken for it."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, event, func, insert, select, text

from core.engines import make_engine
from core.errors import OutcomeUnknown, QuotaExceeded, SessionEnded, StoreError, Unavailable
from core.events import Event, EventKind
from core.host import Host
from core.lifecycle import Keeper
from core.model import SandboxState, SessionStatus, sandbox_labels, sandbox_name
from core.policy import Policy
from core.providers.base import Capability, Page, ProviderState, SandboxInfo, SandboxRef
from core.reaper import Reaper, TeardownOutcome
from core.reconcile import Reconciler, ReconcileReport, missing
from core.reconcile.orphans import IMPLAUSIBLE
from core.schema import events, orphans, sandboxes, sessions
from core.store import Store, inventory
from core.store.guard import HoldReason
from tests.factories import policy, stray
from tests.fakes import Box, FakeCloud, FrozenClock, Idle

LIMITS = policy()
EVERY = LIMITS.reconcile_interval
GRACE = LIMITS.orphan_grace
HOUR = 3600.0


@pytest.fixture
def heard() -> list[Event]:
    """What the sinks were told, in order."""
    return []


@pytest.fixture
def store(engine: Engine, clock: FrozenClock, heard: list[Event]) -> Store:
    """A store that is listened to."""
    return Store(engine, policy=policy(), clock=clock, sinks=[heard.append])


def reconciler_of(store: Store, *clouds: FakeCloud, **host: Any) -> Reconciler:
    """What compares these clouds with the store; its pauses have no jitter."""
    return Reconciler(
        store, {cloud.name: cloud for cloud in clouds}, host=Host(spread=lambda: 0.0, **host)
    )


def keeper_of(store: Store, cloud: FakeCloud, **host: Any) -> Keeper:
    """An API server's keeper, without its background work."""
    return Keeper(store, cloud, host=Host(loop=Idle, **host))


@pytest.fixture(autouse=True)
def used(store: Store) -> None:
    """This store has had a sandbox before: one that never had any explains nothing."""
    cloud = FakeCloud()
    with keeper_of(store, cloud) as keeper:
        keeper.open("long-ago")
        keeper.end("long-ago")
    Reaper(store, {cloud.name: cloud}, doorbell=lambda _: None).teardown("long-ago", 1, worker="w")


@pytest.fixture
def reconciler(store: Store, provider: FakeCloud) -> Reconciler:
    """What compares the test's cloud with the test's store."""
    return reconciler_of(store, provider)


def compare(reconciler: Reconciler) -> ReconcileReport:
    """One pass over the only provider."""
    (report,) = reconciler.reconcile()
    return report


def passes(reconciler: Reconciler, clock: FrozenClock, times: int = 4) -> list[ReconcileReport]:
    """So many passes, each an interval after the other: 4 are more than any grace."""
    reports = []
    for _ in range(times):
        reports.append(compare(reconciler))
        clock.advance(EVERY)
    return reports


def plant(cloud: FakeCloud, store: Store) -> Box:
    """A sandbox of ours that no row explains."""
    return cloud.plant(*stray(store.installation))


def counted(report: ReconcileReport) -> dict[str, int]:
    """The counts that are not zero."""
    fields = {name: getattr(report, name) for name in ReconcileReport.__dataclass_fields__}
    return {name: value for name, value in fields.items() if isinstance(value, int) and value}


def living(cloud: FakeCloud) -> set[str]:
    """The ids of what lives."""
    return {box.external_id for box in cloud.alive()}


def kinds(heard: list[Event], kind: EventKind) -> int:
    """How often the sinks heard of this."""
    return [one.kind for one in heard].count(kind)


def external_id(keeper: Keeper, session_id: str) -> str:
    """The provider's id of its current sandbox."""
    found = keeper.get(session_id).sandbox.external_id
    assert found is not None
    return found


def half_open(keeper: Keeper, cloud: FakeCloud, session_id: str) -> None:
    """A session whose creator went away before the provider made anything."""
    cloud.fail("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open(session_id)


def take_out(engine: Engine, session_id: str) -> list[tuple[Any, Mapping[str, Any]]]:
    """Lose the rows of a session, as a database that was restored has lost them."""
    taken: list[tuple[Any, Mapping[str, Any]]] = []
    with engine.begin() as connection:
        for table, column in ((sessions, sessions.c.id), (sandboxes, sandboxes.c.session_id)):
            rows = connection.execute(select(table).where(column == session_id)).mappings().all()
            taken += [(table, dict(row)) for row in rows]
        connection.execute(delete(sandboxes).where(sandboxes.c.session_id == session_id))
        connection.execute(delete(sessions).where(sessions.c.id == session_id))
    return taken


def put_back(engine: Engine, taken: list[tuple[Any, Mapping[str, Any]]]) -> None:
    """The rows are there again."""
    with engine.begin() as connection:
        for table, row in taken:
            connection.execute(insert(table), row)


def sightings(engine: Engine) -> dict[str, int]:
    """How often each orphan that is noted was seen."""
    with engine.connect() as connection:
        rows = connection.execute(select(orphans.c.external_id, orphans.c.sightings)).all()
    return {row.external_id: row.sightings for row in rows}


def in_ledger(engine: Engine, kind: EventKind) -> int:
    """How often the ledger says it."""
    query = select(func.count()).select_from(events).where(events.c.kind == kind.value)
    with engine.connect() as connection:
        found: int = connection.execute(query).scalar_one()
    return found


# Sandboxes that no row explains


def test_a_sandbox_that_no_row_explains_is_removed_after_the_grace(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """L4: seen, seen again, and removed when the grace is over; not a second before."""
    box = plant(provider, store)

    first = compare(reconciler)
    clock.advance(EVERY)
    second = compare(reconciler)
    clock.advance(GRACE - EVERY - 1)
    third = compare(reconciler)
    clock.advance(1)
    last = compare(reconciler)

    watching = {"listed": 1, "rowless": 1, "watched": 1}
    assert [counted(report) for report in (first, second, third)] == [watching] * 3
    assert counted(last) == {"listed": 1, "rowless": 1, "killed": 1}
    assert provider.kills == {box.name: 1}
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 1
    assert store.orphans.all() == []


def test_a_sandbox_that_no_row_explains_is_never_removed_at_first_sight(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock
) -> None:
    """S5: however old it is, and however long nobody looked."""
    clock.advance(GRACE * 10)
    provider.plant(*stray(store.installation, made_at=clock.now), age=GRACE * 10)

    report = compare(reconciler)

    assert counted(report) == {"listed": 1, "rowless": 1, "watched": 1}
    assert provider.count("destroy") == 0


def test_two_passes_at_once_are_one_look(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """L4: two beats see it in the same moment; that is no second look, even without a grace."""
    store = Store(engine, policy=policy(orphan_grace=1.0), clock=clock)
    reconcilers = [reconciler_of(store, provider) for _ in range(2)]
    plant(provider, store)

    for _ in range(3):
        assert [compare(each).killed for each in reconcilers] == [0, 0]
        clock.advance(1)

    assert provider.count("destroy") == 0
    clock.advance(EVERY)
    assert sum(compare(each).killed for each in reconcilers) == 1


def test_what_was_not_there_for_one_pass_is_watched_anew(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """L4: the grace counts looks that follow each other."""
    box = plant(provider, store)
    passes(reconciler, clock, 2)
    provider.unlisted.add(box.external_id)
    passes(reconciler, clock, 1)
    assert sightings(engine) == {}

    provider.unlisted.clear()
    report = compare(reconciler)

    assert counted(report) == {"listed": 1, "rowless": 1, "watched": 1}


def test_a_create_that_landed_after_its_teardown_is_removed_at_once(
    keeper: Keeper,
    reconciler: Reconciler,
    reaper: Reaper,
    provider: FakeCloud,
    clock: FrozenClock,
) -> None:
    """L4: the delete was answered "not there", then the create had its effect after all."""
    provider.delay("create", times=3)
    with pytest.raises(OutcomeUnknown):
        keeper.open("conv")
    clock.advance(LIMITS.create_deadline)
    reaper.sweep()
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE
    provider.land()
    assert len(provider.alive()) == 1

    report = compare(reconciler)

    assert counted(report) == {"listed": 1, "late": 1, "killed": 1}
    assert not provider.alive()


def twins(store: Store, clock: FrozenClock) -> tuple[FakeCloud, Keeper, Box, Box]:
    """A cloud that made two of one name: the one on the row, and the other."""
    cloud = FakeCloud(
        clock=clock, capabilities=frozenset(Capability) - {Capability.IDEMPOTENT_CREATE}
    )
    cloud.doubt("create", OutcomeUnknown())
    keeper = keeper_of(store, cloud, sleep=clock.advance)
    keeper.open("conv")
    ours = cloud.boxes[external_id(keeper, "conv")]
    (twin,) = [box for box in cloud.alive() if box is not ours]
    return cloud, keeper, ours, twin


def test_of_two_sandboxes_of_one_name_only_the_one_that_is_not_on_the_row_goes(
    store: Store, clock: FrozenClock
) -> None:
    """S1, L4: a create was answered twice; what the row names runs on, whatever it is called."""
    cloud, keeper, ours, twin = twins(store, clock)

    report = compare(reconciler_of(store, cloud))

    assert twin.name == ours.name
    assert counted(report) == {
        "listed": 2,
        "explained": 1,
        "twin": 1,
        "killed": 1,
        "scanned": 1,
    }
    assert cloud.alive() == [ours]
    with keeper.turn("conv"):
        pass


def test_a_look_that_answers_with_another_sandbox_kills_nothing(
    store: Store, clock: FrozenClock
) -> None:
    """S1, S2: a cloud that looks up by name shows the running one: it is not the twin."""

    class ByName(FakeCloud):
        def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
            return super().get(SandboxRef(name=ref.name), deadline=deadline)

        def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
            super().destroy(SandboxRef(name=ref.name), deadline=deadline)

    cloud = ByName(clock=clock, capabilities=frozenset(Capability) - {Capability.IDEMPOTENT_CREATE})
    keeper = keeper_of(store, cloud, sleep=clock.advance)
    cloud.doubt("create", OutcomeUnknown(), times=2)
    keeper.open("conv")
    lost = next(box for box in cloud.alive() if box.external_id != external_id(keeper, "conv"))
    for box in cloud.alive():
        if box is not lost and box.external_id != external_id(keeper, "conv"):
            box.state = ProviderState.GONE
    cloud.boxes = dict(reversed(cloud.boxes.items()))  # by name the running one is found first

    report = compare(reconciler_of(store, cloud))

    assert (report.twin, report.killed, report.failed) == (1, 0, 1)
    assert cloud.count("destroy") == 0


def test_what_a_row_explains_is_left_alone(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S1, S3: running, being created, and being torn down have their own ways."""
    keeper.open("running")
    keeper.open("closing")
    keeper.end("closing")
    provider.doubt("create", QuotaExceeded())
    with pytest.raises(QuotaExceeded):
        keeper.open("creating")

    reports = passes(reconciler, clock, 2) + passes(reconciler, clock, 2)

    assert [counted(report) for report in reports] == [
        {"listed": 3, "explained": 1, "creating": 1, "closing": 1, "scanned": 1}
    ] * 4
    assert provider.count("destroy") == 0


def test_a_row_that_comes_back_before_the_kill_saves_its_sandbox(
    *,
    keeper: Keeper,
    reconciler: Reconciler,
    provider: FakeCloud,
    store: Store,
    clock: FrozenClock,
    engine: Engine,
) -> None:
    """S1: the rows are read again by the statement that takes the right to destroy."""
    other = plant(provider, store)
    compare(reconciler)
    clock.advance(1)
    session = keeper.open("conv")
    rows = take_out(engine, "conv")
    compare(reconciler)
    clock.advance(GRACE)
    # The longest known goes first, and while it does the rows of the other come back.
    provider.before("destroy", lambda: put_back(engine, rows))

    report = compare(reconciler)

    assert (report.killed, report.kept) == (1, 1)
    assert provider.kills == {other.name: 1}
    assert living(provider) == {session.sandbox.external_id}


def test_a_row_that_comes_back_is_explained(
    keeper: Keeper,
    reconciler: Reconciler,
    provider: FakeCloud,
    clock: FrozenClock,
    engine: Engine,
) -> None:
    """S1: and its sightings are forgotten."""
    keeper.open("conv")
    rows = take_out(engine, "conv")
    passes(reconciler, clock, 2)
    put_back(engine, rows)

    clock.advance(GRACE)
    report = compare(reconciler)

    assert (report.explained, report.killed) == (1, 0)
    assert sightings(engine) == {}
    assert provider.count("destroy") == 0


# What is not ours


def foreign(store: Store) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Everything that looks like one of ours, and is not."""
    name, labels = stray(store.installation)
    yield name, {}
    yield "somebody-elses", {}
    for label in labels:
        yield name, {key: value for key, value in labels.items() if key != label}
    wrong = {
        "sandkeeper-schema": ("2", "", "1 ", "\u0661"),
        "sandkeeper-installation": ("othersys", store.installation.upper() + "X", ""),
        "sandkeeper-key": (labels["sandkeeper-key"].upper(), "x" * 25, "../etc", "0" * 26),
        "sandkeeper-session": ("conv", "A" * 40, "0" * 39),
        "sandkeeper-generation": ("0", "-1", "1.0", "1e3", "\uff19"),
        "sandkeeper-created-at": ("", "-1", "now", "1" * 13, "1.5"),
    }
    for label, values in wrong.items():
        for value in values:
            yield name, {**labels, label: value}
    yield name.upper(), labels
    yield name + "-2", labels
    yield stray(store.installation)[0], labels
    yield stray("othersys")


class Careless(FakeCloud):
    """A cloud whose listing does not look at labels: what is not ours comes along."""

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        return super().list({}, cursor=cursor, deadline=deadline)


def test_what_is_not_exactly_ours_is_never_touched(store: Store, clock: FrozenClock) -> None:
    """S2, F6: a label less, another alphabet, another name, another installation."""
    cloud = Careless(clock=clock, page_size=7)
    for name, labels in foreign(store):
        cloud.plant(name, labels, age=HOUR)
    planted = living(cloud)

    reports = passes(reconciler_of(store, cloud), clock)

    assert len(planted) > 30
    assert [(r.listed, r.foreign, r.skipped) for r in reports] == [
        (len(planted),) * 2 + (None,)
    ] * 4
    assert living(cloud) == planted
    assert {call.operation for call in cloud.calls} == {"list"}


def test_labels_that_change_before_the_kill_save_the_sandbox(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock
) -> None:
    """S2: whoever took it over in the last moment has it."""
    box = plant(provider, store)
    passes(reconciler, clock, 2)
    provider.before("get", lambda: box.labels.update({"sandkeeper-schema": "2"}))

    report = compare(reconciler)

    assert (report.killed, report.failed) == (0, 1)
    assert provider.count("destroy") == 0


def test_a_sandbox_that_no_statement_can_note_stops_no_other(
    store: Store, clock: FrozenClock, provider: FakeCloud, reconciler: Reconciler
) -> None:
    """F13: an id that no column takes is nothing that we wrote."""
    for strange in ("x" * 300, "nul\x00", "half \ud800"):
        box = plant(provider, store)
        del provider.boxes[box.external_id]
        box.external_id = strange
        provider.boxes[strange] = box
    good = plant(provider, store)

    reports = passes(reconciler, clock)

    assert reports[0].foreign == 3
    assert provider.kills == {good.name: 1}


# A listing that is not the truth


@pytest.mark.parametrize(
    "error",
    [Unavailable("503"), OutcomeUnknown(), TimeoutError(), KeyError("a bug"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_of_half_a_listing_nothing_is_concluded(
    *,
    keeper: Keeper,
    store: Store,
    clock: FrozenClock,
    provider: FakeCloud,
    engine: Engine,
    heard: list[Event],
    error: Exception,
) -> None:
    """S4, F7: the second page fails: no sighting, no kill, nothing lost, nothing forgotten."""
    provider.page_size = 1
    reconciler = reconciler_of(store, provider)
    orphan = plant(provider, store)
    passes(reconciler, clock, 2)
    keeper.open("conv")
    gone = keeper.open("gone").sandbox.external_id
    keeper.open("late")
    assert gone is not None
    provider.boxes[gone].state = ProviderState.GONE
    provider.fail("list", error, after=1)

    report = compare(reconciler)

    assert report.skipped is not None
    assert type(error).__name__ in report.skipped
    assert counted(report) == {}
    assert kinds(heard, EventKind.RECONCILE_SKIPPED) == 1
    assert sightings(engine) == {orphan.external_id: 2}
    assert [c.operation for c in provider.calls if c.operation in {"get", "destroy"}] == []
    assert keeper.get("gone").status is SessionStatus.ACTIVE


def test_what_two_pages_show_is_one(store: Store, engine: Engine, clock: FrozenClock) -> None:
    """L4: it moved from page to page while they were read; that is no second look."""

    class Moving(FakeCloud):
        def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
            page = super().list(labels, cursor=None, deadline=deadline)
            return Page(items=page.items, cursor=None if cursor else "2")

    cloud = Moving(clock=clock)
    orphan = plant(cloud, store)

    report = compare(reconciler_of(store, cloud))

    assert counted(report) == {"listed": 1, "rowless": 1, "watched": 1}
    assert sightings(engine) == {orphan.external_id: 1}


def test_a_listing_that_goes_round_in_circles_is_none(store: Store, clock: FrozenClock) -> None:
    """S4: a provider that gives a cursor twice never comes to an end."""

    class Circle(FakeCloud):
        def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
            page = super().list(labels, cursor=None, deadline=deadline)
            return Page(items=page.items, cursor="b" if cursor == "a" else "a")

    cloud = Circle(clock=clock, monotonic=lambda: 0.0)
    plant(cloud, store)
    ticks = itertools.count()
    reconciler = reconciler_of(store, cloud, monotonic=lambda: float(next(ticks)))

    reports = passes(reconciler, clock)

    assert all("goes round in circles" in str(report.skipped) for report in reports)
    assert len(cloud.alive()) == 1


def test_a_listing_without_an_end_is_none(store: Store, clock: FrozenClock) -> None:
    """S4: a provider that always has one page more takes its own time, and no more."""
    ticks = itertools.count()

    class Endless(FakeCloud):
        def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
            assert self.count("list") < 1000
            page = super().list(labels, cursor=None, deadline=float("inf"))
            return Page(items=page.items, cursor=f"{int(cursor or 0) + 1}")

    cloud = Endless(clock=clock)
    plant(cloud, store)

    report = compare(reconciler_of(store, cloud, monotonic=lambda: float(next(ticks))))

    assert "OutcomeUnknown" in str(report.skipped)
    assert cloud.count("list") <= LIMITS.reconcile_budget


def test_a_listing_that_lacks_a_running_sandbox_ends_no_session(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S4, F7: "not listed" is no "not there"; the cloud is asked for this very sandbox."""
    keeper.open("conv")
    provider.unlisted.add(external_id(keeper, "conv"))

    reports = passes(reconciler, clock)

    assert [counted(report) for report in reports] == [
        {"scanned": 1, "missing": 1, "unconfirmed": 1}
    ] * 4
    assert keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_listing_that_still_has_what_is_gone_counts_no_kill(
    *,
    keeper: Keeper,
    reconciler: Reconciler,
    reaper: Reaper,
    provider: FakeCloud,
    engine: Engine,
    clock: FrozenClock,
) -> None:
    """H1, F29: it was torn down before; nobody tears it down again, and the ledger says so."""
    box_id = keeper.open("conv").sandbox.external_id
    assert box_id is not None
    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w")
    provider.lingering.add(box_id)

    reports = passes(reconciler, clock)

    assert {(report.late, report.killed, report.failed) for report in reports} == {(1, 0, 0)}
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 0
    assert sum(provider.kills.values()) == 1


def test_an_empty_listing_ends_no_session(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S4, F7: a cloud that shows nothing at all, of thirty that run."""
    for number in range(30):
        provider.unlisted.add(str(keeper.open(f"conv-{number}").sandbox.external_id))

    reports = passes(reconciler, clock, 2)

    assert {(r.listed, r.missing, r.lost, r.unconfirmed) for r in reports} == {(0, 30, 0, 30)}
    assert not keeper.store.guard.is_held()


def test_a_provider_that_cannot_list_is_not_compared(
    store: Store, clock: FrozenClock, keeper: Keeper
) -> None:
    """S4: nothing can be concluded from what cannot be asked."""
    keeper.open("conv")
    cloud = FakeCloud(clock=clock, capabilities=frozenset(Capability) - {Capability.LIST})

    report = compare(reconciler_of(store, cloud))

    assert report == ReconcileReport(provider="fake", skipped="it cannot list")
    assert cloud.calls == []


def test_an_unreadable_store_concludes_nothing(
    *,
    keeper: Keeper,
    reconciler: Reconciler,
    provider: FakeCloud,
    store: Store,
    clock: FrozenClock,
    engine: Engine,
) -> None:
    """S4: the rows cannot be read after the cloud has answered: an error, and no orphan."""
    keeper.open("conv")
    plant(provider, store)
    passes(reconciler, clock, 2)

    def lose_the_rows() -> None:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE sandboxes RENAME TO elsewhere"))

    provider.before("list", lose_the_rows)
    with pytest.raises(StoreError):
        reconciler.reconcile()

    assert len(provider.alive()) == 2
    assert provider.count("destroy") == 0


# Sandboxes that are missing


def test_a_session_whose_sandbox_is_gone_ends_and_the_next_turn_is_told(
    keeper: Keeper, reconciler: Reconciler, reaper: Reaper, provider: FakeCloud, store: Store
) -> None:
    """The next generation is told that the workspace was reset, and why."""
    keeper.open("conv")
    keeper.open("other")
    turn = keeper.turn("conv")
    turn.begin()
    provider.vanish(keeper.get("conv").sandbox.name)

    report = compare(reconciler)
    ended = keeper.get("conv")
    following = keeper.open("conv")

    assert counted(report) == {
        "listed": 1,
        "explained": 1,
        "scanned": 2,
        "missing": 1,
        "lost": 1,
    }
    assert (ended.status, ended.end_reason) == (SessionStatus.ENDED, "lost")
    assert ended.sandbox.state is SandboxState.CLOSING
    assert (following.generation, following.fresh, following.reset_reason) == (2, True, "lost")
    assert keeper.get("other").status is SessionStatus.ACTIVE
    keeper._beater.once()
    with pytest.raises(SessionEnded):
        turn.check()
    assert reaper.teardown("conv", 1, worker="w").outcome is TeardownOutcome.GONE
    assert [e.kind for e in store.history.of_session("conv")].count("sandbox_gone") == 1


def test_a_session_that_went_on_meanwhile_is_not_lost(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud
) -> None:
    """S3: it ended and was opened again while the cloud was asked: that is another sandbox."""
    keeper.open("conv")
    provider.vanish(keeper.get("conv").sandbox.name)

    def go_on() -> None:
        keeper.end("conv")
        keeper.open("conv")

    provider.before("get", go_on)
    report = compare(reconciler)

    assert (report.missing, report.lost) == (1, 0)
    assert (keeper.get("conv").generation, keeper.get("conv").end_reason) == (2, None)
    assert keeper.get("conv").status is SessionStatus.ACTIVE


def test_a_session_that_ended_meanwhile_keeps_its_reason(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, store: Store
) -> None:
    """H1: one end, one record."""
    keeper.open("conv")
    provider.vanish(keeper.get("conv").sandbox.name)
    provider.before("get", lambda: keeper.end("conv", reason="done"))

    report = compare(reconciler)

    assert report.lost == 0
    assert keeper.get("conv").end_reason == "done"
    assert [e.kind for e in store.history.of_session("conv")].count("session_ended") == 1


def test_a_turn_that_begins_meanwhile_does_not_keep_what_is_gone(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud
) -> None:
    """The cloud said that this very sandbox is gone: the turn is told with its next beat."""
    keeper.open("conv")
    provider.vanish(keeper.get("conv").sandbox.name)
    turn = keeper.turn("conv")
    provider.before("get", turn.begin)

    report = compare(reconciler)
    keeper._beater.once()

    assert report.lost == 1
    with pytest.raises(SessionEnded):
        turn.check()


def test_a_sandbox_that_began_to_run_after_the_listing_began_is_not_missed(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S4: a listing says nothing of what came after it; nor does a cloud that is slow to show."""

    def open_another() -> None:
        clock.advance(1)
        provider.unlisted.add(str(keeper.open("new").sandbox.external_id))
        provider.vanish(keeper.get("new").sandbox.name)  # not to be found for a moment

    provider.before("list", open_another)
    report = compare(reconciler)

    assert (report.scanned, report.lost) == (0, 0)
    assert keeper.get("new").status is SessionStatus.ACTIVE


def test_the_sandboxes_of_another_account_are_not_missed(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud
) -> None:
    """S4: the credentials were changed; a not-found of the new account says nothing."""
    keeper.open("conv")
    provider.account = "another-account"

    report = compare(reconciler)

    assert counted(report) == {}
    assert keeper.get("conv").status is SessionStatus.ACTIVE


@pytest.mark.parametrize("operation", ["list", "get"])
def test_credentials_that_change_during_a_pass_lose_nothing(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, operation: str
) -> None:
    """S4: what was found under one account is not looked for in the next."""
    keeper.open("conv")
    provider.unlisted.add(external_id(keeper, "conv"))
    provider.before(operation, lambda: setattr(provider, "account", "another-account"))

    report = compare(reconciler)

    assert report.lost == 0
    assert report.skipped is not None
    assert keeper.get("conv").status is SessionStatus.ACTIVE


@pytest.mark.parametrize("error", [Unavailable("503"), KeyError("a bug")], ids=["503", "bug"])
def test_a_look_that_fails_confirms_no_loss(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, error: Exception
) -> None:
    """S4, F13: nothing is lost by it, and the next one is looked at all the same."""
    keeper.open("a")
    keeper.open("b")
    provider.vanish(keeper.get("a").sandbox.name)
    provider.vanish(keeper.get("b").sandbox.name)
    provider.fail("get", error)

    report = compare(reconciler)

    assert (report.missing, report.lost, report.unconfirmed) == (2, 1, 1)
    assert compare(reconciler).lost == 1


# One that fails, and the others


@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_provider_that_fails_stops_no_other(
    store: Store, clock: FrozenClock, broken: str
) -> None:
    """F13: whatever it raises, and whichever comes first."""
    clouds = {name: FakeCloud(clock=clock, name=name) for name in "ab"}
    reconciler = reconciler_of(store, *clouds.values())
    for cloud in clouds.values():
        plant(cloud, store)
    clouds[broken].fail("list", SystemError("a driver's bug"), times=10)

    for _ in range(3):
        reports = {report.provider: report for report in reconciler.reconcile()}
        clock.advance(EVERY)

    healthy = "b" if broken == "a" else "a"
    assert "SystemError" in str(reports[broken].skipped)
    assert (reports[healthy].killed, reports[healthy].skipped) == (1, None)
    assert (len(clouds[broken].alive()), len(clouds[healthy].alive())) == (1, 0)


def test_a_provider_that_hangs_holds_up_no_other(store: Store, clock: FrozenClock) -> None:
    """F14: each provider's pass is a task of its own."""
    stuck, well = FakeCloud(clock=clock, name="stuck"), FakeCloud(clock=clock, name="well")
    reconciler = reconciler_of(store, stuck, well)
    plant(well, store)

    with ThreadPoolExecutor(1) as thread, stuck.hang("list") as hang:
        hung = thread.submit(reconciler.reconcile, "stuck")
        assert hang.entered.wait(30)
        killed = 0
        for _ in range(3):
            killed += sum(report.killed for report in reconciler.reconcile("well"))
            clock.advance(EVERY)
        hang.release()
        (late,) = hung.result(30)

    assert killed == 1
    assert late.skipped is None


def test_one_orphan_that_fails_stops_no_other(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """F13: the others go in the same pass, and it is tried again after a pause."""
    for _ in range(4):
        plant(provider, store)
    passes(reconciler, clock, 2)
    provider.fail("destroy", KeyError("a bug"), after=1)

    first = compare(reconciler)
    again = compare(reconciler)
    (left,) = store.orphans.all()
    clock.advance(LIMITS.retry_max)
    last = compare(reconciler)

    assert (first.killed, first.failed) == (3, 1)
    assert (again.killed, again.failed, again.watched) == (0, 0, 1)
    assert (left.attempts, left.last_error) == (1, "KeyError: 'a bug'")
    assert last.killed == 1
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 4


def test_an_accepted_destroy_is_not_believed(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """L3, F3: a kill is one when the cloud says that it is gone."""
    plant(provider, store)
    passes(reconciler, clock, 2)
    provider.lie()

    report = compare(reconciler)

    assert (report.killed, report.failed) == (0, 1)
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 0
    clock.advance(EVERY)
    assert compare(reconciler).killed == 1


def test_orphans_that_always_fail_starve_no_fresh_one(engine: Engine, clock: FrozenClock) -> None:
    """F14: a full batch of them backs off, and what is new comes before them."""
    stuck: set[str] = set()

    class Stuck(FakeCloud):
        def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
            if ref.name in stuck:
                raise Unavailable("503")
            super().destroy(ref, deadline=deadline)

    provider = Stuck(clock=clock)
    store = Store(engine, policy=policy(batch=3), clock=clock)
    reconciler = reconciler_of(store, provider)
    failing = [plant(provider, store) for _ in range(3)]
    passes(reconciler, clock, 2)
    stuck.update(box.name for box in failing)
    passes(reconciler, clock, 8)
    fresh = plant(provider, store)

    reports = passes(reconciler, clock, 5)

    assert provider.kills == {fresh.name: 1}
    assert all(report.failed <= 3 for report in reports)
    assert max(orphan.attempts for orphan in store.orphans.all()) < 13


def test_eight_passes_at_once_are_one_kill(
    provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """F31: two beats, or a repeated message: the claim lets one of them destroy."""
    plant(provider, store)
    reconciler = reconciler_of(store, provider)
    passes(reconciler, clock, 2)
    at_once = threading.Barrier(8)

    def run(_: int) -> int:
        at_once.wait(30)
        return compare(reconciler).killed

    with ThreadPoolExecutor(8) as threads:
        killed = sum(threads.map(run, range(8)))

    assert killed == 1
    assert provider.count("destroy") == 1
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 1


def test_a_kill_is_in_the_ledger_also_when_another_pass_misses_the_sandbox_first(
    provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """H1: what somebody holds a claim on is not forgotten by a pass that sees it gone."""
    plant(provider, store)
    reconciler, beside = reconciler_of(store, provider), reconciler_of(store, provider)
    passes(reconciler, clock, 2)

    def look_beside() -> None:
        clock.advance(1)
        compare(beside)

    provider.before("get", look_beside, after=1)  # the destroy is done, and not yet confirmed
    report = compare(reconciler)

    assert report.killed == 1
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 1


def test_a_kill_that_took_its_time_is_in_the_ledger(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """H1: accepted, still there, and gone when the next pass lists: that was us."""
    plant(provider, store)
    passes(reconciler, clock, 2)
    provider.delay("destroy", accepted=True)
    first = compare(reconciler)
    provider.land()
    clock.advance(EVERY)

    second = compare(reconciler)

    assert [(r.killed, r.failed) for r in (first, second)] == [(0, 1), (1, 0)]
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 1
    assert store.orphans.all() == []


def test_a_kill_whose_worker_died_before_the_word_is_in_the_ledger(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, engine: Engine
) -> None:
    """H1: the sandbox is gone, and the claim runs out."""
    box = plant(provider, store)
    passes(reconciler, clock, 2)
    (orphan,) = store.orphans.all()
    assert store.orphans.claim(orphan)
    provider.vanish(box.name)
    during = compare(reconciler)
    clock.advance(LIMITS.claim_ttl)

    after = compare(reconciler)

    assert (during.killed, after.killed) == (0, 1)
    assert in_ledger(engine, EventKind.ORPHAN_GONE) == 1
    assert store.orphans.all() == []


def test_what_was_tried_and_is_no_orphan_by_now_is_forgotten(
    *,
    reconciler: Reconciler,
    reaper: Reaper,
    keeper: Keeper,
    provider: FakeCloud,
    store: Store,
    clock: FrozenClock,
    engine: Engine,
) -> None:
    """What is not there, and is no orphan by its row, is not kept for ever."""
    name = keeper.open("conv").sandbox.name
    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w")
    (box,) = [box for box in provider.boxes.values() if box.name == name]
    box.state = ProviderState.RUNNING
    provider.fail("destroy", Unavailable("503"))
    compare(reconciler)
    take_out(engine, "conv")  # as purge does
    provider.vanish(name)
    clock.advance(EVERY)

    compare(reconciler)

    assert store.orphans.all() == []


# Bounded work


def test_one_pass_compares_a_bounded_number_of_rows_and_the_next_goes_on(
    engine: Engine,
    provider: FakeCloud,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F14: three passes walk through all of them, and the fourth begins again."""
    monkeypatch.setattr(inventory, "KEYS", 2)
    monkeypatch.setattr(missing, "LONGEST_SCAN", 2)
    store = Store(engine, policy=policy(), clock=clock)
    keeper = keeper_of(store, provider)
    for number in range(10):
        provider.unlisted.add(str(keeper.open(f"conv-{number}").sandbox.external_id))
    reconciler = reconciler_of(store, provider)

    scanned = [compare(reconciler).scanned for _ in range(3)]
    asked = {call.name for call in provider.calls if call.operation == "get"}

    assert scanned == [4, 4, 2]
    assert asked == {box.name for box in provider.alive()}
    assert compare(reconciler).scanned == 4


def test_what_a_listing_never_shows_hides_no_sandbox_that_is_lost(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """F14, F23: a batch of paused ones that are not listed, and behind them one that is gone."""
    store = Store(engine, policy=policy(batch=3), clock=clock)
    keeper = keeper_of(store, provider)
    opened = sorted((keeper.open(f"conv-{n}") for n in range(8)), key=lambda s: s.sandbox.key)
    provider.unlisted |= {str(session.sandbox.external_id) for session in opened}
    provider.vanish(opened[-1].sandbox.name)
    reconciler = reconciler_of(store, provider)

    reports = [compare(reconciler) for _ in range(3)]

    assert [report.lost for report in reports] == [0, 0, 1]
    assert keeper.get(opened[-1].id).end_reason == "lost"


def test_more_orphans_than_a_batch_take_more_passes(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """One pass tears down a batch, the longest known first."""
    store = Store(engine, policy=policy(batch=2), clock=clock)
    reconciler = reconciler_of(store, provider)
    keeper_of(store, provider).open("known")
    for _ in range(5):
        plant(provider, store)
    passes(reconciler, clock, 2)

    assert [compare(reconciler).killed for _ in range(4)] == [2, 2, 1, 0]


def test_a_batch_that_is_spared_hides_nothing_that_may_go(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, keeper: Keeper, reaper: Reaper
) -> None:
    """L4: after a restore rowless ones are kept for good, and stay the longest known."""
    limits = policy(batch=3, breaker_min=1, breaker_ratio=0.5)
    store = Store(engine, policy=limits, clock=clock)
    reconciler = reconciler_of(store, provider)
    late_name = keeper.open("conv").sandbox.name
    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w")
    for _ in range(3):
        plant(provider, store)
    passes(reconciler, clock)
    store.guard.deny(HoldReason.MASS_ORPHANS, 100 * HOUR, actor="op")
    (late,) = [box for box in provider.boxes.values() if box.name == late_name]
    late.state = ProviderState.RUNNING

    report = compare(reconciler)

    assert (report.killed, report.kept) == (1, 3)
    assert late.state is ProviderState.GONE
    assert len(provider.alive()) == 3


# Looking only


@contextmanager
def spied(engine: Engine) -> Iterator[list[str]]:
    """The statements that change something."""
    changing: list[str] = []

    def listen(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split(maxsplit=1)[0].upper()
        if words not in {"SELECT", "BEGIN", "PRAGMA", "SHOW"} or "FOR UPDATE" in statement:
            changing.append(statement)

    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield changing
    finally:
        event.remove(engine, "before_cursor_execute", listen)


def arranged(keeper: Keeper, provider: FakeCloud, reconciler: Reconciler) -> None:
    """Some of everything: running, creating, closing, late, rowless, lost."""
    for name in ("running", "closing", "lost"):
        keeper.open(name)
    keeper.end("closing")
    half_open(keeper, provider, "creating")
    provider.vanish(keeper.get("lost").sandbox.name)
    plant(provider, reconciler.store)


def test_a_dry_run_changes_nothing_and_concludes_the_same(
    *,
    keeper: Keeper,
    reconciler: Reconciler,
    provider: FakeCloud,
    engine: Engine,
    clock: FrozenClock,
    heard: list[Event],
) -> None:
    """F28: zero writes to the database and to the cloud, on every pass of an orphan's way."""
    arranged(keeper, provider, reconciler)
    same = ("listed", "explained", "closing", "rowless", "scanned", "missing")

    for _ in range(4):
        heard.clear()
        with spied(engine) as changing:
            (dry,) = reconciler.reconcile(dry_run=True)
        assert changing == []
        assert heard == []
        (wet,) = reconciler.reconcile()
        clock.advance(EVERY)
        assert [getattr(dry, name) for name in same] == [getattr(wet, name) for name in same]
        assert (dry.killed, dry.lost) == (0, 0)

    assert provider.count("destroy") == 1
    assert sum(provider.kills.values()) == 1


def test_a_dry_run_asks_nobody(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, heard: list[Event]
) -> None:
    """F28: where a pass would hold everything it only shows what it found."""
    store = Store(engine, policy=policy(), clock=clock, sinks=[heard.append])
    for _ in range(5):
        provider.plant(*stray(store.installation, made_at=clock.now - timedelta(days=1)))

    with spied(engine) as changing:
        (report,) = reconciler_of(store, provider).reconcile(dry_run=True)

    assert changing == []
    assert report.rowless == 5
    assert store.guard.holds() == []


# A database that is not the one that made the sandboxes


def test_a_new_database_under_an_old_name_touches_nothing(
    engine: Engine, store: Store, provider: FakeCloud, clock: FrozenClock, heard: list[Event]
) -> None:
    """F7: SANDKEEPER_INSTALLATION is set, and the database was begun anew."""
    before, name = clock.now - timedelta(days=1), store.installation
    provider.plant(*stray(name, made_at=before))
    store = Store(engine, policy=policy(), installation=name, clock=clock, sinks=[heard.append])

    reports = passes(reconciler_of(store, provider), clock)

    (hold,) = store.guard.holds()
    assert (hold.reason, hold.open) == (HoldReason.STORE, True)
    assert hold.detail["older_than_the_database"] == 1
    assert [report.killed for report in reports] == [0] * 4
    assert reports[-1].kept == 1
    assert kinds(heard, EventKind.DESTRUCTION_HELD) == 1
    assert len(provider.alive()) == 1


def test_a_database_that_explains_nothing_of_much_is_not_believed(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, keeper: Keeper
) -> None:
    """F7: five sandboxes of ours and not one row; one row that is known is enough to go on."""
    for _ in range(IMPLAUSIBLE):
        plant(provider, store)
    passes(reconciler, clock)

    (hold,) = store.guard.holds()
    assert hold.reason is HoldReason.STORE
    assert provider.count("destroy") == 0
    store.guard.deny(HoldReason.STORE, HOUR, actor="op")
    passes(reconciler, clock, 2)
    assert provider.count("destroy") == 0
    store.guard.approve(HoldReason.STORE, HOUR, actor="op")
    assert compare(reconciler).killed == IMPLAUSIBLE


def test_a_database_that_explains_something_is_believed(
    reconciler: Reconciler, provider: FakeCloud, store: Store, clock: FrozenClock, keeper: Keeper
) -> None:
    """L4: a handful of rowless ones beside one that is known are removed without a question."""
    keeper.open("conv")
    for _ in range(IMPLAUSIBLE):
        plant(provider, store)

    reports = passes(reconciler, clock)

    assert sum(report.killed for report in reports) == IMPLAUSIBLE
    assert store.guard.holds() == []


def test_a_new_installation_leaves_what_others_have_alone_and_says_so_once(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, heard: list[Event]
) -> None:
    """F7: an empty database makes a new installation; somebody should know on the first pass."""
    for _ in range(3):
        provider.plant(*stray("produced"), age=HOUR)
    store = Store(engine, policy=policy(), clock=clock, sinks=[heard.append])

    reports = passes(reconciler_of(store, provider), clock)

    told = [one for one in heard if one.kind is EventKind.OTHER_INSTALLATIONS]
    assert [dict(one.detail) for one in told] == [
        {"provider": "fake", "installations": ["produced"]}
    ]
    assert [counted(report) for report in reports] == [{}] * 4
    assert len(provider.alive()) == 3


def test_an_account_that_cannot_be_looked_through_is_still_compared(
    provider: FakeCloud, store: Store, clock: FrozenClock, reconciler: Reconciler
) -> None:
    """L4: the look for others is a courtesy; when it fails the pass goes on."""
    plant(provider, store)
    provider.fail("list", Unavailable("503"), after=1)

    first = compare(reconciler)

    assert first.skipped is None
    assert store.health.all()[0].reconciled_at == clock.now


# Many at once


def test_many_rowless_sandboxes_at_once_are_an_operators_decision(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, heard: list[Event]
) -> None:
    """S5, F7: above both limits nothing of the mass goes, approved it goes."""
    limits = policy(breaker_min=3, breaker_ratio=0.5)
    store = Store(engine, policy=limits, clock=clock, sinks=[heard.append])
    keeper = keeper_of(store, provider)
    reconciler = reconciler_of(store, provider)
    for number in range(3):
        keeper.open(f"conv-{number}")
    for _ in range(4):
        plant(provider, store)

    reports = passes(reconciler, clock, 4)
    held = [hold.reason for hold in store.guard.holds()]
    store.guard.approve(HoldReason.MASS_ORPHANS, HOUR, actor="op")
    after = compare(reconciler)

    assert [report.killed for report in reports] == [0] * 4
    assert (reports[-1].rowless, reports[-1].kept) == (4, 4)
    assert held == [HoldReason.MASS_ORPHANS]
    assert kinds(heard, EventKind.DESTRUCTION_HELD) == 1
    assert after.killed == 4


@pytest.mark.parametrize(("rowless", "known"), [(3, 0), (4, 4)], ids=["the number", "the share"])
def test_rowless_sandboxes_within_either_limit_are_removed(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, rowless: int, known: int
) -> None:
    """L4: exactly at BREAKER_MIN, and exactly at BREAKER_RATIO."""
    store = Store(engine, policy=policy(breaker_min=3, breaker_ratio=0.5), clock=clock)
    keeper = keeper_of(store, provider)
    for number in range(known):
        keeper.open(f"conv-{number}")
    for _ in range(rowless):
        plant(provider, store)

    reports = passes(reconciler_of(store, provider), clock)

    assert sum(report.killed for report in reports) == rowless
    assert store.guard.holds() == []


def test_a_mass_of_orphans_is_counted_across_batches(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """S5, F7: what one pass could do is not what the breaker asks about."""
    limits = policy(batch=2, breaker_min=3, breaker_ratio=0.5)
    store = Store(engine, policy=limits, clock=clock)
    keeper_of(store, provider).open("conv")
    for _ in range(8):
        plant(provider, store)

    passes(reconciler_of(store, provider), clock)

    assert [hold.reason for hold in store.guard.holds()] == [HoldReason.MASS_ORPHANS]
    assert len(provider.alive()) == 9


def test_a_denied_mass_of_orphans_is_left_alone_and_the_rest_goes_on(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, keeper: Keeper, reaper: Reaper
) -> None:
    """Deny: the rowless ones stay for so long; a late one is a fact, and goes."""
    store = Store(engine, policy=policy(breaker_min=1, breaker_ratio=0.5), clock=clock)
    reconciler = reconciler_of(store, provider)
    late_name = keeper.open("conv").sandbox.name
    keeper.end("conv")
    reaper.teardown("conv", 1, worker="w")
    for _ in range(3):
        plant(provider, store)
    passes(reconciler, clock)
    store.guard.deny(HoldReason.MASS_ORPHANS, HOUR, actor="op")
    (box,) = [box for box in provider.boxes.values() if box.name == late_name]
    box.state = ProviderState.RUNNING

    report = compare(reconciler)
    clock.advance(HOUR)
    compare(reconciler)

    assert (report.killed, report.kept) == (1, 3)
    assert len(provider.alive()) == 3
    assert [(hold.reason, hold.open) for hold in store.guard.holds()] == [
        (HoldReason.MASS_ORPHANS, True)
    ]


@pytest.mark.parametrize("batch", [2, 500])
def test_many_missing_sandboxes_at_once_are_an_operators_decision(
    engine: Engine, provider: FakeCloud, clock: FrozenClock, batch: int
) -> None:
    """S5, F7: a cloud that has lost everything may be the wrong cloud; also with small batches."""
    limits = policy(breaker_min=1, breaker_ratio=0.5, batch=batch)
    store = Store(engine, policy=limits, clock=clock)
    keeper = keeper_of(store, provider)
    reconciler = reconciler_of(store, provider)
    for number in range(8):
        keeper.open(f"conv-{number}")
        if number:
            provider.vanish(keeper.get(f"conv-{number}").sandbox.name)

    held = [compare(reconciler) for _ in range(3)]
    reasons = [hold.reason for hold in store.guard.holds()]
    store.guard.approve(HoldReason.MASS_MISSING, HOUR, actor="op")
    approved = [compare(reconciler) for _ in range(6)]

    assert held[0].missing == 7
    assert [report.lost for report in held] == [0] * 3
    assert reasons == [HoldReason.MASS_MISSING]
    assert sum(report.lost for report in approved) == 7
    assert keeper.get("conv-0").status is SessionStatus.ACTIVE


def test_a_denied_mass_of_missing_sandboxes_ends_no_session(
    engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """Deny: nobody's session ends for so long, and then it is asked again."""
    store = Store(engine, policy=policy(breaker_min=1, breaker_ratio=0.5), clock=clock)
    keeper = keeper_of(store, provider)
    reconciler = reconciler_of(store, provider)
    for number in range(3):
        keeper.open(f"conv-{number}")
    provider.vanish(keeper.get("conv-0").sandbox.name)
    provider.vanish(keeper.get("conv-1").sandbox.name)
    compare(reconciler)
    store.guard.deny(HoldReason.MASS_MISSING, HOUR, actor="op")

    denied = compare(reconciler)
    held_then = store.guard.is_held()
    clock.advance(HOUR)
    compare(reconciler)

    assert (denied.missing, denied.lost, held_then) == (2, 0, False)
    assert store.guard.is_held()
    assert all(keeper.get(f"conv-{n}").status is SessionStatus.ACTIVE for n in range(3))


def test_one_missing_sandbox_is_lost_without_a_question(
    keeper: Keeper, reconciler: Reconciler, provider: FakeCloud, store: Store
) -> None:
    """Also when it is the only one there is."""
    keeper.open("conv")
    provider.vanish(keeper.get("conv").sandbox.name)

    assert compare(reconciler).lost == 1
    assert store.guard.holds() == []


# Everything, in any mixture

ROWS = ("running", "creating", "closing", "gone", "none")
SHOWN = ("same", "other id", "not there", "unlisted", "stranger")


@pytest.fixture(scope="module")
def fast_engine(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """One database for many examples."""
    path = tmp_path_factory.mktemp("mixtures") / "sandkeeper.db"
    engine = make_engine(f"sqlite:///{shutil.copy(sqlite_template, path)}")
    yield engine
    engine.dispose()


def emptied(engine: Engine, clock: FrozenClock, limits: Policy) -> Store:
    """A store in which nothing ever happened."""
    with engine.begin() as connection:
        for table in ("turns", "sandboxes", "sessions", "events", "orphans", "holds", "providers"):
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - our own tables
        connection.execute(text("DELETE FROM installation"))
    return Store(engine, policy=limits, clock=clock)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    mixture=st.lists(st.tuples(st.sampled_from(ROWS), st.sampled_from(SHOWN)), max_size=9),
    page_size=st.integers(1, 4),
    batch=st.integers(1, 4),
)
def test_whatever_is_there_is_classified_once_and_only_orphans_go(
    fast_engine: Engine, mixture: list[tuple[str, str]], page_size: int, batch: int
) -> None:
    """S1, S2, L4: the counts add up, rows that explain a sandbox keep it, strangers stay."""
    clock = FrozenClock()
    store = emptied(fast_engine, clock, policy(batch=batch, breaker_ratio=1.0, backstop=None))
    cloud = Careless(clock=clock, page_size=page_size)
    keeper, reaper = (
        keeper_of(store, cloud),
        Reaper(store, {"fake": cloud}, doorbell=lambda _: None),
    )
    reconciler = reconciler_of(store, cloud)
    keeper.open("known")  # so that the database is believed
    safe, doomed = {external_id(keeper, "known")}, set()
    for number, (row, shown) in enumerate(mixture):
        keep, drop = mixed(keeper, reaper, cloud, f"conv-{number}", row=row, shown=shown)
        safe |= keep
        doomed |= drop
    assume(safe.isdisjoint(doomed))

    reports = [compare(reconciler)]
    for _ in range(12):
        clock.advance(EVERY - 200)  # nothing idles out, nothing expires
        reports.append(compare(reconciler))

    for report in reports:
        parts = ("foreign", "explained", "creating", "closing", "late", "twin", "rowless")
        assert report.skipped is None
        assert report.listed == sum(getattr(report, part) for part in parts)
        assert report.missing >= report.lost + report.unconfirmed
    assert sum(report.killed for report in reports) == len(doomed)
    assert living(cloud) == safe


def mixed(
    keeper: Keeper, reaper: Reaper, cloud: FakeCloud, session_id: str, *, row: str, shown: str
) -> tuple[set[str], set[str]]:
    """Make a row and what the cloud has of it; gives the ids that must stay, and that must go."""
    if row in {"creating", "none"}:
        cloud.doubt("create", QuotaExceeded())
        with pytest.raises(QuotaExceeded):
            keeper.open(session_id)
    else:
        keeper.open(session_id)
    name = keeper.get(session_id).sandbox.name
    (box,) = cloud.alive(name)
    if row in {"closing", "gone"}:
        keeper.end(session_id)
    if row == "gone":
        reaper.teardown(session_id, 1, worker="w")
        box.state = ProviderState.RUNNING  # it was not true
    if row == "none":
        take_out(keeper.store.database.engine, session_id)
    return seen_as(cloud, box, row, shown)


def seen_as(cloud: FakeCloud, box: Box, row: str, shown: str) -> tuple[set[str], set[str]]:
    """What the cloud shows of this sandbox: what stays, and what goes."""
    own, other = {box.external_id}, set[str]()
    if shown == "not there":
        box.state = ProviderState.GONE
        return set(), set()
    if shown == "unlisted":
        cloud.unlisted |= own
        return own, set()
    if shown == "stranger":
        other = {cloud.plant(box.name, {**box.labels, "sandkeeper-schema": "2"}).external_id}
        return (other, own) if row in {"gone", "none"} else (own | other, set())
    if shown == "other id":
        other = {cloud.plant(box.name, box.labels).external_id}
    if row in {"gone", "none"}:
        return set(), own | other
    return (own | other, set()) if row == "creating" else (own, other)


def test_the_labels_of_a_row_are_the_ones_that_make_its_sandbox_ours(
    keeper: Keeper, provider: FakeCloud, store: Store
) -> None:
    """S2: what open() writes is what reconcile reads."""
    sandbox = keeper.open("conv").sandbox
    (box,) = provider.alive()

    written = sandbox_labels(store.installation, sandbox.key, "conv", 1, sandbox.created_at)

    assert (box.name, box.labels) == (sandbox_name(store.installation, sandbox.key), written)


def test_a_database_that_never_had_a_sandbox_is_not_believed(
    *,
    keeper: Keeper,
    provider: FakeCloud,
    clock: FrozenClock,
    tmp_path: Path,
    sqlite_template: Path,
) -> None:
    """
    S1: a wrong DATABASE_URL, with the right installation, and older than the sandboxes: too few
    of them to be a mass.
    """
    engine = make_engine(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'wrong.db')}")
    wrong = Store(engine, policy=policy(), clock=clock, installation=keeper.store.installation)
    elsewhere = Reconciler(wrong, {provider.name: provider}, host=Host())
    elsewhere.reconcile()
    clock.advance(60)
    keeper.open("a")
    keeper.open("b")

    for _ in range(5):
        clock.advance(wrong.policy.orphan_grace)
        elsewhere.reconcile()

    assert len(provider.alive()) == 2
    assert [hold.reason for hold in wrong.guard.holds()] == [HoldReason.STORE]
    engine.dispose()
