"""SQL that the two databases spell differently: moments, and one of many keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Dialect,
    Float,
    Integer,
    String,
    TableValuedAlias,
    TypeDecorator,
    bindparam,
    column,
    func,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from ..schema import UTCDateTime

# SQLite keeps time as text of one fixed width, so that comparing text compares moments. Its clock
# has milliseconds; the zeros fill up to the microseconds that SQLAlchemy writes.
_SQLITE_FORMAT = "'%Y-%m-%d %H:%M:%f000'"


_QUOTA = 7263551  # the seed of the hashes that are locked; migrations lock the number before it


class _Moment(FunctionElement[datetime]):
    type = UTCDateTime()


class Now(_Moment):
    """
    The moment at which the statement began, by the database's clock. Not when its transaction did:
    a process that was stopped in between would take what others wrote meanwhile for dates in the
    future. Not clock_timestamp(): in a WHERE that would turn the due index into a full scan.
    """

    name = "now_"
    inherit_cache = True


class Later(_Moment):
    """A moment and a number of seconds; NULL when either is."""

    name = "later"
    inherit_cache = True


class Identity(FunctionElement[str]):
    """
    Which database this is, by what a copy does not take along. NULL when nobody can tell.
    PostgreSQL: the cluster, its timeline, the database, the very table. SQLite: what its
    witness says, a file beside the database (core/witness.py).
    """

    type = String()
    name = "identity"
    inherit_cache = True


class Writers(FunctionElement[Any]):
    """
    The transactions that may hold a line of the ledger which nobody else can see yet: a list of
    names, of which none comes again. Whoever inserts has locked the table before it draws the
    line's id, and lets go after its commit can be seen. SQLite has one writer: us.
    """

    type = JSON()
    name = "writers"
    inherit_cache = True


class TenantLock(FunctionElement[Any]):
    """
    Taken until the transaction ends, by whoever asks for it of the same tenant. SQLite has one
    writer, and a transaction that will write is one from its beginning: nothing is to be taken.
    """

    type = String()
    name = "tenant_lock"
    inherit_cache = True


class Earliest(_Moment):
    """The smallest of several moments, none of them NULL."""

    name = "earliest"
    inherit_cache = True


class Latest(_Moment):
    """The greatest of several moments, none of them NULL."""

    name = "latest"
    inherit_cache = True


class Seconds(FunctionElement[float]):
    """How many seconds the second moment is after the first; NULL when either is."""

    type = Float()
    name = "seconds"
    inherit_cache = True


class Whole(FunctionElement[int]):
    """The whole part of a number that is not negative."""

    type = Integer()
    name = "whole"
    inherit_cache = True


class _Keys(TypeDecorator[Sequence[str]]):
    """Many keys as one parameter."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        array = dialect.name == "postgresql"
        return dialect.type_descriptor(ARRAY(String) if array else String())

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        keys = list(value or ())
        return keys if dialect.name == "postgresql" else json.dumps(keys)


class _AnyOf(FunctionElement[Any]):
    # Of no type: as a boolean SQLite would be sent `… = 1`, and would not see that an index serves.
    name = "any_of"
    inherit_cache = True


