"""Providers that cost nothing, or as long as they are told: what is measured is all ours."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from core.errors import Unsupported
from core.providers.base import Capability, Page, SandboxInfo, SandboxRef, Spec

SLOW = "BENCH_CALL_SECONDS"


@dataclass
class Nothing:
    """Whatever is asked for is not there; destroy takes `seconds`. It is named as crowds are."""

    seconds: float = 0.0
    name: str = "fake"
    capabilities: frozenset[Capability] = frozenset()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """As slow as the environment says."""
        return cls(float(environ.get(SLOW, "0")))

    def scope(self) -> str:
        """The account that crowds are in."""
        return "test-account"

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        """Refused: nothing here opens a session."""
        raise Unsupported("no sandboxes are made here")

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """It is gone."""
        return None

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """Done, after a while."""
        if self.seconds:
            time.sleep(self.seconds)

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """Refused: LIST is not claimed."""
        raise Unsupported("no listing")

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """Refused: TTL is not claimed."""
        raise Unsupported("no TTL")
