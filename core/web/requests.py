"""What callers send. Unknown fields are refused, and each refusal says what would be right."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from ..layers import MOST_LIVE, WhenFull, check_profile
from ..lifecycle import LONGEST_JSON
from ..model import (
    SESSION_ID,
    TENANT,
    SandboxState,
    SessionStatus,
    TurnOutcome,
    check_holder,
    check_reason,
    check_session_id,
    check_tenant,
)
from ..settings import LONGEST

SESSION = "conv-42"
TURN = "0199c0de-7a11-7000-8000-2f6b1c0a9d3e"
MOMENT = "2026-03-01T12:00:00Z"
DEEPEST = 100  # levels of metadata; what turns an answer into JSON takes no more than 255

# The words of the refusal are the checks' own; the description has the pattern for clients.
ID_SHAPE = {"pattern": f"^{SESSION_ID.pattern}$"}
TENANT_SHAPE = {"pattern": f"^{TENANT.pattern}$"}
LINE_SHAPE = {"minLength": 1, "maxLength": 200}

SessionId = Annotated[
    str,
    AfterValidator(check_session_id),
    Path(
        description="1 to 128 characters of A-Z a-z 0-9 . _ : -",
        examples=[SESSION],
        json_schema_extra=ID_SHAPE,
    ),
]
TurnId = Annotated[
    str,
    Path(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", examples=[TURN]),
]
Seconds = Annotated[float, Field(gt=0, le=LONGEST, allow_inf_nan=False, strict=True)]
Id = Annotated[str, AfterValidator(check_session_id), Field(json_schema_extra=ID_SHAPE)]
Tenant = Annotated[str, AfterValidator(check_tenant), Field(json_schema_extra=TENANT_SHAPE)]
Profile = Annotated[str, AfterValidator(check_profile), Field(json_schema_extra=TENANT_SHAPE)]
Holder = Annotated[str, AfterValidator(check_holder), Field(json_schema_extra=LINE_SHAPE)]
Reason = Annotated[str, AfterValidator(check_reason), Field(json_schema_extra=LINE_SHAPE)]


def _text(metadata: dict[str, Any]) -> dict[str, Any]:
    if is_deep(metadata):
        raise ValueError(f"nest it {DEEPEST} levels deep at most")
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no text: send whole characters") from error
    return metadata


def is_deep(fields: Any) -> bool:
    """Whether it is nested deeper than an answer can be."""
    level = [fields]
    for _ in range(DEEPEST):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [each for one in inner for each in one if isinstance(each, dict | list)]
    return bool(level)


class Request(BaseModel):
    """What callers send."""

    model_config = ConfigDict(extra="forbid")


class OpenRequest(Request):
    """Which session to open. Limits, in seconds, are those of a new generation."""

    id: Id | None = Field(
        None, description="Generated (UUIDv7) when it is left out.", examples=[SESSION]
    )
    tenant: Tenant | None = Field(
        None, description="The token's own when it is left out, else `default`.", examples=["acme"]
    )
    idle_ttl: Seconds | None = Field(None, examples=[600])
    max_age: Seconds | None = Field(None, examples=[86400])
    max_turn: Seconds | None = Field(None, examples=[3600])
    never_used_ttl: Seconds | None = Field(
        None, description="In place of `idle_ttl` until its first turn.", examples=[300]
    )
    profile: Profile | None = Field(
        None, description="Whose policy has the limits that are left out.", examples=[None]
    )
    metadata: Annotated[dict[str, Any], AfterValidator(_text)] | None = Field(
        None, description=f"At most {LONGEST_JSON} characters of JSON.", examples=[{"user": "ada"}]
    )


class TurnRequest(Request):
    """Who will hold the turn: shown to operators."""

    holder: Holder | None = Field(
        None, description="1 to 200 printable characters.", examples=["api-7f/worker-3"]
    )


class ExtendRequest(Request):
    """How long to keep an idle session."""

    by: Seconds = Field(description="Seconds from now.", examples=[3600])


class PinRequest(Request):
    """How long to keep a session whether it is idle or not, and why: shown to everybody."""

    for_: Seconds = Field(alias="for", description="Seconds from now.", examples=[86400])
    reason: Reason = Field(examples=["debugging conv-42"])


class PolicyRequest(Request):
    """Limits of one layer, in seconds. Null leaves one to the layer below."""

    idle_ttl: Seconds | None = Field(None, examples=[600])
    max_age: Seconds | None = Field(None, examples=[86400])
    max_turn: Seconds | None = Field(None, examples=[3600])
    never_used_ttl: Seconds | None = Field(None, examples=[300])
    max_live: int | None = Field(
        None, ge=1, le=MOST_LIVE, strict=True, description="Live sandboxes of one tenant."
    )
    when_full: WhenFull | None = None


class WindowRequest(Request):
    """A span in which nothing is ended for idleness, and why: shown to everybody."""

    from_: AwareDatetime = Field(alias="from", examples=[MOMENT])
    until: AwareDatetime = Field(examples=["2026-03-01T18:00:00Z"])
    reason: Reason = Field(examples=["moving to another cluster"])


class NoQuery(Request):
    """A call that takes no parameters."""


class Page(Request):
    """Where a list goes on."""

    cursor: str | None = Field(None, max_length=2000, description="`next_cursor` of a page.")
    limit: int = Field(50, ge=1, le=200)


class SessionFilter(Page):
    """Which sessions to list."""

    status: SessionStatus | None = None
    tenant: Tenant | None = None


class SandboxFilter(Page):
    """Which sandboxes to list."""

    state: SandboxState | None = None


class EndFilter(Request):
    """Why a session is ended."""

    reason: Reason = "ended"


class OutcomeFilter(Request):
    """How a turn came to its end."""

    outcome: TurnOutcome = TurnOutcome.COMPLETED


SessionQuery = Annotated[SessionFilter, Query()]
SandboxQuery = Annotated[SandboxFilter, Query()]
PageQuery = Annotated[Page, Query()]
EndQuery = Annotated[EndFilter, Query()]
OutcomeQuery = Annotated[OutcomeFilter, Query()]
Nothing = Annotated[NoQuery, Query()]
