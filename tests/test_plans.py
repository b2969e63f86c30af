"""
What the hot statements cost, counted in rows read: with a hundred thousand sessions the sweep
reads what is due and a batch, whatever the words in the plan are. The statements are those that
really run, heard as they pass.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from core.engines import make_engine
from core.layers import parse_scope
from core.lifecycle import Keeper
from core.model import SandboxState, SessionStatus, TurnOutcome
from core.policy import Policy
from core.reaper import Reaper
from core.store import Store, overdue, overview, quarantine, savings, selection, standing
from core.store.listings import Listings
from core.store.selection import Wish
from tests.crowd import fill
from tests.fakes import FakeCloud
from tests.services import Databases

SESSIONS = 100_000
POLICY = Policy(batch=50)
SLACK = 16  # rows: pages that are pruned, a row of the installation, the ends of ranges

MAKE_DUE = """
UPDATE sessions SET due_at = now() - interval '1 minute',
    last_activity_at = now() - interval '2 hours'
WHERE id IN (SELECT 'conv-' || (n * 10 + 1) FROM generate_series(1, :due) AS n)
"""
NOBODY_CLOSES = """
UPDATE sandboxes SET state = 'gone', due_at = NULL, not_before = NULL, gone_at = now()
WHERE state = 'closing'
"""
MAKE_BACKLOG = """
UPDATE sandboxes SET state = 'closing', closing_at = now(), due_at = now() - interval '1 minute',
    not_before = now() - interval '1 minute', tenant = 'tenant-' || (key::bigint / 10 % :tenants)
WHERE key IN (SELECT lpad((n * 10 + 1)::text, 26, '0') FROM generate_series(1, :waiting) AS n)
"""
STATISTICS = {
    "right": (MAKE_BACKLOG, "ANALYZE sandboxes"),
    # As nearly always: the last look at the table was when nothing was closing.
    "of a time when nobody closed": ("ANALYZE sandboxes", MAKE_BACKLOG),
    "none": (
        MAKE_BACKLOG,
        "DELETE FROM pg_statistic WHERE starelid = 'sandboxes'::regclass",
    ),
}
MAKE_CLOSING_DUE = """
UPDATE sandboxes SET due_at = now() - interval '1 minute', not_before = now() - interval '1 minute'
WHERE session_id IN (SELECT 'conv-' || (n * 100) FROM generate_series(1, :due) AS n)
"""


@dataclass(frozen=True)
class Heard:
    """A statement as it went to the driver."""

    sql: str
    parameters: Any


@contextmanager
def listening(engine: Engine) -> Iterator[list[Heard]]:
    """Every statement that passes."""
    heard: list[Heard] = []

    def hear(_c: Any, _k: Any, sql: str, parameters: Any, _x: Any, many: bool) -> None:  # noqa: FBT001 - SQLAlchemy's signature
        heard.append(Heard(sql, parameters[0] if many else parameters))

    event.listen(engine, "before_cursor_execute", hear)
    try:
        yield heard
    finally:
        event.remove(engine, "before_cursor_execute", hear)


@pytest.fixture(scope="module")
def crowded_url(postgresql_databases: Databases) -> Iterator[str]:
    """A PostgreSQL database with a hundred thousand sessions, none of them due."""
    with postgresql_databases.fresh() as url:
        fill(url, SESSIONS)
        yield url


@pytest.fixture
def crowded(crowded_url: str) -> Iterator[Engine]:
    """An engine on it. Whatever a test does there it takes back."""
    engine = make_engine(crowded_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(crowded: Engine) -> Store:
    """A store on the database's own clock."""
    return Store(crowded, policy=POLICY)


@contextmanager
def taken_back(store: Store) -> Iterator[Connection]:
    """All of the store's transactions are part of one that is rolled back."""
    engine = store.database.engine
    with engine.connect() as connection:
        outer = connection.begin()

        @contextmanager
        def joined() -> Iterator[Connection]:
            yield connection

        single, look = store.database.single, store.database.look
        store.database.engine = _Joined(engine, joined)  # type: ignore[assignment]
        store.database.single = store.database.look = store.database.move  # type: ignore[method-assign]
        try:
            yield connection
        finally:
            store.database.engine = engine
            store.database.single, store.database.look = single, look  # type: ignore[method-assign]
            outer.rollback()


