"""
The one seam between Sandkeeper and whoever runs sandboxes: the protocol, its values, its rules.

A provider is a plain synchronous object. Every call takes `deadline`, an absolute
`time.monotonic()` value that bounds all of its work, retries included. Errors are those under
`ProviderError`; whatever a provider does not recognise is `Unavailable` on destroy and
`OutcomeUnknown` on create, because only those two never make the caller conclude anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, Self, runtime_checkable

LABEL_PREFIX = "sandkeeper-"


class Capability(StrEnum):
    """What a provider can do beyond create, get and destroy."""

    LIST = "list"  # list() is complete, paused sandboxes included
    TTL = "ttl"  # a sandbox dies by itself when its TTL runs out
    PAUSE = "pause"
    SNAPSHOT = "snapshot"
    IDEMPOTENT_CREATE = "idempotent-create"  # two creates of one name make one sandbox


class ProviderState(StrEnum):
    """What the provider says of a sandbox. Everything but GONE still occupies and bills."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    GONE = "gone"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """
    What to run. It is stored with the sandbox's row before the first create, so that a retry of
    the create sends the same bytes. A provider refuses what it does not know with InvalidSpec.
    """

    image: str | None = None
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)  # the provider's own


@dataclass(frozen=True, kw_only=True)
class SandboxRef:
    """
    How a provider is asked for a sandbox: our name, and its id once we know it. With an id, only
    the sandbox that has both is meant: a late create may have made another of the same name, and
    an id may have been given again to somebody else. Where a provider has no names, the label
    `sandkeeper-key`, which our name ends with, is compared instead.
    """

    name: str
    external_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class SandboxInfo:
    """What the provider said, at the moment it was asked. Datetimes are aware UTC."""

    ref: SandboxRef
    state: ProviderState
    labels: Mapping[str, str]
    created_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of a listing; `cursor` is None on the last."""

    items: tuple[SandboxInfo, ...]
    cursor: str | None = None


@runtime_checkable
class SandboxProvider(Protocol):
    """What a provider must do. `tests/providers/contract.py` holds it to every line of this."""

    name: str
    capabilities: frozenset[Capability]

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Make one from environment variables; SettingsError names the variable that is wrong."""
        ...

    def scope(self) -> str:
        """
        Which account, cluster or engine this is. It is kept on the row, and a not-found from
        another scope is never believed.
        """
        ...

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        """
        Make the sandbox, or adopt the one that has this name and these labels. Idempotent on
        name, also concurrently. ForeignConflict when the name is another's; nothing is
        overwritten. `ttl` is in seconds from now, None for no limit.
        """
        ...

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """Look one up. None only for an authoritative not-found, never for a failed look."""
        ...

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """
        Make it go away. Returns when the provider accepted, or when it is gone already; a
        not-found is success. Safe to call twice and from two places at once.
        """
        ...

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """
        All sandboxes that carry all of these labels, page by page, paused ones too. Without
        Capability.LIST nothing finds a sandbox whose create landed after its teardown was
        confirmed: such a provider should have a TTL.
        """
        ...

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """Let it live `ttl` seconds from now. Returns the expiry really granted, if known."""
        ...
