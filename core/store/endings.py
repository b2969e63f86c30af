"""The one move from active to ended: whoever ends a session closes its sandbox with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, update

from ..events import Event, EventKind
from ..model import SandboxState
from ..schema import sandboxes
from .database import Move
from .rules import Rules, b, s
from .sql import Earliest, any_of


class Endings:
    """
    An active session has a sandbox that is creating or running, an ended one has none: both rows
    move in one transaction, the session's first.
    """

    def __init__(self, rules: Rules) -> None:
        # What was idle or too old for long is late from then on, whoever ends it now.
        over_at = select(Earliest(rules.ends_at, rules.now)).where(s.id == b.session_id)
        self._close = (
            update(sandboxes)
            .where(
                any_of(b.session_id, "session_ids"),
                b.state.in_([SandboxState.CREATING.value, SandboxState.RUNNING.value]),
            )
            .values(
                state=SandboxState.CLOSING.value,
                over_at=over_at.scalar_subquery(),
                closing_at=rules.now,
                due_at=rules.now,
                not_before=rules.now,
            )
        )

    def close(self, move: Move, ended: Sequence[Row[Any]], actor: str) -> None:
        """Close the sandboxes of (id, generation, end_reason) rows that have just ended."""
        if not ended:
            return
        move.run(self._close, {"session_ids": [row.id for row in ended]})
        for row in ended:
            move.record(
                Event(
                    kind=EventKind.SESSION_ENDED,
                    actor=actor,
                    session_id=row.id,
                    generation=row.generation,
                    detail={"reason": row.end_reason},
                )
            )
