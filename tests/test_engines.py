"""Engines: how they connect, whom they wait for, and what they forget."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine

from core import engines
from core.engines import make_engine, prepare
from core.errors import (
    SessionNotFound,
    SettingsError,
    StoreUnavailable,
)
from core.lifecycle import Keeper
from core.store import Store
from tests.fakes import FakeCloud

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_is_spoken_through_psycopg(scheme: str) -> None:
    """Whatever the platform that hands out the URL calls it."""
    engine = make_engine(f"{scheme}://u:secret@h/d")

    assert engine.url.drivername == "postgresql+psycopg"


def test_postgresql_without_its_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is an extra: who lacks it is told its name at the start, and no password."""
    monkeypatch.setattr(engines, "find_spec", lambda _: None)

    with pytest.raises(SettingsError) as refused:
        make_engine("postgresql://u:secret@h/d")

    words = str(refused.value)
    assert words.startswith("SANDKEEPER_DATABASE_URL=postgresql+psycopg://u:***@h/d: ")
    assert "pip install 'sandkeeper[postgresql]'" in words
    make_engine("sqlite:///x.db").dispose()


def test_an_engine_is_not_connected_before_it_is_used() -> None:
    """Making one asks nobody."""
    make_engine("postgresql://u:secret@no-such-host.invalid/d").dispose()


def test_a_locked_database_is_unavailable(sqlite_url: str) -> None:
    """It is tried again; nothing is concluded."""
    store = Store(make_engine(sqlite_url, connect_args={"timeout": 0.01}))
    path = sqlite_url.removeprefix("sqlite:///")

    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.sweeps.pulse()
        holder.execute("ROLLBACK")

    store.sweeps.pulse()
    store.database.engine.dispose()


def test_a_new_file_that_another_process_is_making_wal_is_waited_for() -> None:
    """SQLite says "locked" at once to whoever comes in that moment, and means nothing lasting."""
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorname = "SQLITE_BUSY"
    answers: list[Exception | None] = [locked, locked, None]

    class Cursor:
        def execute(self, sql: str) -> None:
            answer = answers.pop(0)
            if answer is not None:
                raise answer

    engines._write_ahead(Cursor())

    assert answers == []


def test_sqlite_is_made_fit_for_several_processes(sqlite_url: str) -> None:
    """WAL, foreign keys, and a write lock that is taken at once instead of in the middle."""
    engine = make_engine(sqlite_url)

    with engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous")
        ]

    assert found == ["wal", 1, 1]
    engine.dispose()


def test_postgresql_ends_what_a_stopped_process_holds(postgresql_url: str) -> None:
    """F11: a process that is stopped in a transaction gives up its locks within seconds."""
    engine = make_engine(postgresql_url)

    with engine.connect() as connection:
        limits = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
        }
        level = connection.get_isolation_level()

    assert limits == {
        "lock_timeout": "10s",
        "statement_timeout": "1min",
        "idle_in_transaction_session_timeout": "20s",
    }
    assert level == "READ COMMITTED"
    engine.dispose()


def test_what_the_url_says_wins(postgresql_url: str) -> None:
    """A user's own connect_timeout or options are not overwritten."""
    joint = "&" if "?" in postgresql_url else "?"
    engine = make_engine(f"{postgresql_url}{joint}application_name=mine&connect_timeout=3")

    with engine.connect() as connection:
        name = connection.exec_driver_sql("SHOW application_name").scalar_one()
        timeout = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()

    assert (name, timeout) == ("mine", "10s")
    engine.dispose()


def test_an_engine_of_ones_own_is_made_fit(sqlite_url: str) -> None:
    """prepare() twice is prepare() once."""
    own = create_engine(sqlite_url)

    assert prepare(prepare(own)) is own
    assert Store(own).installation
    own.dispose()


def test_a_forked_child_does_not_use_its_parents_connections(postgresql_url: str) -> None:
    """
    S1: two processes on one connection would read the answers to each other's statements. Nor are
    there locks in the child which a thread held that is the parent's alone.
    """
    script = f"""
import os, signal, threading
from core.engines import make_engine
engine = make_engine({postgresql_url!r})
backend = lambda: engine.connect().exec_driver_sql("SELECT pg_backend_pid()").scalar()
with engine.connect() as connection:
    parents = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
held, over = threading.Event(), threading.Event()
def take_a_connection():
    with engine.pool._pool.mutex:
        held.set()
        over.wait()
taker = threading.Thread(target=take_a_connection)
taker.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)
    own = backend() != parents
    engine.dispose()  # says goodbye on its own connections only
    os._exit(10 if own else 11)
over.set()
taker.join()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, backend() == parents)
"""

    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert run.stdout.split() == ["10", "True"], run.stderr


def test_a_connection_that_rested_is_asked_before_it_is_used(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes first after the server was restarted does not pay for it."""
    monkeypatch.setattr(engines, "RESTED", 0.0)
    engine = make_engine(postgresql_url)
    store = Store(engine)
    _end_connections(postgresql_url)

    with Keeper(store, FakeCloud()) as keeper, pytest.raises(SessionNotFound):
        keeper.get("conv")
    engine.dispose()


def test_one_that_was_in_use_a_moment_ago_fails_once_and_is_replaced(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked for it, and the error says that it may be tried again."""
    monkeypatch.setattr(engines, "RESTED", 600.0)
    engine = make_engine(postgresql_url)
    store = Store(engine)
    with Keeper(store, FakeCloud()) as keeper:
        with pytest.raises(SessionNotFound):
            keeper.get("conv")
        _end_connections(postgresql_url)

        with pytest.raises(StoreUnavailable):
            keeper.get("conv")
        with pytest.raises(SessionNotFound):
            keeper.get("conv")
    engine.dispose()


def _end_connections(url: str) -> None:
    """As a server that was restarted does: all that rest in the pool are ended."""
    with closing(psycopg.connect(url, autocommit=True)) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
