"""One background thread for one process: it keeps all of its open turns alive, in one statement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from .errors import SandkeeperError
from .events import Event, EventKind
from .host import Host, in_forked_children
from .model import Session

BATCH = 500


class Beating(Protocol):
    """What the beater needs of a turn."""

    id: str

    @property
    def session(self) -> Session: ...

    def expire(self) -> bool: ...

    def lose(self, error: SandkeeperError) -> None: ...


class Beater:
    """
    `beat` writes heartbeats for turn ids and returns those that were refused, with the reason.
    It works from the first turn on. A forked child forgets the turns: its parent holds them, and
    goes on beating for them.
    """

    def __init__(
        self,
        beat: Callable[[Sequence[str]], dict[str, SandkeeperError]],
        interval: float,
        *,
        host: Host,
        tell: Callable[[Event], None],
        actor: str,
    ) -> None:
        self.interval = interval
        self._beat = beat
        self._tell = tell
        self._actor = actor
        self._loop = host.loop("sandkeeper-beater", self._round, interval)
        self.forget()
        in_forked_children(self, Beater.forget)

    def forget(self) -> None:
        """Start over without turns."""
        self._turns: dict[str, Beating] = {}
        self._lock = threading.Lock()

    def add(self, turn: Beating) -> None:
        with self._lock:
            self._turns[turn.id] = turn
        self._loop.start()

    def remove(self, turn: Beating) -> None:
        with self._lock:
            self._turns.pop(turn.id, None)

    def sessions(self) -> dict[str, Session]:
        """The sessions that turns are open on, by id, as they were when the turns began."""
        with self._lock:
            return {turn.session.id: turn.session for turn in self._turns.values()}

    def close(self) -> None:
        """Stop beating. Turns that are still open go idle."""
        self._loop.stop()
        self.forget()

    def once(self) -> bool:
        """One round for all open turns; False when the store could not be asked."""
        with self._lock:
            turns = dict(self._turns)
        # Those over their ceiling are not asked for: a database whose clock stepped back since
        # would let them go on.
        ids = [turn_id for turn_id, turn in turns.items() if not turn.expire()]
        for start in range(0, len(ids), BATCH):
            try:
                refused = self._beat(ids[start : start + BATCH])
            except Exception as error:  # noqa: BLE001 - an outage refuses nothing: turns go on
                detail = {"turns": len(ids), "error": str(error)}
                self._tell(Event(kind=EventKind.BEAT_FAILED, actor=self._actor, detail=detail))
                return False
            for turn_id, reason in refused.items():
                with self._lock:
                    still_open = turn_id in self._turns
                if still_open:  # not one that its holder ended while we asked
                    turns[turn_id].lose(reason)
        return True

    def _round(self) -> float:
        # After an outage the first heartbeat must come before the second look of the sweep.
        return self.interval if self.once() else self.interval / 4
