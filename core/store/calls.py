"""
Rights to call a provider: a bound on the calls that the whole fleet has under way. It is a number
of rows, each held by one worker at a time, so that no race can pass it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Integer, String, and_, bindparam, func, select, update

from ..schema import call_slots
from ..timekeeper import EVER
from .database import Database
from .rules import Rules

c = call_slots.c


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The right to one call, for claim_ttl seconds."""

    provider: str
    slot: int
    token: int


class Calls:
    """One method, one transaction. Without PROVIDER_CONCURRENCY nothing here is called."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self.bound = rules.policy.provider_concurrency
        of = c.provider == bindparam("of_provider", type_=String)
        within = c.slot < bindparam("bound", type_=Integer)
        free = c.until <= rules.now
        # Who finds a row locked takes another one: nobody waits here for anybody's commit.
        one = (
            select(c.slot)
            .where(of, within, free)
            .order_by(c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        self._take = (
            update(call_slots)
            .where(of, c.slot == one.scalar_subquery(), free)
            # As long as its claim, and so longer than the calls that it is for.
            .values(
                until=rules.in_(rules.policy.claim_ttl),
                token=c.token + 1,
                holder=bindparam("worker"),
            )
            .returning(c.slot, c.token)
        )
        self._count = select(func.count().label("slots")).select_from(call_slots).where(of, within)
        self._add = (
            database.insert(call_slots)
            .values(provider=bindparam("of_provider"), slot=bindparam("number"), until=EVER)
            .on_conflict_do_nothing(index_elements=["provider", "slot"])
        )
        mine = and_(of, c.slot == bindparam("number"), c.token == bindparam("of_token"))
        # Not now: to a clock that stepped back it would be taken until then.
        self._give = update(call_slots).where(mine).values(until=EVER)

    def take(self, provider: str, worker: str) -> Slot | None:
        """A slot; None when as many calls are under way as may be."""
        bound = self.bound or 0
        of = {"of_provider": provider, "bound": bound}
        for _ in range(2):
            with self.database.single() as move:
                row = move.one(self._take, {**of, "worker": worker[:200]})
            if row is not None:
                return Slot(provider=provider, slot=row.slot, token=row.token)
            if not self._added(of, bound):
                return None
        return None

    def give(self, slot: Slot) -> None:
        """Give it back; nothing happens when it had run out and is somebody else's."""
        of = {"of_provider": slot.provider, "number": slot.slot, "of_token": slot.token}
        with self.database.single() as move:
            move.run(self._give, of)

    def _added(self, of: dict[str, object], bound: int) -> bool:
        """Whether there were rows to add: at the first call, and when the bound was raised."""
        with self.database.move() as move:
            (row,) = move.all(self._count, of)
            if row.slots >= bound:
                return False
            provider = of["of_provider"]
            rows = [{"of_provider": provider, "number": number} for number in range(bound)]
            move.run(self._add, rows)
        return True
