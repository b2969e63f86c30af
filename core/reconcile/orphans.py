"""Sandboxes that no row explains: noted, watched for the grace, torn down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..errors import ProviderError, RateLimited, words
from ..events import EventKind
from ..model import OrphanKind, SandboxState, ownership
from ..providers.base import ProviderState, SandboxRef
from ..store.guard import Decision, HoldReason
from ..store.inventory import KEYS, Known
from ..store.orphans import Orphan
from ..teardown import destroy, still_there
from .listing import Listing, Shown
from .visit import Visit

EXPLAINED = {SandboxState.CREATING: "creating", SandboxState.CLOSING: "closing"}
IMPLAUSIBLE = 5  # listed sandboxes of which a database that is ours would explain at least one


def sight(visit: Visit, listing: Listing) -> None:
    """Note the listed sandboxes that no row explains, and forget those that are not there now."""
    orphans: list[Mapping[str, object]] = []
    counted: Counter[str] = Counter()
    explained = older = 0
    store_began = visit.began.store_created_at.timestamp() - 1.0
    everything = sorted(listing.of)
    for start in range(0, len(everything), KEYS):
        keys = everything[start : start + KEYS]
        known = visit.inventory.explain(keys)
        explained += len(known)
        for key in keys:
            for shown in listing.of[key]:
                verdict, kind = _judge(shown, known.get(key))
                counted[verdict] += 1
                if kind is not None:
                    older += kind is OrphanKind.ROWLESS and shown.created_at < store_began
                    orphans.append(_noted(visit, shown, key, kind))
    visit.count(**counted)
    _doubt_the_store(visit, listing, explained, older)
    if not visit.dry_run:
        visit.orphans.sight(orphans)
        visit.orphans.forget_unseen(visit.name, visit.scope, visit.began.began_at)


def kill(visit: Visit, listing: Listing) -> None:
    """Tear down those whose time has come, as far as the breaker and this pass's time allow."""
    rowless = visit.orphans.ready_rowless(visit.name, visit.scope)
    visit.count(watched=max(0, visit.report.rowless - rowless))
    spared = not _may_kill(visit, rowless, listing.owned)
    visit.count(kept=rowless if spared else 0)
    of = (visit.name, visit.scope, visit.policy.batch)
    # Without those that are spared: a batch of them would hide the others for as long.
    for orphan in visit.orphans.ready(*of, rowless=not spared):
        if visit.is_over() or not _kill_one(visit, orphan):
            break


def _judge(shown: Shown, row: Known | None) -> tuple[str, OrphanKind | None]:
    """What the report counts it as, and why it is an orphan; None when its row explains it."""
    if row is None:
        return "rowless", OrphanKind.ROWLESS
    if row.state is SandboxState.GONE:
        return "late", OrphanKind.LATE
    if row.external_id is not None and row.external_id != shown.external_id:
        return "twin", OrphanKind.TWIN
    return EXPLAINED.get(row.state, "explained"), None


def _noted(visit: Visit, shown: Shown, key: str, kind: OrphanKind) -> Mapping[str, object]:
    return {
        "of_provider": visit.name,
        "of_external_id": shown.external_id,
        "of_key": key,
        "of_scope": visit.scope,
        "of_kind": kind.value,
    }


def _doubt_the_store(visit: Visit, listing: Listing, explained: int, older: int) -> None:
    """
    A database that is younger than the sandboxes, that explains none of many, or that never had
    any, is not the one that made them: empty, restored, or a wrong DATABASE_URL.
    """
    rowless = visit.report.rowless
    emptied = not explained and (
        rowless >= IMPLAUSIBLE or (rowless > 0 and visit.inventory.is_empty())
    )
    # After a restore rowless ones are kept anyhow, until an operator has looked at them.
    kept = visit.store.guard.decision(HoldReason.MASS_ORPHANS) is Decision.DENIED
    if (older or emptied) and not kept:
        detail = {
            "listed": listing.owned,
            "explained": explained,
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
        # Tried before: it took its time to go, or whoever tried it died before the word.
        went = found or orphan.attempts > 0
        visit.orphans.gone(orphan, went=went)
        visit.count(killed=int(went))
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
