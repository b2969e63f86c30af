"""What fault runs are made of: the judge, the proxy, the cloud and the servers. No run in here."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from core.errors import ForeignConflict, OutcomeUnknown, Unavailable
from core.model import sandbox_labels, sandbox_name
from core.providers.base import Spec
from tests.acceptance.processes import Program, until
from tests.chaos import cloud as cloud_module
from tests.chaos.cloud import Cloud
from tests.chaos.controls import CONTROLS, stale
from tests.chaos.evidence import Evidence
from tests.chaos.faults import STORM, Fault, draw
from tests.chaos.journal import Journal, Line, read
from tests.chaos.judge import Expected, Verdict, judge
from tests.chaos.provider import ChaosCloud
from tests.chaos.proxy import Address, Commits, Proxy
from tests.chaos.servers import Postgresql
from tests.chaos.timings import Timings
from tests.conftest import unavailable
from tests.mutants import ROOT
from tests.services import Service, ServiceMissing, _free_port

INSTALLATION = "chaostst"
KEY = "a" * 26
NAME = sandbox_name(INSTALLATION, KEY)
START = datetime(2026, 3, 1, tzinfo=UTC)
TIMINGS = Timings.of({})  # an idle TTL of 4 s, a confirm of 1 s
ENOUGH = Expected(turns=1, silent=1, teardowns=1, classes=0)


# The judge


def at(moment: float, what: str, **facts: Any) -> Line:
    """A line of a journal."""
    return {"at": moment, "what": what, **facts}


def event(moment: float, kind: str, generation: int = 1, **detail: object) -> dict[str, Any]:
    """A line of the ledger."""
    return {
        "at": START + timedelta(seconds=moment),
        "kind": kind,
        "session_id": "conv",
        "generation": generation,
        "detail": detail,
    }


def born(moment: float, box: str = "box-0", name: str = NAME, planted: str | None = None) -> Line:
    """A sandbox is made."""
    return at(moment, "born", id=box, name=name, planted=planted, expires=50.0)


def died(moment: float, box: str = "box-0", why: str = "destroyed", **facts: Any) -> Line:
    """A sandbox is gone, and why."""
    return at(moment, "died", id=box, name=NAME, why=why, **facts)


def absent(moment: float) -> Line:
    """The cloud says that it is not there."""
    return at(moment, "answered", call="1.1", op="get", name=NAME, status=404)


def opened(**facts: Any) -> Line:
    """An open that was acknowledged."""
    known = {"id": "conv", "generation": 1, "name": NAME, "external_id": "box-0", "max_age": None}
    return at(1.1, "open", **{"asked": 0.5, **known, **facts})


def begun(**facts: Any) -> Line:
    """A turn that was begun."""
    known = {"turn": "t", "id": "conv", "generation": 1, "name": NAME, "external_id": "box-0"}
    return at(1.3, "begun", **{"asked": 1.2, "ceiling": 1e6, **known, **facts})


def beats(since: float, to: float) -> list[Line]:
    """Heartbeats that were acknowledged."""
    moments = (since + 0.4 * n for n in range(int((to - since) / 0.4)))
    return [at(moment, "beat", asked=moment - 0.01, turns=["t"]) for moment in moments]


def ended(moment: float) -> list[Line]:
    """The holder lets go."""
    return [at(moment, "ending", turn="t"), at(moment + 0.1, "ended", asked=moment, turn="t")]


def history(end: float = 28.0, gone: float = 31.5, reason: str = "idle") -> list[dict[str, Any]]:
    """The ledger of one generation."""
    return [
        event(0.6, "session_opened"),
        event(1.0, "sandbox_running"),
        event(end, "session_ended", reason=reason),
        event(gone, "sandbox_gone"),
    ]


def row(**facts: Any) -> dict[str, Any]:
    """The sandbox's row in the end."""
    known = {"key": KEY, "session_id": "conv", "generation": 1, "external_id": "box-0"}
    return {**known, "state": "gone", **facts}


