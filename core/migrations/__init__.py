"""
Bringing a database to the tables of this version, and saying how far it has come. Alembic is
imported by what migrates only: every API server and worker asks how far, and waits for the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, column, exc, inspect, select, table

from ..errors import SchemaOutdated, StoreUnavailable
from ..schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

_HERE = Path(__file__).parent
_LOCK = 7263550  # any number that no other program locks


def head() -> str:
    """The revision that this version of the code needs: the number of its newest migration."""
    return max(path.name.partition("_")[0] for path in _HERE.glob("versions/[0-9]*.py"))


def current(engine: Engine) -> str | None:
    """The revision that the database is at, None when it was never migrated."""
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            version = table("alembic_version", column("version_num"))
            return connection.execute(select(version.c.version_num)).scalar()
    except exc.DBAPIError as error:
        raise _unavailable("open", engine, error) from error


def require(engine: Engine) -> None:
    """Raise SchemaOutdated unless the database is at the revision that this code needs."""
    found, needed = current(engine), head()
    if found == needed:
        return
    state = "was never migrated" if found is None else f"is at revision {found}"
    what = (
        "upgrade Sandkeeper"
        if (found or "") > needed
        else "run `sandkeeper db upgrade` (`./run db upgrade` in a checkout)"
    )
    raise SchemaOutdated(f"the database {state}, this version needs {needed}: {what}")


def upgrade(engine: Engine) -> None:
    """
    Migrate to the newest revision, in one transaction; nothing happens when it is there already.
    Two processes that start at once take turns.
    """
    from alembic import command  # noqa: PLC0415

    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            command.upgrade(_config(connection), "head")
    except exc.DBAPIError as error:
        raise _unavailable("migrate", engine, error) from error


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
