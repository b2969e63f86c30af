"""
What callers know: which turns they trust, and what was acknowledged to them. Nothing in here is
read from the database or from the log of the system.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from core.turn import Turn
from tests.simulation.scheduler import Process


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A call that is under way, as it was when it was sent."""

    session_id: str
    at: float
    steps: int  # that the database's clock had made


@dataclass(eq=False, kw_only=True)
class Trust:
    """
    A turn as its holder knows it: from the answer to begin until he asked for its end, was told
    that it is lost, reached its ceiling by his own clock, or died.
    """

    turn: Turn
    session_id: str
    generation: int
    box: str  # the provider's id
    process: Process
    since: float
    ceiling: float
    asked_to_end: bool = False
    excused: str = ""  # why the holder cannot complain any more

    def holds(self, now: float) -> bool:
        """Whether somebody works in this sandbox, and has every right to."""
        return (
            self.process.alive
            and not self.asked_to_end
            and not self.excused
            and self.turn.lost.error is None
            and now < self.ceiling
        )


@dataclass(kw_only=True)
class Extended:
    """
    A promise to keep a session, by each clock that the database has had since: until when, and
    what that clock showed when it was made, or stepped back under it.
    """

    by_clock: list[tuple[datetime, datetime]]
    lasts: float  # until when it holds, if that clock makes no jump

    def stepped(self, now: datetime) -> None:
        """So many seconds were promised: what lies ahead of the clock counts from now on."""
        until, at = self.by_clock[-1]
        if at > now:
            self.by_clock.append((until - (at - now), now))

    def until(self, shown: datetime) -> datetime:
        """The longest that was promised by a clock that had shown no more than that."""
        return max(until for until, at in self.by_clock if at <= shown)


@dataclass(kw_only=True)
class Promised:
    """What was acknowledged for one generation: by the database's clock, as callers see it."""

    generation: int
    active_at: datetime
    extensions: list[Extended] = field(default_factory=list)

    def extended(self, now: datetime, shown: datetime, passed: float) -> datetime | None:
        """Until when it is to be kept at least, where that is not over by any clock."""
        asked = (each.until(shown) for each in self.extensions if each.lasts > passed)
        return max((until for until in asked if until > now), default=None)


class Books:
    """All of it, in one world."""

    def __init__(self) -> None:
        self.trusts: list[Trust] = []
        self.promised: dict[str, Promised] = {}

    def live(self, now: float, *, box: str | None = None) -> list[Trust]:
        """Trusts that hold, of one sandbox or of all."""
        self.trusts = [trust for trust in self.trusts if trust.holds(now)]
        return [trust for trust in self.trusts if box in (None, trust.box)]

    def active(self, session_id: str, generation: int, at: datetime) -> None:
        """An activity was acknowledged, which counts from then."""
        known = self.promised.get(session_id)
        if known is None or known.generation < generation:
            known = Promised(generation=generation, active_at=at)
            self.promised[session_id] = known
        if known.generation == generation:
            known.active_at = max(known.active_at, at)

    def extended(
        self,
        session_id: str,
        generation: int,
        until: datetime | None,
        now: datetime,
        *,
        lasts: float,
    ) -> None:
        """So long it was promised to be kept."""
        known = self.promised.get(session_id)
        if known is not None and known.generation == generation and until is not None:
            known.extensions.append(Extended(by_clock=[(until, now)], lasts=lasts))

    def clock_stepped(self, now: datetime) -> None:
        """What lies in the future of a clock that was set back counts from now on."""
        for known in self.promised.values():
            known.active_at = min(known.active_at, now)
            for extended in known.extensions:
                extended.stepped(now)
