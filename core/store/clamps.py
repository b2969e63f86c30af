"""Dates that no healthy clock can have written: the database's clock stepped back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, or_, select, update

from ..schema import call_slots, orphans, providers, sandboxes, sessions
from .database import Database
from .promises import Promises
from .rules import ACTIVE, CLOSING, CREATING, RUNNING, Rules, b, locked, s
from .sql import Earliest, any_of

LIMIT = bindparam("limit", type_=s.generation.type)


class Clamps:
    """Brings them back. Nothing is ended by this, it is only looked at sooner."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._promises = Promises(rules)
        self.far: list[Select[Any]] = []  # the rows that have one, without their locks
        self._prepare_sessions(rules)
        self._prepare_backstops(rules)
        self._prepare_sandboxes(rules)
        self._prepare_waits(rules)

    def clamp(self, limit: int) -> int:
        """One batch; returns how many rows were brought back."""
        with self.database.move() as move:
            for clamp in self._clamp_waits:
                move.run(clamp)
            rows = move.all(self._lock_far, {"limit": limit})
            far = [row.id for row in rows]
            if far:
                self._promises.set_aside(move, [row.id for row in rows if row.overtaken])
                move.run(self._clamp_sessions, {"ids": far})
                move.run(self._clamp_backstops, {"ids": far})
            clamps = (self._clamp_creates, *self._clamp_sandboxes)
            return len(far) + sum(move.run(clamp, {"limit": limit}) for clamp in clamps)

    # Statements, built once

    def _prepare_sessions(self, rules: Rules) -> None:
        far = (
            select(s.id)
            .where(ACTIVE, s.due_at > rules.in_(rules.policy.longest_look + 1.0))
            .order_by(s.due_at.desc())
        )
        self.far.append(far)
        marked = far.add_columns(rules.overtaken.label("overtaken"))
        self._lock_far = locked(marked.limit(LIMIT), skip=True)
        self._clamp_sessions = (
            update(sessions)
            .where(any_of(s.id, "ids"))
            .values(
                due_at=rules.now,
                last_activity_at=Earliest(s.last_activity_at, rules.now),
                **rules.promises,
            )
        )

    def _prepare_backstops(self, rules: Rules) -> None:
        # What the provider granted ends much sooner than these dates say: ask it again.
        self._clamp_backstops = (
            update(sandboxes)
            .where(
                any_of(b.session_id, "ids"),
                RUNNING,
                b.expires_at.is_not(None),
            )
            .values(
                expires_at=Earliest(b.expires_at, rules.now),
                extend_at=Earliest(b.extend_at, rules.now),
            )
        )

    def _prepare_sandboxes(self, rules: Rules) -> None:
        policy = rules.policy

        def far_sandboxes(seconds: float, *state: ColumnElement[bool]) -> ColumnElement[bool]:
            keys = select(b.key).where(*state, b.due_at > rules.in_(seconds + 1.0))
            last_first = keys.order_by(b.due_at.desc())
            self.far.append(last_first)
            return b.key.in_(last_first.limit(LIMIT).with_for_update(skip_locked=True))

        self._clamp_creates = (
            update(sandboxes)
            .where(far_sandboxes(policy.longest_look, CREATING))
            .values(due_at=rules.in_(policy.create_deadline))
        )
        soon = update(sandboxes).values(due_at=rules.now, not_before=rules.now)
        self._clamp_sandboxes = [
            soon.where(far_sandboxes(policy.longest_pause, CLOSING, queue))
            for queue in (b.quarantined_at.is_(None), b.quarantined_at.is_not(None))
        ]

    def _prepare_waits(self, rules: Rules) -> None:
        # A circuit, a rate limit, an orphan's pause, a slot: the same for dates of their own.
        too_far = rules.in_(rules.policy.longest_pause + 1.0)
        p, o, c = providers.c, orphans.c, call_slots.c
        opened = p.open_until > too_far
        limited = or_(p.limited_until > too_far, p.next_call_at > too_far)
        paused = o.not_before > too_far
        taken = c.until > too_far
        self.far += [
            select(p.provider).where(or_(opened, limited)),
            select(o.key).where(paused),
            select(c.provider).where(taken),
        ]
        self._clamp_waits = (
            update(providers).where(opened).values(open_until=rules.now),
            update(providers)
            .where(limited)
            .values(limited_until=rules.now, next_call_at=rules.now),
            update(orphans).where(paused).values(not_before=rules.now),
            update(call_slots).where(taken).values(until=rules.now),
        )
