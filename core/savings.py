"""
What sandboxes cost and what reaping saves: the arithmetic, on rows that somebody else has read.
All moments are seconds of one clock, and nothing is kept of a sandbox that was counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from .errors import InvalidArgument
from .settings import LONGEST

WEEK: Final = 604_800.0  # seconds that are looked at when nobody says how many
MOST_TTLS: Final = 10  # that are tried at a time
MOST_LINES: Final = 1_000  # tenants and providers that are told apart
REST: Final = ""  # the tenant of all the others
NEVER: Final = -math.inf
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Act(StrEnum):
    """What the rows and the ledger know of a sandbox's use."""

    TURN = "turn"  # work, from its start to its end
    TOUCH = "touch"  # activity at one moment
    EXTENDED = "session_extended"  # kept until a moment, whether it is idle or not
    PINNED = "session_pinned"  # likewise, unless the pin is lifted
    UNPINNED = "session_unpinned"  # the pin is lifted


class Ending(StrEnum):
    """Why a sandbox's session ended, as far as it matters here."""

    IDLE = "idle"  # with another idle TTL it would have ended at another moment
    LOST = "lost"  # it went by itself: nothing was saved by that
    OTHER = "other"  # a caller's wish, its age: with any idle TTL it would have ended by then


@dataclass(frozen=True, kw_only=True)
class Span:
    """What is looked at; `until` is also the present moment."""

    since: float
    until: float

    def within(self, start: float, end: float) -> float:
        """Seconds from `start` to `end` that are in here."""
        return max(0.0, min(end, self.until) - max(start, self.since))


@dataclass(frozen=True, kw_only=True)
class Life:
    """One sandbox. None: not yet, or no limit."""

    session_id: str
    generation: int
    tenant: str
    provider: str
    created: float
    closing: float | None = None  # its session ended
    gone: float | None = None  # its provider confirmed that it is not there
    max_age: float | None = None
    ending: Ending = Ending.OTHER
    ran: bool = True  # its provider ever answered with an id
    seen: float | None = None  # the last activity that its row has


@dataclass(frozen=True, kw_only=True)
class Use:
    """Something that happened to a sandbox. A turn ends, a promise holds, at `until`."""

    act: Act
    at: float
    until: float


@dataclass(kw_only=True)
class Outcome:
    """What one idle TTL would have made of it."""

    ttl: float
    saved: float = 0.0  # seconds; negative: so many more
    resets: int = 0  # returns to a session whose sandbox would have been gone
    sessions: int = 0  # that were reset, once or more
    spared: int = 0  # resets that happened, and would not have

    def add(self, other: Outcome) -> None:
        self.saved += other.saved
        self.resets += other.resets
        self.sessions += other.sessions
        self.spared += other.spared


@dataclass(kw_only=True)
class Sums:
    """Of one tenant at one provider, in seconds."""

    sandboxes: int = 0
    billed: float = 0.0  # from their creation until they were gone
    busy: float = 0.0  # of that, in a turn
    reaped: float = 0.0  # that they would have cost besides, had nobody torn them down
    outcomes: list[Outcome]

    @property
    def idle(self) -> float:
        return max(0.0, self.billed - self.busy)

    def add(self, other: Sums) -> None:
        self.sandboxes += other.sandboxes
        self.billed += other.billed
        self.busy += other.busy
        self.reaped += other.reaped
        for outcome, more in zip(self.outcomes, other.outcomes, strict=True):
            outcome.add(more)


def no_sums(ttls: Sequence[float]) -> Sums:
    """Sums of nothing."""
    return Sums(outcomes=[Outcome(ttl=ttl) for ttl in ttls])


@dataclass
class Book:
    """Sums by tenant and provider; beyond MOST_LINES of them the others are one."""

    ttls: Sequence[float]
    lines: dict[tuple[str, str], Sums] = field(default_factory=dict)

    def of(self, tenant: str, provider: str) -> Sums:
        """Where this is added to."""
        key = (tenant, provider)
        if key not in self.lines and len(self.lines) >= MOST_LINES:
            key = (REST, provider)
        return self.lines.setdefault(key, no_sums(self.ttls))

    def add(self, other: Book) -> None:
        """What another stretch of the same rows came to."""
        for (tenant, provider), sums in other.lines.items():
            self.of(tenant, provider).add(sums)

    def total(self) -> Sums:
        """All of them."""
        total = no_sums(self.ttls)
        for sums in self.lines.values():
            total.add(sums)
        return total


