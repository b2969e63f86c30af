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


@dataclass(frozen=True, kw_only=True)
class Extended:
    """A promise to keep a session: by the database's clock, and in seconds of the world."""

    until: datetime
    at: datetime  # what that clock showed then, at most
    since: float
    lasts: float  # until when, if that clock makes no jump


@dataclass(kw_only=True)
class Promised:
    """What was acknowledged for one generation: by the database's clock, as callers see it."""

    generation: int
    active_at: datetime
    extensions: list[Extended] = field(default_factory=list)


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

    def extended(self, session_id: str, generation: int, extended: Extended) -> None:
        """So long it was promised to be kept."""
        known = self.promised.get(session_id)
        if known is not None and known.generation == generation:
            known.extensions.append(extended)

    def clock_stepped(self, now: datetime) -> None:
        """What lies in the future of a clock that was set back counts from now on."""
        for known in self.promised.values():
            known.active_at = min(known.active_at, now)
