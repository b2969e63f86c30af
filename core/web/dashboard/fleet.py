"""Fleet: what runs, what is wrong and why, what ends soon."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from ...store.overview import IDLE, MINUTES
from .diagnosis import diagnosis
from .door import Looking
from .numbers import Fleet
from .render import page
from .route import new_router
from .words import span

router = new_router()


@router.get("/")
async def fleet(visit: Looking) -> Response:
    """The first page."""
    found = await visit.shared.fleet(visit.tenant)
    facts: dict[str, Any] = {"findings": diagnosis(found), "charts": charts(found)}
    facts |= {"visit": visit, "fleet": found}
    return await visit.desk.page(page, visit.request, "fleet.html", **facts)


def charts(fleet: Fleet) -> dict[str, dict[str, object]]:
    """What the bars show, and in words for who cannot see them."""
    ends, idle = list(fleet.forecast.ends), list(fleet.forecast.idle)
    edges = [f"< {span(edge)}" for edge in IDLE] + [f"> {span(IDLE[-1])}"]
    next_ten = sum(ends[:10])
    longest = sum(idle[3:])
    return {
        "ends": {
            "labels": [f"{minute} min" for minute in range(MINUTES)],
            "values": ends,
            "says": f"{sum(ends):,} end in {MINUTES} minutes, {next_ten:,} of them in 10, "
            "if they stay idle.",
        },
        "idle": {
            "labels": edges,
            "values": idle,
            "says": f"{longest:,} have been idle for more than {span(IDLE[2])}.",
        },
    }
