"""One transaction as one object: it runs statements, records events, and names database errors."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Executable, Row, Table, Update, exc, select
from sqlalchemy.dialects import postgresql, sqlite

from .. import events as sinks
from ..errors import RowLocked, SchemaOutdated, StoreError, StoreUnavailable
from ..events import Event, Sink
from .ledger import Ledger, entries
from .sql import now

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


class Move:
    """An open transaction. What it records reaches the ledger with the commit, sinks after it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: list[Event] = []

    def all(self, statement: Executable, parameters: Parameters = None) -> Sequence[Row[Any]]:
        return self.connection.execute(statement, parameters).all()

    def one(self, statement: Executable, parameters: Parameters = None) -> Row[Any] | None:
        return self.connection.execute(statement, parameters).one_or_none()

    def run(self, statement: Executable, parameters: Parameters = None) -> int:
        """The number of rows that it changed."""
        return self.connection.execute(statement, parameters).rowcount

    def record(self, *events: Event) -> None:
        self.events.extend(events)


class Database:
    """
    The engine, its clock, and who hears of what was committed. `clock` is for tests; without it
    time is the database's own.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], datetime] | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.engine = engine
        self.sinks = tuple(sinks)
        self.now = now(clock)
        # Whether one statement can be all of a transaction, with changes in its WITH.
        self.single_statement = engine.dialect.name == "postgresql"
        self._ledger = Ledger(self.now, engine.dialect.name)
        self._rehearsed = threading.local()  # the rehearsal of this thread, if there is one

    @contextmanager
    def rehearsal(self) -> Iterator[list[Event]]:
        """
        What this thread does within is one transaction that is rolled back: each look sees what
        the moves before it did, nobody else ever does, and no sink hears of it. Gives the events
        that would have been recorded. Rows stay locked until it is over.
        """
        events: list[Event] = []
        with _named_errors(), self.engine.connect() as connection, connection.begin() as whole:
            self._rehearsed.of = (connection, events)
            try:
                yield events
            finally:
                self._rehearsed.of = None
                whole.rollback()

    def _rehearses(self) -> tuple[Connection, list[Event]] | None:
        found: tuple[Connection, list[Event]] | None = getattr(self._rehearsed, "of", None)
        return found

    @contextmanager
    def _rehearse(self, connection: Connection, events: list[Event]) -> Iterator[Move]:
        """One move of a rehearsal: one that fails takes back itself alone, as it would alone."""
        with _named_errors(), connection.begin_nested():
            move = Move(connection)
            yield move
            if said := move.events:
                connection.execute(self._ledger.insert, entries(said))
        events.extend(move.events)

    @contextmanager
    def move(self) -> Iterator[Move]:
        """
        A read-write transaction. The events are inserted last, in the same transaction, and the
        sinks hear them only once the commit was acknowledged.
        """
        if (rehearsed := self._rehearses()) is not None:
            with self._rehearse(*rehearsed) as move:
                yield move
            return
        with _named_errors(), self.engine.begin() as connection:
            move = Move(connection)
            yield move
            if move.events:
                connection.execute(self._ledger.insert, entries(move.events))
        sinks.emit(self.sinks, move.events)

    @contextmanager
    def look(self) -> Iterator[Move]:
        """
        Reads: they take no write lock on SQLite, and can record nothing. On PostgreSQL each sees
        what is committed by then, as in a transaction of ours, and needs none.
        """
        if (rehearsed := self._rehearses()) is not None:
            with self._rehearse(*rehearsed) as move:
                yield move
            return
        options: dict[str, Any] = {"sandkeeper_read": True}
        if self.single_statement:
            options = {"isolation_level": "AUTOCOMMIT"}
        with _named_errors(), self.engine.connect() as connection:
            yield Move(connection.execution_options(**options))

    @contextmanager
    def snapshot(self) -> Iterator[Move]:
        """Reads that all see the same moment, whatever is committed between them."""
        options: dict[str, Any] = {"sandkeeper_read": True}
        if self.engine.dialect.name == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with _named_errors(), self.engine.connect() as connection:
            yield Move(connection.execution_options(**options))

    @contextmanager
    def single(self) -> Iterator[Move]:
        """
        One statement that is its own transaction. On PostgreSQL this saves the round trips of
        BEGIN and COMMIT, which cost more than the statement.
        """
        if not self.single_statement or self._rehearses() is not None:
            with self.move() as move:
                yield move
            return
        with _named_errors(), self.engine.connect() as connection:
            yield Move(connection.execution_options(isolation_level="AUTOCOMMIT"))

    def told(self, change: Update) -> Executable:
        """
        For `tell_if`: an UPDATE of one row, with the ledger's entry of it in the same statement
        where the database can do that. It saves three of five round trips.
        """
        if not self.single_statement:
            return change
        changed = change.cte("changed")
        return select(changed).add_cte(self._ledger.insert_with(changed).cte("told"))

    def tell_if(self, told: Executable, parameters: dict[str, Any], event: Event) -> bool:
        """Whether the change was made. If so its event is in the ledger, and the sinks hear it."""
        if not self.single_statement:
            with self.move() as move:
                if changed := move.one(told, parameters) is not None:
                    move.record(event)
            return changed
        with self.single() as move:
            changed = move.one(told, {**parameters, **entries([event])}) is not None
        if changed:
            sinks.emit(self.sinks, [event])
        return changed

    def insert(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """An INSERT that knows ON CONFLICT, which the two databases spell alike."""
        if self.engine.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)

    def tell(self, *events: Event) -> None:
        """Log what is no move: nothing of it is in the ledger."""
        if (rehearsed := self._rehearses()) is not None:
            rehearsed[1].extend(events)
            return
        sinks.emit(self.sinks, events)


def kept(error: str) -> str:
    """As a column can hold it: an error may quote raw bytes, and its row must be released."""
    return error[:500].encode("utf-8", "replace").decode().replace("\x00", "?")


@contextmanager
def _named_errors() -> Iterator[None]:
    """Turn the driver's errors into ours: the caller decides by type whether to try again."""
    try:
        yield
    except exc.DBAPIError as error:
        raise _named(error) from error
    except exc.TimeoutError as error:
        raise StoreUnavailable(f"no free connection to the database: {error}") from error


