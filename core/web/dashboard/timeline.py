"""What happened to a session over time, as shapes: its turns as bars, its moves as marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ...events import EventKind
from ...model import Session, SessionStatus
from ...store.records import Entry, TurnRow
from .words import clock, span

WIDTH: Final = 1000.0  # of the drawing, in its own units
THINNEST: Final = 2.5
LOUD: Final = frozenset(
    {
        EventKind.SESSION_ENDED,
        EventKind.TEARDOWN_FAILED,
        EventKind.TEARDOWN_QUARANTINED,
        EventKind.ROW_POISONED,
    }
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A turn."""

    x: float
    width: float
    open: bool
    says: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A move."""

    x: float
    loud: bool
    says: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """From when until when, and what lies between."""

    since: datetime
    until: datetime
    bars: Sequence[Bar]
    marks: Sequence[Mark]
    active_at: float  # where the last activity lies


def timeline(session: Session, turns: Sequence[TurnRow], events: Sequence[Entry]) -> Timeline:
    """The stretch that these turns and events cover, until now."""
    now = session.seen_at
    moments = [turn.started_at for turn in turns] + [event.at for event in events]
    since = min([*moments, session.opened_at, now - timedelta(seconds=1)])
    length = max(1.0, (now - since).total_seconds())

    def place(moment: datetime) -> float:
        passed = (moment - since).total_seconds() / length
        return round(WIDTH * min(1.0, max(0.0, passed)), 2)

    return Timeline(
        since=since,
        until=now,
        bars=[
            _bar(session, turn, place(turn.started_at), place(_end(session, turn)))
            for turn in turns
        ],
        marks=[
            Mark(
                x=place(event.at),
                loud=event.kind in LOUD,
                says=f"{clock(event.at)} {event.kind.replace('_', ' ')}",
            )
            for event in events
        ],
        active_at=place(session.last_activity_at),
    )


def _end(session: Session, turn: TurnRow) -> datetime:
    """An open turn has lived until its last heartbeat at least, as far as the rows tell."""
    if turn.ended_at is not None:
        return turn.ended_at
    if turn.generation != session.generation:
        return turn.started_at
    return max(turn.started_at, session.last_activity_at)


def _bar(session: Session, turn: TurnRow, start: float, end: float) -> Bar:
    live = (
        turn.ended_at is None
        and turn.generation == session.generation
        and session.status is SessionStatus.ACTIVE
        and turn.hard_until > session.seen_at
    )
    length = span((_end(session, turn) - turn.started_at).total_seconds())
    became = "open" if live else turn.outcome or "never ended"
    return Bar(
        x=start,
        width=max(THINNEST, end - start),
        open=live,
        says=f"turn of {turn.holder}: {clock(turn.started_at)}, {length}, {became}",
    )
