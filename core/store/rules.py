"""What idle, too old, in use and live mean, written once in SQL for every statement that asks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
)

from ..model import SandboxState, SessionStatus
from ..policy import Policy
from ..schema import earlier_promises, holds, installation, sandboxes, sessions, turns, windows
from .sql import Earliest, Identity, Latest, Seconds, later

s, b, t, e = sessions.c, sandboxes.c, turns.c, earlier_promises.c
TICK = 0.001  # seconds; the finest that both databases keep
EXTENSION, PIN = "extension", "pin"  # the kinds of promises


def constant(value: str) -> ColumnElement[str]:
    """Written into the SQL text: a planner cannot match a parameter with a partial index."""
    return literal_column(f"'{value}'", String)


ACTIVE = s.status == constant(SessionStatus.ACTIVE.value)
ENDED = s.status == constant(SessionStatus.ENDED.value)
CREATING = b.state == constant(SandboxState.CREATING.value)
CLOSING = b.state == constant(SandboxState.CLOSING.value)
GONE = b.state == constant(SandboxState.GONE.value)
RUNNING = b.state == constant(SandboxState.RUNNING.value)
OF_SESSION = and_(b.session_id == s.id, b.generation == s.generation)
HAS_RUNNING = exists(select(1).where(OF_SESSION, RUNNING).correlate(sessions))
OPEN_TURN = and_(t.ended_at.is_(None), t.session_id == s.id, t.generation == s.generation)
HAS_OPEN_TURN = exists(select(1).where(OPEN_TURN).correlate(sessions))
FRESH = s.turn_count == s.turns_before
# Part of every statement that destroys: no question to an operator is open, and this is still the
# database that the installation knows.
UNHELD = and_(
    ~exists(select(1).select_from(holds).where(holds.c.until.is_(None))),
    exists(select(1).where(installation.c.identity.is_not_distinct_from(Identity()))),
)


class Rules:
    """The rules that need the time. Built once for a database and a policy."""

    def __init__(self, now: ColumnElement[datetime], policy: Policy) -> None:
        self.now = now
        self.policy = policy
        self.seconds = s.idle_ttl.type  # the SQL type of a duration
        # now() is when the statement began: one that waited for a lock since must not take back
        # what a later call was promised.
        # And where the clock stepped back it still moves, or the witness of a notice would be the
        # same when the clock is put right: as if nothing had happened meanwhile.
        self.active_now = case(
            (s.last_activity_at > now, later(s.last_activity_at, TICK)), else_=now
        )
        # Further ahead only a clock that stepped back explains. Nearer, it may be a touch that was
        # acknowledged since the statement that looks at it began.
        self.active_at_most = Earliest(s.last_activity_at, self.in_(policy.confirm_interval))
        # So many seconds were promised, and the date says when they are over by the clock of then:
        # where that stepped back since, they count from now.
        self.extended_at = func.coalesce(s.extended_at, s.last_activity_at)
        self.extended_until = self._counted(s.extended_until, self.extended_at)
        self.pinned_until = self._counted(s.pinned_until, s.pinned_at)
        self.promises = {  # for an UPDATE that puts right what such a clock wrote
            "extended_until": self.extended_until,
            "extended_at": self._since(s.extended_at, self.extended_at),
            "pinned_until": self.pinned_until,
            "pinned_at": self._since(s.pinned_at, s.pinned_at),
        }
        # Its promises are set aside first: that clock may be put right.
        self.overtaken = or_(
            and_(s.extended_until.is_not(None), self.ahead(self.extended_at)),
            and_(s.pinned_until.is_not(None), self.ahead(s.pinned_at)),
        )
        self.age_ends = later(s.opened_at, s.max_age)  # NULL without a max age
        # Until its first turn it may have a shorter one. The first begin moves both to the right.
        unused = and_(FRESH, s.never_used_ttl < s.idle_ttl)
        idle_ttl = case((unused, s.never_used_ttl), else_=s.idle_ttl)
        idle_at = later(s.last_activity_at, idle_ttl)
        kept_until = Latest(idle_at, *(func.coalesce(each, idle_at) for each in self.kept()))
        self.ends_at = Earliest(kept_until, func.coalesce(self.age_ends, kept_until))
        self.too_old = and_(s.max_age.is_not(None), self.age_ends <= now)
        self.usable = and_(ACTIVE, or_(s.max_age.is_(None), self.age_ends > now))
        self.over = self.ends_at <= now
        self.noticed_long_enough = later(s.noticed_at, policy.confirm_interval) <= now
        # The next look is never further away than the idle TTL of the installation, so that a
        # clock that stepped back shows as a date that nobody can have written.
        self.next_look = Earliest(self.ends_at, self.in_(policy.idle_ttl))
        idle_next = self.in_(idle_ttl)
        self.first_look = Earliest(
            idle_next, self.in_(policy.idle_ttl), func.coalesce(self.age_ends, idle_next)
        )
        self.live_turn = and_(OPEN_TURN, t.hard_until > now)
        self.window_open = and_(windows.c.from_at <= now, windows.c.until_at > now)
        self.may_end = self.may_end_since(now)
        self.why_over = case((self.too_old, "max_age"), else_="idle")

    def kept(self) -> tuple[ColumnElement[datetime], ...]:
        """Until when callers were promised to have it, whether it is idle or not; may be NULL."""
        earlier = (
            select(func.max(e.until))
            .where(e.session_id == s.id, e.generation == s.generation, ~self.ahead(e.at))
            .correlate(sessions)
            .scalar_subquery()
        )
        return self.extended_until, self.pinned_until, earlier

    def may_end_since(self, began: ColumnElement[datetime]) -> ColumnElement[bool]:
        """
        In a maintenance window idleness ends nobody; max age does, and whoever calls end(). One
        that was open when a sweep began is open until that is over: its breaker counted nobody.
        """
        in_window = exists(
            select(1)
            .select_from(windows)
            .where(windows.c.from_at <= self.now, windows.c.until_at > Earliest(began, self.now))
        )
        return or_(self.too_old, ~in_window)

    def ahead(self, at: ColumnElement[datetime]) -> ColumnElement[bool]:
        """Whether this clock, which showed that moment once, has stepped back since."""
        return at > self.in_(self.policy.confirm_interval)

    def made_at(
        self,
        until: ColumnElement[datetime],
        at: ColumnElement[datetime],
        wished: ColumnElement[datetime],
    ) -> ColumnElement[datetime]:
        """By which clock a promise is made that is asked for beside an earlier one."""
        # One that changes nothing has the date of the earlier one: in a jump of the clock it would
        # look as if less had been left.
        return case((and_(until > wished, ~self.ahead(at)), at), else_=self.now)

    def _counted(
        self, until: ColumnElement[datetime], at: ColumnElement[datetime]
    ) -> ColumnElement[datetime]:
        return case((self.ahead(at), later(until, Seconds(at, self.now))), else_=until)

    def _since(
        self, column: ColumnElement[datetime], at: ColumnElement[datetime]
    ) -> ColumnElement[datetime]:
        return case((self.ahead(at), self.now), else_=column)

    def in_(self, seconds: Any) -> ColumnElement[datetime]:
        """So many seconds from now."""
        return later(self.now, seconds)

    def hard_until(self) -> ColumnElement[datetime]:
        """The ceiling of a turn that begins now: it never outlives the session's max age."""
        ceiling = self.in_(s.max_turn)
        return Earliest(ceiling, func.coalesce(self.age_ends, ceiling))


def locked(query: Select[Any], *, skip: bool) -> Select[Any]:
    """
    Lock the session rows that a query finds. Sweeps and beats skip what another transaction
    holds: a paused process that died holding a lock must not make live turns miss their beats.
    SQLite has one writer at a time and needs none of it.
    """
    return query.with_for_update(of=sessions, skip_locked=skip)
