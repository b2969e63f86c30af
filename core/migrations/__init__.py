"""Bringing a database to the tables of this version, and saying how far it has come."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, exc

from ..errors import SchemaOutdated, StoreUnavailable
from ..schema import metadata

_HERE = Path(__file__).parent


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The revision that this version of the code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise SchemaOutdated("the package has no migrations: it was not installed whole")
    return revision


def upgrade(engine: Engine) -> None:
    """
    Migrate to the newest revision, in one transaction; nothing happens when it is there already.
    Two processes that start at once take turns.
    """
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7263550)")
            command.upgrade(_config(connection), "head")
    except exc.OperationalError as error:
        raise StoreUnavailable(f"cannot migrate the database: {error.orig}") from error


def current(engine: Engine) -> str | None:
    """The revision that the database is at, None when it was never migrated."""
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except exc.OperationalError as error:
        raise StoreUnavailable(f"cannot open the database: {error.orig}") from error


def require(engine: Engine) -> None:
    """Raise SchemaOutdated unless the database is at the revision that this code needs."""
    found, needed = current(engine), head()
    if found != needed:
        state = "was never migrated" if found is None else f"is at revision {found}"
        raise SchemaOutdated(
            f"the database {state}, this version needs {needed}: run `sandkeeper db upgrade`"
        )


def differences(engine: Engine) -> list[str]:
    """What the tables in the database lack or have too much, in words; empty when all is well."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [str(difference) for difference in compare_metadata(context, metadata)]
