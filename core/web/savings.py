"""What sandboxes cost, and what reaping saves: the call, and what it gets and gives."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import Field

from ..bill import bill
from ..savings import MOST_TTLS, WEEK, Span, check_ttls
from ..settings import LONGEST
from ..store.savings import LOTS
from .answers import Answer
from .gate import Admitted
from .pages import cursor, place
from .requests import MOMENT, Request, Tenant

router = APIRouter(prefix="/v1", tags=["operations"])

MICRO: Final = 1_000_000  # a cursor has whole numbers
Seconds = Annotated[float, Field(gt=0, le=LONGEST, allow_inf_nan=False)]


class SavingsFilter(Request):
    """What to look at, and which other idle TTLs to try."""

    since: Seconds = Field(WEEK, description="Seconds before now.")
    ttl: list[Seconds] = Field([], max_length=MOST_TTLS, description="Seconds; may be repeated.")
    tenant: Tenant | None = None
    cursor: str | None = Field(None, max_length=2000, description="`next_cursor` of a page.")
    limit: int = Field(5_000, ge=1, le=LOTS, description="Sandboxes to read, about.")


class WhatIfAnswer(Answer):
    """What another idle TTL would have made of the same use. Durations are seconds."""

    ttl: float = Field(examples=[900.0])
    saved: float = Field(description="Negative: so many more.", examples=[111600.0])
    saved_cost: float | None = Field(examples=[3.1])
    resets: int = Field(description="Returns to a sandbox that would have been gone.")
    sessions: int = Field(description="Sessions that were reset, once or more.")
    spared: int = Field(description="Resets that happened, and would not have.")


class SavingsLineAnswer(Answer):
    """One tenant at one provider, in seconds; a cost is null where nobody gave a price."""

    tenant: str | None = Field(description="null: all that are not told apart.")
    provider: str | None = Field(description="null: the total.", examples=["docker"])
    sandboxes: int
    billed: float = Field(description="From creation until the sandbox was gone.")
    busy: float = Field(description="Of that, in a turn.")
    idle: float
    saved: float = Field(description="Against sandboxes that nobody reaps.")
    billed_cost: float | None
    idle_cost: float | None
    saved_cost: float | None
    what_if: list[WhatIfAnswer]


class SavingsPage(Answer):
    """
    What the sandboxes of some sessions come to; without `next_cursor` those are all. Pages of one
    span may be added up.
    """

    since: datetime = Field(examples=[MOMENT])
    until: datetime = Field(examples=[MOMENT])
    currency: str | None = Field(examples=["EUR"])
    read: int = Field(description="Sandboxes that were looked at.")
    lines: list[SavingsLineAnswer]
    total: SavingsLineAnswer
    next_cursor: str | None


@router.get("/savings", response_model=SavingsPage)
async def get_savings(
    caller: Admitted, wanted: Annotated[SavingsFilter, Query()]
) -> dict[str, Any]:
    """What sandboxes cost by tenant and provider, and what another idle TTL would have saved."""
    store, ttls = caller.desk.keeper.store.savings, check_ttls(wanted.ttl)
    tenant = caller.tenant(wanted.tenant)
    after, until = place(wanted.cursor, ("", 0))
    # Later pages are of the same span: otherwise their sums would not be.
    span = Span(since=until / MICRO - wanted.since, until=until / MICRO)
    if not until:
        span = await caller.desk.page(store.span, wanted.since)
    found = await caller.desk.page(
        store.read, span, ttls, tenant=tenant, after=after, most=wanted.limit
    )
    following = None
    if found.behind is not None:
        following = cursor(found.behind, round(span.until * MICRO))
    counted = bill(found.span, found.book, caller.desk.prices)
    return {**asdict(counted), "read": found.read, "next_cursor": following}
