"""A Docker engine of the tests' own: on a socket in a folder, with nothing of the host's engine."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import gettempdir
from typing import IO

import docker

from tests.services import ServiceMissing, temporary_directory

IMAGE = "sandkeeper-test:latest"
COMMAND = 'CMD ["sh", "-c", "echo of the image; sleep 1000000"]'
TOOLS = ("sh", "sleep", "cat", "date", "mv", "rm", "echo", "touch", "id", "env", "stat", "tail")
START_LIMIT = 60.0  # seconds
# It starts its own containerd, which has to go as well before the next one can start.
OPTIONS = ("--storage-driver=vfs", "--iptables=false", "--ip6tables=false", "--bridge=none")


@dataclass
class DockerEngine:
    """One engine; `kill` and `start` it as a test needs."""

    folder: Path
    _process: Popen[bytes] | None = field(default=None, init=False)

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    @property
    def environ(self) -> dict[str, str]:
        """What a provider is given to find it."""
        return {"DOCKER_HOST": self.host}

    def client(self) -> docker.APIClient:
        """To look at the engine's own truth."""
        return docker.APIClient(base_url=self.host, version="auto", timeout=60)

    def start(self) -> None:
        """Returns when it answers."""
        with _one_at_a_time(), (self.folder / "log").open("ab") as log:
            self._start(log)

    def _start(self, log: IO[bytes]) -> None:
        self._process = Popen(
            [
                "dockerd",
                f"--host={self.host}",
                f"--data-root={self.folder}/data",
                f"--exec-root={self.folder}/exec",
                f"--pidfile={self.folder}/pid",
                *OPTIONS,
            ],
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        limit = time.monotonic() + START_LIMIT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                words = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise ServiceMissing(f"dockerd does not answer:\n{words}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        # By hand: docker-py leaves the socket of a client that could not connect open.
        with socket.socket(socket.AF_UNIX) as caller, suppress(OSError):
            caller.settimeout(5)
            caller.connect(f"{self.folder}/docker.sock")
            caller.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in caller.recv(100)
        return False

    def load(self, image: str, *, files: Mapping[str, bytes] | None = None) -> None:
        """Give it an image of busybox, with these programs besides."""
        name, _, tag = image.partition(":")
        client = self.client()
        client.import_image_from_data(
            _busybox(shutil.which("busybox") or "", files or {}), name, tag, changes=[COMMAND]
        )
        client.close()

    def clear(self) -> None:
        """Remove every container."""
        client = self.client()
        for found in client.containers(all=True, quiet=True):
            client.remove_container(found["Id"], force=True, v=True)
        client.close()

    def kill(self) -> None:
        """kill -9 of the engine and its containerd; containers go on without them."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """In good order."""
        self._end(signal.SIGTERM)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None:
            return
        containerd = self._pid_of("exec/containerd/containerd.pid")
        self._process.send_signal(with_signal)
        self._process.wait(timeout=60)
        self._process = None
        if containerd is not None:
            with suppress(ProcessLookupError):
                os.kill(containerd, with_signal)
            while _is_alive(containerd):
                time.sleep(0.02)
        for left in ("pid", "exec/containerd/containerd.pid"):
            (self.folder / left).unlink(missing_ok=True)

    def _pid_of(self, name: str) -> int | None:
        with suppress(OSError, ValueError):
            return int((self.folder / name).read_text())
        return None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Until 23.0 every engine of a machine makes, or finds, its id in /etc/docker/key.json."""
    with (Path(gettempdir()) / "sandkeeper-test-dockerd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def missing() -> str | None:
    """What this machine lacks to run one."""
    needed = ("dockerd", "containerd", "runc", "busybox")
    lacks = [name for name in needed if shutil.which(name) is None]
    if os.geteuid() != 0:
        lacks.append("root")
    return ", ".join(lacks) or None


@contextmanager
def docker_engine() -> Iterator[DockerEngine]:
    """One for as long as the block lasts, with an image of busybox."""
    with ExitStack() as stack:
        engine = DockerEngine(temporary_directory(stack))
        stack.callback(_remove, engine.folder)
        engine.start()
        stack.callback(engine.stop)
        engine.load(IMAGE)
        stack.callback(engine.clear)
        yield engine


def _remove(folder: Path) -> None:
    """Its name spaces and layers are mounted there."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((m for m in mounted if m.startswith(f"{folder}/")), reverse=True):
        Popen(["umount", "-l", path]).wait()


def _busybox(path: str, files: Mapping[str, bytes]) -> bytes:
    """A file system with one static program under several names, and these files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        # First, or they would be made for root alone, who has no rights in a sandbox.
        for folder in (".", "bin", "tmp", "run", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(os.path.realpath(path), "bin/busybox")
        for tool in TOOLS:
            link = tarfile.TarInfo(f"bin/{tool}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
