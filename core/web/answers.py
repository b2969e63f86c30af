"""What callers get. Times are RFC 3339, in UTC; durations are seconds."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..model import (
    EndReason,
    SandboxState,
    SessionStatus,
)
from .requests import DEEPEST, MOMENT, SESSION, TURN, is_deep


def _sendable(fields: Any) -> Any:
    # What a Python program may have stored, and no answer can have.
    if is_deep(fields):
        return {"...": f"nested more than {DEEPEST} levels deep"}
    return json.loads(json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace"))


Json = Annotated[dict[str, Any], BeforeValidator(_sendable)]


class Answer(BaseModel):
    """What callers get. Fields may be added; none is taken away or changes its meaning."""

    model_config = ConfigDict(from_attributes=True)


class SandboxAnswer(Answer):
    """Where to work: `external_id` is the provider's id."""

    name: str = Field(examples=["sk-0a1b2c3d-abcdefghijklmnopqrstuvwxyz"])
    generation: int = Field(examples=[1])
    provider: str = Field(examples=["docker"])
    external_id: str | None = Field(examples=["4f1c0d9e8b7a"])
    state: SandboxState
    created_at: datetime = Field(examples=[MOMENT])
    expires_at: datetime | None = Field(examples=[None])


class SessionAnswer(Answer):
    """A session as it was at `seen_at`, by the database's clock. Durations are seconds."""

    id: str = Field(examples=[SESSION])
    tenant: str = Field(examples=["acme"])
    status: SessionStatus
    generation: int = Field(examples=[1])
    turn_count: int = Field(examples=[0])
    idle_ttl: float = Field(examples=[1800.0])
    max_age: float | None = Field(examples=[None])
    max_turn: float = Field(examples=[21600.0])
    never_used_ttl: float | None = Field(examples=[None])
    profile: str | None = Field(examples=[None])
    metadata: Json = Field(examples=[{"user": "ada"}])
    created_at: datetime = Field(examples=[MOMENT])
    opened_at: datetime = Field(examples=[MOMENT])
    last_activity_at: datetime = Field(examples=[MOMENT])
    due_at: datetime = Field(examples=[MOMENT])
    extended_until: datetime | None = Field(examples=[None])
    pinned_until: datetime | None = Field(examples=[None])
    pinned_by: str | None = Field(examples=[None])
    pin_reason: str | None = Field(examples=[None])
    noticed_at: datetime | None = Field(examples=[None])
    ended_at: datetime | None = Field(examples=[None])
    end_reason: str | None = Field(examples=[None, *EndReason])
    fresh: bool = Field(description="No turn has begun on this sandbox: it is empty.")
    reset_reason: str | None = Field(
        description="Why the sandbox before this one went.", examples=[None, *EndReason]
    )
    seen_at: datetime = Field(examples=[MOMENT])
    sandbox: SandboxAnswer


class OpenAnswer(SessionAnswer):
    """The session, and what became of it: of concurrent calls one has `created`."""

    outcome: Literal["created", "existing", "reopened"]


class TurnAnswer(Answer):
    """A turn that lives as long as it is sent heartbeats, and until `hard_until` at most."""

    turn_id: str = Field(examples=[TURN])
    session_id: str = Field(examples=[SESSION])
    generation: int = Field(examples=[1])
    sandbox: SandboxAnswer
    fresh: bool = Field(description="The first turn on this sandbox: it is empty.")
    heartbeat_every: float = Field(description="Seconds between two heartbeats.", examples=[15.0])
    started_at: datetime = Field(examples=[MOMENT])
    hard_until: datetime = Field(examples=[MOMENT])


class BeatAnswer(Answer):
    """The turn goes on."""

    turn_id: str = Field(examples=[TURN])
    session_id: str = Field(examples=[SESSION])
    generation: int = Field(examples=[1])
    heartbeat_every: float = Field(examples=[15.0])
    hard_until: datetime = Field(examples=[MOMENT])


class SessionLineAnswer(Answer):
    """A session in a list."""

    id: str = Field(examples=[SESSION])
    tenant: str = Field(examples=["acme"])
    status: SessionStatus
    generation: int = Field(examples=[1])
    sandbox: SandboxState
    turns_open: int = Field(examples=[1])
    last_activity_at: datetime = Field(examples=[MOMENT])
    due_at: datetime = Field(examples=[MOMENT])
    end_reason: str | None = Field(examples=[None])


class SandboxLineAnswer(Answer):
    """A sandbox in a list."""

    name: str
    session_id: str = Field(examples=[SESSION])
    generation: int = Field(examples=[1])
    tenant: str = Field(examples=["acme"])
    provider: str = Field(examples=["docker"])
    external_id: str | None
    state: SandboxState
    attempts: int = Field(description="Teardowns that were tried.", examples=[0])
    last_error: str | None
    created_at: datetime
    due_at: datetime | None
    quarantined_at: datetime | None
    gone_at: datetime | None


class OrphanAnswer(Answer):
    """A sandbox that carries our labels and that no row explains."""

    provider: str
    external_id: str
    name: str
    kind: str = Field(examples=["rowless"])
    first_seen_at: datetime
    last_seen_at: datetime
    sightings: int
    attempts: int
    last_error: str | None


class EventAnswer(Answer):
    """One line of the ledger."""

    at: datetime = Field(examples=[MOMENT])
    kind: str = Field(examples=["session_opened"])
    generation: int | None = Field(examples=[1])
    actor: str
    detail: Json


