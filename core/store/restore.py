"""After a restore from backup: what keeps an old state of the store from doing harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    String,
    Table,
    and_,
    bindparam,
    case,
    delete,
    null,
    or_,
    select,
    update,
)

from ..events import Event, EventKind
from ..schema import holds, orphans, sandboxes, sessions
from .database import Database
from .guard import FOR_GOOD, Decision, Guard, HoldReason
from .rules import ACTIVE, CREATING, GONE, Rules, b, s
from .sql import any_of

BATCH = 5000
FENCE = 1_000_000  # further than any claim's token counts


class Restore:
    """
    The backup does not know what happened since: who was active, who was torn down, which claim
    was given to whom. Each step can be repeated; `finish` is what lets things go on.
    """

    def __init__(self, database: Database, rules: Rules, guard: Guard) -> None:
        self.database = database
        self.guard = guard
        self._sessions = _page(sessions, s.id, ACTIVE)
        self._sandboxes = _page(sandboxes, b.key, ~GONE)
        # Activity since the backup is lost: everybody may have been active a moment ago.
        self._amnesty = (
            update(sessions)
            .where(any_of(s.id, "these"), ACTIVE)
            .values(
                last_activity_at=rules.active_now,
                due_at=rules.first_look,
                noticed_at=null(),
                noticed_activity_at=null(),
            )
        )
        # A worker of before may hold a claim with the very token that we would give next.
        again = rules.in_(rules.policy.longest_look)  # it may have been running for long
        self._fence = (
            update(sandboxes)
            .where(any_of(b.key, "these"), ~GONE)
            .values(
                claim_token=b.claim_token + FENCE,
                claimed_by=null(),
                due_at=case((CREATING, again), else_=b.due_at),
            )
        )

    def everything(self, progress: Callable[[int], None] = lambda _: None) -> int:
        """Amnesty and fences, in batches. Returns how many sessions are active."""
        active = self._batches(self._sessions, self._amnesty, progress)
        self._batches(self._sandboxes, self._fence, lambda _: None)
        return active

    def finish(self, *, actor: str) -> None:
        """Trust this database, keep what it does not know, and let everything else go on."""
        with self.database.move() as move:
            move.run(delete(orphans))
            # What was approved was approved for the state of then, and what was asked was asked of
            # it: if it is still true, the next sweep asks again. Not what an operator asked for.
            h = holds.c
            open_ = and_(h.until.is_(None), h.reason != HoldReason.OPERATOR)
            move.run(delete(holds).where(or_(h.decision == Decision.APPROVED, open_)))
            self.guard.trust_in(move)
            self.guard.deny_in(move, HoldReason.MASS_ORPHANS, FOR_GOOD, actor)
            move.record(Event(kind=EventKind.STORE_RESTORED, actor=actor))

    def _batches(self, page: Any, change: Any, progress: Callable[[int], None]) -> int:
        done, after = 0, ""
        while True:
            with self.database.move() as move:
                these = [row[0] for row in move.all(page, {"after": after})]
                if not these:
                    return done
                move.run(change, {"these": these})
            done, after = done + len(these), these[-1]
            progress(done)


def _page(table: Table, key: ColumnElement[str], where: ColumnElement[bool]) -> Any:
    after = bindparam("after", type_=String)
    return select(key).select_from(table).where(where, key > after).order_by(key).limit(BATCH)
