"""What all calls share: the keeper, the lists, the tokens, and the threads that ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from ..access import Known
from ..aio import AsyncKeeper
from ..lifecycle import Keeper
from ..prices import Prices
from ..reaper import Reaper, SweepReport
from ..store.census import Counts
from ..store.listings import Listings
from ..store.tokens import Tokens
from .readiness import Readiness

P = ParamSpec("P")
T = TypeVar("T")

QUICK: Final = 16  # threads for what asks the database alone
PAGES: Final = 6  # threads for what people look at: however many do, heartbeats have theirs
SLOW: Final = 48  # threads for what waits for a provider, for minutes if need be


class Desk:
    """
    One for each app. Heartbeats never wait behind sandboxes that are being made: what may call a
    provider has threads of its own.
    """

    def __init__(
        self,
        keeper: Keeper | AsyncKeeper,
        *,
        tokens: Mapping[str, Known],
        broker: Callable[[], None] | None,
        prices: Prices | None = None,
    ) -> None:
        self.keeper = keeper.keeper if isinstance(keeper, AsyncKeeper) else keeper
        store = self.keeper.store
        self.listings = Listings(store.database, store.installation)
        self.census = Counts(store.database).census
        self.tokens = Tokens(store.database)
        self.configured = tokens
        self.prices = prices
        self.readiness = Readiness(store, broker)
        self._quick = ThreadPoolExecutor(QUICK, "sandkeeper-quick")
        self._pages = ThreadPoolExecutor(PAGES, "sandkeeper-pages")
        self._slow = ThreadPoolExecutor(SLOW, "sandkeeper-slow")
        self._probe = ThreadPoolExecutor(1, "sandkeeper-probe")

    async def quick(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits for the database alone."""
        return await self._run(self._quick, partial(call, *args, **kwargs))

    async def page(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what looks for a person."""
        return await self._run(self._pages, partial(call, *args, **kwargs))

    async def slow(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what may wait for a provider. Who goes away meanwhile does not stop it."""
        return await self._run(self._slow, partial(call, *args, **kwargs))

    async def ready(self) -> Mapping[str, str]:
        """What /readyz says. Anybody may ask, and a broker that hangs must hold up nobody else."""
        return await self._run(self._probe, self.readiness.checks)

    def sweep(self) -> SweepReport:
        """One sweep, now, in this process."""
        providers = {self.keeper.provider.name: self.keeper.provider}
        doorbell = self.keeper.doorbell
        return Reaper(
            self.keeper.store, providers, doorbell=lambda due: doorbell and doorbell(list(due))
        ).sweep()

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call)