def any_of(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """
    Whether a column is one of the keys in the parameter `name`. However many there are, the
    statement is the same: IN would make another text for each number of them, which neither the
    driver nor the server has prepared.
    """
    return _AnyOf(column, bindparam(name, type_=_Keys()))


def listed(name: str, *, postgresql: bool) -> TableValuedAlias:
    """The keys in the parameter `name` as rows, in a column `value`."""
    keys = bindparam(name, type_=_Keys())
    rows = func.unnest(keys) if postgresql else func.json_each(keys)
    table = rows.table_valued(column("value", String), name="listed")
    return table.render_derived() if postgresql else table


def later(moment: ColumnElement[datetime], seconds: Any) -> ColumnElement[datetime]:
    """`moment` plus `seconds`, a number or a column of numbers."""
    return Later(moment, seconds)


def now(clock: Callable[[], datetime] | None) -> ColumnElement[datetime]:
    """The database's own clock, or one that a test hands in; asked anew at each execution."""
    if clock is None:
        return Now()
    return bindparam("now", callable_=clock, type_=UTCDateTime(), unique=True)


@compiles(Identity, "postgresql")
def _(element: Identity, compiler: SQLCompiler, **options: Any) -> str:
    # A restore into another cluster has another system identifier; a standby that was promoted
    # another timeline; CREATE DATABASE … TEMPLATE another database; pg_restore another table.
    return (
        "(SELECT concat_ws(':', system_identifier, "
        "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), "
        "(SELECT oid FROM pg_database WHERE datname = current_database()), "
        "to_regclass('installation')::oid) FROM pg_control_system())"
    )


@compiles(Writers, "postgresql")
def _(element: Writers, compiler: SQLCompiler, **options: Any) -> str:
    return (
        "(SELECT coalesce(json_agg(virtualtransaction), '[]') FROM pg_locks "
        "WHERE relation = 'events'::regclass AND mode = 'RowExclusiveLock' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND pid IS DISTINCT FROM pg_backend_pid())"
    )


@compiles(Writers, "sqlite")
def _(element: Writers, compiler: SQLCompiler, **options: Any) -> str:
    return "'[]'"


@compiles(TenantLock, "postgresql")
def _(element: TenantLock, compiler: SQLCompiler, **options: Any) -> str:
    (tenant,) = _arguments(element, compiler, **options)
    # Two tenants of one hash wait for each other, and no more than that.
    return f"pg_advisory_xact_lock(hashtextextended({tenant}, {_QUOTA}))::text"


@compiles(TenantLock, "sqlite")
def _(element: TenantLock, compiler: SQLCompiler, **options: Any) -> str:
    return f"nullif({_arguments(element, compiler, **options)[0]}, '')"


@compiles(Identity, "sqlite")
def _(element: Identity, compiler: SQLCompiler, **options: Any) -> str:
    return "sandkeeper_identity()"


def _arguments(element: FunctionElement[Any], compiler: SQLCompiler, **options: Any) -> list[str]:
    return [compiler.process(clause, **options) for clause in element.clauses]


@compiles(_AnyOf, "postgresql")
def _(element: _AnyOf, compiler: SQLCompiler, **options: Any) -> str:
    column, keys = _arguments(element, compiler, **options)
    return f"{column} = ANY ({keys})"


@compiles(_AnyOf, "sqlite")
def _(element: _AnyOf, compiler: SQLCompiler, **options: Any) -> str:
    column, keys = _arguments(element, compiler, **options)
    return f"{column} IN (SELECT value FROM json_each({keys}))"  # noqa: S608 - both are compiled


@compiles(Now, "postgresql")
def _(element: Now, compiler: SQLCompiler, **options: Any) -> str:
    return "statement_timestamp()"


@compiles(Now, "sqlite")
def _(element: Now, compiler: SQLCompiler, **options: Any) -> str:
    return f"strftime({_SQLITE_FORMAT}, 'now')"


@compiles(Later, "postgresql")
def _(element: Later, compiler: SQLCompiler, **options: Any) -> str:
    moment, seconds = _arguments(element, compiler, **options)
    return f"({moment} + make_interval(secs => {seconds}))"


@compiles(Later, "sqlite")
def _(element: Later, compiler: SQLCompiler, **options: Any) -> str:
    moment, seconds = _arguments(element, compiler, **options)
    # Concatenated, so that no seconds make no moment; printf would read NULL as zero.
    return f"strftime({_SQLITE_FORMAT}, {moment}, round({seconds}, 3) || ' seconds')"


@compiles(Earliest, "postgresql")
def _(element: Earliest, compiler: SQLCompiler, **options: Any) -> str:
    return f"least({', '.join(_arguments(element, compiler, **options))})"


@compiles(Earliest, "sqlite")
def _(element: Earliest, compiler: SQLCompiler, **options: Any) -> str:
    return f"min({', '.join(_arguments(element, compiler, **options))})"


@compiles(Latest, "postgresql")
def _(element: Latest, compiler: SQLCompiler, **options: Any) -> str:
    return f"greatest({', '.join(_arguments(element, compiler, **options))})"


@compiles(Latest, "sqlite")
def _(element: Latest, compiler: SQLCompiler, **options: Any) -> str:
    return f"max({', '.join(_arguments(element, compiler, **options))})"


@compiles(Seconds, "postgresql")
def _(element: Seconds, compiler: SQLCompiler, **options: Any) -> str:
    since, until = _arguments(element, compiler, **options)
    return f"extract(epoch FROM ({until} - {since}))::double precision"


@compiles(Seconds, "sqlite")
def _(element: Seconds, compiler: SQLCompiler, **options: Any) -> str:
    since, until = _arguments(element, compiler, **options)
    return f"round((julianday({until}) - julianday({since})) * 86400.0, 3)"


@compiles(Whole, "postgresql")
def _(element: Whole, compiler: SQLCompiler, **options: Any) -> str:
    (number,) = _arguments(element, compiler, **options)
    return f"floor({number})::integer"


@compiles(Whole, "sqlite")
def _(element: Whole, compiler: SQLCompiler, **options: Any) -> str:
    (number,) = _arguments(element, compiler, **options)
    return f"CAST({number} AS INTEGER)"
