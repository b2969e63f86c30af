"""
The line between SQLAlchemy and the simulated server: a driver whose connections share one SQLite
database. Nothing above the driver is replaced: SQLAlchemy and the store are the real ones.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import QueuePool, StaticPool

from core.engines import prepare
from core.events import Event
from core.host import Host
from core.migrations import upgrade
from core.policy import Policy
from core.store import Store
from core.witness import InMemory
from tests.simulation.database import EPOCH, IDLE_IN_TRANSACTION, Server
from tests.simulation.faults import Fault
from tests.simulation.plan import Flavour
from tests.simulation.scheduler import Process

INSTALLATION = "simulate"
IDENTITY = "sandkeeper_identity"


class Wire:
    """
    What SQLAlchemy calls a connection. Of a dead process nothing more reaches the server. Without
    a server, before the first world, it is a plain connection.
    """

    def __init__(self, line: Line) -> None:
        self.isolation_level: str | None = None
        self.line = line
        self.number = 0  # of its transactions
        self.process: Process | None = None
        self.trouble: sqlite3.Error | None = None  # what the next statement will say
        self._open = False
        self._broken = ""
        self._began = 0.0

    def cursor(self) -> Cursor:
        cursor = self.line.real.cursor(Cursor)
        cursor.wire = self
        return cursor

    def execute(self, sql: str) -> sqlite3.Cursor:
        """What is asked of a new connection, outside of any transaction."""
        return self.line.real.execute(sql)

    def create_function(self, name: str, arguments: int, *_: object, **__: object) -> None:
        """Functions of the dialect and of the store: the server's own, whoever asks for them."""
        if name == IDENTITY:
            self.line.real.create_function(name, arguments, lambda: self.line.identity)

    def begin(self) -> None:
        """BEGIN: on SQLite it waits for the lock, on PostgreSQL only the clock is read."""
        server = self.line.server
        if server is None:
            self.line.real.execute("BEGIN")
            return
        scheduler = server.scheduler
        scheduler.point()
        self.number += 1
        self.process, self._open, self._broken = scheduler.actor.process, True, ""
        server.check_up()
        self._began = scheduler.now
        scheduler.actor.opened_at = scheduler.now
        if server.flavour is Flavour.SQLITE:
            server.acquire(self)

    def ready(self) -> None:
        """Before a statement: somebody else's turn, then the lock, then what may go wrong."""
        server = self.line.server
        if server is None or not self._open:  # a look, whose BEGIN is still to come
            return
        try:
            server.scheduler.point()
            server.between(server.scheduler.actor)
            self._check_broken()
            self.lock(server)
            if server.faults.hit(Fault.STATEMENT_FAILED):
                self.cut("connection reset")
                self._check_broken()
        except sqlite3.Error as error:
            self.trouble = error

    def lock(self, server: Server) -> None:
        """What is asked needs the lock."""
        server.check_up()
        if server.owner is self:
            return
        idle = server.scheduler.now - self._began
        if server.flavour is Flavour.POSTGRESQL and idle > IDLE_IN_TRANSACTION:
            self.cut("idle-in-transaction timeout")
            self._check_broken()
        server.acquire(self)

    def commit(self) -> None:
        server = self.line.server
        if server is None:
            self._end("COMMIT")
            return
        if not self._open:
            return
        scheduler = server.scheduler
        scheduler.point()
        self._check_broken()
        server.check_up()
        if server.faults.hit(Fault.COMMIT_FAILED):
            self.cut("the commit failed")
            self._check_broken()
        if server.owner is self:
            now = server.may_show(scheduler.actor)
            server.release("COMMIT")
            scheduler.note("COMMIT")
            server.committed(scheduler.actor, now)
        self._close()
        if server.faults.hit(Fault.COMMIT_UNKNOWN):
            scheduler.note("the answer to COMMIT is lost")
            raise sqlite3.OperationalError("server closed the connection unexpectedly")
        scheduler.point()

    def rollback(self) -> None:
        """Also called when a connection goes back to its pool, and while a process dies."""
        server = self.line.server
        if server is None:
            self._end("ROLLBACK")
            return
        if self._open and server.owner is self:
            server.release("ROLLBACK")
        self._close()

    def close(self) -> None:
        self.rollback()

    def cut(self, why: str) -> None:
        """The server has forgotten this transaction; the program finds out when it asks."""
        self._broken = why
        server = self.line.server
        if server is not None and server.owner is self:
            server.scheduler.note(f"ROLLBACK: {why}")
            server.release("ROLLBACK")

    def time_out(self, number: int) -> None:
        """What PostgreSQL does with a transaction that is idle for too long."""
        server = self.line.server
        if server is not None and self.number == number and server.owner is self:
            self.cut("idle-in-transaction timeout")

    def _check_broken(self) -> None:
        if self._broken:
            raise sqlite3.OperationalError(f"terminating connection: {self._broken}")

    def _close(self) -> None:
        self._open, self.process, self.trouble = False, None, None
        server = self.line.server
        actor = None if server is None else server.scheduler.running
        if actor is not None:
            actor.opened_at = None

    def _end(self, how: str) -> None:
        if self.line.real.in_transaction:
            self.line.real.execute(how)