def innocent() -> Evidence:
    """A turn of twenty seconds, then silence; noticed, ended, torn down, confirmed."""
    return Evidence(
        timings=TIMINGS,
        installation=INSTALLATION,
        cloud=[born(1.0), died(30.0), absent(31.0)],
        director=[at(0.0, "clocks", wall=START.timestamp()), at(40.0, "healed")],
        clients={"api": [opened(), begun(), *beats(1.5, 20.0), *ended(20.0)]},
        sessions=[{"id": "conv", "status": "ended"}],
        sandboxes=[row()],
        events=history(),
    )


def killed_in_the_turn() -> Evidence:
    """As the innocent one, with the teardown in the middle of the turn."""
    return replace(
        innocent(),
        cloud=[born(1.0), died(15.0), absent(15.1)],
        events=history(end=14.0, gone=15.5),
    )


def kinds(evidence: Evidence) -> set[str]:
    """What the judge finds."""
    return {violation.kind for violation in judge(evidence, ENOUGH).violations}


def test_an_innocent_run_holds() -> None:
    """What was not done is not found."""
    findings = judge(innocent(), ENOUGH)

    assert findings.violations == []
    assert findings.verdict is Verdict.HOLDS
    assert findings.histogram()["<8"] == 1  # 30.0, and until 24.0 it had a reason to live


def test_a_turn_that_is_trusted_may_not_be_harmed() -> None:
    """S1."""
    findings = judge(killed_in_the_turn(), ENOUGH)

    assert "turn harmed" in {violation.kind for violation in findings.violations}
    assert findings.verdict is Verdict.VIOLATED


@pytest.mark.parametrize("why", ["expired", "vanished"])
def test_what_dies_by_itself_harms_nobody(why: str) -> None:
    """The cloud did it: by the sandbox's own TTL, which is counted, or because the run made it."""
    evidence = replace(
        killed_in_the_turn(),
        cloud=[born(1.0), died(15.0, why=why), absent(15.6)],
        events=history(end=15.5, gone=16.0, reason="lost"),
    )

    findings = judge(evidence, ENOUGH)

    assert findings.violations == []
    assert findings.counts["expired in a turn"] == (why == "expired")


def test_an_extension_that_leaves_less_time_is_a_teardown() -> None:
    """Whoever asks for less than nothing ends what is alive."""
    shorter = at(14.9, "extended", id="box-0", expires=-7000.0, planted=None)
    evidence = replace(
        killed_in_the_turn(),
        cloud=[born(1.0), shorter, died(15.0, why="expired"), absent(15.6)],
        events=history(end=15.5, gone=16.0, reason="lost"),
    )

    assert kinds(evidence) == {"turn harmed"}


def test_an_end_that_was_asked_for_is_no_harm() -> None:
    """And only that very end: the ledger names the request."""
    evidence = killed_in_the_turn()
    asked = at(13.0, "end_asked", id="conv", reason="asked at 13")
    clients = {**evidence.clients, "other": [asked]}

    this = replace(evidence, clients=clients, events=history(14.0, 15.5, "asked at 13"))
    another = replace(evidence, clients=clients)

    assert kinds(this) == set()
    assert "turn harmed" in kinds(another)


def test_a_holder_that_was_killed_trusts_nothing() -> None:
    """But what it was promised while it lived is kept for its time."""
    evidence = killed_in_the_turn()
    lines = [opened(), begun(), *beats(1.5, 6.0)]

    def killed(moment: float) -> Evidence:
        line = at(moment, "killed", name="api", pid=1)
        return replace(evidence, clients={"api": lines}, director=[*evidence.director, line])

    assert kinds(killed(6.0)) == set()
    assert "turn harmed" in kinds(killed(15.5))


def test_a_holder_that_was_told_trusts_nothing() -> None:
    """From then on."""
    evidence = killed_in_the_turn()
    lost = at(14.9, "lost", turn="t", error="SessionEnded")

    told = replace(evidence, clients={"api": [opened(), begun(), lost]})

    assert "turn harmed" not in kinds(told)


def stopped(since: float, to: float, *more: Line) -> Evidence:
    """The holder of the turn is stopped, and beats before and, as far as it is told, after."""
    evidence = killed_in_the_turn()
    stops = [at(since, "stopped", name="api", pid=1), at(to, "resumed", name="api", pid=1)]
    lines = [opened(), begun(), *beats(1.5, since), *more]
    return replace(evidence, clients={"api": lines}, director=[*evidence.director, *stops])


