"""The database's clock, watched by one that nobody sets: that of the process which sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EVER = datetime(1970, 1, 1, tzinfo=UTC)
SHORTEST_HOLD_UP = 1.0  # seconds; less is a busy machine, on which nobody would ever be ended


@dataclass(frozen=True, kw_only=True)
class Watched:
    """
    What one sweep believes of the database's clock. A notice from before `since` proves nothing:
    the clock jumped ahead after it, and no time has passed in which a heartbeat could have come.
    What comes due after it `began` is the next sweep's: however long this one takes, it takes no
    row twice, and none that its breaker did not count.
    """

    began: datetime
    since: datetime
    latest: Callable[[], datetime]
    """
    The latest that the clock may show by now, asked before each step. Beyond it, it has jumped
    since the sweep began; or a step was held up, as by a lock, and so was every heartbeat: from
    then on this stands still, and nobody is ended until the next sweep.
    """


NEVER = datetime(9999, 1, 1, tzinfo=UTC)
UNWATCHED = Watched(began=NEVER, since=EVER, latest=lambda: NEVER)


class Timekeeper:
    """
    One for all sweeps of a process. `monotonic` is the process's own clock in seconds; a difference
    of `tolerance` is no jump. Clocks jump when a database fails over to another machine, which is
    just when nobody could write a heartbeat for a while.
    """

    def __init__(self, monotonic: Callable[[], float], tolerance: float) -> None:
        self._monotonic = monotonic
        self._tolerance = timedelta(seconds=tolerance)
        # Together, and replaced at once: threads that sweep share them.
        self._known: tuple[datetime, float, datetime] | None = None

    def watch(self, look: Callable[[], datetime]) -> Watched:
        """At the beginning of a sweep. `look` asks the database for the time."""
        # Read before the look, so that what the look takes never seems to be a jump.
        before = self._monotonic()
        now = look()
        since = EVER
        if self._known is not None:
            at, then, since = self._known
            # A clock that went back behind a jump never reaches a date before it: from now on.
            since = now if now > self._latest(at, self._monotonic() - then) else min(since, now)
        self._known = now, before, since
        return Watched(began=now, since=since, latest=self._while_it_goes_on(now, before))

    def _while_it_goes_on(self, at: datetime, then: float) -> Callable[[], datetime]:
        last = then

        def latest() -> datetime:
            nonlocal last
            now = self._monotonic()
            # Beats that waited for the same lock as this sweep may get it after this sweep.
            if now - last <= max(self._tolerance.total_seconds(), SHORTEST_HOLD_UP):
                last = now
            return self._latest(at, last - then)

        return latest

    def _latest(self, at: datetime, seconds: float) -> datetime:
        return at + timedelta(seconds=seconds) + self._tolerance
