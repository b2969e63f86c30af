"""Running rows whose sandbox the provider does not have any more."""

from __future__ import annotations

from collections.abc import Sequence

from ..providers.base import ProviderState, SandboxRef
from ..store.guard import Decision, HoldReason
from ..store.inventory import Running
from .listing import Listing
from .visit import Visit

LONGEST_SCAN = 400  # pages of running rows that one pass compares, if it has the time


def look(visit: Visit, listing: Listing) -> str:
    """Compare some pages of running rows with the listing; gives where the next pass begins."""
    cursor, absent = visit.began.cursor, list[Running]()
    # Time has to be left to ask for some, or a pass would come no further than the one before.
    until = (visit.host.monotonic() + visit.deadline) / 2
    for _ in range(LONGEST_SCAN):
        rows = visit.inventory.running(visit.name, visit.scope, cursor, visit.began.began_at)
        visit.count(scanned=len(rows))
        absent += [row for row in rows if not listing.has(row)]
        if not rows:
            cursor = ""
            break
        cursor = rows[-1].key
        if visit.host.monotonic() >= until:
            break
    visit.count(missing=len(absent))
    if visit.store.guard.decision(HoldReason.MASS_MISSING) is Decision.DENIED:
        return cursor
    asked = _lose(visit, absent)
    if asked == len(absent):
        return cursor
    # Those that were not asked for are the first of the next pass.
    return absent[asked - 1].key if asked else visit.began.cursor


def _lose(visit: Visit, absent: Sequence[Running]) -> int:
    """
    A listing may be stale: only the provider's own answer for this very sandbox counts. More of
    them than is plausible, and an operator is asked before anybody's session ends. Gives how many
    it was asked for; what they say is taken to be true of the others.
    """
    asked, confirmed = _confirmed(visit, absent[: visit.policy.batch])
    expected = len(confirmed) * len(absent) / max(1, asked)
    scanned = visit.report.scanned
    if expected > max(visit.policy.breaker_min, visit.policy.breaker_ratio * scanned):
        detail = {"missing": len(absent), "scanned": scanned}
        if not visit.may(HoldReason.MASS_MISSING, detail):
            return asked
    if not visit.dry_run:
        visit.count(lost=sum(visit.inventory.lost(row.session_id, row.key) for row in confirmed))
    return asked


def _confirmed(visit: Visit, absent: Sequence[Running]) -> tuple[int, list[Running]]:
    gone, asked = list[Running](), 0
    for row in absent:
        if visit.is_over():
            break
        asked += 1
        try:
            ref = SandboxRef(name=row.name, external_id=row.external_id)
            info = visit.provider.get(ref, deadline=visit.deadline)
        except Exception:  # noqa: BLE001 - no answer is no "no"
            visit.count(unconfirmed=1)
            continue
        if info is None or info.state is ProviderState.GONE:
            gone.append(row)
        else:
            visit.count(unconfirmed=1)
    if gone:
        visit.check_scope()
    return asked, gone
