"""The processes of the demo: two API servers, a worker with beat, and real sandboxes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from core import migrations
from core.engines import make_engine
from core.errors import SandkeeperError
from core.providers.base import SandboxInfo
from core.store import Store
from examples.demo.ground import Ground, Local

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """All durations of the demo, in seconds, scaled to the time that it may take."""

    idle_ttl: float
    sweep: float
    silent_turn: float

    @classmethod
    def within(cls, seconds: float) -> Rhythm:
        ttl = max(1.5, seconds / 8)
        return cls(idle_ttl=ttl, sweep=ttl / 4, silent_turn=3 * ttl)

    @property
    def bound(self) -> float:
        """What is promised: idle TTL, three sweeps, one teardown (here with a restart in it)."""
        return self.idle_ttl + 3 * self.sweep + 10.0

    def environ(self, folder: Path) -> dict[str, str]:
        settings = {
            "DATABASE_URL": f"sqlite:///{folder}/sandkeeper.db",
            "BROKER_URL": f"sandkeeper+filesystem:///{folder}/broker",
            "IDLE_TTL": f"{self.idle_ttl:g}",
            "SWEEP_INTERVAL": f"{self.sweep:g}",
            "CONFIRM_INTERVAL": f"{self.sweep:g}",
            "HEARTBEAT": f"{self.sweep / 2:g}",
            "CREATE_DEADLINE": "20",
            "CLAIM_TTL": "10",
            "RETRY_BASE": "0.5",
            "PUBLISH_LEASE": f"{self.sweep:g}",
        }
        return {f"SANDKEEPER_{name}": value for name, value in settings.items()}


@dataclass
class Server:
    """One API server: a process that can be asked, and killed."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def post(self, conversation: str, *, seconds: float = 0.0) -> dict[str, object]:
        """Send a message, whose turn takes so long, and wait for the answer."""
        url = f"http://127.0.0.1:{self.port}/conversations/{conversation}/messages"
        request = urllib.request.Request(f"{url}?seconds={seconds:g}", method="POST")  # noqa: S310
        with urllib.request.urlopen(request, timeout=seconds + 60) as answer:  # noqa: S310
            found: dict[str, object] = json.load(answer)
        return found


@dataclass
class Stage:
    """A folder of its own, and everything that runs on it."""

    rhythm: Rhythm
    settle: Callable[[Path], Ground] = Local
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sandkeeper-demo-")))
    servers: list[Server] = field(default_factory=list)
    system: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        ours = {k: v for k, v in os.environ.items() if not k.startswith("SANDKEEPER_")}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        try:
            self.ground = self.settle(self.folder)
        except SandkeeperError:
            self.folder.rmdir()
            raise
        self.provider = self.ground.provider
        settings = {f"SANDKEEPER_{name}": value for name, value in self.ground.settings.items()}
        timing = self.rhythm.environ(self.folder)
        self.environ = {**ours, **timing, **settings, "PYTHONPATH": path}
        engine = make_engine(self.environ["SANDKEEPER_DATABASE_URL"])
        migrations.upgrade(engine)
        self.store = Store(engine)
        self.failed = True  # until it was seen to hold: the logs are worth keeping

    def start(self) -> None:
        """Two API servers, and `up`, which keeps a worker and a beat running."""
        self.system = self._spawn("up", [sys.executable, "-m", "tasks.cli", "up", "--no-api"])
        ports = [_free_port(), _free_port()]
        for name, port in zip(("A", "B"), ports, strict=True):
            uvicorn = ["uvicorn", "examples.fastapi_app:app", "--port", str(port)]
            process = self._spawn(f"api-{name}", [sys.executable, "-m", *uvicorn])
            self.servers.append(Server(name=name, port=port, process=process))
        for server in self.servers:
            _wait_for_port(server)

    def _spawn(self, name: str, argv: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                argv,
                env=self.environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def background(self, name: str) -> int | None:
        """The process id of the worker or of beat, as the process table has it."""
        if self.system is None or self.system.poll() is not None:
            return None
        children = Path(f"/proc/{self.system.pid}/task/{self.system.pid}/children")
        for pid in children.read_text().split():
            if name in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return int(pid)
        return None

    # The truth: what the provider and the process table say, whatever the database has

    def sandboxes(self) -> dict[str, SandboxInfo]:
        """Every sandbox of ours that the provider has, by name."""
        ours = {"sandkeeper-installation": self.store.installation}
        found: dict[str, SandboxInfo] = {}
        cursor: str | None = None
        while True:
            page = self.provider.list(ours, cursor=cursor, deadline=time.monotonic() + 10)
            found |= {info.ref.name: info for info in page.items}
            if page.cursor is None:
                return found
            cursor = page.cursor

    def close(self) -> None:
        """Stop everything, and leave nothing behind whatever was proved."""
        processes = [server.process for server in self.servers]
        if self.system is not None:
            processes.append(self.system)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for info in self.sandboxes().values():
            self.provider.destroy(info.ref, deadline=time.monotonic() + 10)
        self.store.database.engine.dispose()
        if not self.failed:
            shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(server: Server) -> None:
    for _ in range(600):
        if not server.alive:
            raise SystemExit(f"API server {server.name} did not start")
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/docs", timeout=5).close()
            return
        time.sleep(0.05)
    raise SystemExit(f"API server {server.name} did not answer within 30 s")
