"""A small supervisor for one host: starts programs, starts them again, and stops them together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

LOOK: Final = 0.1  # seconds between two looks at the children
FIRST_PAUSE: Final = 0.5  # seconds before a program that exited is started again; it doubles
LONGEST_PAUSE: Final = 30.0
STEADY: Final = 30.0  # seconds of running that end the doubling
PR_SET_PDEATHSIG: Final = 1

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program to keep running. `environ` is added to ours."""

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


def commands(
    *, concurrency: int = 16, loglevel: str = "info", api: tuple[str, int] | None = None
) -> list[Command]:
    """
    The worker and beat of this installation, as every Celery user would start them; and the HTTP
    API where it has a host and a port.
    """
    package = __name__.rpartition(".")[0]
    root = Path(__file__).parents[package.count(".") + 1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    celery = [sys.executable, "-m", "celery", "-A", package]
    # Without what workers tell each other: on a polling broker it costs more than it is worth.
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    pool = ["--pool", "threads", "--concurrency", str(concurrency)]
    programs = {
        "worker": [*celery, "worker", *pool, *quiet, "--loglevel", loglevel],
        "beat": [*celery, "beat", "--loglevel", loglevel],
    }
    if api is not None:
        serve = [sys.executable, "-m", f"{package}.cli", "serve"]
        programs["api"] = [*serve, "--host", api[0], "--port", str(api[1])]
    return [
        Command(name=name, argv=argv, environ={"PYTHONPATH": path})
        for name, argv in programs.items()
    ]


def supervise(commands: Sequence[Command], *, grace: float = 30.0, say: Say | None = None) -> int:
    """
    Keep all of them running until SIGINT, SIGTERM or SIGHUP; then SIGTERM them, and SIGKILL what
    is left after `grace` seconds or a second signal. On Linux they die with us whatever kills us.
    Gives the exit code: 0 when all of them left by themselves, 1 when one had to be killed. Call
    it from the main thread.
    """
    say = say or _say
    children = [_Child(command, say) for command in commands]
    with _signals() as received:
        try:
            while not received:
                for child in children:
                    child.look()
                time.sleep(LOOK)
            say(f"stopping on {signal.Signals(received[0]).name}")
        finally:
            clean = _stop(children, grace, received, say)
    return 0 if clean else 1


class _Child:
    """One program: running, or waiting to be started again."""

    def __init__(self, command: Command, say: Say) -> None:
        self.command = command
        self.say = say
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.due = 0.0
        self.pause = FIRST_PAUSE

    def look(self) -> None:
        """Start it if it is due, notice if it exited."""
        if self.process is None:
            if time.monotonic() >= self.due:
                self._start()
        elif (code := self.process.poll()) is not None:
            self.process = None
            if time.monotonic() - self.started > STEADY:
                self.pause = FIRST_PAUSE
            self._postpone(f"exited with {_words(code)}")

    def _start(self) -> None:
        parent = os.getpid()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - starting programs is what it is for
                self.command.argv,
                env={**os.environ, **self.command.environ},
                stdin=subprocess.DEVNULL,
                # A session of its own: Ctrl-C reaches us alone, and we say when to stop.
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 - we have one thread
            )
        except OSError as error:
            self._postpone(f"cannot be started ({error.strerror})")
        else:
            self.started = time.monotonic()
            self.say(f"{self.command.name} started, process {self.process.pid}")

    def _postpone(self, what: str) -> None:
        self.say(f"{self.command.name} {what}, starting it again in {self.pause:g} s")
        self.due = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)


def _stop(children: Sequence[_Child], grace: float, received: Sequence[int], say: Say) -> bool:
    """Whether all of them left when they were asked to."""
    running = {child.command.name: child.process for child in children if child.process}
    for process in running.values():
        process.terminate()
    end = time.monotonic() + grace
    while time.monotonic() < end and len(received) < 2:
        if all(process.poll() is not None for process in running.values()):
            return True
        time.sleep(LOOK)
    late = {name: process for name, process in running.items() if process.poll() is None}
    for name, process in late.items():
        say(f"{name} did not stop, killing it")
        process.kill()
        process.wait()
    return not late


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask us to stop, as they come in."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in asked}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


def _die_with(parent: int) -> None:
    """Runs in the child before its program: kill -9 of the supervisor must leave nobody behind."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


def _words(code: int) -> str:
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


def _say(line: str) -> None:
    sys.stdout.write(f"sandkeeper up: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(supervise(commands()))
