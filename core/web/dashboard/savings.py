"""Savings: what sandboxes cost, what reaping saves, and what another idle TTL would have."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...bill import bill, said
from ...model import check_tenant
from ...savings import WEEK, Span, check_ttls
from ...settings import LONGEST
from .door import Looking, Visit
from .render import page
from .route import new_router
from .sessions import Blank
from .words import span as in_words

router = new_router()

MOST: Final = 5_000  # sandboxes that one look reads
SPANS: Final = (86_400, 604_800, 2_592_000)  # seconds
USUAL: Final = (300.0, 900.0, 1_800.0, 3_600.0)  # idle TTLs that are tried unasked


class Filter(BaseModel):
    """What the address may say."""

    model_config = ConfigDict(extra="ignore")

    since: Annotated[float, Field(gt=0, le=LONGEST, allow_inf_nan=False)] = WEEK
    minutes: Annotated[
        Annotated[float, Field(gt=0, le=LONGEST / 60, allow_inf_nan=False)] | None, Blank
    ] = None
    tenant: Annotated[Annotated[str, AfterValidator(check_tenant)] | None, Blank] = None

    @property
    def ttls(self) -> list[float]:
        """The one that was asked for, or some usual ones."""
        return check_ttls(USUAL if self.minutes is None else [self.minutes * 60])


@router.get("/savings")
async def savings(visit: Looking, wanted: Annotated[Filter, Query()]) -> Response:
    """The table, and the form for another TTL."""
    return await visit.desk.page(_savings, visit, wanted)


def _savings(visit: Visit, wanted: Filter) -> Response:
    store = visit.desk.keeper.store.savings
    span: Span = store.span(wanted.since)
    tenant = visit.tenant or wanted.tenant
    found = store.read(span, wanted.ttls, tenant=tenant, most=MOST)
    counted = bill(span, found.book, visit.desk.prices)
    what_if = [said(one, in_words(one.ttl), counted.currency) for one in counted.total.what_if]
    facts: dict[str, Any] = {
        "wanted": wanted,
        "bill": counted,
        "read": found.read,
        "more": found.behind is not None,
        "what_if": what_if,
        "spans": [(f"{seconds:g}", in_words(seconds)) for seconds in SPANS],
        "hours": _hours,
        "cost": _cost,
    }
    return page(visit.request, "savings.html", visit=visit, **facts)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h"


def _cost(cost: float | None, currency: str | None) -> str:
    return "" if cost is None or currency is None else f"{cost:,.2f} {currency}"
