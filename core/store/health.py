"""
How healthy each provider is, for the whole fleet: a circuit that opens when calls keep failing,
and a rate that a provider's "too many requests" sets. In good health it costs no statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    bindparam,
    case,
    exists,
    false,
    func,
    null,
    or_,
    select,
    true,
    update,
)

from ..events import Event, EventKind
from ..schema import providers, sandboxes
from .database import Database, kept
from .rules import Rules
from .sql import Latest, later

FAILURES = 5  # in a row, and the circuit opens
LONGEST_WAIT = 5.0  # seconds that a caller may be asked to wait for its turn
FIRST_SPACING = 0.1  # seconds between two calls after the first "too many requests"
SLOWEST_SPACING = 2.0
RECOVERY = 10.0  # seconds in which the pace gets faster by a factor of e
p = providers.c


@dataclass(frozen=True, kw_only=True)
class Health:
    """One provider, as operators see it. `open_until` is set while its circuit is not closed."""

    provider: str
    failures: int
    open_until: datetime | None
    spacing: float
    limited_until: datetime | None
    last_error: str | None
    reconciled_at: datetime | None
    report: Mapping[str, object] | None


class ProviderHealth:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._seconds = bindparam("seconds", type_=rules.seconds)
        self._this = p.provider == bindparam("of_provider")
        self._insert = (
            database.insert(providers)
            .values(provider=bindparam("of_provider"))
            .on_conflict_do_nothing(index_elements=["provider"])
        )
        self._select = select(providers).order_by(p.provider)
        self._prepare_circuit(rules)
        self._prepare_rate(rules)
        self._prepare_pace(rules)

    def all(self) -> list[Health]:
        """Every provider that was ever compared, or in trouble."""
        with self.database.look() as look:
            rows = look.all(self._select)
        names = Health.__dataclass_fields__
        return [Health(**{name: row._mapping[name] for name in names}) for row in rows]

    def admit(self, provider: str, *, probe_for: float) -> float | None:
        """
        Seconds to wait before a call may be made; None when it may not be made now. Of an open
        circuit one caller is let through when its time has come, and has `probe_for` seconds.
        """
        with self.database.move() as move:
            row = move.one(self._look, {"of_provider": provider})
            if row is None or (row.closed and not row.spacing):
                return 0.0
            if row.limited:
                return None
            if not row.closed:
                probe = {"of_provider": provider, "seconds": probe_for}
                return 0.0 if move.one(self._probe, probe) is not None else None
            slot = move.one(self._take, {"of_provider": provider})
        return None if slot is None else max(0.0, (slot.mine - slot.at).total_seconds())

    def is_blocked(self, provider: str) -> bool:
        """Whether no call may be made now: for who has waited for its turn meanwhile."""
        with self.database.look() as look:
            row = look.one(self._look, {"of_provider": provider})
        return row is not None and (row.limited or not row.closed)

    def failed(
        self, provider: str, key: str, error: str, pause: float, *, actor: str, probe: bool
    ) -> bool:
        """
        A call for the sandbox `key` failed in a way that may say something of the whole provider.
        The same sandbox again says nothing new, but as a `probe`. True when the circuit is open
        now: for `pause` seconds if this call opened it, or was its probe. One that was under way
        when it opened belongs to the same outage, and changes nothing.
        """
        of = {
            "of_provider": provider,
            "of_key": key,
            "error": kept(error),
            "seconds": pause,
            "probe": probe,
        }
        with self.database.move() as move:
            move.run(self._insert, {"of_provider": provider})
            row = move.one(self._fail, of)
            if row is None:
                return True
            opened = row.open_until is not None
            if opened and row.failures == FAILURES:
                move.record(_event(EventKind.CIRCUIT_OPENED, provider, actor, error=kept(error)))
        return opened

    def limited(self, provider: str, pause: float) -> None:
        """It asked for fewer calls: none for `pause` seconds, and half as many after that."""
        with self.database.move() as move:
            move.run(self._insert, {"of_provider": provider})
            move.run(self._limit, {"of_provider": provider, "seconds": pause})

    def answered(self, provider: str, *, actor: str) -> None:
        """It did what it was asked to: close its circuit, and let it have more calls."""
        with self.database.move() as move:
            row = move.one(self._lock, {"of_provider": provider})
            if row is None:
                return
            move.run(self._recover, {"of_provider": provider})
            if row.failures >= FAILURES:
                move.record(_event(EventKind.CIRCUIT_CLOSED, provider, actor))

    # Statements, built once

    def _prepare_circuit(self, rules: Rules) -> None:
        closed = p.open_until.is_(None)
        limited = func.coalesce(p.limited_until > rules.now, false())
        self._look = select(closed.label("closed"), limited.label("limited"), p.spacing).where(
            self._this
        )
        until = rules.in_(self._seconds)
        self._probe = (
            update(providers)
            .where(self._this, or_(closed, p.open_until <= rules.now))
            .values(open_until=case((closed, null()), else_=until))
            .returning(p.provider)
        )
        another = func.coalesce(p.failed_key != bindparam("of_key"), true())
        failures = p.failures + case((or_(another, ~closed), 1), else_=0)
        self._fail = (
            update(providers)
            .where(self._this, or_(closed, bindparam("probe", type_=true().type)))
            .values(
                failures=failures,
                failed_key=bindparam("of_key"),
                last_error=bindparam("error"),
                open_until=case((failures >= FAILURES, until), else_=null()),
            )
            .returning(p.failures, p.open_until)
        )
        self._lock = (
            select(p.failures)
            .where(self._this, or_(p.failures > 0, p.spacing > 0))
            .with_for_update()
        )

    def _prepare_rate(self, rules: Rules) -> None:
        free_at = Latest(func.coalesce(p.next_call_at, rules.now), rules.now)
        longest = min(LONGEST_WAIT, rules.policy.claim_ttl / 4)  # there must be time for the call
        self._take = (
            update(providers)
            .where(self._this, free_at <= rules.in_(longest))
            .values(next_call_at=later(free_at, p.spacing))
            .returning(rules.now.label("at"), later(p.next_call_at, -p.spacing).label("mine"))
        )

    def _prepare_pace(self, rules: Rules) -> None:
        paused = rules.in_(self._seconds)
        slower = case(
            (p.spacing <= 0, FIRST_SPACING),
            (p.spacing * 2 >= SLOWEST_SPACING, SLOWEST_SPACING),
            else_=p.spacing * 2,
        )
        # Many calls are under way when the first is refused: they slow us down once, not each.
        counts = or_(p.limited_until.is_(None), p.limited_until <= rules.now)
        self._limit = (
            update(providers)
            .where(self._this)
            .values(
                spacing=case((counts, slower), else_=p.spacing),
                limited_until=Latest(func.coalesce(p.limited_until, paused), paused),
                next_call_at=Latest(func.coalesce(p.next_call_at, paused), paused),
            )
        )
        # By time, whatever the pace: there is about one success in each spacing.
        faster = case(
            (p.spacing < FIRST_SPACING / 8, 0.0),
            (p.spacing < FIRST_SPACING, p.spacing * (1.0 - FIRST_SPACING / RECOVERY)),
            else_=p.spacing * (1.0 - p.spacing / RECOVERY),
        )
        self._recover = (
            update(providers)
            .where(self._this)
            .values(
                failures=0,
                failed_key=null(),
                open_until=null(),
                spacing=faster,
                last_error=null(),
            )
        )


def blocked(rules: Rules, provider: ColumnElement[str]) -> ColumnElement[bool]:
    """In SQL: whether calls to this provider have to wait for a while."""
    waits = or_(p.open_until > rules.now, p.limited_until > rules.now)
    return exists(select(1).select_from(providers).where(p.provider == provider, waits))


def health_of(column: ColumnElement[Any], provider: ColumnElement[str]) -> ColumnElement[Any]:
    """In SQL: one fact of this provider's health; NULL when it never was in trouble."""
    return select(column).where(p.provider == provider).correlate(sandboxes).scalar_subquery()


def _event(kind: EventKind, provider: str, actor: str, **detail: object) -> Event:
    return Event(kind=kind, actor=actor, detail={"provider": provider, **detail})
