"""The composition root: the one place that turns settings into engines, providers and sinks."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from . import migrations
from .engines import make_engine, witness
from .errors import SettingsError
from .events import Log, Sink
from .host import Host
from .lifecycle import Keeper
from .policy import Policy
from .providers.base import SandboxProvider
from .providers.registry import load_provider
from .reaper import Doorbell, Reaper, timekeeper_of
from .reconcile import Reconciler
from .settings import Settings
from .store import Store
from .teardown import Undertaker
from .watchdog import Watchdog


def watchdog(
    store: Store, providers: Mapping[str, SandboxProvider], doorbell: Doorbell | None
) -> Watchdog:
    """
    A watchdog whose sweeps ring where the process rings; without a doorbell they end all the
    same, and whoever tears down finds the rows due.
    """
    reaper = Reaper(store, providers, doorbell=doorbell or _silent)
    actor = f"{socket.gethostname()}:{os.getpid()}"
    return Watchdog(
        store, stand_in=lambda: reaper.sweep(stand_in=True), host=reaper.host, actor=actor
    )


def _silent(_due: Sequence[tuple[str, int]]) -> None:
    """A doorbell that nobody hears."""


class System:
    """
    Everything that one process of an installation needs, made once. Raises SettingsError,
    SchemaOutdated or StoreUnavailable, each with what to do, before anything is started.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str] | None = None,
        sinks: Sequence[Sink] | None = None,
    ) -> None:
        self.settings = settings
        self.policy = Policy.from_settings(settings)
        environ = os.environ if environ is None else environ
        made = [load_provider(name, environ) for name in settings.provider_names]
        self.provider = made[0]
        self.providers: Mapping[str, SandboxProvider] = {each.name: each for each in made}
        if len(self.providers) < len(made):
            names = ", ".join(each.name for each in made)
            raise SettingsError(
                f"SANDKEEPER_PROVIDER={settings.provider!r}: two providers have the same name "
                f"({names}); rows could not tell them apart"
            )
        self.engine = make_engine(settings.database_url)
        try:
            migrations.require(self.engine)
            self.store = Store(
                self.engine,
                policy=self.policy,
                installation=settings.installation,
                sinks=(Log(settings.log_format),) if sinks is None else sinks,
                witness=witness(self.engine),
            )
        except BaseException:
            self.engine.dispose()
            raise
        self._undertaker = Undertaker(self.store, self.providers, host=Host())
        self._timekeeper = timekeeper_of(self.store)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> System:
        """A system as the environment describes it."""
        environ = os.environ if environ is None else environ
        return cls(Settings.from_env(environ), environ=environ)

    def keeper(self, doorbell: Doorbell | None = None) -> Keeper:
        """What a command calls. `doorbell` rings for teardowns and must not block."""
        return Keeper(
            self.store,
            self.provider,
            providers=self.providers,
            spec=self.settings.spec,
            doorbell=doorbell,
        )

    def watchdog(self, doorbell: Doorbell | None = None) -> Watchdog:
        """What sweeps in an API process when nobody else does."""
        return watchdog(self.store, self.providers, doorbell)

    def reconciler(self) -> Reconciler:
        """What compares the providers with the store."""
        return Reconciler(self.store, self.providers)

    def reaper(self, doorbell: Doorbell) -> Reaper:
        """What tasks call. `doorbell` publishes teardowns, and raises when it cannot."""
        return Reaper(
            self.store,
            self.providers,
            doorbell=doorbell,
            undertaker=self._undertaker,
            timekeeper=self._timekeeper,
        )

    def close(self) -> None:
        self.engine.dispose()
