"""Migrations: they make exactly the tables of the models, once, and say what is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, column, inspect, table, update

from core import migrations
from core.engines import make_engine
from core.errors import SchemaOutdated, StoreUnavailable
from core.host import Host
from core.schema import metadata
from core.store import Store

VERSIONS = Path(migrations.__file__).parent / "versions"
POSTGRESQL_CATALOG = {
    "columns": "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, "
    "column_default FROM information_schema.columns WHERE table_schema = 'public'",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
    "FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "storage": "SELECT relname, reloptions::text FROM pg_class "
    "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
    "triggers": "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) "
    "FROM pg_trigger WHERE NOT tgisinternal",
    "functions": "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
}
SQLITE_CATALOG = {
    "indexes": "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'index'",
    "triggers": "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger'",
}


@pytest.fixture
def empty(database_url: str, tmp_path: Path) -> Iterator[Engine]:
    """An engine on a database that was never migrated."""
    if database_url.startswith("sqlite"):
        database_url = f"sqlite:///{tmp_path / 'empty.db'}"
    engine = make_engine(database_url)
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
    yield engine
    engine.dispose()


def catalog(engine: Engine) -> dict[str, set[Any]]:
    """All that a database says of our tables, in its own words."""
    queries = POSTGRESQL_CATALOG if engine.dialect.name == "postgresql" else SQLITE_CATALOG
    with engine.connect() as connection:
        found: dict[str, set[Any]] = {
            part: {tuple(row) for row in connection.exec_driver_sql(query)}
            for part, query in queries.items()
        }
    look = inspect(engine)
    if engine.dialect.name == "sqlite":
        found["columns"] = {
            (table, column["name"], str(column["type"]), column["nullable"], str(column["default"]))
            for table in look.get_table_names()
            for column in look.get_columns(table)
        }
        found["constraints"] = {
            (table, repr(constraint))
            for table in look.get_table_names()
            for constraint in (
                *look.get_check_constraints(table),
                *look.get_unique_constraints(table),
                *look.get_foreign_keys(table),
                look.get_pk_constraint(table),
            )
        }
    return {
        part: {row for row in rows if row[0] != "alembic_version"} for part, rows in found.items()
    }


def test_a_migrated_database_is_what_the_models_say(engine: Engine, empty: Engine) -> None:
    """Tables, columns, types, nullability, CHECKs, indexes with their WHERE, storage, trigger."""
    if engine.dialect.name == "postgresql":  # one database: `empty` has emptied it
        migrations.upgrade(engine)
    migrated = catalog(engine)
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")

    metadata.create_all(empty)

    modelled = catalog(empty)
    assert migrated.keys() == modelled.keys()
    for part, rows in migrated.items():
        assert rows, part
        assert rows == modelled[part], part


def test_alembic_finds_no_difference(engine: Engine) -> None:
    """What `sandkeeper db check` says of a database that is as it should be."""
    assert migrations.differences(engine) == []


def test_a_difference_is_said_in_words(engine: Engine) -> None:
    """What somebody added by hand, with its name."""
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE sessions ADD COLUMN by_hand TEXT")

    (difference,) = migrations.differences(engine)

    assert "by_hand" in difference


def test_an_empty_database_is_brought_to_the_newest_revision(empty: Engine) -> None:
    """And before that it has none."""
    before = migrations.current(empty)

    migrations.upgrade(empty)

    assert before is None
    assert migrations.current(empty) == migrations.head()
    migrations.require(empty)
    assert Store(empty).installation


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    """Every start may do it; the rows stay."""
    installation = Store(engine).installation
    before = catalog(engine)

    migrations.upgrade(engine)

    assert catalog(engine) == before
    assert Store(engine).installation == installation


def test_two_processes_that_migrate_at_once_take_turns(empty: Engine) -> None:
    """Both succeed: two API servers that start together need no order."""
    url = empty.url.render_as_string(hide_password=False)
    program = (
        "import sys\n"
        "from core.migrations import upgrade\n"
        "from core.engines import make_engine\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "upgrade(make_engine(sys.argv[1]))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], said
    assert migrations.current(empty) == migrations.head()


def test_a_database_that_was_never_migrated_is_refused(empty: Engine) -> None:
    """At start, in words that say what to do; not by the first request."""
    with pytest.raises(SchemaOutdated, match=r"never migrated.*sandkeeper db upgrade"):
        migrations.require(empty)
    with pytest.raises(SchemaOutdated, match="sandkeeper db upgrade"):
        Store(empty)


def test_a_database_at_another_revision_is_refused(engine: Engine) -> None:
    """With both revisions, so that a person sees which side is behind."""
    _stamp(engine, "0000")

    with pytest.raises(SchemaOutdated, match=rf"revision 0000.*needs {migrations.head()}"):
        migrations.require(engine)


@pytest.mark.parametrize("revision", ["0999", "0011"])
def test_an_old_process_starts_on_a_later_schema(engine: Engine, revision: str) -> None:
    """One that only adds: while an installation is upgraded old processes may start again."""
    _stamp(engine, revision)

    migrations.require(engine)
    migrations.upgrade(engine)

    assert migrations.current(engine) == revision


def test_a_schema_that_took_something_away_is_refused(engine: Engine) -> None:
    """It begins the next thousand, and names the side that is behind."""
    _stamp(engine, "1001")

    with pytest.raises(SchemaOutdated, match=r"revision 1001.*upgrade Sandkeeper"):
        migrations.require(engine)


def test_migrations_count_on() -> None:
    """The order of their numbers is theirs, and within a thousand nothing is taken away."""
    revisions = [path.name[:4] for path in sorted(VERSIONS.glob("[0-9]*.py"))]

    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_migration_gives_way(empty: Engine) -> None:
    """
    A transaction that has one table and comes to want another one, and one that is open for long:
    neither is ended, and the migration gets the tables after them.
    """
    with empty.begin() as connection:
        command.upgrade(migrations._config(connection), "0007")
    gave_way: list[float] = []
    with empty.connect() as caller, ThreadPoolExecutor() as pool:

        def pause(seconds: float) -> None:
            gave_way.append(seconds)
            caller.commit()

        caller.exec_driver_sql("UPDATE sandboxes SET attempts = 0")
        migrated = pool.submit(migrations.upgrade, empty, host=Host(sleep=pause))
        while not _is_waited_for(empty, "sandboxes"):
            assert not migrated.done()
        caller.exec_driver_sql("UPDATE sessions SET turn_count = 0")
        migrated.result(timeout=30)

    assert gave_way == [migrations.PAUSE]
    assert migrations.current(empty) == migrations.head()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_migration_that_never_gets_the_tables_says_so(
    empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it may be: a backup reads for hours."""
    monkeypatch.setattr(migrations, "ATTEMPTS", 2)
    with empty.begin() as connection:
        command.upgrade(migrations._config(connection), "0007")
    with empty.connect() as backup:
        backup.exec_driver_sql("SELECT count(*) FROM sandboxes")

        with pytest.raises(StoreUnavailable, match="long transactions"):
            migrations.upgrade(empty, host=Host(sleep=lambda _: None))

    assert migrations.current(empty) == "0007"


def _is_waited_for(engine: Engine, table: str) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{}'::regclass"
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql(query.format(table)).scalar())


def _stamp(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            update(table("alembic_version", column("version_num"))).values(version_num=revision)
        )


def test_a_migration_that_fails_leaves_nothing(empty: Engine) -> None:
    """One transaction: the next attempt finds an empty database."""
    with empty.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE turns (id INTEGER)")

    with pytest.raises(Exception, match="turns"):
        migrations.upgrade(empty)

    assert set(inspect(empty).get_table_names()) == {"turns"}