class _Joined:
    """An engine whose transactions and connections are all one, which is open."""

    def __init__(self, engine: Engine, joined: Callable[[], Any]) -> None:
        self.dialect = engine.dialect
        self.begin = joined
        self.connect = joined


def rows_read(plan: Mapping[str, Any]) -> dict[str, float]:
    """Rows that each table's scans looked at, found or thrown away, by table."""
    read: dict[str, float] = {}
    ours = not plan.get("Relation Name", "pg_").startswith("pg_")  # not the server's few databases
    if plan["Node Type"].endswith("Scan") and ours:
        looked = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        looked += plan.get("Rows Removed by Index Recheck", 0)
        table = plan["Relation Name"]
        read[table] = looked * plan["Actual Loops"]
    for child in plan.get("Plans", []):
        for table, rows in rows_read(child).items():
            read[table] = read.get(table, 0) + rows
    return read


def scans(plan: Mapping[str, Any]) -> list[str]:
    """How each table is read: `Index Scan sessions_due`, `Seq Scan turns`."""
    name = plan.get("Index Name") or plan.get("Relation Name")
    here = [f"{plan['Node Type']} {name}"] if name and "Scan" in plan["Node Type"] else []
    return here + [scan for child in plan.get("Plans", []) for scan in scans(child)]


def explained(connection: Connection, heard: Heard) -> Mapping[str, Any]:
    """The plan of a statement, run once more and taken back."""
    savepoint = connection.begin_nested()
    explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {heard.sql}"
    found = connection.exec_driver_sql(explain, heard.parameters).scalar_one()
    savepoint.rollback()
    plans = json.loads(found) if isinstance(found, str) else found
    plan: Mapping[str, Any] = plans[0]["Plan"]
    return plan


def explained_each(
    connection: Connection, act: Callable[[], object]
) -> dict[str, Mapping[str, Any]]:
    """
    The plans of what `act` sends to sessions, sandboxes and turns, each taken just before it
    runs: afterwards nothing would be due any more.
    """
    plans: dict[str, Mapping[str, Any]] = {}
    busy = False

    def hear(_c: Any, _k: Any, sql: str, parameters: Any, _x: Any, many: bool) -> None:  # noqa: FBT001 - SQLAlchemy's signature
        nonlocal busy
        if busy or sql.startswith(("EXPLAIN", "INSERT INTO events", "SAVEPOINT")):
            return
        busy = True
        plans[f"{len(plans)}: {sql}"] = explained(connection, Heard(sql, parameters))
        busy = False

    engine = connection.engine
    event.listen(engine, "before_cursor_execute", hear)
    try:
        act()
    finally:
        event.remove(engine, "before_cursor_execute", hear)
    return plans


def expect_bounded(plans: Mapping[str, Mapping[str, Any]], bound: float) -> None:
    """No statement reads more rows of a table than this, and none reads a whole table."""
    for sql, plan in plans.items():
        assert not {"Seq Scan sessions", "Seq Scan sandboxes"} & set(scans(plan)), sql
        for table, rows in rows_read(plan).items():
            assert rows <= bound, f"{rows:.0f} rows of {table} for {bound}: {scans(plan)} {sql}"


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@pytest.mark.parametrize("due", [0, 10, 200, 999])
def test_a_sweep_reads_what_is_due_and_no_more(store: Store, due: int, mode: str) -> None:
    """Among 100,000 sessions; also once the driver has prepared its statements for good."""
    reaper = Reaper(store, {}, doorbell=lambda _: None)
    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(text(MAKE_DUE), {"due": due})
        connection.execute(text(MAKE_CLOSING_DUE), {"due": due})
        reports = []

        plans = explained_each(connection, lambda: reports.append(reaper.sweep()))

    assert (reports[0].noticed, reports[0].published) == (due, due)
    assert len(plans) >= 5
    # The breaker counts before the first batch is moved: once a sweep, what is due and no more.
    counts = {sql: plan for sql, plan in plans.items() if "AS ending" in sql}
    batches = {sql: plan for sql, plan in plans.items() if sql not in counts}
    assert len(counts) == 1
    expect_bounded(counts, due + SLACK)
    expect_bounded(batches, 2 * min(due, POLICY.batch) + SLACK)


