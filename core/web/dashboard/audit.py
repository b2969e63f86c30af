"""Audit: the ledger, the latest first."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...events import EventKind
from ...model import check_holder
from ...store.records import NEWEST
from .door import Overseeing, Visit
from .render import page
from .route import new_router
from .sessions import Blank, Prefix

router = new_router()

PAGE: Final = 100


class Filter(BaseModel):
    """What the address may say."""

    model_config = ConfigDict(extra="ignore")

    kind: Annotated[EventKind | None, Blank] = None
    actor: Annotated[Annotated[str, AfterValidator(check_holder)] | None, Blank] = None
    session: Prefix = None
    before: Annotated[Annotated[int, Field(ge=1, le=NEWEST)] | None, Blank] = None

    def address(self, before: int) -> str:
        """The address of what comes before this line."""
        given = self.model_dump(mode="json", exclude={"before"}, exclude_none=True)
        return f"/audit?{urlencode({**given, 'before': before})}"


@router.get("/audit")
async def audit(visit: Overseeing, wanted: Annotated[Filter, Query()]) -> Response:
    """One page of the ledger."""
    return await visit.desk.page(_audit, visit, wanted)


def _audit(visit: Visit, wanted: Filter) -> Response:
    found = visit.desk.keeper.store.records.entries(
        kind=wanted.kind,
        actor=wanted.actor,
        session_id=wanted.session,
        before=wanted.before or NEWEST,
        limit=PAGE,
    )
    facts: dict[str, Any] = {
        "wanted": wanted,
        "found": found,
        "kinds": sorted(EventKind),
        "following": None if found.before is None else wanted.address(found.before),
    }
    return page(visit.request, "audit.html", visit=visit, **facts)
