"""Sessions: the list, and what of it somebody wants to see. All filters are in the address."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import Query, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ...model import SESSION_ID, SandboxState, SessionStatus, check_tenant
from ...settings import LONGEST
from ...store.selection import Wish
from .door import Looking, Visit
from .render import page
from .route import new_router
from .words import span

router = new_router()

PAGE: Final = 50
IDLE_CHOICES: Final = (60, 300, 900, 1800, 3600, 14400, 86400)  # seconds


def _blank(value: object) -> object:
    # A form sends what was left empty.
    return None if value == "" else value


def _tenant(value: str | None) -> str | None:
    return None if value is None else check_tenant(value)


Blank = BeforeValidator(_blank)
Prefix = Annotated[
    Annotated[str, Field(pattern=f"^{SESSION_ID.pattern}$", max_length=128)] | None, Blank
]
Idle = Annotated[float, Field(ge=0, le=LONGEST, allow_inf_nan=False)]


class Filter(BaseModel):
    """What the address of a list may say. Active sessions unless it says otherwise."""

    model_config = ConfigDict(extra="ignore")

    status: Annotated[SessionStatus | None, Blank] = SessionStatus.ACTIVE
    tenant: Annotated[str | None, Blank, AfterValidator(_tenant)] = None
    state: Annotated[SandboxState | None, Blank] = None
    idle: Annotated[Idle | None, Blank] = None
    prefix: Prefix = None
    overdue: Annotated[bool | None, Blank] = None
    after: Prefix = None

    def wish(self, visit: Visit) -> Wish:
        """The same as the store has it: of the viewer's tenant alone, if there is one."""
        return Wish(
            status=self.status,
            tenant=visit.tenant or self.tenant,
            state=self.state,
            idle=self.idle,
            prefix=self.prefix,
            overdue=bool(self.overdue),
        )

    def fields(self) -> dict[str, str]:
        """The filters as the address has them, without the place in the list."""
        given = self.model_dump(mode="json", exclude={"after"}, exclude_none=True)
        if self.status is None:
            given["status"] = ""
        if self.idle is not None:
            given["idle"] = f"{self.idle:g}"
        return {name: "1" if value is True else str(value) for name, value in given.items()}

    def address(self, **instead: str | None) -> str:
        """The address of this list with some of it changed; None leaves a field out."""
        fields: dict[str, Any] = {**self.fields(), **instead}
        kept = {name: value for name, value in fields.items() if value is not None}
        return f"/sessions?{urlencode(kept)}"

    def chips(self) -> list[tuple[str, str]]:
        """What is asked for, in words, each with the address of the list without it."""
        said = {
            "status": self.status and f"{self.status}",
            "state": self.state and f"sandbox {self.state}",
            "tenant": self.tenant and f"tenant {self.tenant}",
            "idle": self.idle and f"idle for {span(self.idle)}",
            "prefix": self.prefix and f"id begins with {self.prefix}",
            "overdue": self.overdue and "overdue",
        }
        without = {"status": ""}
        return [
            (words, self.address(**{name: without.get(name)}))
            for name, words in said.items()
            if words
        ]


FilterQuery = Annotated[Filter, Query()]


@router.get("/sessions")
async def sessions(visit: Looking, wanted: FilterQuery) -> Response:
    """One page of the list."""
    return await visit.desk.page(_list, visit, wanted)


def _list(visit: Visit, wanted: Filter) -> Response:
    found = visit.desk.keeper.store.selection.page(
        wanted.wish(visit), after=wanted.after or "", limit=PAGE
    )
    following = None if found.behind is None else wanted.address(after=found.behind)
    facts: dict[str, Any] = {
        "wanted": wanted,
        "found": found,
        "following": following,
        "idle_choices": [(str(choice), span(choice)) for choice in IDLE_CHOICES],
        "states": list(SandboxState),
        "statuses": list(SessionStatus),
    }
    return page(visit.request, "sessions.html", visit=visit, **facts)
