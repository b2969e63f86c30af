"""Engines as the statements need them: how they connect, wait, and forget what is broken."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.engine import URL

from .errors import SettingsError
from .host import in_forked_children
from .witness import Beside, InMemory, Witness

SQLITE_BUSY = timedelta(seconds=20)
ISOLATION = "READ COMMITTED"  # which the conditional statements are written for
RESTED = 1.0  # seconds in the pool, after which a connection is asked whether it still is one
RESTS_SINCE = "sandkeeper_rests_since"
# A process that is stopped in the middle of a transaction must not hold its locks for ever: the
# server ends the transaction, and the process finds out when it wakes.
POSTGRESQL_CONNECT: Mapping[str, str | int] = {
    "options": "-c timezone=UTC -c lock_timeout=10s -c statement_timeout=60s "
    "-c idle_in_transaction_session_timeout=20s "
    # The sweep takes the first rows of an index. Where the statistics lag behind, a bitmap looks
    # cheaper, reads all that is due, and sorts it.
    "-c enable_bitmapscan=off",
    "connect_timeout": 10,
    # A network that swallows packets must not hold up the heartbeats for hours.
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}


def make_engine(database_url: str, **options: Any) -> Engine:
    """
    An engine for a DATABASE_URL. SettingsError when the URL cannot be understood or names a
    database that is neither PostgreSQL nor SQLite. Nothing is connected yet.
    """
    url = _url(database_url)
    if url.get_backend_name() == "postgresql":
        connect = {**POSTGRESQL_CONNECT, **url.query}
        defaults: dict[str, Any] = {
            # Set once a connection: `prepare` sets it each time that one is taken.
            "isolation_level": ISOLATION,
            "pool_timeout": 20,
            "pool_size": 10,
            "max_overflow": 30,
            "connect_args": {k: v for k, v in connect.items() if k not in url.query},
        }
    else:
        defaults = {"connect_args": {"timeout": SQLITE_BUSY.total_seconds()}}
    engine = create_engine(url, **{**defaults, **options})
    if engine.dialect.name != "postgresql":
        return prepare(engine)
    _ask_what_rested(engine)
    _forget_in_children(engine)
    return engine


def _ask_what_rested(engine: Engine) -> None:
    """
    A connection that lay in the pool while its server was restarted is found out before anybody
    uses it. Only one that rested: asking each time costs a touch a third of its time, and one that
    was used a moment ago is as likely to break in use.
    """

    def returned(_connection: object, record: Any) -> None:
        record.info[RESTS_SINCE] = time.monotonic()

    def taken(connection: Any, record: Any, _proxy: object) -> None:
        since = record.info.get(RESTS_SINCE)  # none: it is new
        if since is None or time.monotonic() - since < RESTED:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise exc.InvalidatePoolError(str(error)) from error

    event.listen(engine, "checkin", returned)
    event.listen(engine, "checkout", taken)


@contextmanager
def opened(database_url: str) -> Iterator[Engine]:
    """An engine for a short work, and no connection left after it."""
    engine = make_engine(database_url)
    try:
        yield engine
    finally:
        engine.dispose()


def prepare(engine: Engine) -> Engine:
    """
    Make an engine of one's own fit: on SQLite, WAL and transactions that take the write lock at
    once (a transaction that read first and writes later would fail instead of waiting); on
    PostgreSQL, READ COMMITTED, which the conditional statements are written for.
    """
    _forget_in_children(engine)
    if engine.dialect.name == "sqlite":
        if not event.contains(engine, "connect", _sqlite_connected):
            event.listen(engine, "connect", _sqlite_connected)
            event.listen(engine, "begin", _sqlite_begins)
        return engine
    return engine.execution_options(isolation_level=ISOLATION)


def _forget_in_children(engine: Engine) -> None:
    """
    A server that forks after it connected (gunicorn's preload) would share its connections with
    its children, which then read the answers to each other's statements: silently wrong rows.
    """
    # Not closed: they are the parent's, and stay open there. SQLAlchemy looks whose they are too,
    # but a pool that a thread of the parent had locked stays locked in the child.
    in_forked_children(engine, lambda engine: engine.dispose(close=False))


def _url(database_url: str) -> URL:
    try:
        url = make_url(database_url)
    except (exc.ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise SettingsError(
            "SANDKEEPER_DATABASE_URL=(hidden): not a URL; use sqlite:///file.db or "
            "postgresql://user:password@host/name"
        ) from error
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"postgresql+psycopg", "sqlite", "sqlite+pysqlite"}:
        raise SettingsError(
            f"SANDKEEPER_DATABASE_URL={url.render_as_string(hide_password=True)}: "
            f"{url.drivername} is not supported; use sqlite:///file.db or postgresql://…"
        )
    if url.get_backend_name() == "postgresql" and find_spec("psycopg") is None:
        # Said before anything starts: SQLAlchemy would only name a module that is missing.
        raise SettingsError(
            f"SANDKEEPER_DATABASE_URL={url.render_as_string(hide_password=True)}: PostgreSQL needs "
            "its driver: `pip install 'sandkeeper[postgresql]'`"
        )
    if url.get_backend_name() == "sqlite" and (
        url.database in {None, "", ":memory:", "file::memory:"} or url.query.get("mode") == "memory"
    ):
        raise SettingsError(
            "SANDKEEPER_DATABASE_URL: an in-memory database cannot be shared by the API, worker "
            "and beat; use sqlite:///file.db"
        )
    return url


def _sqlite_connected(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    witness = _beside(connection.execute("PRAGMA database_list").fetchone()[2])
    connection.create_function("sandkeeper_identity", 0, witness.identity if witness else _nobody)
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """
    Where several processes open a new file at once, one of them makes it WAL; to the others SQLite
    says "locked" at once, however long they would wait.
    """
    until = time.monotonic() + SQLITE_BUSY.total_seconds()
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() >= until:
                raise
            time.sleep(0.01)
        else:
            return


def _sqlite_begins(connection: Connection) -> None:
    reads = connection.get_execution_options().get("sandkeeper_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def witness(engine: Engine) -> Witness:
    """What is remembered of this database outside of it."""
    if engine.dialect.name == "sqlite":
        return _beside(engine.url.database or "") or InMemory()
    return InMemory()


def _beside(database: str) -> Beside | None:
    """A witness for a SQLite file; a database in memory has none, and no copies either."""
    path = Path(database.removeprefix("file:").partition("?")[0] or ":")
    return Beside(path.resolve()) if path.is_file() else None


def _nobody() -> None:
    """The identity of a database that nobody else can open."""
