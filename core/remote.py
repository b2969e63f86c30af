"""Turns whose holders are programs elsewhere, which send a call for each heartbeat."""

from __future__ import annotations

from collections.abc import Callable

from .model import Session, TurnOutcome, check_holder, check_session_id
from .store import BegunTurn, Store


class RemoteTurns:
    """
    Nobody in this process beats for them, and nothing of them is kept here: every process of the
    installation may begin, beat and end the same turn, and the death of one harms none. Whoever
    stops calling is dead; the session goes idle then, as it does for a process that was killed.
    """

    def __init__(
        self,
        store: Store,
        *,
        new_id: Callable[[], str],
        works_on: Callable[[str], None],
        begun: Callable[[Session], None],
    ) -> None:
        self._store = store
        self._new_id = new_id
        self._works_on = works_on
        self._begun = begun

    @property
    def heartbeat_every(self) -> float:
        """Seconds between two heartbeats; whoever beats as often is never taken for idle."""
        return self._store.policy.heartbeat

    def begin(self, session_id: str, *, holder: str) -> BegunTurn:
        """
        Begin one. SessionEnded, SessionNotReady or SessionNotFound when it may not. Where the
        answer is lost, the turn has no holder: it beats no more, and costs nothing.
        """
        self._works_on(check_session_id(session_id))
        begun = self._store.turns.begin(self._new_id(), session_id, check_holder(holder))
        self._begun(begun.session)
        return begun

    def beat(self, turn_id: str, session_id: str) -> None:
        """One heartbeat. SessionEnded or TurnExpired when the turn may not go on."""
        refused = self._store.turns.beat([turn_id])
        if turn_id in refused:
            raise refused[turn_id]
        # The provider's own TTL is kept ahead by whoever hears the heartbeats.
        self._works_on(session_id)

    def end(self, turn_id: str, session_id: str, outcome: TurnOutcome) -> None:
        """End it. SessionEnded or TurnExpired when it had been lost, or was ended before."""
        self._store.turns.end(turn_id, session_id, outcome)
