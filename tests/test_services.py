"""The servers of the tests: that they come, are apart from each other, and never outlive us."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import redis
from kombu import Connection, Queue

from tests import services
from tests.services import Databases, Service, ServiceMissing

ROOT = Path(__file__).parents[1]
NOBODY_THERE = "127.0.0.1:1"

HOLDER = """
import sys
from tests import services

with services.start_postgresql() as database, services.start_valkey() as broker:
    print(database.pid, broker.pid, database.url, broker.url, flush=True)
    sys.stdin.read()
"""


OWNER = """
import sys
from tests.services import Databases

databases = Databases(sys.argv[1], lambda url: None)
print(databases._url(databases._template), flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], bool], *, limit: float = 20.0) -> None:
    """Wait for a state of other processes; they tell nobody when they are gone."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether no process has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def make_notes(url: str) -> None:
    """A migration, as small as can be."""
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")


def is_dropped(url: str) -> bool:
    """Whether the server has no such database; one that lets nobody in is still there."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError as error:
        return "does not exist" in str(error)
    return False


@pytest.fixture(scope="module")
def databases(postgresql_server: Service) -> Iterator[Databases]:
    """Databases with one table, whatever our own schema is."""
    databases = Databases(postgresql_server.url, make_notes)
    yield databases
    databases.close()


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that has started servers of its own and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def started(holder: subprocess.Popen[str]) -> tuple[list[int], Path]:
    """The process ids of the holder's servers, and the directory of the first."""
    assert holder.stdout is not None
    database_pid, broker_pid, database_url, _ = holder.stdout.readline().split()
    directory = Path(database_url.partition("host=")[2].replace("%2F", "/"))
    return [int(database_pid), int(broker_pid)], directory


def test_servers_die_with_a_process_that_was_killed(holder: subprocess.Popen[str]) -> None:
    """A kill -9 of whoever started the servers ends them, and leaves no files behind."""
    pids, directory = started(holder)
    assert directory.exists()
    assert not any(is_gone(pid) for pid in pids)

    holder.send_signal(signal.SIGKILL)
    holder.wait()

    until(lambda: all(is_gone(pid) for pid in pids))
    until(lambda: not directory.exists())


def test_servers_end_with_the_block_that_started_them(holder: subprocess.Popen[str]) -> None:
    """Leaving the block waits until the servers are gone."""
    pids, directory = started(holder)

    holder.communicate()

    assert holder.returncode == 0
    assert all(is_gone(pid) for pid in pids)
    assert not directory.exists()


def test_a_forked_child_does_not_keep_the_servers() -> None:
    """The pipe to the guardian is closed in a child made by fork alone."""
    read, write = os.pipe()
    with services.start_valkey() as broker:
        child = os.fork()
        if child == 0:
            os.read(read, 1)  # outlives the block below
            os._exit(0)
    ended = broker.pid is not None and is_gone(broker.pid)
    os.write(write, b".")
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)

    assert ended


def test_our_postgresql_listens_on_no_address() -> None:
    """Only whoever may enter its directory can log in: it trusts everybody who reaches it."""
    with services.start_postgresql() as service, psycopg.connect(service.url) as connection:
        addresses = connection.execute("SHOW listen_addresses").fetchone()

    assert addresses == ("",)


def test_our_valkey_wants_its_password() -> None:
    """Another user of this machine cannot use it to write files as us."""
    with services.start_valkey() as service:
        without = f"redis://{service.url.rpartition('@')[2]}"

        with closing(redis.Redis.from_url(without)) as client, pytest.raises(redis.RedisError):
            client.ping()


@pytest.mark.parametrize("variable", ["SANDKEEPER_TEST_DATABASE_URL", "DATABASE_URL"])
def test_a_database_that_was_named_is_used(variable: str, postgresql_server: Service) -> None:
    """A server given by the environment is taken as it is, and left alone."""
    with services.postgresql({variable: postgresql_server.url}) as service:
        assert service == Service(url=postgresql_server.url, found=variable)


@pytest.mark.parametrize("variable", ["SANDKEEPER_TEST_DATABASE_URL", "DATABASE_URL"])
def test_a_database_that_was_named_and_is_not_there_is_said(variable: str) -> None:
    """No other server is used instead of one that was asked for."""
    url = f"postgresql://postgres@{NOBODY_THERE}/postgres"

    with (
        pytest.raises(ServiceMissing, match=variable),
        services.postgresql({variable: url, "CI": "true"}),
    ):
        pass


def test_a_sqlite_database_url_does_not_name_a_postgresql() -> None:
    """DATABASE_URL may be set for another purpose: then a server is started."""
    with services.postgresql({"DATABASE_URL": "sqlite:///somewhere.db"}) as service:
        assert service.pid is not None


