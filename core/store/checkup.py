"""What the doctor asks of a database: its server, its tables, its clock, and what waits in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    Engine,
    and_,
    exists,
    false,
    func,
    inspect,
    or_,
    select,
    text,
    union_all,
)

from ..policy import Policy
from ..schema import events, holds, installation, metadata, providers, sessions
from .census import Census, Counts
from .database import Database
from .rules import ACTIVE, CLOSING, CREATING, ENDED, GONE, RUNNING, Rules, b, s
from .sql import Identity, Seconds, later
from .tokens import Token, Tokens
from .watch import Pulse, Watch

i, p = installation.c, providers.c
OURS = tuple(metadata.tables)
_SERVER = """
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS number,
       pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only') = 'on' AS read_only,
       current_setting('transaction_isolation') AS isolation,
       current_setting('TimeZone') AS zone,
       current_setting('lock_timeout') AS lock_timeout,
       current_setting('statement_timeout') AS statement_timeout,
       current_setting('idle_in_transaction_session_timeout') AS idle_timeout,
       current_setting('max_connections')::int AS most,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used
"""
_TRIGGER = {
    "postgresql": "SELECT 1 FROM pg_trigger WHERE tgname = 'sandboxes_monotone' "
    "AND tgrelid = to_regclass('sandboxes') AND tgenabled IN ('O', 'A')",
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = 'sandboxes_monotone' "
    "AND tbl_name = 'sandboxes'",
}
# What CREATE INDEX CONCURRENTLY, or a crash in it, leaves behind: there, written to, never read.
_INVALID = (
    "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT (indisvalid AND indisready) "
    "AND indrelid = ANY (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) name)"
)
_DEAD = (
    "SELECT relname AS name, n_live_tup AS live, n_dead_tup AS dead FROM pg_stat_user_tables "
    "WHERE relid = ANY (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) name)"
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """PostgreSQL as a connection of ours finds it. Timeouts are as it shows them; `0` is none."""

    version: str
    number: int
    standby: bool
    read_only: bool
    isolation: str
    zone: str
    lock_timeout: str
    statement_timeout: str
    idle_timeout: str
    most: int  # connections
    used: int


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """The database's time, and the newest that was written by it. None: nothing was written."""

    now: datetime
    activity: datetime | None  # of an active session
    event: datetime | None  # the last one of the ledger
    swept: datetime | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Sandboxes that are not gone, of one provider and scope."""

    provider: str
    scope: str
    sandboxes: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """One provider's health. `age` is seconds since the last reconcile, if there was one."""

    provider: str
    open: bool
    limited: bool
    last_error: str | None
    age: float | None


@dataclass(frozen=True, kw_only=True)
class Tuples:
    """Rows of one table, by PostgreSQL's own estimate."""

    name: str
    live: int
    dead: int


