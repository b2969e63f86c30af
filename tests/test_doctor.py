"""The doctor: faults are planted one at a time, and it finds that one and names what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import select, text, update

from core.doctor import GROUND, REST, Finding, Level, Patient, bounded, examine, worst
from core.doctor.databases import (
    PostgreSQL,
    database_connections,
    database_mode,
    database_version,
    database_writable,
    file_system,
)
from core.doctor.findings import Answer, Examination, failure, ok
from core.doctor.redaction import Redaction
from core.doctor.work import bloat
from core.errors import AuthFailed, Unavailable
from core.host import Host
from core.lifecycle import Keeper
from core.schema import installation, providers, sandboxes, sessions
from core.store.checkup import Server, Tuples
from core.store.guard import HoldReason
from core.store.tokens import Tokens
from core.wiring import System
from tasks.cli import main
from tasks.doctor.command import examinations
from tests import services
from tests.fakes import FakeCloud, Idle

HERE = "tests.test_doctor"
ROOT = Path(__file__).parents[1]
LONG = timedelta(days=1)
cloud = FakeCloud()


class Shared(FakeCloud):
    """The one cloud of this test, in whatever process of ours asks for it."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        return cloud  # type: ignore[return-value]  # every system has the same


class Ward:
    """One installation that is well: its database was used, swept and compared just now."""

    def __init__(self, database_url: str) -> None:
        self.environ = {
            "SANDKEEPER_DATABASE_URL": database_url,
            "SANDKEEPER_BROKER_URL": "memory://",
            "SANDKEEPER_PROVIDER": f"{HERE}:Shared",
        }
        self.system = System.from_env(self.environ)
        self.keeper = Keeper(self.system.store, cloud, host=Host(loop=Idle))
        self.work()

    def work(self) -> None:
        """What a worker and a beat do in one minute."""
        self.system.reaper(lambda _due: None).sweep()
        self.system.reconciler().reconcile()

    def do(self, statement: str) -> None:
        """What somebody does to the database by hand."""
        with self.system.engine.begin() as connection:
            connection.execute(text(statement))

    def change(self, table: Any, **values: Any) -> None:
        """Every row of a table."""
        with self.system.engine.begin() as connection:
            connection.execute(update(table).values(**values))

    def ago(self, delta: timedelta) -> datetime:
        """So long ago, by the database's clock."""
        with self.system.engine.connect() as connection:
            now = connection.execute(select(self.system.store.database.now)).scalar_one()
        return now - delta

    def found(self, **of_patient: Any) -> list[Finding]:
        """Everything that the doctor says, but for the broker and the workers."""
        given: dict[str, Any] = {"environ": self.environ, "within": 60.0, **of_patient}
        patient = Patient(**given)
        found = list(examine(patient, (*GROUND, *REST)))
        patient.close()
        return found

    def wrong(self, **of_patient: Any) -> Finding:
        """The only finding that is not well."""
        (finding,) = [each for each in self.found(**of_patient) if not each.level.is_ok]
        return finding


@pytest.fixture(autouse=True)
def _new_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{HERE}.cloud", FakeCloud())


@pytest.fixture
def ward(database_url: str) -> Iterator[Ward]:
    """An installation that is well, on each kind of database."""
    ward = Ward(database_url)
    yield ward
    ward.system.close()


@pytest.fixture
def sqlite_ward(sqlite_url: str) -> Iterator[Ward]:
    """The same on SQLite alone."""
    ward = Ward(sqlite_url)
    yield ward
    ward.system.close()


@pytest.fixture
def postgresql_ward(postgresql_url: str) -> Iterator[Ward]:
    """The same on PostgreSQL alone."""
    ward = Ward(postgresql_url)
    yield ward
    ward.system.close()


def test_nothing_is_wrong_where_nothing_is_wrong(ward: Ward) -> None:
    """A healthy installation with a live session has no warning: alarms that cry wolf go."""
    ward.keeper.open("conv")

    found = ward.found()

    assert [each for each in found if not each.level.is_ok] == []
    assert worst(found).is_ok
    assert all(each.says for each in found)


