"""What an explanation says: raw values for programs, and a sentence with each for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ..model import SandboxState, SessionStatus
from ..store.history import Recorded


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit in seconds, None for none. `layer` is None where the ledger does not say it."""

    name: str
    seconds: float | None
    layer: str | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Activity:
    """The last activity. `source` is `open`, `begin` or `end`, None where it is not recorded."""

    at: datetime
    source: str | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A turn that its holder has not ended. `live` while it may go on."""

    turn_id: str
    holder: str
    started_at: datetime
    hard_until: datetime
    live: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """
    Something that holds, keeps or comes: of which kind, since or from when, until when. `values`
    are what JSON has.
    """

    kind: str
    at: datetime | None = None
    until: datetime | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """
    One session at `seen_at`, by the database's clock. `kept` is what keeps it although it is idle,
    `obstacles` what holds up what is `next`, `earlier` the sandboxes of earlier generations that
    are still there. `not_reaped` is None for what was ended, `taken` for what was not.
    """

    session_id: str
    tenant: str
    generation: int
    status: SessionStatus
    sandbox: SandboxState
    seen_at: datetime
    state: str
    sentence: str
    limits: tuple[Limit, ...]
    activity: Activity
    turns: tuple[Holding, ...]
    kept: tuple[Point, ...]
    obstacles: tuple[Point, ...]
    next: tuple[Point, ...]
    not_reaped: str | None
    taken: str | None
    earlier: tuple[Point, ...]
    history: tuple[Recorded, ...]
