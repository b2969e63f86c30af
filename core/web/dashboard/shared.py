"""What all viewers of one process share: answers that are good for a moment, and the news."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, Generic, TypeVar

from ...store import Store
from .numbers import Fleet, look

T = TypeVar("T")

POLL: Final = 2.0  # seconds between two looks whether anything changed
KEPT: Final = 4.0  # seconds that the figures of the fleet are good for
TENANTS: Final = 1_000  # whose figures are kept at a time


class Kept(Generic[T]):
    """One answer for all who ask within so many seconds; who comes meanwhile waits for it."""

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._until = 0.0
        self._asking: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """The answer, of so many seconds ago at most."""
        asking = self._asking
        foreign = asking is not None and asking.get_loop() is not asyncio.get_running_loop()
        over = asking is None or (asking.done() and time.monotonic() >= self._until)
        if asking is None or over or foreign or (asking.done() and asking.exception()):
            asking = self._asking = asyncio.ensure_future(self._asked())
        # One viewer who goes away must not take the answer from the others.
        return await asyncio.shield(asking)

    async def _asked(self) -> T:
        try:
            return await self._ask()
        finally:
            self._until = time.monotonic() + self._seconds


class Shared:
    """One for each app. `run` runs a call on a thread and waits for it."""

    def __init__(self, store: Store, run: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._run = run
        self._fleets: dict[Hashable, Kept[Fleet]] = {}
        self.news: Kept[tuple[object, ...]] = Kept(lambda: run(store.overview.stamp), POLL)
        self.closed = False

    def close(self) -> None:
        """Let the streams come to their end: a server that stops would wait for them."""
        self.closed = True

    async def fleet(self, tenant: str | None) -> Fleet:
        """The figures of all, or of one tenant."""
        if tenant not in self._fleets:
            if len(self._fleets) >= TENANTS:
                self._fleets.clear()
            self._fleets[tenant] = Kept(lambda: self._run(look, self._store, tenant), KEPT)
        return await self._fleets[tenant].get()
