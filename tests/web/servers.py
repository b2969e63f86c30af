"""Real servers: `sandkeeper serve` on loopback, in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # seconds for whatever a test waits for
LISTENS = re.compile(r"sandkeeper serve: (http://\S+)")


class Server:
    """One `sandkeeper serve`, or `up`, on a free port, and what it printed."""

    def __init__(
        self, log: Path, environ: Mapping[str, str], *options: str, command: str = "serve"
    ) -> None:
        self.log = log
        arguments = [sys.executable, "-m", "tasks.cli", command, "--port", "0", *options]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environ},
            )
        until(lambda: LISTENS.search(self.said()) is not None, self.said)
        found = LISTENS.search(self.said())
        assert found is not None
        self.url = found[1]

    def said(self) -> str:
        """Everything that it printed."""
        return self.log.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)


def until(condition: Callable[[], object], explain: Callable[[], object]) -> None:
    """Wait for something that can be looked at."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.02)


@contextmanager
def serving(folder: Path, environ: Mapping[str, str]) -> Iterator[Callable[..., Server]]:
    """Start servers; none is left after the block."""
    started: list[Server] = []

    def start(*options: str, **more: str) -> Server:
        log = folder / f"server-{len(started)}.log"
        started.append(Server(log, {**environ, **more}, *options))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.kill()