class LimitAnswer(Answer):
    """
    One limit. `layer` says who set it: `open`, `profile`, `tenant`, `installation`; null where
    nobody recorded it.
    """

    name: str = Field(examples=["idle_ttl"])
    seconds: float | None = Field(examples=[1800.0])
    layer: str | None = Field(examples=["installation"])
    sentence: str = Field(examples=["idle_ttl is 30 min, set by the installation's default."])


class ActivityAnswer(Answer):
    """The last activity. `source` is null where it is not recorded, as of a heartbeat."""

    at: datetime = Field(examples=[MOMENT])
    source: str | None = Field(examples=["open"])
    sentence: str = Field(
        examples=["Its last activity was 2026-03-01 12:00:00 UTC (now): it was opened."]
    )


class HoldingAnswer(Answer):
    """A turn that was not ended; `live` while it may go on."""

    turn_id: str = Field(examples=[TURN])
    holder: str = Field(examples=["api-7f/worker-3"])
    started_at: datetime = Field(examples=[MOMENT])
    hard_until: datetime = Field(examples=[MOMENT])
    live: bool
    sentence: str


class PointAnswer(Answer):
    """Something that keeps it, holds it up, or comes next: since or from `at`, until `until`."""

    kind: str = Field(examples=["notice"])
    at: datetime | None = Field(examples=[MOMENT])
    until: datetime | None = Field(examples=[None])
    values: Json = Field(examples=[{}])
    sentence: str


class ExplanationAnswer(Answer):
    """Why a session is still there, or why it was taken. New kinds may be added."""

    session_id: str = Field(examples=[SESSION])
    tenant: str = Field(examples=["acme"])
    generation: int = Field(examples=[1])
    status: SessionStatus
    sandbox: SandboxState
    seen_at: datetime = Field(examples=[MOMENT])
    state: str = Field(examples=["active"])
    sentence: str = Field(
        examples=["It is active: its idle TTL ends 2026-03-01 12:30:00 UTC (in 30 min)."]
    )
    limits: list[LimitAnswer]
    activity: ActivityAnswer
    turns: list[HoldingAnswer] = Field(examples=[[]])
    kept: list[PointAnswer] = Field(
        description="What keeps it although it is idle: an extension, a pin.", examples=[[]]
    )
    obstacles: list[PointAnswer] = Field(
        description="What holds up ends and teardowns.", examples=[[]]
    )
    next: list[PointAnswer] = Field(description="What happens, in order, if nothing else does.")
    not_reaped: str | None = Field(
        description="Why the last sweep did not end it.", examples=["No sweep ever ran."]
    )
    taken: str | None = Field(description="Why it, or the one before, was ended.", examples=[None])
    earlier: list[PointAnswer] = Field(
        description="Sandboxes of earlier generations that are not gone.", examples=[[]]
    )
    history: list[EventAnswer] = Field(examples=[[]])


class SessionPage(Answer):
    """Some sessions; without `next_cursor` there are no more."""

    items: list[SessionLineAnswer]
    next_cursor: str | None


class SandboxPage(Answer):
    """Some sandboxes; without `next_cursor` there are no more."""

    items: list[SandboxLineAnswer]
    next_cursor: str | None


class OrphanPage(Answer):
    """Some orphans; without `next_cursor` there are no more."""

    items: list[OrphanAnswer]
    next_cursor: str | None


class EventPage(Answer):
    """Some events; without `next_cursor` there are no more."""

    items: list[EventAnswer]
    next_cursor: str | None


class RetryAnswer(Answer):
    """How many teardowns the next sweep tries again."""

    retried: int = Field(examples=[1])


class PulseAnswer(Answer):
    """How the sweep is doing. `age` and `overdue` are seconds."""

    swept_at: datetime | None
    age: float | None = Field(description="Of the last sweep; null when none ever ran.")
    stand_in_age: float | None
    overdue: float = Field(description="How long the most overdue row has been waiting.")
    held: int = Field(description="Questions to an operator that are open.")
    window: str | None = Field(
        description="The maintenance window that is open: nothing is ended for idleness.",
        examples=[None],
    )
    late: bool


class SweepAnswer(Answer):
    """What one sweep did, in rows."""

    clamped: int
    followed: int = Field(description="Open sessions that were given a policy's new limits.")
    rearmed: int
    noticed: int
    ended: int
    expired: int
    published: int
    poisoned: int


class PolicyAnswer(Answer):
    """One layer's limits, in seconds; null leaves one to the layer below."""

    scope: str = Field(examples=["tenant:acme"])
    idle_ttl: float | None = Field(examples=[600.0])
    max_age: float | None = Field(examples=[None])
    max_turn: float | None = Field(examples=[None])
    never_used_ttl: float | None = Field(examples=[None])
    max_live: int | None = Field(examples=[20])
    when_full: str | None = Field(examples=["refuse"])
    changed_at: datetime = Field(examples=[MOMENT])
    changed_by: str
    followed: bool = Field(description="All open sessions have these limits.")


class PolicyList(Answer):
    """All policies that were ever set."""

    items: list[PolicyAnswer]


class WindowAnswer(Answer):
    """A maintenance window; `open` when it has begun and is not over."""

    name: str = Field(examples=["upgrade"])
    from_at: datetime = Field(examples=[MOMENT])
    until_at: datetime = Field(examples=["2026-03-01T18:00:00Z"])
    reason: str
    made_by: str
    open: bool


class WindowList(Answer):
    """All maintenance windows."""

    items: list[WindowAnswer]


class HealthAnswer(Answer):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyAnswer(Answer):
    """Each check with `ok`, or with what is wrong."""

    ready: bool
    checks: dict[str, str] = Field(
        examples=[{"database": "ok", "schema": "ok", "broker": "ok", "pulse": "ok"}]
    )
