"""What is examined: one installation as its environment describes it. Nothing here writes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..engines import make_engine
from ..policy import Policy
from ..providers.base import SandboxProvider
from ..providers.registry import load_provider
from ..settings import Settings
from ..store.checkup import Checkup

SQLITE_WAIT = 3.0  # seconds for a lock that somebody holds


@dataclass(kw_only=True)
class Patient:
    """
    Connects when something is asked. `within` is the seconds that one look may take; the rest is
    what an examination sees of the machine.
    """

    environ: Mapping[str, str]
    within: float = 10.0
    clock: Callable[[], float] = time.time
    mounts: Path = Path("/proc/mounts")
    usage: Callable[[Path], tuple[int, int, int]] = field(default=shutil.disk_usage)

    @cached_property
    def settings(self) -> Settings:
        """SettingsError when they cannot be understood."""
        return Settings.from_env(self.environ)

    @cached_property
    def policy(self) -> Policy:
        return Policy.from_settings(self.settings)

    @cached_property
    def checkup(self) -> Checkup:
        """What is asked of the database. SettingsError when it cannot be one of ours."""
        options: dict[str, Any] = {}
        if self.settings.database_url.startswith("sqlite"):
            options = {"connect_args": {"timeout": min(SQLITE_WAIT, self.within / 2)}}
        return Checkup(make_engine(self.settings.database_url, **options), self.policy)

    @cached_property
    def providers(self) -> list[SandboxProvider]:
        """Made as every process makes them. SettingsError when one cannot be."""
        return [load_provider(name, self.environ) for name in self.settings.provider_names]

    def close(self) -> None:
        """Let go of the connections."""
        if "checkup" in self.__dict__:
            self.checkup.close()
