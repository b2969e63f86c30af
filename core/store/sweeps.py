"""The sweep's statements: what is due, and the moves that it makes in bounded batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    update,
)

from ..errors import StoreError
from ..events import Event, EventKind
from ..model import EndReason, SessionStatus
from ..schema import installation, sandboxes, sessions
from ..timekeeper import UNWATCHED, Watched
from .database import Database
from .endings import Endings
from .promises import Promises
from .rules import (
    ACTIVE,
    CLOSING,
    CREATING,
    HAS_OPEN_TURN,
    HAS_RUNNING,
    OF_SESSION,
    UNHELD,
    Rules,
    b,
    locked,
    s,
)
from .sql import Latest, any_of, later
from .tallies import Adding, Tally

ACTOR = "sweep"
LIMIT = bindparam("limit", type_=s.generation.type)
BEGAN = bindparam("began", type_=s.due_at.type)
ONLY = bindparam("only", type_=s.id.type)
WANTED = or_(ONLY.is_(None), s.id == ONLY)


class Sweeps:
    """
    Each method is one transaction over at most `limit` rows, most overdue first, and skips what
    another sweep holds. Its UPDATEs repeat the whole proof in their WHERE.
    """

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._endings = Endings(rules)
        self._promises = Promises(rules)
        self._now = select(rules.now.label("now"))
        self._prepare_pulse(rules)
        self._prepare_breaker(rules)
        self._prepare_sessions(rules)
        self._prepare_creates(rules)
        self._prepare_fan_out(rules)

    def pulse(self, added: Iterable[Tally] = (), *, stood_in: bool = False) -> int:
        """
        Say that a sweep ran to its end: what the watchdog reads; with what it adds to the totals.
        One that stood in for the scheduled ones must not hide that they do not run. Returns how
        many there were, ever.
        """
        with self.database.single() as move:
            row = self._adding.run(move, self._stood_in if stood_in else self._pulse, added)
        return 0 if row is None else int(row.epoch)

    def mass_end(self) -> dict[str, int] | None:
        """
        What the breaker asks about: the sessions that a sweep would end now, when they are more
        than BREAKER_MIN and more than BREAKER_RATIO of the active ones. None when they are not.
        """
        with self.database.look() as look:
            row = look.one(self._ending)
            ending = 0 if row is None else int(row.ending)
            if ending <= self._breaker_min:
                return None
            # No further than it matters: this never counts a million sessions to end thirty.
            enough = math.ceil(ending / self._breaker_ratio)
            counted = look.one(self._population, {"limit": enough})
        population = 0 if counted is None else int(counted.active)
        if ending <= self._breaker_ratio * population:
            return None
        return {"ending": ending, "active": population}

    def due_sessions(self, limit: int) -> list[str]:
        """Ids of active sessions whose date has come, without locking them."""
        with self.database.look() as look:
            return [row.id for row in look.all(self._due_sessions, {"limit": limit})]

    def now(self) -> datetime:
        """The time, by the database's clock."""
        with self.database.look() as look:
            (row,) = look.all(self._now)
        now: datetime = row.now
        return now

    def sessions(
        self,
        limit: int,
        watched: Watched = UNWATCHED,
        *,
        only: str | None = None,
        ending: bool = True,
    ) -> tuple[int, int, int, int]:
        """
        One batch of due sessions: (looked at, re-armed, noticed, ended). `only` one session, to
        find the row that makes a batch fail. Without `ending` those that would end wait.
        """
        with self.database.move() as move:
            rows = move.all(self._lock_due, _some(limit, watched, only))
            if not rows:
                return 0, 0, 0, 0
            ids: dict[str, Any] = {"ids": [row.id for row in rows]}
            believed = {**ids, "since": watched.since, "began": watched.began}
            # End before notice, notice before re-arm: no row can take two steps in one sweep.
            believed["latest"] = watched.latest()
            ended = move.all(self._end, believed) if ending else []
            self._endings.close(move, ended, ACTOR)
            left = len(rows) - len(ended)
            noticed = move.all(self._notice, {**ids, "since": watched.since}) if left else []
            move.record(*(_noticed(row.id, row.generation) for row in noticed))
            left -= len(noticed)
            self._promises.set_aside(move, [row.id for row in rows if row.overtaken])
            rearmed = move.run(self._rearm, ids) if left else 0
            left -= rearmed
            if left:
                left -= move.run(self._wait, ids) + move.run(self._wait_for_create, ids)
            if left > 0:
                raise StoreError("a session is due and no move fits it")
        return len(rows), rearmed, len(noticed), len(ended)

    def postpone(self, session_id: str, error: str) -> None:
        """Put a row that cannot be moved out of the way of the others, and say so."""
        with self.database.move() as move:
            move.run(self._postpone, {"session_id": session_id})
            move.run(self._postpone_create, {"of_session": session_id})
            move.record(
                Event(
                    kind=EventKind.ROW_POISONED,
                    actor=ACTOR,
                    session_id=session_id,
                    detail={"error": error},
                )
            )

    def due_creates(self, limit: int) -> list[str]:
        """Ids of sessions whose sandbox nobody finished creating, without locking them."""
        with self.database.look() as look:
            return [row.id for row in look.all(self._due_creates, {"limit": limit})]

    def expired_creates(
        self, limit: int, watched: Watched = UNWATCHED, *, only: str | None = None
    ) -> int:
        """End sessions whose sandbox nobody finished creating in time; returns how many."""
        with self.database.move() as move:
            rows = move.all(self._lock_expired, _some(limit, watched, only))
            if not rows:
                return 0
            ended = move.all(self._expire, {"ids": [row.id for row in rows]})
            self._endings.close(move, ended, ACTOR)
        return len(ended)

    # Statements, built once

    def _prepare_pulse(self, rules: Rules) -> None:
        count = update(installation).values(epoch=installation.c.epoch + 1)
        epoch = installation.c.epoch
        self._adding = Adding(self.database)
        self._pulse = self._adding.with_(count.values(swept_at=rules.now).returning(epoch))
        self._stood_in = self._adding.with_(count.values(stood_in_at=rules.now).returning(epoch))

    def _prepare_breaker(self, rules: Rules) -> None:
        self._breaker_min = rules.policy.breaker_min
        self._breaker_ratio = rules.policy.breaker_ratio
        witnessed = s.noticed_activity_at == s.last_activity_at
        # A mass is noticed in batches, and comes due in batches: what this sweep would still come
        # to belongs to it. Live turns have beaten by then: HEARTBEAT is half of CONFIRM_INTERVAL.
        soon = rules.in_(rules.policy.confirm_interval / 4)
        noticed = and_(ACTIVE, s.noticed_at.is_not(None), s.due_at <= soon)
        confirmed = later(s.noticed_at, rules.policy.confirm_interval) <= soon
        over = and_(rules.over, rules.may_end)
        ends = select(func.count()).where(noticed, witnessed, over, confirmed, HAS_RUNNING)
        expires = select(func.count()).select_from(sandboxes).where(CREATING, b.due_at <= rules.now)
        self._ending = select((ends.scalar_subquery() + expires.scalar_subquery()).label("ending"))
        some = select(literal(1)).where(ACTIVE).limit(bindparam("limit", type_=s.generation.type))
        self._population = select(func.count().label("active")).select_from(some.subquery())

    def _prepare_sessions(self, rules: Rules) -> None:
        self.due = select(s.id).where(ACTIVE, s.due_at <= rules.now).order_by(s.due_at)
        self._due_sessions = self.due.limit(LIMIT)
        marked = self._due_sessions.add_columns(rules.overtaken.label("overtaken"))
        self._lock_due = locked(marked.where(s.due_at <= BEGAN, WANTED), skip=True)
        these = any_of(s.id, "ids")
        # Not the bare column: what the last statistics had not seen due is taken for rare, and
        # every batch would read all that is due, to find its own few by the wrong index.
        still_due = later(s.due_at, 0.0) <= rules.now
        idle = and_(these, ACTIVE, still_due, rules.over, HAS_RUNNING)
        witnessed = s.noticed_activity_at == s.last_activity_at
        self._prepare_endings(rules, idle, witnessed)
        self._prepare_waits(rules, and_(these, ACTIVE, still_due), and_(idle, witnessed))
        self._postpone = (
            update(sessions)
            .where(s.id == bindparam("session_id"), ACTIVE)
            .values(due_at=rules.in_(rules.policy.longest_look))
        )
        self._postpone_create = (
            update(sandboxes)
            .where(b.session_id == bindparam("of_session"), CREATING, b.due_at <= rules.now)
            .values(due_at=rules.in_(rules.policy.longest_look))
        )

    def _prepare_endings(
        self, rules: Rules, idle: ColumnElement[bool], witnessed: ColumnElement[bool]
    ) -> None:
        confirm = rules.policy.confirm_interval
        since = bindparam("since", type_=s.noticed_at.type)
        no_jump = rules.now <= bindparam("latest", type_=s.noticed_at.type)
        confirmed = and_(s.noticed_at >= since, no_jump, rules.noticed_long_enough)
        # The first look again at an open turn comes before the confirm interval is over.
        looked_again = s.due_at >= later(s.noticed_at, confirm)
        self._end = (
            update(sessions)
            .where(idle, witnessed, confirmed, looked_again, UNHELD)
            .where(rules.may_end_since(BEGAN))
            .values(status=SessionStatus.ENDED.value, ended_at=rules.now, end_reason=rules.why_over)
            .returning(s.id, s.generation, s.end_reason)
        )
        self._notice = (
            update(sessions)
            .where(
                idle,
                or_(
                    s.noticed_activity_at.is_(None),
                    ~witnessed,
                    # Written by a clock that has stepped back since, or jumped ahead.
                    s.noticed_at > rules.now,
                    s.noticed_at < since,
                ),
            )
            .values(
                noticed_at=rules.now,
                noticed_activity_at=s.last_activity_at,
                # A turn that is open and silent has lost its holder, or its holder the database:
                # an outage may be longer than all that was waited for, and the sweep be the first
                # to come back. So one more look, which writes; whoever lives beats after it.
                due_at=case(
                    (HAS_OPEN_TURN, rules.in_(confirm - _one_beat(rules))),
                    else_=rules.in_(confirm),
                ),
            )
            .returning(s.id, s.generation)
        )

    def _prepare_waits(
        self, rules: Rules, due: ColumnElement[bool], noticed: ColumnElement[bool]
    ) -> None:
        confirm = rules.policy.confirm_interval
        self._rearm = (
            update(sessions)
            .where(due, ~rules.over)
            .values(
                due_at=rules.next_look,
                last_activity_at=rules.active_at_most,
                noticed_at=null(),
                noticed_activity_at=null(),
                **rules.promises,
            )
        )
        # Noticed under a shorter confirm interval, or held. No row that was looked at stays due, or
        # a full batch of them would be one sweep without an end.
        confirmed_at = later(s.noticed_at, confirm)
        next_sweep = rules.in_(confirm)
        again = and_(HAS_OPEN_TURN, s.due_at < confirmed_at)
        self._wait = (
            update(sessions)
            .where(noticed)
            .values(
                due_at=case(
                    (again, Latest(confirmed_at, rules.in_(_one_beat(rules)))),
                    (rules.noticed_long_enough, next_sweep),
                    else_=confirmed_at,
                )
            )
        )
        # Its sandbox is not there yet: the create's own deadline decides, in the next step.
        self._wait_for_create = (
            update(sessions).where(due, ~HAS_RUNNING).values(due_at=rules.in_(confirm))
        )

    def _prepare_creates(self, rules: Rules) -> None:
        expired = and_(OF_SESSION, CREATING, b.due_at <= rules.now)
        self.creates = (
            select(s.id)
            .join_from(sandboxes, sessions, expired)
            .where(ACTIVE, UNHELD)
            .order_by(b.due_at)
        )
        self._due_creates = self.creates.limit(LIMIT)
        self._lock_expired = locked(self._due_creates.where(b.due_at <= BEGAN, WANTED), skip=True)
        self._expire = (
            update(sessions)
            .where(
                any_of(s.id, "ids"),
                ACTIVE,
                exists(select(1).where(expired).correlate(sessions)),
            )
            .values(
                status=SessionStatus.ENDED.value,
                ended_at=rules.now,
                end_reason=EndReason.CREATE_EXPIRED.value,
            )
            .returning(s.id, s.generation, s.end_reason)
        )

    def _prepare_fan_out(self, rules: Rules) -> None:
        """What the step after these looks for: see Publications."""
        due = select(b.key).where(CLOSING, b.due_at <= rules.now, UNHELD).order_by(b.due_at)
        self.closing = due.where(b.quarantined_at.is_(None))
        self.failing = due.where(b.quarantined_at.is_not(None))


def _one_beat(rules: Rules) -> float:
    """Seconds in which every holder that lives beats: after a failure it tries twice as often."""
    return rules.policy.heartbeat / 2


def _some(limit: int, watched: Watched, only: str | None) -> dict[str, Any]:
    return {"limit": limit, "began": watched.began, "only": only}


def _noticed(session_id: str, generation: int) -> Event:
    return Event(
        kind=EventKind.SESSION_NOTICED,
        actor=ACTOR,
        session_id=session_id,
        generation=generation,
    )