def test_a_named_redis_is_used_by_an_empty_number(redis_url: str) -> None:
    """What somebody keeps in the database that was named is not touched."""
    used = redis_url.rpartition("/")[2]
    with closing(redis.Redis.from_url(redis_url)) as owner:
        owner.set("somebodys", "own")

        with services.redis_server({"BROKER_URL": redis_url}) as service:
            with closing(redis.Redis.from_url(service.url)) as client:
                empty = client.dbsize() == 0
            assert empty
            assert service.url.rpartition("/")[2] not in {"0", used}
        assert owner.get("somebodys") == b"own"
        owner.delete("somebodys")


def test_a_named_redis_that_is_not_there_is_said() -> None:
    """No other server is used instead of one that was asked for."""
    url = f"redis://{NOBODY_THERE}/0"

    with (
        pytest.raises(ServiceMissing, match=NOBODY_THERE),
        services.redis_server({"BROKER_URL": url}),
    ):
        pass


def test_a_named_rabbitmq_that_is_not_there_is_said() -> None:
    """No other server is used instead of one that was asked for."""
    with pytest.raises(ServiceMissing, match="BROKER_URL"):
        services.rabbitmq({"BROKER_URL": f"amqp://guest:guest@{NOBODY_THERE}//"})


def test_queues_are_deleted_whatever_is_in_them(rabbitmq_url: str, queue_prefix: str) -> None:
    """A queue and its exchange are gone after, and a name that never was is no error."""
    with Connection(rabbitmq_url) as connection:
        connection.SimpleQueue(queue_prefix).put("left over")

        services.delete_queues(rabbitmq_url, [queue_prefix, f"{queue_prefix}-never-was"])

        with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
            Queue(queue_prefix, channel=connection.channel()).queue_declare(passive=True)


def test_postgresql_databases_are_apart(databases: Databases) -> None:
    """What one test writes another does not see, nor the one after it."""
    with databases.fresh() as first, databases.fresh() as second:
        with psycopg.connect(first) as connection:
            connection.execute("INSERT INTO notes VALUES ('mine')")

        with psycopg.connect(second) as connection:
            seen = connection.execute("SELECT count(*) FROM notes").fetchone()

    assert seen == (0,)


def test_a_database_is_dropped_under_a_connection_that_was_left_open(databases: Databases) -> None:
    """A test that leaks a connection does not leave its database behind."""
    with databases.fresh() as url:
        leaked = psycopg.connect(url)

    until(lambda: is_dropped(url))
    with closing(leaked), pytest.raises(psycopg.OperationalError):
        leaked.execute("SELECT 1")


def test_databases_are_gone_when_their_tests_are(postgresql_server: Service) -> None:
    """Whoever closes them may stop the server: nothing is still being dropped."""
    databases = Databases(postgresql_server.url, make_notes)
    with databases.fresh() as first, databases.fresh() as second:
        pass

    databases.close()

    assert all(map(is_dropped, (first, second, databases._url(databases._template))))


def test_databases_are_dropped_for_a_process_that_was_killed(postgresql_server: Service) -> None:
    """A kill -9 of the tests leaves no template on a server that is not theirs."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, postgresql_server.url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        there = not is_dropped(url)

        owner.kill()

    assert there
    until(lambda: is_dropped(url))


def test_databases_can_be_made_at_the_same_time(databases: Databases) -> None:
    """Several tests may copy the template at once."""
    urls: set[str] = set()

    def copy() -> None:
        with databases.fresh() as url, psycopg.connect(url) as connection:
            connection.execute("SELECT count(*) FROM notes")
            urls.add(url)

    threads = [threading.Thread(target=copy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(urls) == len(threads)


def test_a_failed_migration_leaves_no_template(postgresql_server: Service) -> None:
    """The server of somebody else is left as it was found."""

    def templates() -> set[object]:
        with psycopg.connect(postgresql_server.url) as connection:
            names = "SELECT datname FROM pg_database WHERE datname LIKE '%template'"
            return {name for (name,) in connection.execute(names)}

    def fails(url: str) -> None:
        raise RuntimeError("no such revision")

    before = templates()

    with pytest.raises(RuntimeError, match="no such revision"):
        Databases(postgresql_server.url, fails)

    assert templates() == before


def test_sqlite_databases_are_apart(sqlite_template: Path, sqlite_url: str) -> None:
    """A test writes to a copy; the migrated file that it is made from stays as it was."""
    before = sqlite_template.read_bytes()
    copy = Path(sqlite_url.removeprefix("sqlite:///"))

    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("CREATE TABLE mine (text TEXT)")
        connection.commit()

    assert sqlite_template.read_bytes() == before
    assert not list(sqlite_template.parent.glob("*-wal"))
