"""What a process takes from the machine it runs on: time that passes, chance, background work."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

Step = Callable[[], float]
"""One round of a background work. It gives the seconds until the next one."""


def in_forked_children(this: T, start_over: Callable[[T], None]) -> None:
    """Let an object start over in every child that is forked, for as long as it lives."""
    living = weakref.ref(this)

    def call() -> None:
        found = living()
        if found is not None:
            start_over(found)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


class Loop(Protocol):
    """A background work of one process."""

    def start(self) -> None:
        """Begin, unless it runs already; the first round comes after the first pause."""
        ...

    def stop(self) -> None:
        """Let the round that runs come to its end, and begin no other."""
        ...


class ThreadLoop:
    """
    Rounds on a daemon thread: a process that wants to exit may. It is forgotten in a forked
    child, where no thread of the parent goes on; the child's first start() begins anew.
    """

    def __init__(self, name: str, step: Step, first_pause: float) -> None:
        self._name = name
        self._step = step
        self._first_pause = first_pause
        self._thread: threading.Thread | None = None
        self._forget()
        in_forked_children(self, ThreadLoop._forget)

    def start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name=self._name, daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5.0)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = None

    def _run(self, stop: threading.Event) -> None:
        pause = self._first_pause
        while not stop.wait(pause):
            pause = self._step()


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class Host:
    """
    The ports through which the domain meets its machine; a simulation hands in its own. What is
    decided is decided by the database's clock: `monotonic` only bounds waits and calls, and
    `milliseconds` (since 1970) only makes ids sort. `spread` is chance in [0, 1).
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    spread: Callable[[], float] = random.random
    randbits: Callable[[int], int] = secrets.randbits
    milliseconds: Callable[[], int] = _milliseconds
    loop: Callable[[str, Step, float], Loop] = ThreadLoop
