"""
Servers of our own that can be killed and started again: PostgreSQL, whose clock can be stepped, and
Valkey. Their data is in a folder of the run; they die with the process that started them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import redis

from tests import services

START_LIMIT = 30.0  # seconds
LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)

# `read` returns when our end of the pipe is closed, whatever closed it.
GUARDIAN = '"$@" >&2 & echo $!; read -r _; kill -s KILL $! 2>/dev/null; wait $!'

# Unlike in the tests, an acknowledged commit outlives kill -9: that is what is judged here. fsync
# stays off, because the host is not what crashes.
POSTGRESQL = """
listen_addresses = ''
max_connections = 200
shared_buffers = 32MB
fsync = off
full_page_writes = off
synchronous_commit = on
restart_after_crash = on
"""


class Server:
    """One server process, under a guardian. `start` again after it was killed."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        *,
        answers: Callable[[], bool],
        user: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.pid = 0
        self._command = command
        self._folder = folder
        self._answers = answers
        self._user = user
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        self._environ.update(environ or {})
        self._guardian: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers. A predecessor that is still dying is waited for."""
        limit = time.monotonic() + START_LIMIT
        self._spawn()
        while not self._answers():
            if time.monotonic() > limit:
                log = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} does not start: {log}")
            if self._is_over():
                time.sleep(0.1)
                self._spawn()
            time.sleep(0.05)

    def start_if_over(self) -> None:
        """Start it unless it runs."""
        if self._guardian is None or self._is_over() or not self._answers():
            self.start()

    def signal(self, number: signal.Signals) -> None:
        """Signal the server itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.close()

    def wait(self, seconds: float) -> None:
        """Until it has ended, or this time is over."""
        end = time.monotonic() + seconds
        while not self._is_over() and time.monotonic() < end:
            time.sleep(0.02)

    def close(self) -> None:
        """End it with its guardian."""
        if self._guardian is not None:
            with self._guardian as guardian:
                assert guardian.stdin is not None
                guardian.stdin.close()
            self._guardian = None

    def _spawn(self) -> None:
        self.close()
        with (self._folder / "log").open("ab") as log:
            self._guardian = subprocess.Popen(
                ["sh", "-c", GUARDIAN, "guardian", *self._command],
                cwd=self._folder,
                env=self._environ,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._guardian.stdout is not None
        self.pid = int(self._guardian.stdout.readline())

    def _is_over(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state == b"Z"  # dead, and its guardian has not looked


class Postgresql:
    """Listens on a Unix socket only. `clock` steps its CLOCK_REALTIME, where libfaketime is."""

    def __init__(self, stack: ExitStack) -> None:
        user = "nobody" if os.geteuid() == 0 else None
        self.folder = services.temporary_directory(stack, owner=user)
        wheel = services._wheel(services.POSTGRESQL_WHEEL)
        binaries = services._reachable(wheel, user, self.folder) / "bin"
        self._clock = self.folder / "clock"
        self.has_clock = False
        self._initialise(binaries, user)
        self.server = Server(
            [str(binaries / "postgres"), "-D", "data", "-k", str(self.folder)],
            self.folder,
            answers=self._answers,
            user=user,
            environ=self._faked(),
        )
        stack.callback(self.server.close)
        self.server.start()

    @property
    def socket(self) -> str:
        return str(self.folder / ".s.PGSQL.5432")

    @property
    def url(self) -> str:
        """Past every proxy."""
        return f"postgresql://postgres@/postgres?port=5432&host={self.folder}"

    def step(self, offset: float) -> None:
        """From now on its clock is so many seconds off."""
        draft = self._clock.with_name("clock.draft")
        draft.write_text(f"{offset:+.0f}\n")
        draft.chmod(0o644)
        draft.replace(self._clock)

    def restart(self) -> None:
        """Stop at once, as an operator in a hurry does, and start again."""
        self.server.signal(signal.SIGQUIT)
        self.server.wait(5.0)
        self.server.start()

    def _initialise(self, binaries: Path, user: str | None) -> None:
        options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [str(binaries / "initdb"), "-D", "data", *options],
            cwd=self.folder,
            user=user,
            check=True,
            capture_output=True,
        )
        with (self.folder / "data" / "postgresql.conf").open("a") as config:
            config.write(POSTGRESQL)

    def _faked(self) -> Mapping[str, str]:
        library = next((path for path in LIBRARIES if Path(path).exists()), None)
        if library is None:
            return {}
        self.step(0)
        self.has_clock = True
        return {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def _answers(self) -> bool:
        try:
            with closing(psycopg.connect(self.url, connect_timeout=2)) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False


class Valkey:
    """Keeps nothing on disk: a restart is a wipe."""

    def __init__(self, stack: ExitStack) -> None:
        self.folder = services.temporary_directory(stack)
        (binary,) = services._wheel(services.VALKEY_WHEEL).glob("_binaries/*/valkey-server")
        self.port, self.password = services._free_port(), secrets.token_hex(8)
        config = self.folder / "valkey.conf"
        config.write_text(
            services.VALKEY.format(port=self.port, password=self.password, directory=self.folder)
        )
        self.server = Server([str(binary), str(config)], self.folder, answers=self._answers)
        stack.callback(self.server.close)
        self.server.start()

    def wipe(self) -> None:
        """Forget everything."""
        with closing(self._client()) as client:
            client.flushall()

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password, socket_timeout=2)

    def _answers(self) -> bool:
        with closing(self._client()) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
