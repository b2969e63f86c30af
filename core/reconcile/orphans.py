"""Sandboxes that no row explains: noted, watched for the grace, torn down."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ProviderError, RateLimited, words
from ..events import EventKind
from ..model import OrphanKind, SandboxState, ownership
from ..providers.base import ProviderState, SandboxInfo, SandboxRef
from ..store.guard import Decision, HoldReason
from ..store.inventory import Known
from ..store.orphans import Orphan
from ..teardown import destroy, still_there
from .listing import Listing
from .visit import Visit

IMPLAUSIBLE = 5  # listed sandboxes of which a database that is ours would explain at least one


def sight(visit: Visit, listing: Listing) -> None:
    """Note the listed sandboxes that no row explains, and forget those that are not there now."""
    known = visit.inventory.explain(sorted(listing.of))
    orphans: list[Mapping[str, object]] = []
    older = 0
    for key, found in listing.of.items():
        for info, owned in found:
            kind = _judge(visit, info, known.get(key))
            if kind is None:
                continue
            older += (
                kind is OrphanKind.ROWLESS
                and owned.created_at < visit.began.store_created_at.timestamp() - 1.0
            )
            orphans.append(_noted(visit, info, key, kind))
    _doubt_the_store(visit, listing, known, older)
    if not visit.dry_run:
        visit.orphans.sight(orphans)
        visit.orphans.forget_unseen(visit.name, visit.scope, visit.began.began_at)


def kill(visit: Visit, listing: Listing) -> None:
    """Tear down those whose time has come, as far as the breaker and this pass's time allow."""
    ready = visit.orphans.ready(visit.name, visit.scope, visit.policy.batch)
    rowless = sum(orphan.kind is OrphanKind.ROWLESS for orphan in ready)
    visit.count(watched=max(0, visit.report.rowless - rowless))
    if len(ready) == visit.policy.batch:  # one batch of how many?
        rowless = visit.orphans.ready_rowless(visit.name, visit.scope)
    spared = not _may_kill(visit, rowless, listing.owned)
    for orphan in ready:
        if spared and orphan.kind is OrphanKind.ROWLESS:
            visit.count(kept=1)
        elif visit.is_over() or not _kill_one(visit, orphan):
            break


def _judge(visit: Visit, info: SandboxInfo, row: Known | None) -> OrphanKind | None:
    """Why this sandbox is an orphan; None when its row explains it."""
    if row is None:
        visit.count(rowless=1)
        return OrphanKind.ROWLESS
    if row.state is SandboxState.GONE:
        visit.count(late=1)
        return OrphanKind.LATE
    if row.external_id is not None and row.external_id != info.ref.external_id:
        visit.count(twin=1)
        return OrphanKind.TWIN
    if row.state is SandboxState.CREATING:
        visit.count(creating=1)
    elif row.state is SandboxState.CLOSING:
        visit.count(closing=1)
    else:
        visit.count(explained=1)
    return None


def _noted(visit: Visit, info: SandboxInfo, key: str, kind: OrphanKind) -> Mapping[str, object]:
    return {
        "of_provider": visit.name,
        "of_external_id": info.ref.external_id,
        "of_key": key,
        "of_scope": visit.scope,
        "of_kind": kind.value,
    }


def _doubt_the_store(
    visit: Visit, listing: Listing, known: Mapping[str, Known], older: int
) -> None:
    """
    A database that is younger than the sandboxes, that explains none of many, or that never had
    any, is not the one that made them: empty, restored, or a wrong DATABASE_URL.
    """
    rowless = visit.report.rowless
    emptied = not known and (rowless >= IMPLAUSIBLE or (rowless > 0 and visit.inventory.is_empty()))
    # After a restore rowless ones are kept anyhow, until an operator has looked at them.
    kept = visit.store.guard.decision(HoldReason.MASS_ORPHANS) is Decision.DENIED
    if (older or emptied) and not kept:
        detail = {
            "listed": listing.owned,
            "explained": len(known),
            "older_than_the_database": older,
        }
        visit.may(HoldReason.STORE, detail)


def _may_kill(visit: Visit, rowless: int, population: int) -> bool:
    """The breaker: many rowless sandboxes at once mean that rows were lost, not sandboxes."""
    if visit.store.guard.decision(HoldReason.STORE) is Decision.DENIED:
        return False
    decision = visit.store.guard.decision(HoldReason.MASS_ORPHANS)
    if decision is not None:
        return decision is Decision.APPROVED
    if rowless <= max(visit.policy.breaker_min, visit.policy.breaker_ratio * population):
        return True
    return visit.may(HoldReason.MASS_ORPHANS, {"rowless": rowless, "listed": population})


def _kill_one(visit: Visit, orphan: Orphan) -> bool:
    """False when the provider wants no more calls for now."""
    if visit.dry_run or not visit.orphans.claim(orphan):
        visit.count(kept=1)
        return True
    try:
        found = _destroy(visit, orphan)
    except RateLimited as error:
        pause = visit.policy.limit_pause(error.retry_after, spread=visit.host.spread())
        visit.store.health.limited(visit.name, pause)
        _failed(visit, orphan, words(error))
        return False
    except Exception as error:  # noqa: BLE001 - the next orphan is not to blame
        _failed(visit, orphan, words(error))
    else:
        visit.orphans.gone(orphan, found=found)
        visit.count(killed=int(found))
    return True


def _destroy(visit: Visit, orphan: Orphan) -> bool:
    """Make it gone and confirm it; False when it was not there any more."""
    ref = SandboxRef(name=orphan.name, external_id=orphan.external_id)
    deadline = min(visit.deadline, visit.host.monotonic() + visit.policy.attempt_budget)
    found = visit.provider.get(ref, deadline=deadline)
    visit.check_scope()
    if found is None or found.state is ProviderState.GONE:
        return False
    owned = ownership(found.ref.name, found.labels, visit.store.installation)
    if owned is None or owned.key != orphan.key:
        raise ProviderError(f"{orphan.external_id} is not ours any more")
    if found.ref.external_id != orphan.external_id:
        raise ProviderError(f"asked for {orphan.external_id}, got {found.ref.external_id}")
    left = destroy(visit.provider, ref, deadline)
    if left is not None:
        raise still_there(left)
    return True


def _failed(visit: Visit, orphan: Orphan, error: str) -> None:
    visit.count(failed=1)
    pause = visit.policy.pause(orphan.attempts + 1, spread=visit.host.spread())
    visit.orphans.failed(orphan, error, pause)
    visit.tell(
        EventKind.ORPHAN_FAILED, name=orphan.name, external_id=orphan.external_id, error=error
    )