def test_the_doctor_changes_nothing(sqlite_ward: Ward) -> None:
    """Not a byte of the database: also what it tries to write is taken back."""
    sqlite_ward.keeper.open("conv")
    path = sqlite_ward.environ["SANDKEEPER_DATABASE_URL"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        before = [*connection.iterdump(), *connection.execute("PRAGMA user_version")]
        sqlite_ward.found()
        after = [*connection.iterdump(), *connection.execute("PRAGMA user_version")]

    assert after == before


# Settings and the database


@pytest.mark.parametrize(
    ("name", "value"), [("SANDKEEPER_IDLE_TTTL", "60"), ("SANDKEEPER_HEARTBEAT", "3600")]
)
def test_a_setting_that_is_wrong_is_named(sqlite_ward: Ward, name: str, value: str) -> None:
    """The settings come first, and what needs them is left out."""
    sqlite_ward.environ[name] = value

    finding = sqlite_ward.wrong()

    assert (finding.check, finding.level) == ("settings", Level.FAILURE)
    assert name in finding.says
    assert "docs/settings.md" in finding.fix


def test_a_file_that_is_not_there_is_not_made(sqlite_ward: Ward, tmp_path: Path) -> None:
    """A doctor that looks at the wrong folder must not leave an empty database in it."""
    missing = tmp_path / "elsewhere.db"
    sqlite_ward.environ["SANDKEEPER_DATABASE_URL"] = f"sqlite:///{missing}"

    finding = sqlite_ward.wrong()

    assert finding.check == "database"
    assert str(missing) in finding.says
    assert "sandkeeper db upgrade" in finding.fix
    assert not missing.exists()


def test_a_server_that_is_away_is_one_finding(postgresql_ward: Ward) -> None:
    """Whatever needs the database says so, and is no failure of its own."""
    url = "postgresql://somebody:open-sesame@127.0.0.1:1/nowhere"
    postgresql_ward.environ["SANDKEEPER_DATABASE_URL"] = url

    finding = postgresql_ward.wrong()

    assert (finding.check, finding.level) == ("database", Level.FAILURE)
    assert "SANDKEEPER_DATABASE_URL" in finding.fix
    assert "open-sesame" not in finding.says


def test_a_database_that_was_never_migrated(sqlite_ward: Ward, tmp_path: Path) -> None:
    """The fix is one command."""
    empty = tmp_path / "empty.db"
    sqlite3.connect(empty).close()
    empty.touch()
    sqlite_ward.environ["SANDKEEPER_DATABASE_URL"] = f"sqlite:///{empty}"

    finding = sqlite_ward.wrong()

    assert finding.check == "migrations"
    assert "sandkeeper db upgrade" in finding.fix


def test_an_index_that_somebody_dropped(ward: Ward) -> None:
    """The sweep would read every session, and still be right: nobody would notice for long."""
    ward.do("DROP INDEX sessions_due")

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("tables", Level.FAILURE)
    assert "sessions_due" in finding.says


def test_an_index_that_postgresql_does_not_use(postgresql_ward: Ward) -> None:
    """What a REINDEX CONCURRENTLY that was interrupted leaves looks as if it were there."""
    postgresql_ward.do(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'sessions_due'::regclass"
    )

    finding = postgresql_ward.wrong()

    assert finding.check == "tables"
    assert finding.fix == "REINDEX INDEX CONCURRENTLY sessions_due"


def test_the_trigger_that_somebody_dropped(ward: Ward) -> None:
    """Nothing else would say so before a sandbox went back."""
    on = " ON sandboxes" if ward.system.engine.dialect.name == "postgresql" else ""
    ward.do(f"DROP TRIGGER sandboxes_monotone{on}")

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("guards", Level.FAILURE)
    assert "sandboxes_monotone" in finding.says


def test_a_trigger_that_is_disabled(postgresql_ward: Ward) -> None:
    """A restore with --disable-triggers that was interrupted leaves it there, and off."""
    postgresql_ward.do("ALTER TABLE sandboxes DISABLE TRIGGER sandboxes_monotone")

    finding = postgresql_ward.wrong()

    assert finding.check == "guards"
    assert "ENABLE TRIGGER" in finding.fix


def test_a_check_that_somebody_dropped(postgresql_ward: Ward) -> None:
    """Each CHECK repeats a fact of the moves, and is looked for by its name."""
    postgresql_ward.do("ALTER TABLE sessions DROP CONSTRAINT sessions_ended_at_check")

    finding = postgresql_ward.wrong()

    assert finding.check == "guards"
    assert "sessions_ended_at_check" in finding.says


def test_a_postgresql_that_nobody_may_write(postgresql_ward: Ward) -> None:
    """As a standby, or a primary that was fenced off."""
    name = urlsplit(postgresql_ward.environ["SANDKEEPER_DATABASE_URL"]).path.lstrip("/")
    postgresql_ward.do(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    finding = postgresql_ward.wrong()

    assert (finding.check, finding.level) == ("database_writable", Level.FAILURE)
    assert "primary" in finding.fix


def test_a_sqlite_that_nobody_may_write(sqlite_ward: Ward) -> None:
    """Reads go on, so everything else looks well."""
    path = sqlite_ward.environ["SANDKEEPER_DATABASE_URL"].removeprefix("sqlite:///")
    sqlite_ward.environ["SANDKEEPER_DATABASE_URL"] = f"sqlite:///file:{path}?mode=ro&uri=true"

    finding = sqlite_ward.wrong()

    assert (finding.check, finding.level) == ("database_writable", Level.FAILURE)
    assert "read-only" in finding.says


def test_a_sqlite_that_somebody_keeps_locked(sqlite_ward: Ward) -> None:
    """A shell with an open transaction stops every worker."""
    path = sqlite_ward.environ["SANDKEEPER_DATABASE_URL"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        finding = sqlite_ward.wrong()

    assert finding.check == "database_writable"
    assert "end who keeps it locked" in finding.fix


def test_a_sqlite_on_a_network(sqlite_ward: Ward, tmp_path: Path) -> None:
    """WAL does not work there, and two hosts would write at once."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")

    finding = sqlite_ward.wrong(mounts=mounts)

    assert (finding.check, finding.level) == ("database_mode", Level.FAILURE)
    assert "nfs4" in finding.says
    assert "PostgreSQL" in finding.fix


def test_a_sqlite_that_cannot_be_wal(sqlite_ward: Ward) -> None:
    """Where files share no memory the journal stays what it was."""
    path = sqlite_ward.environ["SANDKEEPER_DATABASE_URL"].removeprefix("sqlite:///")
    sqlite_ward.system.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    sqlite_ward.environ["SANDKEEPER_DATABASE_URL"] = (
        f"sqlite:///file:{path}?vfs=unix-dotfile&uri=true"
    )

    finding = sqlite_ward.wrong()

    assert (finding.check, finding.level) == ("database_mode", Level.WARNING)
    assert "not WAL" in finding.says


def test_the_last_of_two_mounts_at_one_place_is_the_file_system(tmp_path: Path) -> None:
    """A mount covers what was mounted there before, and a longer path a shorter one."""
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw\nb /data xfs rw\nc /data nfs rw\nd /database btrfs rw\n")

    assert file_system(Path("/data/x.db"), mounts) == "nfs"
    assert file_system(Path("/database/x.db"), mounts) == "btrfs"
    assert file_system(Path("/other/x.db"), mounts) == "ext4"
    assert file_system(Path("/other/x.db"), tmp_path / "none") == ""


def test_timeouts_that_a_url_replaced(postgresql_ward: Ward) -> None:
    """`options` in the URL are instead of ours: a process that is stopped would hold its locks."""
    url = postgresql_ward.environ["SANDKEEPER_DATABASE_URL"]
    more = f"{'&' if '?' in url else '?'}options=-c%20timezone%3DUTC"
    postgresql_ward.environ["SANDKEEPER_DATABASE_URL"] = url + more

    finding = postgresql_ward.wrong()

    assert (finding.check, finding.level) == ("database_mode", Level.WARNING)
    assert "lock_timeout" in finding.says
    assert "options" in finding.fix


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that who is not root can read."""
    with ExitStack() as stack:
        folder = services.temporary_directory(stack)
        folder.chmod(0o755)
        yield folder


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed here")
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_is_found_out(postgresql_ward: Ward, open_folder: Path, mode: str) -> None:
    """One that gives each transaction another process is a failure, another one is a note."""
    address = urlsplit(postgresql_ward.environ["SANDKEEPER_DATABASE_URL"])
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    (open_folder / "users").write_text(f'"{address.username}" "{address.password or ""}"\n')
    (open_folder / "ini").write_text(
        f"[databases]\n* = host={address.hostname} port={address.port or 5432}\n[pgbouncer]\n"
        f"listen_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=trust\n"
        f"auth_file={open_folder}/users\npool_mode={mode}\n"
        "ignore_startup_parameters=options\n"
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    pooler = subprocess.Popen(["pgbouncer", "-q", *user, str(open_folder / "ini")])
    try:
        url = address._replace(netloc=f"{address.username}@127.0.0.1:{port}").geturl()
        _wait_until_it_answers(url)
        postgresql_ward.environ["SANDKEEPER_DATABASE_URL"] = url
        found = {each.check: each for each in postgresql_ward.found()}
    finally:
        pooler.kill()
        pooler.wait()

    expected = Level.FAILURE if mode == "transaction" else Level.NOTE
    assert found["database_pooler"].level is expected
    assert "session mode" in found["database_pooler"].fix
    assert found["database_mode"].level is Level.WARNING  # it ignores our timeouts


def _wait_until_it_answers(url: str) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert time.monotonic() < end, "pgbouncer does not answer"
            time.sleep(0.1)
        else:
            return


SERVER = Server(
    version="15.4",
    number=150_004,
    standby=False,
    read_only=False,
    isolation="read committed",
    zone="UTC",
    lock_timeout="10s",
    statement_timeout="1min",
    idle_timeout="20s",
    most=100,
    used=10,
)


@pytest.mark.parametrize(
    ("server", "check", "level", "fix"),
    [
        (replace(SERVER, number=130_011), database_version, Level.WARNING, "upgrade"),
        (replace(SERVER, standby=True), database_writable, Level.FAILURE, "the primary"),
        (replace(SERVER, isolation="serializable"), database_mode, Level.FAILURE, "isolation"),
        (replace(SERVER, idle_timeout="0"), database_mode, Level.WARNING, "`options`"),
        (replace(SERVER, used=90), database_connections, Level.WARNING, "max_connections"),
    ],
    ids=["old", "standby", "serializable", "no timeout", "full"],
)
def test_a_server_that_cannot_be_planted_here(
    server: Server, check: Callable[[PostgreSQL], Answer], level: Level, fix: str
) -> None:
    """A version, a standby or a full server is judged by what it would say; others are well."""
    well = check(PostgreSQL(server=SERVER, pooled=False, changing=False))
    answer = check(PostgreSQL(server=server, pooled=False, changing=False))

    assert (well.level, answer.level) == (Level.OK, level)
    assert fix in answer.fix


def test_dead_rows_are_a_note_where_they_are_many() -> None:
    """A large part of a large table; of few rows nobody needs to know."""
    many = Tuples(name="sessions", live=20_000, dead=30_000)
    few = Tuples(name="turns", live=10, dead=900)
    usual = Tuples(name="events", live=1_000_000, dead=100_000)

    assert bloat([few, usual]).level is Level.OK
    assert bloat([few, usual, many]).level is Level.NOTE
    assert "VACUUM sessions" in bloat([many]).fix


@pytest.mark.parametrize(("free", "level"), [(10, Level.FAILURE), (300, Level.WARNING)])
def test_a_disk_that_fills_up(sqlite_ward: Ward, free: int, level: Level) -> None:
    """A full disk stops the sweep itself; there is a warning before."""
    usage = lambda _: (2**40, 0, free * 2**20)  # noqa: E731 - of a disk that is nearly full

    finding = sqlite_ward.wrong(usage=usage)

    assert (finding.check, finding.level) == ("database_space", level)
    assert "free some room" in finding.fix


# Clocks and identity


def test_a_host_whose_clock_is_wrong(ward: Ward) -> None:
    """It is only a warning: no decision rests on it."""
    finding = ward.wrong(clock=lambda: time.time() + 100)

    assert (finding.check, finding.level) == ("host_clock", Level.WARNING)
    assert "NTP" in finding.fix


def test_a_database_whose_clock_stepped_back(ward: Ward) -> None:
    """Rows are from the future then, and sessions live longer than they should."""
    ward.keeper.open("conv")
    ward.change(sessions, last_activity_at=ward.ago(timedelta(hours=-1)))

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("database_clock", Level.WARNING)
    assert "a session's last activity is 3" in finding.says


def test_a_database_that_is_another_one(ward: Ward) -> None:
    """The next sweep would hold everything: it is said before."""
    ward.change(installation, identity="another one")

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("identity", Level.FAILURE)
    assert "sandkeeper breaker status" in finding.fix


def test_an_installation_that_is_another_one(ward: Ward) -> None:
    """The setting and the database do not agree."""
    ward.environ["SANDKEEPER_INSTALLATION"] = "anothero"

    finding = ward.wrong()

    assert finding.check == "identity"
    assert "SANDKEEPER_INSTALLATION" in finding.fix


# What is done, and what waits


def test_nobody_sweeps(ward: Ward) -> None:
    """The pulse is old, whoever should have swept. What waits for that reason is only a note."""
    ward.change(installation, swept_at=ward.ago(LONG))
    ward.change(sessions, due_at=ward.ago(LONG))

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("sweep", Level.FAILURE)
    assert "celery -A tasks beat" in finding.fix


def test_an_api_process_stands_in(ward: Ward) -> None:
    """Sweeps are in time, and yet nobody does what should be done."""
    ward.change(installation, stood_in_at=ward.ago(timedelta(seconds=30)))

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("stand_in", Level.WARNING)


def test_a_row_that_nobody_looks_at(ward: Ward) -> None:
    """Sweeps run, and a row is not moved."""
    ward.keeper.open("conv")
    ward.change(sessions, due_at=ward.ago(timedelta(hours=1)))

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("overdue", Level.WARNING)
    assert "sandkeeper sweep" in finding.fix


def test_teardowns_that_nobody_makes(ward: Ward) -> None:
    """Sweeps ring for it again and again, and no worker comes."""
    now = ward.ago(timedelta())
    ward.keeper.open("conv")
    ward.keeper.end("conv")
    with ward.system.engine.begin() as connection:
        connection.execute(
            update(sandboxes)
            .where(sandboxes.c.state == "closing")
            .values(closing_at=now - LONG, due_at=now + timedelta(seconds=50))
        )

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("teardowns", Level.WARNING)
    assert "teardown queue" in finding.fix


def test_a_teardown_in_quarantine(ward: Ward) -> None:
    """Somebody has to look at what the provider says."""
    now = ward.ago(timedelta())
    ward.keeper.open("conv")
    ward.keeper.end("conv")
    with ward.system.engine.begin() as connection:
        connection.execute(
            update(sandboxes).where(sandboxes.c.state == "closing").values(quarantined_at=now)
        )

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("quarantine", Level.WARNING)
    assert "sandkeeper quarantine ls" in finding.fix


def test_a_question_that_nobody_answered(ward: Ward) -> None:
    """Nothing is torn down while it is open."""
    ward.system.store.guard.hold(HoldReason.MASS_END, {"sessions": 99}, actor="test")

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("held", Level.FAILURE)
    assert "breaker approve mass_end" in finding.fix


def test_a_circuit_that_is_open(ward: Ward) -> None:
    """With the last words of the provider."""
    for number in range(5):
        ward.system.store.health.failed(
            cloud.name, f"key{number}", "503 from far away", 600.0, actor="test", probe=False
        )

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("circuits", Level.WARNING)
    assert "503 from far away" in finding.says


def test_a_provider_that_is_not_compared(ward: Ward) -> None:
    """Beat has to enqueue it, and it must not be skipped each time."""
    ward.change(providers, reconciled_at=ward.ago(LONG))

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("reconcile", Level.WARNING)
    assert "sandkeeper reconcile" in finding.fix


def test_sessions_that_nobody_forgets(ward: Ward) -> None:
    """Purge does not run: tables grow for ever."""
    long_ago = ward.ago(timedelta(days=40))
    ward.keeper.open("conv")
    ward.keeper.end("conv")
    ward.system.reaper(lambda _due: None).teardown("conv", 1, worker="test")
    with ward.system.engine.begin() as connection:
        connection.execute(
            update(sandboxes).where(sandboxes.c.state == "gone").values(gone_at=long_ago)
        )
        connection.execute(
            update(sessions).where(sessions.c.status == "ended").values(ended_at=long_ago)
        )

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("purge", Level.WARNING)
    assert "purge_ended_sessions" in finding.fix


# Providers and tokens


def test_a_provider_that_does_not_let_us_in(ward: Ward) -> None:
    """It is named as that, and not as an outage."""
    cloud.fail("list", AuthFailed("401: the key was revoked"))

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("provider_login", Level.FAILURE)
    assert "does not let us in" in finding.says
    assert "key" in finding.fix


def test_a_provider_that_is_away(ward: Ward) -> None:
    """An outage is a failure of its own."""
    cloud.fail("list", Unavailable("503"))

    finding = ward.wrong()

    assert finding.check == "provider_login"
    assert "status page" in finding.fix


def test_a_provider_that_hangs_is_not_waited_for(ward: Ward) -> None:
    """The rest of the round goes on: the tokens come after it."""
    with cloud.hang("list"):
        found = ward.found(within=5.0)

    wrong = [each for each in found if not each.level.is_ok]
    assert [each.check for each in wrong] == ["provider_login"]
    assert "no answer within" in wrong[0].says
    assert "api_tokens" in {each.check for each in found}


def test_sandboxes_of_another_account(ward: Ward) -> None:
    """Their teardown would be retried for ever."""
    ward.keeper.open("conv")
    ward.change(sandboxes, scope="another-account")

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("provider_scope", Level.FAILURE)
    assert "another-account" in finding.says


def test_sandboxes_of_a_provider_that_was_taken_out(ward: Ward) -> None:
    """Nobody can tear them down."""
    ward.keeper.open("conv")
    ward.change(sandboxes, provider="earlier")

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("provider_missing", Level.FAILURE)
    assert f"SANDKEEPER_PROVIDER={HERE}:Shared,earlier" in finding.fix


@pytest.mark.parametrize(
    ("seconds", "word"), [(0.001, "nobody may call"), (86400.0, "expire within a week")]
)
def test_tokens_that_end(ward: Ward, seconds: float, word: str) -> None:
    """It is said before and after."""
    from core.access import Grant, Scope, digest

    grant = Grant(id="abcdefghij", scopes=frozenset({Scope.READ}), tenant=None)
    Tokens(ward.system.store.database).create(
        grant, digest("x" * 32), name="grafana", seconds=seconds, actor="test"
    )
    time.sleep(0.01)

    finding = ward.wrong()

    assert (finding.check, finding.level) == ("api_tokens", Level.WARNING)
    assert word in finding.says
    assert "sandkeeper tokens create" in finding.fix


# The round itself


def raises(_facts: object) -> Answer:
    """Cannot be judged."""
    raise ZeroDivisionError("of our own making")


def hangs(_facts: object) -> Answer:
    """Never comes back."""
    threading.Event().wait()
    return ok("never")


def comes_after(_facts: object) -> Answer:
    """Is reached."""
    return ok("reached")


def test_a_check_that_raises_or_hangs_does_not_stop_the_others() -> None:
    """Each is a finding of its own, and not ok."""
    odd = Examination(
        name="odd", look=lambda _: 1, checks=(raises, hangs, comes_after), fix="look into it"
    )
    away = Examination(name="away", look=raises, checks=(comes_after,), fix="look into it")
    silent = Examination(name="silent", look=hangs, checks=(comes_after,), fix="look into it")
    needs = Examination(
        name="needs", look=lambda _: 1, checks=(comes_after,), fix="", needs=("away",)
    )

    found = list(examine(Patient(environ={}, within=0.2), (odd, away, silent, needs)))

    assert [(each.check, each.level.value) for each in found] == [
        ("raises", "failure"),
        ("hangs", "failure"),
        ("comes_after", "ok"),
        ("away", "failure"),
        ("silent", "failure"),
        ("needs", "note"),
    ]
    assert "could not be checked: ZeroDivisionError: of our own making" in found[0].says
    assert "no answer within 0.2 s" in found[1].says
    assert found[4].fix == "look into it"


def test_what_is_bounded_gives_what_it_gives() -> None:
    """A value is handed over, and an error raised, where it is waited for."""
    assert bounded(lambda: 7, 10) == 7
    with pytest.raises(KeyError):
        bounded(lambda: os.environ["NOT_THERE"], 10)


CANARY = "canary-7f3a"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SANDKEEPER_DATABASE_URL", f"postgresql://u:{CANARY}@127.0.0.1:1/d"),
        ("SANDKEEPER_BROKER_URL", f"amqp://u:{CANARY}@127.0.0.1:1//"),
        ("E2B_API_KEY", CANARY),
        ("MODAL_TOKEN_SECRET", CANARY),
        ("SANDKEEPER_API_TOKENS", f"sk_abcdefghij_{CANARY}:read"),
        ("SANDKEEPER_SPEC", json.dumps({"env": {"X": CANARY}})),
    ],
)
def test_no_finding_says_a_secret(name: str, value: str) -> None:
    """Whatever a driver or a provider puts into its error: it is hidden on the way out."""
    told = Examination(
        name="told",
        look=lambda _: 1,
        checks=(lambda _: failure(f"401 for {CANARY}, said {value}", f"try {CANARY}"),),
        fix="",
    )

    found = list(examine(Patient(environ={name: value}), (told, *GROUND)))

    assert "(hidden)" in found[0].says
    assert CANARY not in repr(found)


def test_a_secret_in_a_file_is_one_too(tmp_path: Path) -> None:
    """And a word that only contains a short password is not made unreadable."""
    (tmp_path / "url").write_text("postgresql://u:post@h/d\n")
    redaction = Redaction.of({"SANDKEEPER_DATABASE_URL_FILE": str(tmp_path / "url")})

    assert redaction.hide("postgresql said post") == "postgresql said (hidden)"


# The command


@pytest.fixture
def types(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Somebody at a terminal of this installation. The broker and workers are not looked at."""
    monkeypatch.setattr("tasks.doctor.command.examinations", lambda: (*GROUND, *REST))
    for name, value in ward.environ.items():
        monkeypatch.setenv(name, value)
    return lambda *words: CliRunner().invoke(main, ["doctor", "--within", "60", *words])


def test_the_exit_code_is_for_monitoring(ward: Ward, types: Callable[..., Any]) -> None:
    """0 when all is well, 1 for a failure; for a warning only with --strict."""
    well = types("--quiet")
    ward.change(installation, stood_in_at=ward.ago(timedelta(seconds=30)))
    warned, strict = types("--quiet"), types("--strict", "--json")
    ward.change(installation, swept_at=ward.ago(LONG))
    failed = types()

    assert (well.exit_code, well.stdout) == (0, "")
    assert warned.exit_code == 0
    assert "stand_in" in warned.stdout
    assert "api_tokens" not in warned.stdout
    assert strict.exit_code == 1
    assert {"check", "level", "says", "fix"} == set(json.loads(strict.stdout)[0])
    assert failed.exit_code == 1


def test_settings_that_are_wrong_are_a_finding_of_the_command(
    types: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that celery's configuration could not be read with."""
    monkeypatch.setenv("SANDKEEPER_SWEEP_INTERVAL", "never")

    result = types("--json")

    (finding,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert "SANDKEEPER_SWEEP_INTERVAL" in finding["says"]


def test_every_check_is_documented_and_told_apart() -> None:
    """docs/doctor.md has each check by its name, and no two have the same."""
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    names = [check.__name__ for each in examinations() for check in each.checks]

    assert len(set(names)) == len(names)
    assert [name for name in names if f"| `{name}` | " not in page] == []
    assert all(check.__doc__ for each in examinations() for check in each.checks)