class Checkup:
    """Reads only, and needs no installation: one that never ran is not made by being looked at."""

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self.database = Database(engine)
        self.kind = engine.dialect.name
        self._rules = Rules(self.database.now, policy)

    @property
    def address(self) -> str:
        """The database's URL without its password."""
        return self.database.engine.url.render_as_string(hide_password=True)

    @cached_property
    def file(self) -> Path | None:
        """The database's file; None on PostgreSQL."""
        if self.kind != "sqlite":
            return None
        name = (self.database.engine.url.database or "").removeprefix("file:").partition("?")[0]
        return Path(name).absolute()

    @property
    def reading(self) -> Engine:
        """The engine for looks at the tables: on SQLite they wait for nobody who writes."""
        return self.database.engine.execution_options(sandkeeper_read=True)

    def close(self) -> None:
        self.database.engine.dispose()

    # The server

    def try_to_write(self) -> None:
        """On SQLite a write that is taken back: StoreUnavailable when nothing can be written."""
        with self.database.move() as move:
            # A read-only file gives a transaction to whoever asks, and refuses the first write.
            move.connection.exec_driver_sql("PRAGMA user_version = 1")
            move.connection.rollback()

    def journal_mode(self) -> str:
        """SQLite's: `wal` where it can be."""
        with self.database.look() as look:
            return str(look.connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())

    def server(self) -> Server:
        """PostgreSQL inside a transaction as every move of ours has it."""
        with self.database.move() as move:
            return Server(**move.connection.execute(text(_SERVER)).one()._mapping)

    def is_pooled(self) -> bool:
        """Whether somebody sits between us and PostgreSQL: it is not who greeted us."""
        with self.database.look() as look:
            greeted: Any = look.connection.connection.dbapi_connection
            return int(greeted.info.backend_pid) != self._backend(look.connection)

    def changes_backends(self) -> bool:
        """Whether a connection keeps its server process only for a transaction."""
        with self.database.look() as mine:
            before = self._backend(mine.connection)
            with self.database.move() as other:  # has to take a process, and may take ours
                self._backend(other.connection)
                return self._backend(mine.connection) != before

    def _backend(self, connection: Any) -> int:
        return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())

    # Its tables

    def has_trigger(self) -> bool:
        """Whether the database itself refuses to let a sandbox go back."""
        with self.database.look() as look:
            return look.connection.execute(text(_TRIGGER[self.kind])).first() is not None

    def missing_checks(self) -> list[str]:
        """CHECK constraints of this version that the tables lack."""
        with self.database.look() as look:
            inspector = inspect(look.connection)
            return sorted(
                name
                for table in metadata.sorted_tables
                for name in {
                    str(each.name)
                    for each in table.constraints
                    if isinstance(each, CheckConstraint)
                }
                - {str(each["name"]) for each in inspector.get_check_constraints(table.name)}
            )

    def invalid_indexes(self) -> list[str]:
        """Indexes that PostgreSQL keeps and does not use."""
        if self.kind != "postgresql":
            return []
        with self.database.look() as look:
            rows = look.connection.execute(text(_INVALID), {"names": list(OURS)})
            return sorted(row[0] for row in rows)

    def tuples(self) -> list[Tuples]:
        """How much of each table is dead rows; nothing on SQLite, which has none."""
        if self.kind != "postgresql":
            return []
        with self.database.look() as look:
            rows = look.connection.execute(text(_DEAD), {"names": list(OURS)}).all()
        return [Tuples(**row._mapping) for row in rows]

    # Its clock and its identity

    def clocks(self) -> Clocks:
        """Reads every active session once: no index has their last activity."""
        newest = select(func.max(s.last_activity_at)).where(ACTIVE).scalar_subquery()
        last = select(events.c.at).order_by(events.c.id.desc()).limit(1).scalar_subquery()
        swept = select(i.swept_at).scalar_subquery()
        query = select(
            self.database.now.label("now"),
            newest.label("activity"),
            last.label("event"),
            swept.label("swept"),
        )
        with self.database.look() as look:
            return Clocks(**look.connection.execute(query).one()._mapping)

    def installation(self) -> str | None:
        """Its id; None before anything used this database."""
        with self.database.look() as look:
            row = look.one(select(i.id))
        return None if row is None else str(row.id)

    def identities(self) -> tuple[str | None, str | None]:
        """Which database this installation was in, and which one this is."""
        with self.database.look() as look:
            row = look.one(select(i.identity, Identity().label("live")))
        return (None, None) if row is None else (row.identity, row.live)

    # What waits in it

    def pulse(self) -> Pulse:
        """How the sweep is doing. Only where there is an installation."""
        return Watch(self.database, self._rules).pulse()

    def census(self) -> Census:
        return Counts(self.database).census()

    def questions(self) -> Mapping[str, float]:
        """What an operator was asked, and how many seconds ago."""
        asked = select(holds.c.reason, Seconds(holds.c.since, self.database.now).label("age"))
        with self.database.look() as look:
            rows = look.all(asked.where(holds.c.until.is_(None)).order_by(holds.c.since))
        return {row.reason: row.age for row in rows}

    def oldest_teardown(self) -> float | None:
        """Seconds since the end of the longest closing sandbox that is not in quarantine."""
        since = select(func.min(b.closing_at)).where(CLOSING, b.quarantined_at.is_(None))
        query = select(Seconds(since.scalar_subquery(), self.database.now))
        with self.database.look() as look:
            return look.connection.execute(query).scalar_one()

    def other_active(self, but: str) -> int:
        """Active sessions besides this one."""
        query = select(func.count()).select_from(sessions).where(ACTIVE, s.id != but)
        with self.database.look() as look:
            return int(look.connection.execute(query).scalar_one())

    def places(self) -> list[Place]:
        """Where sandboxes are, by the rows. Each state by its own index: most rows are gone."""
        waiting = b.quarantined_at.is_(None)
        states: Sequence[tuple[ColumnElement[bool], ...]] = (
            (CREATING,),
            (RUNNING,),
            (CLOSING, waiting),
            (CLOSING, ~waiting),
        )
        alive = union_all(*(select(b.provider, b.scope).where(*state) for state in states))
        each = alive.subquery().c
        query = select(each.provider, each.scope, func.count().label("sandboxes"))
        with self.database.look() as look:
            rows = look.all(query.group_by(each.provider, each.scope).order_by(each.provider))
        return [Place(**row._mapping) for row in rows]

    def lines(self) -> list[Line]:
        """Every provider that was ever compared, or in trouble."""
        now = self.database.now
        query = select(
            p.provider,
            func.coalesce(p.open_until > now, false()).label("open"),
            func.coalesce(p.limited_until > now, false()).label("limited"),
            p.last_error,
            Seconds(p.reconciled_at, now).label("age"),
        ).order_by(p.provider)
        with self.database.look() as look:
            return [Line(**row._mapping) for row in look.all(query)]

    def overripe(self, after: float) -> float | None:
        """
        Of the longest ended session that should have been forgotten `after` seconds ago: how many
        seconds ago it ended. None when there is none.
        """
        horizon = later(self.database.now, -after)
        kept = exists(
            select(1)
            .where(b.session_id == s.id, or_(~GONE, b.gone_at > horizon))
            .correlate(sessions)
        )
        query = (
            select(Seconds(s.ended_at, self.database.now))
            .where(and_(ENDED, s.ended_at <= horizon), ~kept)
            .order_by(s.ended_at)
            .limit(1)
        )
        with self.database.look() as look:
            return look.connection.execute(query).scalar()

    def tokens(self) -> list[Token]:
        """All that were ever made."""
        return Tokens(self.database).all()

    def now(self) -> datetime:
        """The database's time."""
        with self.database.look() as look:
            return look.connection.execute(select(self.database.now)).scalar_one()