def test_a_holder_that_was_stopped_for_too_long_is_not_alive() -> None:
    """For longer than TTL + confirm since its last heartbeat, most of which it was stopped."""
    assert kinds(stopped(8.0, 16.0)) == set()
    assert "turn harmed" in kinds(stopped(12.0, 16.0))  # not so long when it was harmed
    assert "turn harmed" in kinds(stopped(8.0, 9.0))  # awake again, and it did not beat


def test_a_holder_that_woke_up_and_beats_again_is_alive() -> None:
    """It is told or it is safe; a heartbeat that was acknowledged is as good as a begin."""
    again = at(14.8, "beat", asked=14.7, turns=["t"])

    assert "turn harmed" in kinds(stopped(3.0, 13.0, again))
    assert kinds(stopped(3.0, 14.0, again)) == set()  # it had not had the time to be told


def test_a_holder_that_is_stopped_while_the_clock_jumps_has_the_time_between_two_looks() -> None:
    """By the database's clock it is silent for hours at once, and it cannot say otherwise."""

    def jumps(evidence: Evidence, moment: float) -> Evidence:
        fault = at(moment, "fault", kind="clock_forward", since=moment, seconds=9.0)
        step = at(moment, "clock_stepped", by="clock_forward")
        return replace(evidence, director=[*evidence.director, step, fault])

    assert "turn harmed" in kinds(stopped(12.0, 16.0))
    assert kinds(jumps(stopped(12.0, 16.0), 13.0)) == set()
    assert "turn harmed" in kinds(jumps(stopped(12.0, 16.0), 14.8))  # too late to be looked for
    assert "turn harmed" in kinds(jumps(stopped(12.0, 13.2), 13.0))  # awake, and it did not beat


def test_an_outage_of_the_database_excuses_nothing() -> None:
    """S5: after it the first heartbeat comes before the second look."""
    evidence = killed_in_the_turn()
    lines = [opened(), begun(), *beats(1.5, 5.0)]
    outage = at(5.0, "fault", kind="database_outage", since=5.0, seconds=9.0)

    silent = replace(evidence, clients={"api": lines}, director=[*evidence.director, outage])

    assert "turn harmed" in kinds(silent)


def test_a_holder_that_sleeps_when_the_database_comes_back_has_the_time_between_two_looks() -> None:
    """It was silent all along, and when it could have been heard it was stopped."""

    def away(evidence: Evidence, until: float) -> Evidence:
        fault = at(4.0, "fault", kind="database_outage", since=4.0, seconds=until - 4.0)
        back = at(until, "fault_over", kind="database_outage")
        return replace(evidence, director=[*evidence.director, fault, back])

    def silent(since: float, to: float) -> Evidence:
        evidence = stopped(since, to)
        return replace(evidence, clients={"api": [opened(), begun(), *beats(1.5, 4.0)]})

    assert "turn harmed" in kinds(silent(12.0, 16.0))
    assert kinds(away(silent(12.0, 16.0), 12.5)) == set()
    assert "turn harmed" in kinds(away(silent(12.0, 16.0), 9.0))  # awake, and it did not beat
    assert "turn harmed" in kinds(away(silent(12.0, 13.2), 12.5))  # awake again, and did not beat


Change = Callable[[Evidence], Evidence]


def clients(*more: Line) -> Change:
    """The API server wrote more."""
    return lambda e: replace(e, clients={"api": [*e.clients["api"], *more]})


def cloud(*lines: Line) -> Change:
    """The cloud wrote something else."""
    return lambda e: replace(e, cloud=list(lines))


def ledger(*events: dict[str, Any]) -> Change:
    """So did the database."""
    return lambda e: replace(e, events=list(events))


FOREIGN = born(2.0, "box-1", "web-1", "foreign")

