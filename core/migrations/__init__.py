"""
Bringing a database to the tables of this version, and saying how far it has come. Alembic is
imported by what migrates only: every API server and worker asks how far, and waits for the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, column, exc, inspect, select, table

from ..errors import SchemaOutdated, StoreUnavailable
from ..host import Host
from ..schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

_HERE = Path(__file__).parent
_LOCK = 7263550  # any number that no other program locks
_CANNOT_NOW = {"57014", "40P01"}  # cancelled by its statement_timeout, or chosen in a deadlock

PATIENCE = 800  # milliseconds; whoever comes while we wait for tables waits behind us
PAUSE = 0.4  # seconds, for whom we gave way to
ATTEMPTS = 60


class _GaveWayError(Exception):
    """Somebody had one of the tables for longer than we let others wait."""


def head() -> str:
    """The revision that this version of the code needs: the number of its newest migration."""
    return max(path.name.partition("_")[0] for path in _HERE.glob("versions/[0-9]*.py"))


def current(engine: Engine) -> str | None:
    """The revision that the database is at, None when it was never migrated."""
    try:
        with engine.connect() as connection:
            return _current(connection)
    except exc.DBAPIError as error:
        raise _unavailable("open", engine, error) from error


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = table("alembic_version", column("version_num"))
    return connection.execute(select(version.c.version_num)).scalar()


def _era(revision: str) -> str:
    """Its thousand: within one, migrations only add. See docs/upgrades.md."""
    return revision[:-3]


def require(engine: Engine) -> None:
    """
    Raise SchemaOutdated unless this code can work on the database's revision: the one that it
    needs, or a later one that only adds to it. While an installation is upgraded its schema is
    ahead of its old processes, and those must be able to go on, and to start again.
    """
    found, needed = current(engine), head()
    if found is not None and needed <= found and _era(found) == _era(needed):
        return
    state = "was never migrated" if found is None else f"is at revision {found}"
    what = (
        "upgrade Sandkeeper"
        if (found or "") > needed
        else "run `sandkeeper db upgrade` (`./run db upgrade` in a checkout)"
    )
    raise SchemaOutdated(f"the database {state}, this version needs {needed}: {what}")


def upgrade(engine: Engine, *, host: Host | None = None) -> None:
    """
    Migrate to the newest revision, in one transaction; nothing happens when it is there already,
    or further. Two processes that start at once take turns. On PostgreSQL it waits for a moment
    in which it gets all tables at once, for a minute or so; StoreUnavailable says that none came.
    """
    host = host or Host()
    try:
        for _ in range(ATTEMPTS):
            try:
                with engine.begin() as connection:
                    return _upgrade(connection)
            except _GaveWayError:
                host.sleep(PAUSE)
    except exc.DBAPIError as error:
        raise _unavailable("migrate", engine, error) from error
    raise StoreUnavailable(
        f"cannot migrate the database: in {ATTEMPTS} attempts somebody held one of its tables for "
        "longer than others may wait; look for long transactions (a backup?), and try again"
    )


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415

    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    found = _current(connection)
    if found is not None and found >= head():
        return
    if connection.dialect.name == "postgresql":
        _take_all_tables(connection)
    command.upgrade(_config(connection), "head")


def _take_all_tables(connection: Connection) -> None:
    """
    Before the first change, so that no other transaction stands between two of them: one that has
    what the second change needs, and wants what the first one took, would be a deadlock, and
    PostgreSQL ends whichever of the two it likes. Until all are taken it is we who give way, within
    the second (deadlock_timeout) after which it looks for deadlocks.
    """
    there = inspect(connection).get_table_names()
    ours = [f'"{each.name}"' for each in metadata.sorted_tables if each.name in there]
    if ours:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{PATIENCE}ms'")
        try:
            connection.exec_driver_sql(f"LOCK TABLE {', '.join(ours)} IN ACCESS EXCLUSIVE MODE")
        except exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) in _CANNOT_NOW:
                raise _GaveWayError from error
            raise
        connection.exec_driver_sql("SET LOCAL statement_timeout TO DEFAULT")


def differences(engine: Engine) -> list[str]:
    """What the tables in the database lack or have too much, in words; empty when all is well."""
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415
    from alembic.migration import MigrationContext  # noqa: PLC0415

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [str(difference) for difference in compare_metadata(context, metadata)]


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _unavailable(act: str, engine: Engine, error: exc.DBAPIError) -> StoreUnavailable:
    url = engine.url.render_as_string(hide_password=True)
    cause = " ".join(str(error.orig).split())
    return StoreUnavailable(
        f"cannot {act} the database ({cause}): check that SANDKEEPER_DATABASE_URL={url} is right, "
        "and that it can be reached and written"
    )