def _named(error: exc.DBAPIError) -> StoreError:
    """Decided by the driver's code: its words may quote what a user wrote."""
    cause = " ".join(str(error.orig).split())
    code = _code(error.orig)
    if code in _OUTDATED or (code == "SQLITE_ERROR" and _SQLITE_LACKS.match(cause)):
        return SchemaOutdated(
            f"the database lacks what this version needs ({cause}): run `sandkeeper db upgrade`"
        )
    if code in _READ_ONLY:
        return StoreUnavailable(
            f"the database is read-only ({cause}): point DATABASE_URL at the primary, or make the "
            "file and its folder writable"
        )
    if code in _FULL:
        return StoreUnavailable(f"the database is full ({cause}): free some room")
    if code == _LOCKED:
        return RowLocked(f"somebody holds a row for long ({cause}): it is tried again")
    if isinstance(error, exc.OperationalError | exc.InterfaceError) or error.connection_invalidated:
        return StoreUnavailable(f"the database cannot be used now ({cause}): it is tried again")
    return StoreError(f"the database refused ({cause})")


def _code(error: BaseException | None) -> str:
    """PostgreSQL's SQLSTATE or SQLite's result code, empty when the server was not reached."""
    found = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None)
    return str(found or "")


_OUTDATED = {"42P01", "42703", "42883", "3F000"}  # no such table, column, function, schema
_SQLITE_LACKS = re.compile(r"no such (table|column)|table \S+ has no column")
_READ_ONLY = {
    "25006",
    "SQLITE_READONLY",
    "SQLITE_READONLY_DBMOVED",
    "SQLITE_READONLY_DIRECTORY",
    "SQLITE_READONLY_CANTLOCK",
    "SQLITE_READONLY_RECOVERY",
}
_LOCKED = "55P03"  # PostgreSQL's lock_timeout; SQLite knows no rows
_FULL = {"53100", "SQLITE_FULL"}