GUILTY: dict[str, tuple[Change, str]] = {
    "an acknowledged touch": (
        clients(at(27.1, "touch", asked=27.0, id="conv", generation=1)),
        "activity ignored",
    ),
    "an acknowledged extension": (
        lambda e: replace(
            clients(at(21.1, "extend", asked=21.0, id="conv", generation=1, seconds=20.0))(e),
            events=[*e.events, event(21.0, "session_extended")],
        ),
        "extension broken",
    ),
    "a turn on a dead sandbox": (
        clients(begun(turn="u", asked=32.0, at=32.1), at(33.0, "ending", turn="u")),
        "dead sandbox handed out",
    ),
    "a foreign sandbox destroyed": (
        cloud(born(1.0), FOREIGN, died(9.0, "box-1", planted="foreign"), died(30.0), absent(31.0)),
        "foreign touched",
    ),
    "a foreign sandbox extended": (
        cloud(
            born(1.0),
            FOREIGN,
            at(9.0, "extended", id="box-1", expires=99.0, planted="foreign"),
            died(30.0),
            absent(31.0),
        ),
        "foreign touched",
    ),
    "two gone events": (ledger(*history(), event(33.0, "sandbox_gone")), "gone twice"),
    "a teardown without an end": (
        ledger(*(e for e in history() if e["kind"] != "session_ended")),
        "never ended",
    ),
    "a teardown before the end": (ledger(*history(end=31.0)), "before its end"),
    "lost, and it was there": (ledger(*history(reason="lost")), "lost but there"),
    "a sandbox that lives on": (cloud(born(1.0), absent(31.0)), "left behind"),
    "an orphan that lives on": (
        cloud(born(1.0), born(2.0, "box-1", "sk-x", "orphan"), died(30.0), absent(31.0)),
        "left behind",
    ),
    "a row that is not final": (
        lambda e: replace(e, sandboxes=[row(state="closing")]),
        "row not final",
    ),
    "a session that is active": (
        lambda e: replace(e, sessions=[{"id": "conv", "status": "active"}]),
        "row not final",
    ),
    "a teardown after the bound": (
        cloud(born(1.0), died(41.0 + TIMINGS.bound), absent(1e3)),
        "too late",
    ),
    "an open without a row": (clients(opened(generation=2, name="sk-other")), "row lost"),
    "gone, and nobody looked": (cloud(born(1.0), died(30.0)), "gone unconfirmed"),
    "gone, and it was there": (ledger(*history(gone=29.0)), "gone but there"),
    "an end that is not recorded": (
        ledger(*(e for e in history() if e["kind"] != "session_ended")),
        "ledger disagrees",
    ),
    "an extension that is not recorded": (
        clients(at(21.1, "extend", asked=21.0, id="conv", generation=1, seconds=2.0)),
        "ledger disagrees",
    ),
    "an error without a type": (clients(at(9.0, "crashed", error="KeyError()")), "untyped error"),
}


@pytest.mark.parametrize("name", GUILTY)
def test_every_kind_of_violation_is_found(name: str) -> None:
    """One thing is wrong, and it is named."""
    change, kind = GUILTY[name]

    assert kind in kinds(change(innocent()))


def test_a_step_of_the_databases_clock_excuses_an_early_end_of_who_is_idle() -> None:
    """Its dates are its own; but no turn may be harmed by it."""
    touched = clients(at(27.1, "touch", asked=27.0, id="conv", generation=1))(innocent())
    step = [
        at(28.0, "clock_stepped", by="clock_forward"),
        at(28.0, "fault", kind="clock_forward", since=28.0, seconds=5.0),
    ]

    stepped = replace(touched, director=[*touched.director, *step])
    harmed = replace(killed_in_the_turn(), director=stepped.director)

    assert kinds(stepped) == set()
    assert "turn harmed" in kinds(harmed)


def test_too_little_is_no_proof() -> None:
    """UNKNOWN, and why."""
    findings = judge(innocent(), Expected(turns=2, silent=1, teardowns=1, classes=3, times=2))

    assert findings.verdict is Verdict.UNKNOWN
    assert findings.too_little == ["1 turns of 2", "0 kinds of fault 2 times or more, of 3"]


def test_a_journal_whose_writer_was_killed_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    """A line is whole or absent."""
    path = tmp_path / "journal"
    with closing(Journal(path)) as journal:
        journal.write("first")
    with path.open("a") as torn:
        torn.write('{"at": 1, "what": "sec')

    assert [line["what"] for line in read(path)] == ["first"]


# The proxy