class Replay:
    """
    One session with another idle TTL. A sandbox ends the TTL after its last activity, or when a
    promise that was made to it is over; what comes later runs on a new one, from then on. Where a
    session really ended for another reason than idleness it ends here too.
    """

    def __init__(self, ttl: float, span: Span) -> None:
        self._ttl = ttl
        self._span = span
        self._sums: Outcome | None = None  # of the sandbox that runs; None: none does
        self._start = self._active = self._extended = self._pinned = NEVER
        self._max_age: float | None = None
        self._ended = NEVER  # when it really was, for idleness
        self._resets = 0

    def open(self, life: Life, outcome: Outcome) -> None:
        """The next generation; the one before had really ended."""
        if self._sums is not None:
            if life.created <= min(self._over, self._too_old):
                outcome.spared += self._span.since <= life.created
                self._active = max(self._active, life.created)
                return
            self._stop(self._too_old)
        self._begin(life.created, outcome)
        self._max_age = life.max_age

    def use(self, use: Use, outcome: Outcome) -> None:
        """What really happened next, in the order of `at`."""
        if use.act in {Act.TURN, Act.TOUCH}:
            if use.at > self._over:
                self._stop(use.at)
                self._begin(use.at, outcome)
                if use.at >= self._span.since:
                    outcome.resets += 1
                    self._resets += 1
            self._active = max(self._active, use.until)
        elif use.at <= self._over:  # later there was nobody who could have been kept
            if use.act is Act.EXTENDED:
                self._extended = max(self._extended, use.until)
            elif use.act is Act.PINNED:
                self._pinned = max(self._pinned, use.until)
            else:
                self._pinned = min(self._pinned, use.at)

    def idle(self, at: float) -> None:
        """It really ended for idleness: here it may go on."""
        self._ended = at

    def end(self, at: float) -> None:
        """It really ended, and not for idleness; or it has come to the present moment."""
        self._stop(at)

    def close(self, outcome: Outcome) -> None:
        """No more of this session."""
        self._stop(min(self._too_old, self._span.until))
        outcome.sessions += self._resets > 0

    @property
    def _over(self) -> float:
        return max(self._active + self._ttl, self._extended, self._pinned)

    @property
    def _too_old(self) -> float:
        # The row has the last generation's limit: what really was older than that was no mistake.
        return math.inf if self._max_age is None else max(self._start + self._max_age, self._ended)

    def _begin(self, at: float, outcome: Outcome) -> None:
        self._sums = outcome
        self._start = self._active = at
        self._extended = self._pinned = NEVER

    def _stop(self, at: float) -> None:
        if self._sums is not None:
            self._sums.saved -= self._span.within(self._start, min(at, self._over))
        self._sums = None


class Meter:
    """
    Counts sandboxes in the order of their sessions and generations, one pass over all. What it
    has in hand is one session's replays, whatever was read.
    """

    def __init__(self, span: Span, ttls: Sequence[float]) -> None:
        self.book = Book(ttls)
        self._span = span
        self._session: str | None = None
        self._sums = no_sums(ttls)
        self._replays: list[Replay] = []

    @property
    def horizon(self) -> float:
        """What was gone by then costs nothing in the span, whatever the TTL had been."""
        return self._span.since - max(self.book.ttls, default=0.0)

    def count(self, life: Life, uses: Iterable[Use]) -> None:
        """One sandbox with all that happened to it, in the order of `at`."""
        if life.session_id != self._session:
            self.finish()
            self._session = life.session_id
            self._replays = [Replay(ttl, self._span) for ttl in self.book.ttls]
        self._sums = sums = self.book.of(life.tenant, life.provider)
        present = self._span.until
        stop = min(present if life.closing is None else life.closing, present)
        gone = present if life.gone is None else life.gone
        if gone > self._span.since:
            sums.sandboxes += 1
            sums.billed += self._span.within(life.created, gone)
            sums.reaped += self._never_reaped(life, gone)
        pairs = list(zip(self._replays, sums.outcomes, strict=True))
        for replay, outcome in pairs:
            outcome.saved += self._span.within(life.created, stop)
            replay.open(life, outcome)
        busy_until = life.created
        for use in _clipped(uses, life, stop):
            if use.act is Act.TURN:
                sums.busy += self._span.within(max(use.at, busy_until), use.until)
                busy_until = max(busy_until, use.until)
            for replay, outcome in pairs:
                replay.use(use, outcome)
        for replay in self._replays:
            if life.closing is None or life.ending is not Ending.IDLE:
                replay.end(stop)
            else:
                replay.idle(stop)

    def finish(self) -> None:
        """The session in hand has no more generations."""
        for replay, outcome in zip(self._replays, self._sums.outcomes, strict=False):
            replay.close(outcome)
        self._replays = []

    def _never_reaped(self, life: Life, gone: float) -> float:
        if not life.ran or life.ending is Ending.LOST:
            return 0.0
        oldest = math.inf if life.max_age is None else life.created + life.max_age
        return self._span.within(gone, oldest)


def _clipped(uses: Iterable[Use], life: Life, stop: float) -> Iterable[Use]:
    """What happened while the sandbox was there, and the activity that has no line of its own."""
    for use in uses:
        at = min(max(use.at, life.created), stop)
        end = use.until if use.act in {Act.EXTENDED, Act.PINNED} else min(use.until, stop)
        yield Use(act=use.act, at=at, until=max(at, end))
    if life.seen is not None:
        seen = min(max(life.seen, life.created), stop)
        yield Use(act=Act.TOUCH, at=seen, until=seen)


def check_ttls(ttls: Iterable[float]) -> list[float]:
    """The idle TTLs to try, each once; InvalidArgument when one makes no sense."""
    found = sorted(set(ttls))
    for ttl in found:
        if not (math.isfinite(ttl) and 0 < ttl <= LONGEST):
            raise InvalidArgument(f"ttl {ttl:g}: give seconds, more than 0 and at most ten years")
    if len(found) > MOST_TTLS:
        raise InvalidArgument(f"ttl: {len(found)} of them; try at most {MOST_TTLS} at a time")
    return found


def parse_span(text: str) -> float:
    """Seconds of `7d`, `12h`, `30m`, `90s` or `90`; InvalidArgument when they make no sense."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST:
        raise InvalidArgument(f"since {text!r}: write it as 7d, 12h, 30m or in seconds; above 0")
    return seconds
