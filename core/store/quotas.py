"""
How many live sandboxes a tenant may have. Counted in the database, with a lock for the tenant: of
two servers that open at the same moment, the second counts what the first has opened.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, func, or_, select, update

from ..errors import TenantFull
from ..layers import Layer, WhenFull
from ..model import EndReason, SessionStatus
from ..schema import policies, sessions
from .database import Database, Move
from .endings import Endings
from .rules import ACTIVE, HAS_OPEN_TURN, HAS_RUNNING, UNHELD, Rules, locked, s
from .sql import TenantLock, any_of

# One for who comes, and one more while a quota that was lowered is exceeded: it is come down to
# step by step, and no change of a number is a mass end.
MOST_EVICTED = 2
ROUNDS = 5  # of a choice; more than two when somebody came back just then

p = policies.c


class Quotas:
    """Inside of open()'s transaction, whose session's row is locked already."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._endings = Endings(rules)
        tenant = bindparam("of_tenant", type_=s.tenant.type)
        newcomer = bindparam("newcomer", type_=s.id.type)
        self._quota = select(p.layer, p.max_live, p.when_full).where(
            or_(p.layer == Layer.INSTALLATION.value, p.name == tenant),
            p.layer != Layer.PROFILE.value,
        )
        self._lock_tenant = select(TenantLock(tenant))
        others = (ACTIVE, s.tenant == tenant, s.id != newcomer)
        self._count = select(func.count().label("live")).select_from(sessions).where(*others)
        kept = or_(*(until > rules.now for until in rules.kept()))
        idle = (~HAS_OPEN_TURN, func.coalesce(~kept, True), HAS_RUNNING, UNHELD)
        # Never waited for while the tenant's lock is held: who opens another session of this
        # tenant has locked that one's row, and waits for the tenant.
        self._oldest = locked(
            select(s.id)
            .where(*others, *idle)
            .order_by(s.last_activity_at, s.id)
            .limit(bindparam("limit", type_=s.generation.type)),
            skip=True,
        )
        # With the rows held the proof is looked at again: a turn may have begun until then.
        self._evict = (
            update(sessions)
            .where(any_of(s.id, "ids"), ACTIVE, *idle)
            .values(
                status=SessionStatus.ENDED.value,
                ended_at=rules.now,
                end_reason=EndReason.EVICTED.value,
            )
            .returning(s.id, s.generation, s.end_reason)
        )

    def admit(
        self, move: Move, session_id: str, tenant: str, *, actor: str
    ) -> list[tuple[str, int]]:
        """
        Room for one more live sandbox of this tenant: returns what was ended for it. TenantFull
        when there is none, and then nothing was.
        """
        of = {"of_tenant": tenant, "newcomer": session_id}
        quota = self._of(move.all(self._quota, {"of_tenant": tenant}))
        most = quota["max_live"]
        if most is None:
            return []
        move.one(self._lock_tenant, {"of_tenant": tenant})
        counted = move.one(self._count, of)
        live = 0 if counted is None else int(counted.live)
        if live < most:
            return []
        wanted = min(live - most + 1, MOST_EVICTED)
        evicted: list[Any] = []
        if quota["when_full"] == WhenFull.EVICT:
            ids = self._chosen(move, {**of, "limit": wanted})
            evicted = list(move.all(self._evict, {"ids": ids})) if ids else []
        if len(evicted) < wanted:
            raise TenantFull(
                f"tenant {tenant!r} has {live} live sandboxes and may have {most}: end() one that "
                f"is not needed, or raise its quota (`sandkeeper policies set tenant:{tenant} "
                "max_live=…`)"
            )
        self._endings.close(move, evicted, actor)
        return [(row.id, row.generation) for row in evicted]

    def _chosen(self, move: Move, of: dict[str, Any]) -> list[str]:
        """
        Who was idle for longest, with the rows held. Asked until it is those who were held when
        the statement began: what waits for nobody may find a row that was idle when it looked, and
        that was touched, or has a turn, since.
        """
        held: list[str] | None = None
        for _ in range(ROUNDS):
            chosen = [row.id for row in move.all(self._oldest, of)]
            if chosen == held:
                break
            held = chosen
        return chosen

    @staticmethod
    def _of(rows: Any) -> dict[str, Any]:
        """Each field by the tenant's own policy, or else by the installation's."""
        found: dict[str, Any] = {"max_live": None, "when_full": None}
        for row in sorted(rows, key=lambda row: row.layer == Layer.TENANT):
            found |= {
                name: value
                for name in ("max_live", "when_full")
                if (value := row._mapping[name]) is not None
            }
        return found