def address(service: Service) -> Address:
    """Where PostgreSQL listens."""
    parts = urlsplit(service.url)
    folder = parse_qs(parts.query).get("host")
    if folder:
        return f"{folder[0]}/.s.PGSQL.{parse_qs(parts.query)['port'][0]}"
    return parts.hostname or "127.0.0.1", parts.port or 5432


@pytest.fixture
def proxy(postgresql_server: Service) -> Iterator[Proxy]:
    """In front of PostgreSQL."""
    with Proxy(address(postgresql_server)) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, postgresql_url: str) -> Callable[[], psycopg.Connection]:
    """A connection to a fresh database, through the proxy."""
    parts = urlsplit(postgresql_url)
    return lambda: psycopg.connect(
        host="127.0.0.1",
        port=proxy.port,
        dbname=parts.path.removeprefix("/"),
        user=parts.username,
        password=parts.password,
    )


def test_a_commit_whose_answer_is_cut_is_committed(
    proxy: Proxy, through: Callable[[], psycopg.Connection]
) -> None:
    """The caller gets an error, and the row is there."""
    with closing(through()) as connection:
        connection.execute("CREATE TABLE seen (n integer)")
        connection.commit()
        connection.execute("INSERT INTO seen VALUES (1)")
        proxy.cut_commits(1)
        with pytest.raises(psycopg.OperationalError):
            connection.commit()

    with closing(through()) as connection:
        assert connection.execute("SELECT n FROM seen").fetchall() == [(1,)]
        connection.commit()  # only one was asked for
    assert proxy.commits_cut == 1


