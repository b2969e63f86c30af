"""
Comparing a provider with the store, both ways: sandboxes that no row explains are torn down, and
rows whose sandbox is gone end. The provider is always read first, the store second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from .errors import AuthFailed, OutcomeUnknown, ProviderError, RateLimited, StoreError, Unavailable
from .events import Event, EventKind
from .host import Host
from .model import OrphanKind, Ownership, SandboxState, ownership
from .providers.base import Capability, ProviderState, SandboxInfo, SandboxProvider, SandboxRef
from .store import Store
from .store.guard import Decision, HoldReason
from .store.inventory import Known, Orphan, Pass, Running

ACTOR = "reconcile"
LONGEST_SCAN = 20  # pages of running rows that one pass compares
IMPLAUSIBLE = 5  # listed sandboxes of which a database that is ours would explain at least one


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


@dataclass(kw_only=True)
class _Listing:
    """What a provider has of ours, by our key. A provider may have made two of one name."""

    of: dict[str, list[tuple[SandboxInfo, Ownership]]] = field(default_factory=dict)
    listed: int = 0
    foreign: int = 0

    @property
    def owned(self) -> int:
        return self.listed - self.foreign


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
            return _Comparison(self, name, provider, dry_run=dry_run).run()
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - an unreadable inventory concludes nothing
            skipped = f"{type(error).__name__}: {error}"
            event = Event(
                kind=EventKind.RECONCILE_SKIPPED,
                actor=ACTOR,
                detail={"provider": name, "error": skipped},
            )
            self.store.database.tell(event)
            return ReconcileReport(provider=name, skipped=skipped)


class _Comparison:
    """One pass over one provider."""

    def __init__(
        self, work: Reconciler, name: str, provider: SandboxProvider, *, dry_run: bool
    ) -> None:
        self.name = name
        self.provider = provider
        self.dry_run = dry_run
        self.store = work.store
        self.inventory = work.store.inventory
        self.policy = work.policy
        self.host = work.host
        self.deadline = work.host.monotonic() + work.policy.reconcile_budget
        self.scope = provider.scope()
        self.report = ReconcileReport(provider=name)

    def run(self) -> ReconcileReport:
        began = self.inventory.begin(self.name)
        # The provider first: whatever it shows has had its row before it was made.
        listing = self._list()
        orphans = self._orphans(listing, began)
        if not self.dry_run:
            self.inventory.sight(orphans)
            self.inventory.forget_unseen(self.name, self.scope, began.began_at)
        self._kill(listing)
        if began.first:
            self._look_for_others()
        cursor = self._look_for_missing(listing, began)
        if not self.dry_run:
            self.inventory.finish(self.name, cursor, asdict(self.report))
        return self.report

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.report, name) + count for name, count in more.items()}
        self.report = replace(self.report, **counts)

    # What is there

    def _list(self) -> _Listing:
        """All pages, or an error: of half a listing nothing can be concluded (S4)."""
        listing, cursor, seen = _Listing(), None, set[str]()
        wanted = {"sandkeeper-installation": self.store.installation}
        while self.host.monotonic() < self.deadline:
            page = self.provider.list(wanted, cursor=cursor, deadline=self.deadline)
            for info in page.items:
                self._take(listing, info)
            if page.cursor is None:
                self._check_scope()
                self._count(listed=listing.listed, foreign=listing.foreign)
                return listing
            if page.cursor in seen:
                raise OutcomeUnknown(f"the listing goes round in circles at {page.cursor!r}")
            seen.add(page.cursor)
            cursor = page.cursor
        raise OutcomeUnknown("the listing did not come to its end in time")

    def _check_scope(self) -> None:
        """What another account has, or has not, says nothing of this one."""
        scope = self.provider.scope()
        if scope != self.scope:
            raise AuthFailed(f"the pass began in scope {self.scope!r}, and this is {scope!r}")

    def _take(self, listing: _Listing, info: SandboxInfo) -> None:
        if info.state is ProviderState.GONE:
            return
        listing.listed += 1
        owned = ownership(info.ref.name, info.labels, self.store.installation)
        if owned is None or not _can_be_noted(info.ref.external_id):
            listing.foreign += 1
            return
        listing.of.setdefault(owned.key, []).append((info, owned))

    def _orphans(self, listing: _Listing, began: Pass) -> list[Mapping[str, object]]:
        """The listed sandboxes that no row explains, as they are noted in the store."""
        known = self.inventory.explain(sorted(listing.of))
        orphans: list[Mapping[str, object]] = []
        older = 0
        for key, found in listing.of.items():
            for info, owned in found:
                kind = self._judge(info, known.get(key))
                if kind is None:
                    continue
                older += (
                    kind is OrphanKind.ROWLESS
                    and owned.created_at < began.store_created_at.timestamp() - 1.0
                )
                orphans.append(self._noted(info, key, kind))
        self._doubt_the_store(listing, known, older)
        return orphans

    def _noted(self, info: SandboxInfo, key: str, kind: OrphanKind) -> Mapping[str, object]:
        return {
            "of_provider": self.name,
            "of_external_id": info.ref.external_id,
            "of_key": key,
            "of_scope": self.scope,
            "of_kind": kind.value,
        }

    def _judge(self, info: SandboxInfo, row: Known | None) -> OrphanKind | None:
        """Why this sandbox is an orphan; None when its row explains it."""
        if row is None:
            self._count(rowless=1)
            return OrphanKind.ROWLESS
        if row.state is SandboxState.GONE:
            self._count(late=1)
            return OrphanKind.LATE
        if row.external_id is not None and row.external_id != info.ref.external_id:
            self._count(twin=1)
            return OrphanKind.TWIN
        if row.state is SandboxState.CREATING:
            self._count(creating=1)
        elif row.state is SandboxState.CLOSING:
            self._count(closing=1)
        else:
            self._count(explained=1)
        return None

    def _doubt_the_store(self, listing: _Listing, known: Mapping[str, Known], older: int) -> None:
        """
        A database that is younger than the sandboxes, or that explains none of them, is not the
        one that made them: empty, restored, or a wrong DATABASE_URL.
        """
        emptied = self.report.rowless >= IMPLAUSIBLE and not known
        # After a restore rowless ones are kept anyhow, until an operator has looked at them.
        kept = self.store.guard.decision(HoldReason.MASS_ORPHANS) is Decision.DENIED
        if (older or emptied) and not kept:
            self._asked(
                HoldReason.STORE,
                {
                    "provider": self.name,
                    "listed": listing.owned,
                    "explained": len(known),
                    "older_than_the_database": older,
                },
            )

    def _look_for_others(self) -> None:
        """
        Once, on the first pass: an empty database makes a new installation, to which everything
        that is there belongs to somebody else. Nothing is touched, and somebody should know.
        """
        try:
            ours = {"sandkeeper-schema": "1"}
            page = self.provider.list(ours, cursor=None, deadline=self.deadline)
        except Exception:  # noqa: BLE001 - a courtesy: what was compared is compared
            return
        found = {info.labels.get("sandkeeper-installation", "?") for info in page.items}
        others = sorted(found - {self.store.installation})
        if others and not self.dry_run:
            detail = {"provider": self.name, "installations": others[:10]}
            event = Event(kind=EventKind.OTHER_INSTALLATIONS, actor=ACTOR, detail=detail)
            self.store.database.tell(event)

    def _asked(self, reason: HoldReason, detail: Mapping[str, object]) -> bool:
        """Ask an operator, once; True when the answer is to go on."""
        decision = self.store.guard.decision(reason)
        if decision is None and not self.dry_run:
            self.store.guard.hold(reason, detail, actor=ACTOR)
        return decision is Decision.APPROVED

    # Orphans

    def _kill(self, listing: _Listing) -> None:
        ready = self.inventory.ready(self.name, self.scope, self.policy.batch)
        rowless = sum(orphan.kind is OrphanKind.ROWLESS for orphan in ready)
        self._count(watched=max(0, self.report.rowless - rowless))
        if len(ready) == self.policy.batch:  # one batch of how many?
            rowless = self.inventory.ready_rowless(self.name, self.scope)
        spared = not self._may_kill(rowless, listing.owned)
        for orphan in ready:
            if spared and orphan.kind is OrphanKind.ROWLESS:
                self._count(kept=1)
            elif self.host.monotonic() >= self.deadline or not self._kill_one(orphan):
                break

    def _may_kill(self, rowless: int, population: int) -> bool:
        """The breaker: many rowless sandboxes at once mean that rows were lost, not sandboxes."""
        if self.store.guard.decision(HoldReason.STORE) is Decision.DENIED:
            return False
        decision = self.store.guard.decision(HoldReason.MASS_ORPHANS)
        if decision is not None:
            return decision is Decision.APPROVED
        if rowless <= max(self.policy.breaker_min, self.policy.breaker_ratio * population):
            return True
        detail = {"provider": self.name, "rowless": rowless, "listed": population}
        return self._asked(HoldReason.MASS_ORPHANS, detail)

    def _kill_one(self, orphan: Orphan) -> bool:
        """False when the provider wants no more calls for now."""
        if self.dry_run or not self.inventory.claim(orphan):
            self._count(kept=1)
            return True
        try:
            found = self._destroy(orphan)
        except RateLimited as error:
            pause = error.retry_after or self.policy.retry_base
            self.store.health.limited(self.name, min(pause, self.policy.longest_pause))
            self._failed(orphan, f"{type(error).__name__}: {error}")
            return False
        except Exception as error:  # noqa: BLE001 - the next orphan is not to blame
            self._failed(orphan, f"{type(error).__name__}: {error}")
        else:
            self.inventory.gone(orphan, found=found)
            self._count(killed=int(found))
        return True

    def _destroy(self, orphan: Orphan) -> bool:
        """Make it gone and confirm it; False when it was not there any more."""
        ref = SandboxRef(name=orphan.name, external_id=orphan.external_id)
        deadline = min(self.deadline, self.host.monotonic() + 0.8 * self.policy.claim_ttl)
        found = self.provider.get(ref, deadline=deadline)
        self._check_scope()
        if found is None or found.state is ProviderState.GONE:
            return False
        owned = ownership(found.ref.name, found.labels, self.store.installation)
        if owned is None or owned.key != orphan.key:
            raise ProviderError(f"{orphan.external_id} is not ours any more")
        if found.ref.external_id != orphan.external_id:
            raise ProviderError(f"asked for {orphan.external_id}, got {found.ref.external_id}")
        self.provider.destroy(ref, deadline=deadline)
        left = self.provider.get(ref, deadline=deadline)
        if left is not None and left.state is not ProviderState.GONE:
            raise Unavailable(f"destroy was accepted, and the provider still says {left.state}")
        return True

    def _failed(self, orphan: Orphan, error: str) -> None:
        self._count(failed=1)
        pause = self.policy.pause(orphan.attempts + 1, spread=self.host.spread())
        self.inventory.failed(orphan, error, pause)
        detail = {"name": orphan.name, "external_id": orphan.external_id, "error": error}
        self.store.database.tell(Event(kind=EventKind.ORPHAN_FAILED, actor=ACTOR, detail=detail))

    # Missing sandboxes

    def _look_for_missing(self, listing: _Listing, began: Pass) -> str:
        """Compare some pages of running rows with the listing; gives where the next pass begins."""
        cursor, absent = began.cursor, list[Running]()
        for _ in range(LONGEST_SCAN):
            rows = self.inventory.running(self.name, self.scope, cursor, began.began_at)
            self._count(scanned=len(rows))
            absent += [row for row in rows if not _has(listing, row)]
            if not rows:
                cursor = ""
                break
            cursor = rows[-1].key
        self._count(missing=len(absent))
        if self.store.guard.decision(HoldReason.MASS_MISSING) is Decision.DENIED:
            return cursor
        asked = self._lose(absent)
        # Those that were not asked for are the first of the next pass.
        return cursor if asked == len(absent) else absent[asked - 1].key if asked else began.cursor

    def _lose(self, absent: Sequence[Running]) -> int:
        """
        A listing may be stale: only the provider's own answer for this very sandbox counts. More
        of them than is plausible, and an operator is asked before anybody's session ends. Gives
        how many it was asked for; what they say is taken to be true of the others.
        """
        asked, confirmed = self._confirmed(absent[: self.policy.batch])
        expected = len(confirmed) * len(absent) / max(1, asked)
        if expected > max(self.policy.breaker_min, self.policy.breaker_ratio * self.report.scanned):
            detail = {"provider": self.name, "missing": len(absent), "scanned": self.report.scanned}
            if not self._asked(HoldReason.MASS_MISSING, detail):
                return asked
        if not self.dry_run:
            self._count(lost=sum(self.inventory.lost(row) for row in confirmed))
        return asked

    def _confirmed(self, absent: Sequence[Running]) -> tuple[int, list[Running]]:
        gone, asked = list[Running](), 0
        for row in absent:
            if self.host.monotonic() >= self.deadline:
                break
            asked += 1
            try:
                ref = SandboxRef(name=row.name, external_id=row.external_id)
                info = self.provider.get(ref, deadline=self.deadline)
            except Exception:  # noqa: BLE001 - no answer is no "no"
                self._count(unconfirmed=1)
                continue
            if info is None or info.state is ProviderState.GONE:
                gone.append(row)
            else:
                self._count(unconfirmed=1)
        if gone:
            self._check_scope()
        return asked, gone


def _can_be_noted(external_id: str | None) -> bool:
    """Whether a column can hold it: no id that we ever recorded is longer, or looks like that."""
    return external_id is not None and 0 < len(external_id) <= 255 and external_id.isprintable()


def _has(listing: _Listing, row: Running) -> bool:
    return any(info.ref.external_id == row.external_id for info, _ in listing.of.get(row.key, []))
