"""What every test may ask for. A server that is missing is a skip on a laptop, a failure in CI."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest
from sqlalchemy import Engine

from core.engines import make_engine
from core.host import Host
from core.lifecycle import Keeper
from core.migrations import upgrade
from core.reaper import Reaper
from core.store import Store
from tests import engines, services
from tests.engines import DockerEngine, docker_engine
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock
from tests.services import Databases, Service, ServiceMissing

ROOT = Path(__file__).resolve().parents[1]


def migrate(url: str) -> None:
    """Bring an empty database to the schema of this version."""
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()


def unavailable(error: ServiceMissing) -> None:
    """Say why a test cannot run: loudly where everything has to be proved."""
    if services.in_ci():
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


# Databases


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Service]:
    """One PostgreSQL for all tests."""
    try:
        with services.postgresql() as service:
            yield service
    except ServiceMissing as error:
        unavailable(error)


@pytest.fixture(scope="session")
def postgresql_databases(postgresql_server: Service) -> Iterator[Databases]:
    """Where fresh PostgreSQL databases come from."""
    databases = Databases(postgresql_server.url, migrate)
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated SQLite file, of which every test gets a copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:  # a copy of one file has to be enough
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def postgresql_url(postgresql_databases: Databases) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    with postgresql_databases.fresh() as url:
        yield url


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite database."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'sandkeeper.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database: the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


# Brokers


@pytest.fixture(scope="session")
def redis_service() -> Iterator[Service]:
    """One Redis or Valkey for all tests."""
    try:
        with services.redis_server() as service:
            yield service
    except ServiceMissing as error:
        unavailable(error)


@pytest.fixture
def redis_url(redis_service: Service) -> Iterator[str]:
    """An empty Redis database."""
    yield redis_service.url
    services.flush(redis_service.url)


@pytest.fixture(scope="session")
def rabbitmq_service() -> Service:
    """The RabbitMQ that is there."""
    try:
        return services.rabbitmq()
    except ServiceMissing as error:
        unavailable(error)
        raise


@pytest.fixture
def queue_prefix() -> str:
    """A prefix for queues that no other test has: what SANDKEEPER_QUEUE_PREFIX is for."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def rabbitmq_url(rabbitmq_service: Service, queue_prefix: str) -> Iterator[str]:
    """A RabbitMQ. The queues that were made under `queue_prefix` are deleted after the test."""
    yield rabbitmq_service.url
    services.delete_queues(rabbitmq_service.url, queues_of(queue_prefix))


def queues_of(prefix: str) -> list[str]:
    """Every queue or exchange that our Celery app makes: its own, dead letters, remote control."""
    names = (f"{prefix}.{name}" for name in ("sweep", "teardown", "dead", "pidbox"))
    return [prefix, *names, f"reply.{prefix}.pidbox"]


# Engines


@pytest.fixture(scope="session")
def own_dockerd() -> Iterator[DockerEngine]:
    """A Docker engine of this process's own. Installing one takes root: it may be missing in CI."""
    if missing := engines.missing():
        pytest.skip(f"no Docker engine can be started: {missing} is missing")
    try:
        with docker_engine() as engine:
            yield engine
    except ServiceMissing as error:
        unavailable(error)


@pytest.fixture
def dockerd(own_dockerd: DockerEngine) -> Iterator[DockerEngine]:
    """The engine. Whatever containers a test has made are removed after it."""
    yield own_dockerd
    own_dockerd.clear()


@pytest.fixture
def docker_client(dockerd: DockerEngine) -> Iterator[docker.APIClient]:
    """The engine's own truth."""
    client = dockerd.client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def vendors() -> Path:
    """The Python that has the vendors' own SDKs and servers."""
    folder = ROOT / ".venv-vendors"
    if not (folder / "stamp").exists():
        unavailable(ServiceMissing("./run vendors installs what this needs"))
    return folder / "bin" / "python"


# What is tested, put together with stand-ins for what is not ours


@pytest.fixture
def clock() -> FrozenClock:
    """A clock that stands still until it is told to advance."""
    return FrozenClock()


@pytest.fixture
def world(clock: FrozenClock) -> FrozenClock:
    """Time as it passes; `clock` is what the database takes it for. They may differ."""
    return FrozenClock(clock.now)


@pytest.fixture
def provider(clock: FrozenClock) -> FakeCloud:
    """A cloud in memory, on the test's clock."""
    return FakeCloud(clock=clock)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a fresh, migrated database."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine, clock: FrozenClock) -> Store:
    """A store on the test's clock, with the policy of the factories."""
    return Store(engine, policy=policy(), clock=clock)


@pytest.fixture
def rung() -> list[tuple[str, int]]:
    """The teardowns that were published, in order: (session_id, generation)."""
    return []


@pytest.fixture
def keeper(
    store: Store, provider: FakeCloud, rung: list[tuple[str, int]], clock: FrozenClock
) -> Iterator[Keeper]:
    """What API servers call. It sleeps by advancing the clock."""
    with Keeper(store, provider, doorbell=rung.extend, host=Host(sleep=clock.advance)) as keeper:
        yield keeper


@pytest.fixture
def reaper(store: Store, provider: FakeCloud, rung: list[tuple[str, int]]) -> Reaper:
    """What tasks call. Its pauses have no jitter."""
    return Reaper(
        store, {provider.name: provider}, doorbell=rung.extend, host=Host(spread=lambda: 0.0)
    )