def test_a_proxy_refuses_until_it_is_healed(
    proxy: Proxy, through: Callable[[], psycopg.Connection]
) -> None:
    """What was connected is cut, what is new is reset; the port stays."""
    with closing(through()) as connection:
        assert proxy.refuse() == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            through()

    proxy.heal()

    with closing(through()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_what_a_proxy_holds_is_late_and_not_lost(
    proxy: Proxy, through: Callable[[], psycopg.Connection]
) -> None:
    """Neither in this direction nor in the other."""
    with closing(through()) as connection:
        proxy.hold()
        proxy._loop.call_soon_threadsafe(proxy._loop.call_later, 0.3, proxy._open.set)
        began = time.monotonic()

        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert time.monotonic() - began > 0.25


def message(kind: bytes, body: bytes) -> bytes:
    """As PostgreSQL's clients send it."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def test_a_commit_is_found_in_pieces_and_in_both_protocols() -> None:
    """And nothing else is taken for one: neither data nor the start of a connection."""
    start = message(b"", (196608).to_bytes(4, "big") + b"user\0postgres\0\0")
    ssl = message(b"", (80877103).to_bytes(4, "big"))
    simple = message(b"Q", b"COMMIT\0")
    extended = message(b"P", b"name\0commit\0\0\0")
    data = message(b"B", b"\0\0COMMIT\0")

    commits = Commits()

    assert not commits.seen(ssl + start)
    assert not commits.seen(data + message(b"Q", b"SELECT 'COMMIT'\0"))
    assert [commits.seen(bytes([byte])) for byte in simple].index(True) == len(simple) - 1
    assert commits.seen(data + extended + data)


# The cloud

LABELS = sandbox_labels(INSTALLATION, KEY, "conv", 1, START)
ASKED = {"name": NAME, "labels": LABELS, "ttl": None}


def soon() -> float:
    """A deadline that is generous."""
    return time.monotonic() + 10.0


def test_what_the_cloud_said_outlives_kill_9(tmp_path: Path) -> None:
    """Its journal is its truth, faults included."""
    journal, port = tmp_path / "cloud.jsonl", _free_port()
    environ = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.chaos.cloud", str(port), str(journal), "1"]
    provider = ChaosCloud(f"127.0.0.1:{port}")

    def start() -> Program:
        program = Program("cloud", command, environ, tmp_path)
        until(lambda: _answers(provider), within=20, what="the cloud answers")
        return program

    first = start()
    made = provider.create(NAME, LABELS, Spec(), ttl=None, deadline=soon())
    first.kill()
    with pytest.raises(Unavailable):
        provider.get(made.ref, deadline=soon())
    second = start()
    again = provider.create(NAME, LABELS, Spec(), ttl=None, deadline=soon())
    with pytest.raises(ForeignConflict):
        provider.create(NAME, {"team": "other"}, Spec(), ttl=None, deadline=soon())
    provider.destroy(made.ref, deadline=soon())
    gone = provider.get(made.ref, deadline=soon())
    second.destroy()

    assert again.ref == made.ref
    assert gone is None
    with pytest.raises(OutcomeUnknown):
        provider.get(made.ref, deadline=0.0)


def _answers(provider: ChaosCloud) -> bool:
    try:
        provider.list({}, cursor=None, deadline=soon())
    except Unavailable:
        return False
    return True


def test_a_late_create_lands_after_its_destroy_found_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the cloud was killed in between: it promised."""
    monkeypatch.setattr(cloud_module, "LANDS_AFTER", (0.0, 0.0))
    before = Cloud(tmp_path / "cloud.jsonl", "1")
    before.go_wrong({"create": {Fault.LATE: 1.0}})

    late = before.serve("create", ASKED, 1)
    destroyed = before.serve("destroy", {"name": NAME}, 1)
    after = Cloud(tmp_path / "cloud.jsonl", "1")
    busy = after.busy()
    after.tick()

    assert (late.status, destroyed.status) == (cloud_module.NO_ANSWER, 404)
    assert (busy, after.busy()) == (1, 0)
    assert [box["name"] for box in after.boxes()] == [NAME]


def test_a_stale_list_is_whole_and_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks what is new; a lookup of the same moment has it."""
    monkeypatch.setattr(cloud_module, "LOOKS_BACK", (10.0, 10.0))
    cloud = Cloud(tmp_path / "cloud.jsonl", "1")
    cloud.serve("create", ASKED, 1)
    cloud.go_wrong({"list": {Fault.STALE: 1.0}})

    listed = cloud.serve("list", {"labels": {}, "cursor": None}, 1)

    assert listed.body == {"items": [], "cursor": None}
    assert cloud.serve("get", {"name": NAME}, 1).status == 200


def test_a_sandbox_dies_when_its_own_time_is_over(tmp_path: Path) -> None:
    """Unless it was extended."""
    cloud = Cloud(tmp_path / "cloud.jsonl", "1")
    for name in ("short", "extended"):
        cloud.serve("create", {"name": name, "labels": LABELS, "ttl": -1.0}, 1)
    cloud.serve("extend", {"name": "extended", "ttl": 60.0}, 1)

    cloud.tick()

    assert [box["name"] for box in cloud.boxes()] == ["extended"]


def test_every_kind_of_fault_is_as_likely_as_it_says() -> None:
    """A table of chances never adds up to more than one."""
    for operation, chances in STORM.items():
        assert sum(chances.values()) < 1.0, operation
    assert draw({}, "create", random.Random(1)) is None
    assert draw({"get": {"slow": 1.0}}, "get", random.Random(1)) is Fault.SLOW


# The servers


def test_a_database_that_was_killed_keeps_what_it_acknowledged_and_its_clock_can_be_stepped() -> (
    None
):
    """Unlike the one of the tests, which may forget its last moments."""
    with ExitStack() as exits:
        try:
            postgresql = Postgresql(exits)
        except ServiceMissing as error:
            unavailable(error)
        with closing(psycopg.connect(postgresql.url, autocommit=True)) as connection:
            connection.execute("CREATE TABLE kept (n integer)")
            connection.execute("INSERT INTO kept VALUES (1)")
            postgresql.server.kill()
        postgresql.server.start()
        with closing(psycopg.connect(postgresql.url, autocommit=True)) as connection:
            kept = connection.execute("SELECT n FROM kept").fetchall()
            postgresql.step(7200)
            (now,) = connection.execute("SELECT now()").fetchone() or (None,)

    assert kept == [(1,)]
    if postgresql.has_clock:
        assert now is not None
        assert timedelta(hours=1.9) < now - datetime.now(UTC) < timedelta(hours=2.1)


# The controls


def test_every_control_fits_the_tree() -> None:
    """A safeguard that was rewritten takes its control along."""
    assert stale() == []
    assert all(control.name == name for name, control in CONTROLS.items())