class Cursor(sqlite3.Cursor):
    """Statements as they reach the driver: BEGIN and PRAGMA are the wire's own affair."""

    wire: Wire

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        if sql.startswith("BEGIN"):
            self.wire.begin()
        elif not sql.startswith("PRAGMA"):
            self._say(sql, parameters)
            super().execute(sql, parameters)
        return self

    def executemany(self, sql: str, rows: Any, /) -> Cursor:
        self._say(sql, rows)
        super().executemany(sql, rows)
        return self

    def _say(self, sql: str, parameters: Any) -> None:
        wire = self.wire
        trouble, wire.trouble = wire.trouble, None
        if trouble is not None:
            raise trouble
        if wire.line.server is None:
            return
        wire.lock(wire.line.server)
        scheduler = wire.line.server.scheduler
        scheduler.note(sql[:32] if scheduler.log is None else f"{_short(sql)}  {parameters}")


class Onlooker:
    """The witness of the world that there is now, for stores that outlive worlds."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def establish(self, installation: str) -> bool:
        return self._line.witness.establish(installation)

    def renew(self, installation: str) -> None:
        self._line.witness.renew(installation)

    def recall(self) -> int:
        return self._line.witness.recall()

    def remember(self, epoch: int) -> None:
        self._line.witness.remember(epoch)


class Line:
    """
    What the worlds of one operating system process share, because it takes long to make: the
    engine, compiled statements, and a migrated database that each world gets a copy of.
    """

    def __init__(self, policies: tuple[Policy, ...]) -> None:
        self.server: Server | None = None
        self.tell: Callable[[Event], None] = lambda _: None
        self.identity: str | None = None
        self.witness = InMemory()
        self.real = sqlite3.connect(":memory:", isolation_level=None, cached_statements=1000)
        self._template = _migrated()
        self._template.backup(self.real)
        self.engine = self._engine()
        self._stores = {policy: self._store(policy) for policy in policies}

    def fresh(self) -> sqlite3.Connection:
        """An empty, migrated database, in the place of the last world's."""
        self.server = None
        self.witness = InMemory()
        if self.real.in_transaction:
            self.real.execute("ROLLBACK")
        self._template.backup(self.real)
        self.real.execute("PRAGMA foreign_keys = ON")
        return self.real

    def store(self, policy: Policy) -> Store:
        """The store of a policy. It keeps nothing between two calls but its statements."""
        return self._stores[policy]

    def _store(self, policy: Policy) -> Store:
        return Store(
            self.engine,
            policy=policy,
            clock=self._now,
            sinks=(self._tell,),
            witness=Onlooker(self),
            host=Host(randbits=self._randbits),
        )

    def _now(self) -> datetime:
        return EPOCH if self.server is None else self.server.now()

    def _tell(self, happened: Event) -> None:
        self.tell(happened)

    def _randbits(self, count: int) -> int:
        assert self.server is not None, "only an actor of a world makes keys"
        return self.server.scheduler.random.getrandbits(count)

    def _engine(self) -> Engine:
        engine = prepare(
            create_engine("sqlite://", creator=lambda: Wire(self), poolclass=QueuePool, pool_size=0)
        )
        # The time is a parameter, and parameters are read after this: a process that is stopped
        # here sends the time at which it goes on.
        event.listen(engine, "before_execute", _before)
        return engine


def _before(connection: Any, *_: object) -> None:
    wire: Wire = connection.connection.dbapi_connection
    wire.ready()


def _migrated() -> sqlite3.Connection:
    """A migrated database with an installation in it."""
    engine = prepare(create_engine("sqlite://", poolclass=StaticPool))
    upgrade(engine)
    Store(engine, installation=INSTALLATION, clock=lambda: EPOCH)
    with engine.connect() as connection:
        real: Any = connection.connection.dbapi_connection
    assert isinstance(real, sqlite3.Connection)
    return real


def _short(sql: str) -> str:
    return " ".join(sql.split())[:110]
