"""Programs that die with the tests, and the process table as the kernel shows it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

PR_SET_PDEATHSIG = 1
POLL = 0.05  # seconds between two looks at what is waited for

Found = TypeVar("Found")

_libc = ctypes.CDLL(None)  # loaded before any fork


class Program:
    """A real process of its own session; kill -9 of the tests kills it too."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        us = os.getpid()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=dict(environ),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: _die_with(us),  # noqa: PLW1509 - nobody holds a lock meanwhile
            )
        self.pid = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative number of the signal that ended it."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Signal this process, none of its children."""
        self._process.send_signal(number)

    def kill(self) -> float:
        """kill -9 of this one process; returns the moment (seconds of time.time())."""
        self._process.kill()
        self._process.wait()
        return time.time()

    def wait(self, within: float) -> int:
        """Its exit code."""
        return self._process.wait(within)

    def destroy(self) -> None:
        """End it and its process group, whose number is ours as long as nobody reaped it."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


def _die_with(parent: int) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One living process that carries the mark of a sandbox."""

    pid: int
    parent: int
    sandbox: str


def marked(root: Path) -> list[Seen]:
    """All living processes of sandboxes below this root. It shares no code with the product."""
    mark = os.fsencode(f"SANDKEEPER_SANDBOX_ROOT={os.path.realpath(root)}")
    return [
        seen
        for entry in os.listdir("/proc")
        if entry.isdigit() and (seen := _look(int(entry), mark)) is not None
    ]


def _look(pid: int, mark: bytes) -> Seen | None:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if mark not in environ:
            return None
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if fields[0] in {b"Z", b"X"}:
        return None
    prefix = b"SANDKEEPER_SANDBOX="
    (name,) = (entry.removeprefix(prefix) for entry in environ if entry.startswith(prefix))
    return Seen(pid=pid, parent=int(fields[1]), sandbox=os.fsdecode(name))


class Sampler:
    """Writes down, a few times a second, which sandboxes the process table shows."""

    def __init__(self, root: Path, interval: float = 0.4) -> None:
        self.samples: list[tuple[float, float, frozenset[str]]] = []  # look began, ended, names
        self._root = root
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> frozenset[str]:
        """What the next look that begins now finds."""
        now = time.time()
        while not self.samples or self.samples[-1][0] < now:
            time.sleep(POLL)
        return self.samples[-1][2]

    def last_seen(self, names: set[str]) -> float:
        """When a look last found any of these; 0.0 for never."""
        return max((end for _, end, seen in self.samples if seen & names), default=0.0)

    def absences(self, name: str, since: float, until: float) -> list[float]:
        """The looks between two moments that did not find it."""
        return [
            begin
            for begin, end, seen in self.samples
            if begin > since and end < until and name not in seen
        ]

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            begin = time.time()
            names = frozenset(seen.sandbox for seen in marked(self._root))
            self.samples.append((begin, time.time(), names))


def until(
    look: Callable[[], Found | None],
    *,
    within: float,
    what: str,
    explain: Callable[[], object] = lambda: "",
) -> Found:
    """What `look` finds, as soon as it finds something true. AssertionError after `within`."""
    end = time.monotonic() + within
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s: {what}\n{explain()}")
        time.sleep(POLL)
