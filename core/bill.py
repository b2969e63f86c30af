"""What was counted, by tenant and provider, in seconds and at the operator's prices in money."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .prices import HOUR, Prices, money
from .savings import REST, Book, Outcome, Span, Sums


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What another idle TTL would have saved, and whom it would have cost their sandbox."""

    ttl: float
    saved: float  # seconds; negative: so many more
    saved_cost: float | None
    resets: int
    sessions: int
    spared: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """
    Of one tenant at one provider. Durations are seconds; costs are None where nobody gave a price.
    Without a tenant: all that are not told apart; without a provider: the total.
    """

    tenant: str | None
    provider: str | None
    sandboxes: int
    billed: float
    busy: float
    idle: float
    saved: float  # against sandboxes that nobody reaps
    billed_cost: float | None
    idle_cost: float | None
    saved_cost: float | None
    what_if: Sequence[WhatIf]


@dataclass(frozen=True, kw_only=True)
class Bill:
    """All of a span."""

    since: datetime
    until: datetime
    currency: str | None
    lines: Sequence[Line]
    total: Line


def bill(span: Span, book: Book, prices: Prices | None) -> Bill:
    """The lines by tenant and provider, and their total."""
    lines = [
        _line(tenant, provider, sums, prices) for (tenant, provider), sums in book.lines.items()
    ]
    lines.sort(key=lambda line: (line.tenant is None, line.tenant or "", line.provider or ""))
    return Bill(
        since=datetime.fromtimestamp(span.since, UTC),
        until=datetime.fromtimestamp(span.until, UTC),
        currency=None if prices is None else prices.currency,
        lines=lines,
        total=_total(book.total(), lines, prices),
    )


def said(found: WhatIf, ttl: str, currency: str | None) -> str:
    """`A TTL of 15 min would have saved 412.00 EUR (31.0 h) and reset 31 sessions`."""
    hours = f"{abs(found.saved) / HOUR:,.1f} h"
    cost = found.saved_cost
    amount = hours if cost is None else f"{abs(cost):,.2f} {currency} ({hours})"
    verb = "saved" if found.saved >= 0 else "cost another"
    whom = f"{found.sessions:,} session{'' if found.sessions == 1 else 's'}"
    spared = f", and spared {found.spared:,} of the resets that there were" if found.spared else ""
    return f"A TTL of {ttl} would have {verb} {amount} and reset {whom}{spared}"


def _line(tenant: str, provider: str, sums: Sums, prices: Prices | None) -> Line:
    def cost(seconds: float) -> float | None:
        return money(prices, provider, seconds)

    return Line(
        tenant=None if tenant == REST else tenant,
        provider=provider,
        sandboxes=sums.sandboxes,
        billed=sums.billed,
        busy=sums.busy,
        idle=sums.idle,
        saved=sums.reaped,
        billed_cost=cost(sums.billed),
        idle_cost=cost(sums.idle),
        saved_cost=cost(sums.reaped),
        what_if=[_what_if(outcome, cost(outcome.saved)) for outcome in sums.outcomes],
    )


def _total(sums: Sums, lines: Sequence[Line], prices: Prices | None) -> Line:
    def all_of(costs: Iterable[float | None]) -> float | None:
        # A sum of which a part is missing is not the total.
        given = list(costs)
        known = [cost for cost in given if cost is not None]
        return sum(known) if prices is not None and len(known) == len(given) else None

    return Line(
        tenant=None,
        provider=None,
        sandboxes=sums.sandboxes,
        billed=sums.billed,
        busy=sums.busy,
        idle=sums.idle,
        saved=sums.reaped,
        billed_cost=all_of(line.billed_cost for line in lines),
        idle_cost=all_of(line.idle_cost for line in lines),
        saved_cost=all_of(line.saved_cost for line in lines),
        what_if=[
            _what_if(outcome, all_of(line.what_if[place].saved_cost for line in lines))
            for place, outcome in enumerate(sums.outcomes)
        ],
    )


def _what_if(outcome: Outcome, cost: float | None) -> WhatIf:
    return WhatIf(
        ttl=outcome.ttl,
        saved=outcome.saved,
        saved_cost=cost,
        resets=outcome.resets,
        sessions=outcome.sessions,
        spared=outcome.spared,
    )
