"""One visit to one provider: what its parts share, and what they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import AuthFailed
from ..events import Event, EventKind
from ..store.guard import Decision, HoldReason

if TYPE_CHECKING:
    from ..host import Host
    from ..providers.base import SandboxProvider
    from ..store import Store
    from ..store.inventory import Pass

ACTOR = "reconcile"


@dataclass(frozen=True, kw_only=True)
class ReconcileReport:
    """
    What one pass over one provider found, and which rule left the rest alone. `skipped` says why
    nothing was concluded.
    """

    provider: str
    skipped: str | None = None
    listed: int = 0  # everything that the provider showed us
    foreign: int = 0  # labels or name are not exactly ours: never touched
    explained: int = 0  # running, and its row says the same
    creating: int = 0  # its create is under way, and has a deadline
    closing: int = 0  # its teardown is under way
    late: int = 0
    twin: int = 0
    rowless: int = 0
    watched: int = 0  # rowless for too short a time, or pausing after a failure
    killed: int = 0
    kept: int = 0  # not torn down: explained by now, held, or denied by an operator
    failed: int = 0
    scanned: int = 0  # running rows that were looked for in the listing
    missing: int = 0  # of these, not in the listing
    lost: int = 0
    unconfirmed: int = 0  # not in the listing, and there after all, or not to be asked


class Visit:
    """`deadline` is of the host's monotonic clock. A dry run writes and destroys nothing."""

    def __init__(
        self,
        store: Store,
        host: Host,
        name: str,
        provider: SandboxProvider,
        *,
        dry_run: bool,
    ) -> None:
        self.store = store
        self.inventory = store.inventory
        self.orphans = store.orphans
        self.policy = store.policy
        self.host = host
        self.name = name
        self.provider = provider
        self.dry_run = dry_run
        self.deadline = host.monotonic() + store.policy.reconcile_budget
        self.scope = provider.scope()
        self.began: Pass = store.inventory.begin(name)
        self.report = ReconcileReport(provider=name)

    def is_over(self) -> bool:
        """True when the time of this pass is used up."""
        return self.host.monotonic() >= self.deadline

    def count(self, **more: int) -> None:
        """Add to the report."""
        counts = {name: getattr(self.report, name) + count for name, count in more.items()}
        self.report = replace(self.report, **counts)

    def tell(self, kind: EventKind, **detail: object) -> None:
        """One event about this provider."""
        self.store.database.tell(Event(kind=kind, actor=ACTOR, detail=detail))

    def check_scope(self) -> None:
        """What another account has, or has not, says nothing of this one."""
        scope = self.provider.scope()
        if scope != self.scope:
            raise AuthFailed(f"the pass began in scope {self.scope!r}, and this is {scope!r}")

    def may(self, reason: HoldReason, detail: Mapping[str, object]) -> bool:
        """Ask an operator, once; True when the answer is to go on."""
        decision = self.store.guard.decision(reason)
        if decision is None and not self.dry_run:
            self.store.guard.hold(reason, {"provider": self.name, **detail}, actor=ACTOR)
        return decision is Decision.APPROVED
