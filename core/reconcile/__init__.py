"""
Comparing a provider with the store, both ways: sandboxes that no row explains are torn down, and
rows whose sandbox is gone end. The provider is always read first, the store second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from ..errors import StoreError, words
from ..events import Event, EventKind
from ..host import Host
from ..providers.base import Capability, SandboxProvider
from ..store import Store
from . import listing, missing, orphans
from .visit import ACTOR, ReconcileReport, Visit

__all__ = ["ReconcileReport", "Reconciler"]


class Reconciler:
    """
    Safe to run many at once, twice, or late: what it destroys it claims by a statement that reads
    the rows again. One provider that fails, or one sandbox, does not stop the others.
    """

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, SandboxProvider],
        *,
        host: Host | None = None,
    ) -> None:
        self.store = store
        self.policy = store.policy
        self.providers = providers
        self.host = host or Host()

    def reconcile(self, only: str | None = None, *, dry_run: bool = False) -> list[ReconcileReport]:
        """
        One pass over every provider, or over one; a dry run concludes the same and changes
        nothing. StoreError when the database refuses: then nothing was concluded.
        """
        if not dry_run:
            self.store.guard.check(actor=ACTOR)
        return [
            self._isolated(name, provider, dry_run=dry_run)
            for name, provider in self.providers.items()
            if only in (None, name)
        ]

    def _isolated(self, name: str, provider: SandboxProvider, *, dry_run: bool) -> ReconcileReport:
        try:
            if Capability.LIST not in provider.capabilities:
                return ReconcileReport(provider=name, skipped="it cannot list")
            return _compare(Visit(self.store, self.host, name, provider, dry_run=dry_run))
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - an unreadable inventory concludes nothing
            skipped = words(error)
            event = Event(
                kind=EventKind.RECONCILE_SKIPPED,
                actor=ACTOR,
                detail={"provider": name, "error": skipped},
            )
            self.store.database.tell(event)
            return ReconcileReport(provider=name, skipped=skipped)


def _compare(visit: Visit) -> ReconcileReport:
    # The provider first: whatever it shows has had its row before it was made.
    listed = listing.read(visit)
    orphans.sight(visit, listed)
    orphans.kill(visit, listed)
    if visit.began.first:
        listing.look_for_others(visit)
    cursor = missing.look(visit, listed)
    if not visit.dry_run:
        visit.inventory.finish(visit.name, cursor, asdict(visit.report))
    return visit.report
