"""Processes of a bench's own: what one gives, what one takes, and how one ends."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds for a process to come to rest, or to its end
STILL = 2.0  # seconds without more memory: it has come to rest
LOOK_EVERY = 0.1
MEGABYTE = 1e6


def alone(
    work: Callable[..., Any], *arguments: object, environ: Mapping[str, str] | None = None
) -> Any:
    """
    What `work`, a function of a module, returns for these arguments in a new process that has
    imported that module and nothing else. Both go through JSON. CalledProcessError when it raises.
    """
    command = [sys.executable, "-m", __name__, work.__module__, work.__name__]
    done = subprocess.run(
        [*command, json.dumps(arguments)],
        env=_variables(environ or {}),
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def celery(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[int]:
    """A `celery` command, stopped as an operator stops it; gives its process id."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments],
            env=_variables(environ or {}),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        log.seek(0)
        said = log.read().decode(errors="replace")
        assert process.returncode == 0, f"{' '.join(arguments)} failed:\n{said}"


def resident(pid: int | str = "self") -> float:
    """Megabytes of memory that a process has now."""
    return _status(pid, "VmRSS")


def peak(pid: int | str = "self") -> float:
    """The most megabytes that it ever had, or since `forget_peak()`."""
    return _status(pid, "VmHWM")


def forget_peak() -> None:
    """Let the peak of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def settled(pid: int) -> float:
    """Megabytes of a process that has begun, once it has stopped growing."""
    until = time.monotonic() + PATIENCE
    found, since = resident(pid), time.monotonic()
    while time.monotonic() - since < STILL:
        assert time.monotonic() < until, f"process {pid} does not come to rest"
        time.sleep(LOOK_EVERY)
        if (now := resident(pid)) > found + 0.1:
            found, since = now, time.monotonic()
    return found


def wait_for(what: str, done: Callable[[], bool], patience: float = PATIENCE) -> float:
    """Look until it is so; gives the seconds that it took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < patience, f"{what}: not within {patience:.0f} s"
        time.sleep(LOOK_EVERY)
    return time.monotonic() - began


def each(call: Callable[[Any], object], arguments: Iterable[Any]) -> None:
    """One call after the other."""
    for argument in arguments:
        call(argument)


def _status(pid: int | str, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = [line for line in lines if line.startswith(f"{name}:")]
    assert found, f"process {pid} has ended"
    return int(found[0].split()[1]) * 1024 / MEGABYTE


def _variables(more: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def _main(arguments: Sequence[str]) -> None:
    module, name, given = arguments
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(given))))


if __name__ == "__main__":
    _main(sys.argv[1:])
