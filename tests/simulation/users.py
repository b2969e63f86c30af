"""What callers do: open, run turns that are short, long, silent or wedged, touch, extend, end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from core.errors import (
    InvalidSpec,
    ProviderError,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    StoreUnavailable,
    TurnExpired,
)
from core.lifecycle import Keeper
from core.turn import Turn
from tests.simulation.books import Asked
from tests.simulation.faults import Fault, Faults
from tests.simulation.judge import Judge
from tests.simulation.scheduler import Scheduler

# Every other error is a bug: callers decide by type what to do.
REFUSALS = (
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    TurnExpired,
    ProviderError,
    StoreUnavailable,
)
TURNS = (1.0, 10.0, 25.0, 90.0, 150.0)
WEDGED = 1e9


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What open() is asked for; None is the policy's."""

    idle_ttl: float | None = None
    max_age: float | None = None
    max_turn: float | None = None


class User:
    """One caller, in one API process, of a few sessions."""

    def __init__(
        self,
        keeper: Keeper,
        judge: Judge,
        faults: Faults,
        *,
        sessions: Mapping[str, Limits],
        extends: int,
        extensions: Sequence[float],
        pause: float,
        until: float,
    ) -> None:
        self.keeper = keeper
        self.judge = judge
        self.faults = faults
        self.sessions = sessions
        self.extensions = extensions
        self.pause = pause
        self.until = until
        self.scheduler: Scheduler = judge.scheduler
        self.random: Random = judge.scheduler.random
        acts: list[tuple[Callable[[str], None], int]] = [
            (self._run_turn, 10),
            (self._open, 2),
            (self._touch, 2),
            (self._extend, extends),
            (self._end, 2),
        ]
        self._acts = [act for act, weight in acts for _ in range(weight)]

    def live(self) -> None:
        """One thing after the other, until the world becomes quiet."""
        while self.scheduler.now < self.until:
            self.scheduler.sleep(2.0 * self.pause * self.random.random())
            if self.scheduler.now >= self.until:
                return
            session_id = self.random.choice(sorted(self.sessions))
            try:
                self.random.choice(self._acts)(session_id)
            except REFUSALS as error:
                self.scheduler.note(f"refused: {type(error).__name__}: {error!s:.60}")
                self.scheduler.sleep(2.0 * self.random.random())

    def _open(self, session_id: str) -> None:
        asked = self.judge.ask(session_id)
        limits = self.sessions[session_id]
        spec = {"options": {"no": "such"}} if self.faults.hit(Fault.IMPOSSIBLE) else None
        try:
            session = self.keeper.open(
                session_id,
                idle_ttl=limits.idle_ttl,
                max_age=limits.max_age,
                max_turn=limits.max_turn,
                spec=spec,
            )
        except InvalidSpec as error:
            self.judge.cannot_be_made(asked, error)
            raise
        self.judge.opened(asked, session)

    def _touch(self, session_id: str) -> None:
        asked = self.judge.ask(session_id)
        self.keeper.touch(session_id)
        self.judge.touched(asked)

    def _extend(self, session_id: str) -> None:
        asked = self.judge.ask(session_id)
        seconds = self.random.choice(self.extensions)
        session = self.keeper.extend(session_id, seconds)
        self.judge.extended(asked, session, seconds)

    def _end(self, session_id: str) -> None:
        self.keeper.end(session_id)

    def _run_turn(self, session_id: str) -> None:
        asked = self.judge.ask(session_id)
        turn = self.keeper.turn(session_id)
        try:
            turn.begin()
        except (SessionEnded, SessionNotFound):
            self._open(session_id)
            asked = self.judge.ask(session_id)
            turn = self.keeper.turn(session_id)
            turn.begin()
        self._work(asked, turn)

    def _work(self, asked: Asked, turn: Turn) -> None:
        """As a holder does: it looks now and then whether it may go on, or it hangs for ever."""
        trust = self.judge.began(asked, turn, asked.at + self._seconds(turn))
        wedged = self.random.random() < 0.04
        if wedged:
            self.faults.happened(Fault.WEDGED)
        length = WEDGED if wedged else self.random.choice(TURNS)
        silent = self.random.random() < 0.3
        end = self.scheduler.now + length
        try:
            while self.scheduler.now < end:
                left = end - self.scheduler.now
                self.scheduler.sleep(left if silent or wedged else min(left, 7.0))
                if not silent:
                    turn.check()
        finally:
            trust.asked_to_end = True
        turn.__exit__(None, None, None)

    def _seconds(self, turn: Turn) -> float:
        """What the holder was given, by its own clock from before it asked."""
        begun = turn._begun  # what begin() was answered
        assert begun is not None
        return (begun.hard_until - begun.started_at).total_seconds()
