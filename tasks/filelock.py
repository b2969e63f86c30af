"""
Locks on files that tell whether their owner is alive.

A lock that can be had belonged to a process that is dead: the kernel drops it with the process, so
neither reused process ids, nor another container's process table, nor a reboot can deceive us.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire(path: Path, patience: float = 0.0) -> int | None:
    """Make the lock ours. Somebody may hold it for a moment, to see whether its owner is dead."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + patience
    while (lock := _try_lock(path, os.O_CREAT)) is None and time.monotonic() < end:
        time.sleep(0.01)
    return lock


@contextmanager
def dead(path: Path) -> Iterator[bool]:
    """Whether the owner of this lock is dead; then nobody else clears up after it meanwhile."""
    try:
        lock = _try_lock(path, 0)
    except FileNotFoundError:
        lock = None
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """One process at a time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _try_lock(path: Path, flags: int) -> int | None:
    """A held lock on the file that has this name now; None when somebody else holds it."""
    lock = os.open(path, os.O_RDWR | flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(lock).st_ino:  # not one that was just removed
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
