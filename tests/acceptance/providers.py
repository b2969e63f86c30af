"""
Providers with faults, for SANDKEEPER_PROVIDER=tests.acceptance.providers:Class in a worker. They
are LocalProvider and keep their state in the folder ACCEPTANCE_FAULTS, so that it survives them.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from core.errors import Busy, RateLimited, Unavailable
from core.providers.base import SandboxRef
from core.providers.local import LocalProvider

RETRY_AFTER = 1.0


def _count(name: str) -> int:
    """How often this sandbox was asked to go before, also by processes that are dead."""
    path = Path(os.environ["ACCEPTANCE_FAULTS"], name)
    with path.open("a") as asked:
        asked.write(f"{os.getpid()}\n")
    return len(path.read_text().split()) - 1


class HangsOnce(LocalProvider):
    """The first destroy of each sandbox hangs before it did anything."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        if _count(ref.name) == 0:
            _hang()
        super().destroy(ref, deadline=deadline)


class HangsOnceAfterwards(LocalProvider):
    """The first destroy of each sandbox hangs when it has done all."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        count = _count(ref.name)
        super().destroy(ref, deadline=deadline)
        if count == 0:
            _hang()


class FailsOften(LocalProvider):
    """A bad day: each destroy fails in the next of these ways, then it works."""

    FAULTS = (
        Unavailable("503"),
        RateLimited("429", retry_after=RETRY_AFTER),
        Busy("409"),
        RateLimited("429"),
        RuntimeError("a bug of the provider"),
        None,  # accepted, and nothing happens
        Unavailable("503"),
    )

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        count = _count(ref.name)
        if count >= len(self.FAULTS):
            super().destroy(ref, deadline=deadline)
            return
        fault = self.FAULTS[count]
        if fault is not None:
            raise fault

    @classmethod
    def counted(cls) -> int:
        """How many of them cost an attempt."""
        return sum(1 for fault in cls.FAULTS if not isinstance(fault, RateLimited))


class AwayForNow(LocalProvider):
    """Nobody gets through to it for as long as the folder of faults has the file `away`."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        if Path(os.environ["ACCEPTANCE_FAULTS"], "away").exists():
            raise Unavailable("503 from the proxy 192.0.2.9")
        super().destroy(ref, deadline=deadline)


def _hang() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while True:
        time.sleep(60)