MAKE_TENANT = """
UPDATE sessions SET tenant = 'acme', profile = 'batch', idle_ttl_by = 'installation',
    max_age_by = 'installation', max_turn_by = 'installation', never_used_ttl_by = 'installation'
WHERE id IN (SELECT 'conv-' || (n * 10 + 1) FROM generate_series(1, 200) AS n)
"""


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@pytest.mark.parametrize("scope", ["installation", "tenant:acme", "profile:batch"])
def test_following_a_policy_reads_a_batch(store: Store, scope: str, mode: str) -> None:
    """Of a hundred thousand sessions, each statement of a walk reads those that it is about."""
    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(text(MAKE_TENANT))
        store.policies.set(parse_scope(scope), {"idle_ttl": 600}, actor="ada")
        followed: list[int] = []

        def walk() -> None:
            change = store.policies.change()
            assert change is not None
            ids = store.settling.members(change, POLICY.batch)
            assert store.settling.follow(ids) == []
            store.policies.advance(change, ids[-1], missed=False)
            followed.append(len(ids))

        plans = explained_each(connection, walk)

    assert followed == [POLICY.batch]
    expect_bounded(plans, 2 * POLICY.batch + SLACK)


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
def test_a_quota_reads_what_its_tenant_has(store: Store, mode: str) -> None:
    """An open of a full tenant counts and evicts among its own live sessions."""
    keeper = Keeper(store, FakeCloud())
    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(text(MAKE_TENANT))
        connection.execute(text("UPDATE turns SET ended_at = now(), outcome = 'completed'"))
        quota = {"max_live": 200, "when_full": "evict-oldest-idle"}
        store.policies.set(parse_scope("tenant:acme"), quota, actor="ada")

        plans = explained_each(connection, lambda: keeper.open("new", tenant="acme"))

    expect_bounded(plans, 2 * 201 + SLACK)


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
def test_ending_a_batch_reads_that_batch(store: Store, mode: str) -> None:
    """The second look: a batch of sessions that were noticed, with their sandboxes."""
    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(text(MAKE_DUE), {"due": 200})
        connection.execute(
            text(
                "UPDATE sessions SET noticed_at = now() - interval '1 hour', "
                "noticed_activity_at = last_activity_at WHERE due_at < now()"
            )
        )
        done = []

        plans = explained_each(connection, lambda: done.append(store.sweeps.sessions(POLICY.batch)))

    assert done == [(POLICY.batch, 0, 0, POLICY.batch)]
    expect_bounded(plans, 2 * POLICY.batch + SLACK)


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
def test_publishing_reads_what_it_publishes_whatever_waits(crowded: Engine, mode: str) -> None:
    """Of a backlog of 999: what there is room for, an entry a tenant, and what is in flight."""
    bound = 100
    store = Store(crowded, policy=replace(POLICY, in_flight=bound))
    reaper = Reaper(store, {}, doorbell=lambda _: None)
    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(text(MAKE_CLOSING_DUE), {"due": 999})
        connection.execute(
            text(
                "UPDATE sandboxes SET tenant = 'tenant-' || length(session_id) "
                "WHERE state = 'closing' AND session_id < 'conv-2'"
            )
        )
        reports = []

        first = explained_each(connection, lambda: reports.append(reaper.sweep()))
        second = explained_each(connection, lambda: reports.append(reaper.sweep()))

    assert [report.published for report in reports] == [bound, 0]
    expect_bounded(first, 2 * POLICY.batch + SLACK)
    expect_bounded(second, bound + SLACK)


@pytest.mark.parametrize("waiting", [1, 5_000])
@pytest.mark.parametrize("tenants", [1, 2, 1_000])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_publishing_reads_no_backlog_whatever_the_statistics(
    crowded: Engine, statistics: str, tenants: int, waiting: int
) -> None:
    """
    No other index than those of publishing can serve it, so that no planner errs: also when it
    takes the backlog for empty, and all the same for big and small.
    """
    bound = 100
    store = Store(crowded, policy=replace(POLICY, in_flight=bound))
    reaper = Reaper(store, {}, doorbell=lambda _: None)
    with taken_back(store) as connection:
        connection.execute(text(NOBODY_CLOSES))
        for statement in STATISTICS[statistics]:
            of = {"tenants": tenants, "waiting": waiting} if statement is MAKE_BACKLOG else {}
            connection.execute(text(statement), of)
        published = []

        plans = explained_each(connection, lambda: published.append(_publish(reaper)))

    assert published == [min(waiting, bound)]
    used = {scan for plan in plans.values() for scan in scans(plan) if " sandboxes" in scan}
    assert {scan.partition(" sandboxes_")[2] for scan in used} == {"waiting", "in_flight", "pkey"}
    expect_bounded(plans, min(tenants, waiting, 500) + bound + SLACK)


