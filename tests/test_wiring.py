"""Wiring: every database that cannot work is refused at once, by name, and without its password."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select

from core import migrations
from core.engines import make_engine, opened
from core.errors import (
    SandkeeperError,
    SchemaOutdated,
    SettingsError,
    StoreUnavailable,
)
from core.lifecycle import Keeper
from core.model import SandboxState
from core.reaper import TeardownOutcome
from core.schema import sessions
from core.store import Store
from core.teardown import CALLS_AT_ONCE
from core.wiring import System
from tests.fakes import FakeCloud

ROOT = Path(__file__).resolve().parents[1]

FAKE = "tests.fakes:FakeCloud"
CLOSED_PORT = 1
SECRET = "secret"  # noqa: S105 - what must not be seen


def environ(url: str, **settings: str) -> dict[str, str]:
    """The environment of a process on this database, with a provider in memory."""
    named = {f"SANDKEEPER_{name}": value for name, value in settings.items()}
    return {"SANDKEEPER_DATABASE_URL": url, "SANDKEEPER_PROVIDER": FAKE, **named}


def refused(url: str, kind: type[SandkeeperError], **settings: str) -> str:
    """The words with which a system on this database is refused: one line, and no password."""
    with pytest.raises(kind) as error:
        System.from_env(environ(url, **settings))
    words = str(error.value)
    assert SECRET not in words
    assert "\n" not in words
    return words


@pytest.fixture
def start() -> Iterator[Callable[..., System]]:
    """What puts a system together; its connections are closed after the test."""
    with ExitStack() as stack:

        def started(url: str, **settings: str) -> System:
            system = System.from_env(environ(url, **settings))
            stack.callback(system.close)
            return system

        yield started


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "",
        "postgresql:/u:secret@h/d",
        "postgresql://u:secret@h:port/d",
        "mysql://u:secret@h/d",
        "postgresql+asyncpg://u:secret@h/d",
        "postgresql+psycopg2://u:secret@h/d",
        "sqlite+aiosqlite:///x.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:x?mode=memory&cache=shared&uri=true",
    ],
)
def test_a_url_that_can_never_work_is_a_settings_error(url: str) -> None:
    """F24: refused before anything is connected, by the setting's name."""
    assert "SANDKEEPER_DATABASE_URL" in refused(url, SettingsError)


# Databases that are not there, or cannot be used


def test_a_server_that_is_not_there_says_which_setting() -> None:
    """S4: unavailable, not empty; and not for the first request to find out."""
    url = f"postgresql://u:secret@127.0.0.1:{CLOSED_PORT}/d?connect_timeout=3"

    words = refused(url, StoreUnavailable)

    assert "127.0.0.1" in words
    assert "DATABASE_URL" in words


@pytest.mark.parametrize("wrong", ["user", "database"])
def test_a_login_that_is_refused_says_which_setting(postgresql_url: str, wrong: str) -> None:
    """S4: the server's own words, and never advice to migrate what was not even opened."""
    url = make_engine(postgresql_url).url
    url = url.set(username="nobody-here", password=SECRET) if wrong == "user" else url
    url = url.set(database="no-such-database") if wrong == "database" else url

    words = refused(url.render_as_string(hide_password=False), StoreUnavailable)

    assert "DATABASE_URL" in words
    engine = make_engine(url.render_as_string(hide_password=False))
    with pytest.raises(StoreUnavailable):
        Store(engine)
    engine.dispose()


