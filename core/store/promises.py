"""
What callers were promised by a clock that has stepped back since. Promises count anew by the clock
as it is, or a session would be kept for as long as it had been ahead. When that clock is put right,
they hold as they were made: so they are set aside, and not forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, insert, literal, select

from ..schema import earlier_promises
from .database import Move
from .rules import EXTENSION, PIN, Rules, e, locked, s
from .sql import any_of


class Promises:
    """Part of others' transactions: of those that count promises anew, or overwrite them."""

    def __init__(self, rules: Rules) -> None:
        these = any_of(s.id, "ids")
        self._set_aside = [
            insert(earlier_promises).from_select(
                ["session_id", "generation", "kind", "until", "at"],
                # Locked, as whoever waits for the row must not set aside what was counted anew.
                locked(
                    select(s.id, s.generation, literal(kind), until, at).where(
                        these, until.is_not(None), rules.ahead(at)
                    ),
                    skip=False,
                ),
            )
            for kind, until, at in (
                (EXTENSION, s.extended_until, rules.extended_at),
                (PIN, s.pinned_until, s.pinned_at),
            )
        ]
        # A clock that steps back every second leaves no more than what may still be believed.
        self._forget = delete(earlier_promises).where(
            any_of(e.session_id, "ids"), ~rules.ahead(e.at), e.until <= rules.now
        )
        self._lift = delete(earlier_promises).where(any_of(e.session_id, "ids"), e.kind == PIN)

    def set_aside(self, move: Move, session_ids: Sequence[str]) -> None:
        """Before the promises of these sessions are counted anew, or others take their place."""
        if session_ids:
            move.run(self._forget, {"ids": list(session_ids)})
            for statement in self._set_aside:
                move.run(statement, {"ids": list(session_ids)})

    def lift_pins(self, move: Move, session_id: str) -> None:
        """A pin that is lifted was promised to nobody any more, by whatever clock."""
        move.run(self._lift, {"ids": [session_id]})
