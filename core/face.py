"""What API servers construct: the keeper on their own engine, or on what the environment says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from sqlalchemy import Engine

from .aio import AsyncKeeper
from .engines import prepare, witness
from .events import Log, Sink
from .lifecycle import Keeper
from .policy import Policy
from .providers.base import SandboxProvider
from .reaper import Doorbell
from .store import Store
from .wiring import System, watchdog


class Lifecycle(Keeper):
    """Open sessions, run turns on them, keep them, end them. Thread-safe; one per process."""

    _system: System | None = None

    def __init__(
        self,
        *,
        engine: Engine,
        provider: SandboxProvider,
        policy: Policy | None = None,
        spec: Mapping[str, object] | None = None,
        doorbell: Doorbell | None = None,
        sinks: Sequence[Sink] = (Log(),),
    ) -> None:
        """Bring your own engine: the tables must be there (`sandkeeper db upgrade`)."""
        if policy is not None:
            policy.check()
        engine = prepare(engine)
        store = Store(engine, policy=policy, sinks=sinks, witness=witness(engine))
        loops = (watchdog(store, {provider.name: provider}, doorbell),)
        super().__init__(store, provider, spec=spec, doorbell=doorbell, loops=loops)

    def close(self) -> None:
        """Stop the heartbeats, and close the connections that from_env opened."""
        super().close()
        if self._system is not None:
            self._system.close()

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, doorbell: Doorbell | None = None
    ) -> Self:
        """As the SANDKEEPER_ variables say; docs/settings.md has them all."""
        system = System.from_env(environ)
        keeper = cls.__new__(cls)
        keeper._system = system  # noqa: SLF001 - a Lifecycle of our own making
        Keeper.__init__(
            keeper,
            system.store,
            system.provider,
            providers=system.providers,
            spec=system.settings.spec,
            doorbell=doorbell,
            loops=(system.watchdog(doorbell),),
        )
        return keeper


class AsyncLifecycle(AsyncKeeper):
    """The same for asyncio."""

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, doorbell: Doorbell | None = None
    ) -> Self:
        """As the SANDKEEPER_ variables say; docs/settings.md has them all."""
        return cls(Lifecycle.from_env(environ, doorbell=doorbell))