def test_a_folder_that_is_not_there_says_which_file(tmp_path: Path) -> None:
    """SQLite makes files, not folders."""
    words = refused(f"sqlite:///{tmp_path}/missing/x.db", StoreUnavailable)

    assert "missing/x.db" in words
    assert "DATABASE_URL" in words


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    """Nothing of it is overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 500)

    words = refused(f"sqlite:///{path}", SandkeeperError)

    assert "not a database" in words
    assert path.read_text() == "dear diary, " * 500


def test_a_database_that_was_never_migrated_is_refused_at_start(tmp_path: Path) -> None:
    """With the command that helps."""
    assert "sandkeeper db upgrade" in refused(f"sqlite:///{tmp_path}/new.db", SchemaOutdated)


def read_only(url: str) -> str:
    """The same database for somebody who may only read it."""
    if url.startswith("sqlite:///"):
        return f"sqlite:///file:{url.removeprefix('sqlite:///')}?mode=ro&uri=true"
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}options=-c%20default_transaction_read_only%3Don"


def test_a_read_only_database_is_refused_in_words(database_url: str) -> None:
    """A replica, or a volume that was mounted wrongly."""
    words = refused(read_only(database_url), StoreUnavailable)

    assert "read-only" in words


def test_migrating_a_read_only_database_is_refused_in_words(
    database_url: str, tmp_path: Path
) -> None:
    """By our error, whatever class the driver's error is of."""
    if database_url.startswith("sqlite"):
        database_url = f"sqlite:///{tmp_path / 'empty.db'}"
        with closing(sqlite3.connect(tmp_path / "empty.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    else:
        with opened(database_url) as owner, owner.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")

    with (
        opened(read_only(database_url)) as engine,
        pytest.raises(StoreUnavailable, match=r"read-?only"),
    ):
        migrations.upgrade(engine)


def test_a_full_database_is_unavailable_and_nothing_is_half_written(
    sqlite_url: str, provider: FakeCloud
) -> None:
    """F1: no row, no sandbox: the intent could not be written, so the provider is never called."""
    engine = make_engine(sqlite_url)
    store = Store(engine)
    keeper = Keeper(store, provider)
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    @event.listens_for(engine, "begin")
    def no_more_room(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1000):
            keeper.open(f"conv-{number}", metadata={"x": "y" * 4000})

    with pytest.raises(StoreUnavailable, match=r"full.*free some room"):
        fill()

    with engine.connect() as connection:
        written = connection.execute(select(func.count()).select_from(sessions)).scalar_one()
    assert written == provider.count("create") == len(provider.alive())
    engine.dispose()


# Engines


# Systems


@pytest.fixture
def system(database_url: str, start: Callable[..., System]) -> System:
    """All that one process needs."""
    return start(database_url, SPEC='{"image": "python"}')


def test_a_system_is_put_together_from_the_environment(
    system: System,
) -> None:
    """From settings to a session that is opened, ended and gone."""
    rung: list[tuple[str, int]] = []
    keeper, reaper = system.keeper(rung.extend), system.reaper(rung.extend)

    keeper.open("conv")
    keeper.end("conv")
    outcome = reaper.teardown(*rung[0], worker="w")

    assert outcome.outcome is TeardownOutcome.GONE
    assert keeper.get("conv").sandbox.state is SandboxState.GONE
    assert isinstance(system.provider, FakeCloud)
    (box,) = system.provider.boxes.values()
    assert box.spec.image == "python"
    keeper.close()


def silent(_due: object) -> None:
    """A doorbell that nobody hears."""


class OldCloud(FakeCloud):
    """The provider that new sandboxes are not made at any more."""

    name = "old"


def test_several_providers_are_looked_after_and_the_first_is_used(
    database_url: str, start: Callable[..., System]
) -> None:
    """While an installation moves from one to the other, nothing is left behind at the first."""
    before = start(database_url, PROVIDER="tests.test_wiring:OldCloud")
    keeper = before.keeper()
    keeper.open("old")
    after = start(database_url, PROVIDER=f"{FAKE}, tests.test_wiring:OldCloud")

    new = after.keeper().open("new")

    assert list(after.providers) == ["fake", "old"]
    assert after.provider is after.providers["fake"]
    assert list(after.reconciler().providers) == list(after.reaper(silent).providers)
    assert (new.sandbox.provider, keeper.get("old").sandbox.provider) == ("fake", "old")
    keeper.close()


def test_all_reapers_of_a_process_share_its_room(
    sqlite_url: str, start: Callable[..., System], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14: each task makes a reaper of its own; the threads that may hang are the process's."""
    system = start(sqlite_url, PROVIDER=f"{FAKE}, tests.test_wiring:OldCloud")
    keeper, cloud = system.keeper(), system.provider
    assert isinstance(cloud, FakeCloud)
    names = [f"conv-{number}" for number in range(CALLS_AT_ONCE + 1)]
    for name in names:
        keeper.open(name)
        keeper.end(name)

    with ThreadPoolExecutor(len(names)) as threads, ExitStack() as stack:
        hangs = [stack.enter_context(cloud.hang("destroy")) for _ in range(CALLS_AT_ONCE)]
        stuck = [
            threads.submit(system.reaper(silent).teardown, name, 1, worker="w")
            for name in names[1:]
        ]
        assert all(hang.entered.wait(30) for hang in hangs)
        one_more = system.reaper(silent).teardown(names[0], 1, worker="w")
        for hang in hangs:
            hang.release()
        assert all(each.result(30) for each in stuck)

    assert one_more.outcome is TeardownOutcome.RETRY


def test_two_processes_of_one_database_are_one_installation(
    database_url: str, start: Callable[..., System]
) -> None:
    """S2: whoever asks first makes the id; all labels carry it."""
    first, second = start(database_url), start(database_url)

    assert first.store.installation == second.store.installation
    assert len(first.store.installation) == 8


def test_a_database_of_another_installation_is_refused(system: System, database_url: str) -> None:
    """F7: a wrong DATABASE_URL is found by the id, not by the sandboxes that it would kill."""
    words = refused(database_url, SettingsError, INSTALLATION="0ther000")

    assert system.store.installation in words
    assert "DATABASE_URL" in words


def test_an_installation_can_be_named_before_it_exists(
    database_url: str, start: Callable[..., System]
) -> None:
    """And is kept."""
    start(database_url, INSTALLATION="acme0001")

    assert start(database_url).store.installation == "acme0001"


def test_a_setting_that_is_nonsense_stops_everything(tmp_path: Path) -> None:
    """F24: nothing is made before all settings are read; not even the file of the database."""
    words = refused(f"sqlite:///{tmp_path}/x.db", SettingsError, IDLE_TTL="0")

    assert "SANDKEEPER_IDLE_TTL" in words
    assert list(tmp_path.iterdir()) == []