def _publish(reaper: Reaper) -> int:
    return reaper._ring_while_there_is_room()


def test_the_check_turns_red_with_a_clock_that_moves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: clock_timestamp() says Index Scan too, and reads every active session."""
    reaper = Reaper(store, {}, doorbell=lambda _: None)
    with taken_back(store) as connection:
        seen: list[Heard] = []
        engine = connection.engine
        with listening(engine) as heard:
            reaper.sweep()
            store.sweeps.sessions(10)
            seen.extend(heard)
        due = next(
            h for h in seen if "due_at <= statement_timestamp()" in h.sql and "FOR UPDATE" in h.sql
        )
        moving = Heard(
            due.sql.replace("statement_timestamp()", "clock_timestamp()"), due.parameters
        )

        with pytest.raises(AssertionError):
            expect_bounded({"": explained(connection, moving)}, SLACK)
        expect_bounded({"": explained(connection, due)}, SLACK)


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
def test_callers_and_workers_read_the_rows_that_they_name(store: Store, mode: str) -> None:
    """begin, beat, touch, extend, end, claim: by primary or unique key, each a few rows."""
    turns = [f"turn-{n}" for n in range(1, 200) if n % 10]
    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))

        few = explained_each(connection, lambda: _call_everything(store))
        store.turns._at_once = False
        few |= explained_each(connection, lambda: _turn_in_steps(store))
        many = explained_each(connection, lambda: store.turns.beat(turns))

    expect_bounded(few, 4)
    expect_bounded(many, len(turns) * 2 + SLACK)
    assert len(few) >= 10
    named = {scan for plan in (*few.values(), *many.values()) for scan in scans(plan)}
    used = {scan.rpartition(" ")[2] for scan in named if scan.startswith(("Index", "Bitmap Index"))}
    assert used <= {
        "sessions_pkey",
        "sandboxes_pkey",
        "sandboxes_session_id_generation_key",
        "turns_pkey",
        "turns_of_session",
        "sandboxes_unsettled",  # by the session too, among fewer
        "sessions_active",  # likewise
    }


def _call_everything(store: Store) -> None:
    store.turns.begin("turn-new", "conv-11", "holder")
    store.turns.beat(["turn-new"])
    store.turns.end("turn-new", "conv-11", TurnOutcome.COMPLETED)
    store.sessions.touch("conv-11")
    store.sessions.extend("conv-11", 60, actor="holder")
    store.sessions.end("conv-11", "enough", actor="holder")
    claim = store.teardowns.claim("conv-11", 1, "worker")
    assert claim is not None
    assert store.teardowns.gone(claim, actor="worker")


def _turn_in_steps(store: Store) -> None:
    store.turns.begin("turn-next", "conv-12", "holder")
    store.turns.end("turn-next", "conv-12", TurnOutcome.COMPLETED)


def test_a_touch_leaves_every_index_alone(postgresql_url: str) -> None:
    """A HOT update: no index entry is written, whatever the number of touches."""
    engine, touches = make_engine(postgresql_url), 400
    with Keeper(Store(engine), FakeCloud()) as keeper:
        for number in range(20):
            keeper.open(f"conv-{number}")
        engine.dispose()  # a connection reports its counts when it ends
        with engine.connect() as connection:
            before = _updates(connection)
        for number in range(touches):
            keeper.touch(f"conv-{number % 20}")
        engine.dispose()
        with engine.connect() as connection:
            after = _updates(connection)
    engine.dispose()

    assert after[0] - before[0] == touches
    # All but those that find their page full: old versions stay for as long as any snapshot that
    # autovacuum or a neighbour holds. An index entry for each would make it none.
    assert after[1] - before[1] >= 0.5 * touches


def _updates(connection: Connection) -> tuple[int, int]:
    connection.execute(text("SELECT pg_stat_clear_snapshot()"))
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'"
    row = connection.execute(text(query)).one()
    return row.n_tup_upd, row.n_tup_hot_upd


def test_sqlite_sweeps_and_turns_by_index(sqlite_url: str) -> None:
    """The embedded default looks rows up too; only the word SEARCH may be in its plans."""
    engine = make_engine(sqlite_url)
    store = Store(engine, policy=POLICY)
    with Keeper(store, FakeCloud()) as keeper:
        for number in range(1, 4):
            keeper.open(f"conv-{number}{number}")
        keeper.end("conv-33")
    reaper = Reaper(store, {}, doorbell=lambda _: None)

    with listening(engine) as heard:
        reaper.sweep()
        store.sweeps.sessions(10)
        _call_everything(store)
        reaper.purge()
    engine.dispose()

    details = _sqlite_plans(Path(engine.url.database or ""), heard)
    used = " ".join(details)
    assert "sessions_due" in used
    assert "sandboxes_creating" in used
    assert "sandboxes_closing" in used
    assert "sandboxes_waiting" in used
    assert "sandboxes_in_flight" in used
    assert "sessions_purgeable" in used
    whole = [line for line in details if line.startswith(("SCAN sessions", "SCAN sandboxes"))]
    assert not [line for line in whole if "USING" not in line], whole


def _sqlite_plans(path: Path, heard: list[Heard]) -> list[str]:
    words = ("SELECT", "UPDATE", "DELETE", "WITH")
    with closing(sqlite3.connect(path)) as connection:
        connection.create_function("sandkeeper_identity", 0, lambda: None)
        return [
            str(line[3])
            for statement in heard
            if statement.sql.startswith(words)
            for line in connection.execute(
                f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters
            )
        ]


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
def test_a_tenant_s_lists_read_what_is_that_tenant_s(store: Store, mode: str) -> None:
    """A page of a hundred sessions among 100,000, and their sandboxes in any state."""
    listings = Listings(store.database, store.installation)
    pages: list[list[Any]] = []

    def look() -> None:
        pages.append(listings.sessions(tenant="acme", status=None, after="", limit=50))
        pages.extend(
            listings.sandboxes(tenant="acme", state=state, after=("", 0), limit=50)
            for state in (None, *SandboxState)
        )

    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(
            text(
                "UPDATE sessions SET tenant = 'acme' WHERE id IN "
                "(SELECT 'conv-' || (n * 977) FROM generate_series(1, 100) AS n)"
            )
        )
        connection.execute(text("ANALYZE sessions"))

        plans = explained_each(connection, look)

    assert [len(page) for page in pages] == [50, 50, 0, 50, 1, 9]
    expect_bounded(plans, 100 + SLACK)


@pytest.mark.parametrize(
    "wish",
    [
        Wish(status=SessionStatus.ACTIVE),
        Wish(status=SessionStatus.ENDED, tenant="default"),
        Wish(state=SandboxState.CREATING),
        Wish(state=SandboxState.CLOSING),
        Wish(status=SessionStatus.ACTIVE, idle=86400.0),
        Wish(prefix="nobody"),
        Wish(state=SandboxState.GONE),
        Wish(status=SessionStatus.ACTIVE, tenant="default", state=SandboxState.RUNNING),
        Wish(overdue=True),
    ],
    ids=str,
)
def test_a_filtered_page_reads_a_stretch_at_a_time(
    crowded: Engine, wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However seldom a match is: a bounded number of ids, and of each of them a few rows."""
    monkeypatch.setattr(selection, "STRETCH", 1_000)
    store = Store(crowded, policy=POLICY)

    with taken_back(store) as connection:
        plans = explained_each(connection, lambda: store.selection.page(wish, limit=50))

    assert plans
    for sql, plan in plans.items():
        read = rows_read(plan)
        whole = {"Seq Scan sessions", "Seq Scan sandboxes", "Seq Scan turns"} & {*scans(plan)}
        assert not whole, (wish, sql)
        assert read.get("sessions", 0) <= 1_000 + SLACK, (wish, read)
        assert read.get("sandboxes", 0) <= 1_000 + SLACK, (wish, read)


@pytest.mark.parametrize("due", [10, 9_000])
def test_the_overdue_are_found_by_when_they_were_due(store: Store, due: int) -> None:
    """Few are all on the first page, however many sessions there are; many are everywhere."""
    with taken_back(store) as connection:
        connection.execute(
            text(
                "UPDATE sessions SET due_at = now() - interval '2 hours' WHERE id IN "
                "(SELECT 'conv-' || (n * 10 + 1) FROM generate_series(1, :due) AS n)"
            ),
            {"due": due},
        )
        connection.execute(text("UPDATE sandboxes SET closing_at = now() WHERE state = 'closing'"))
        found = []

        plans = explained_each(
            connection, lambda: found.append(store.selection.page(Wish(overdue=True), limit=50))
        )

    assert len(found[0].matches) == min(due, 50)
    assert (found[0].behind is None) == (due < 50)
    # Few: the closing that are due first are looked through, LOTS of them at most.
    few = max(3 * due, SESSIONS // 100)
    expect_bounded(plans, (few if due < overdue.FEW else selection.STRETCH) + SLACK)


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@pytest.mark.parametrize("tenant", [None, "acme"])
def test_savings_read_a_stretch_at_a_time(
    store: Store, tenant: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred thousand, each statement reads its sandboxes, and what happened to those."""
    monkeypatch.setattr(savings, "STRETCH", 100)
    found: list[savings.Reading] = []

    def read() -> None:
        span = store.savings.span(86_400.0 * 7)
        found.append(store.savings.read(span, [900.0], tenant=tenant, most=200))

    with taken_back(store) as connection:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        connection.execute(
            text(
                "UPDATE sessions SET tenant = 'acme' WHERE id IN "
                "(SELECT 'conv-' || (n * 89) FROM generate_series(1, 1000) AS n)"
            )
        )
        connection.execute(text("ANALYZE sessions"))

        plans = explained_each(connection, read)

    assert (found[0].read, len(plans)) == (200, 10)
    expect_bounded(plans, 2 * 100 + SLACK)


def test_the_quarantine_reads_what_is_in_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of all here, and no row of the rest; the planner may read them all to sort."""
    monkeypatch.setattr(quarantine, "STRETCH", 20)
    monkeypatch.setattr(quarantine, "SAMPLED", 20)
    among = quarantine.Among(tenant="acme", provider="fake", error="AuthFailed")
    with taken_back(store) as connection:
        connection.execute(
            text(
                "UPDATE sandboxes SET quarantined_at = now() - interval '1 second' * "
                "(key::int % 9973) WHERE state = 'closing'"
            )
        )
        connection.execute(text("ANALYZE sandboxes"))
        plans = explained_each(
            connection,
            lambda: (
                store.quarantine.page(among, limit=50),
                store.quarantine.count(quarantine.Among()),
                store.quarantine.choices(),
            ),
        )

    expect_bounded(plans, 2 * SESSIONS // 100 + SLACK)


def test_one_tenant_s_fleet_reads_so_much_and_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tenant that has everything, and of one that has nothing."""
    monkeypatch.setattr(standing, "MOST", 2_000)
    monkeypatch.setattr(standing, "MOST_OF_TENANT", 500)
    with taken_back(store) as connection:
        plans = explained_each(
            connection, lambda: [store.standings.of_tenant(name) for name in ("default", "acme")]
        )

    for plan in plans.values():
        assert max(rows_read(plan).values()) <= 2_000 + 2 * 500 + SLACK, scans(plan)


def test_fleet_counts_what_few_rows_tell(crowded: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits, who is in a turn and what ends soon: none of it reads a row of each session."""
    monkeypatch.setattr(overview, "LOTS", 1_000)
    monkeypatch.setattr(overdue, "LOTS", 1_000)
    monkeypatch.setattr(standing, "MOST", 500)
    monkeypatch.setattr(overview, "SAMPLE", 2_000)
    store = Store(crowded, policy=POLICY)
    found = store.overview.forecast(SESSIONS * 9 // 10)

    with taken_back(store) as connection:
        plans = explained_each(
            connection,
            lambda: (
                store.overdue.waiting(),
                store.overview.in_turn(),
                store.standings.of_all(),
            ),
        )

    for plan in plans.values():
        assert max(rows_read(plan).values(), default=0) <= 1_000 + SLACK
    assert found.sampled is not None
    assert 500 < found.sampled < 6_000
    assert sum(found.idle) == pytest.approx(SESSIONS * 0.9, rel=0.01)
