"""
The lists of the HTTP API. Each page goes on behind the last row of the one before, so that what
comes and goes meanwhile neither hides a row nor shows one twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    String,
    and_,
    bindparam,
    func,
    literal,
    select,
    tuple_,
)

from ..events import EventKind
from ..model import SandboxState, sandbox_name
from ..schema import events, orphans, sandboxes, sessions, turns
from .database import Database
from .history import Line
from .rules import ACTIVE, CLOSING, CREATING, ENDED, GONE, OF_SESSION, RUNNING, b, s, t

QUARANTINED = and_(CLOSING, b.quarantined_at.is_not(None))
STATES: Mapping[SandboxState, ColumnElement[bool]] = {
    SandboxState.CREATING: CREATING,
    SandboxState.RUNNING: RUNNING,
    SandboxState.CLOSING: CLOSING,
    SandboxState.GONE: GONE,
}
STATUSES: Mapping[str, ColumnElement[bool]] = {"active": ACTIVE, "ended": ENDED}
OPENINGS = (EventKind.SESSION_OPENED.value, EventKind.SESSION_REOPENED.value)
_limit = bindparam("limit", type_=Integer)
e, o = events.c, orphans.c


@dataclass(frozen=True, kw_only=True)
class SandboxLine:
    """One sandbox as a list shows it."""

    name: str
    session_id: str
    generation: int
    tenant: str
    provider: str
    external_id: str | None
    state: SandboxState
    attempts: int
    last_error: str | None
    created_at: datetime
    due_at: datetime | None
    quarantined_at: datetime | None
    gone_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class OrphanLine:
    """One sandbox that no row explains."""

    provider: str
    external_id: str
    name: str
    kind: str
    first_seen_at: datetime
    last_seen_at: datetime
    sightings: int
    attempts: int
    last_error: str | None


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One line of the ledger, with its number."""

    id: int
    at: datetime
    kind: str
    generation: int | None
    actor: str
    detail: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class HeldTurn:
    """One turn, and whose it is."""

    tenant: str
    generation: int
    holder: str
    hard_until: datetime
    ended_at: datetime | None


class Listings:
    """Reads only. With `tenant` a list has only what is that tenant's."""

    def __init__(self, database: Database, installation: str) -> None:
        self.database = database
        self.installation = installation
        self._lines = _session_lines()
        after_id = bindparam("after_id", type_=String)
        behind = tuple_(after_id, bindparam("after_generation", type_=Integer))
        self._sandboxes = (
            select(sandboxes, s.tenant)
            .join_from(sandboxes, sessions, b.session_id == s.id)
            # Said of both tables: of a tenant, the sessions are found first.
            .where(tuple_(b.session_id, b.generation) > behind, s.id >= after_id)
            .order_by(s.id, b.generation)
            .limit(_limit)
        )
        self._orphans = (
            select(orphans)
            .where(
                tuple_(o.provider, o.external_id)
                > tuple_(bindparam("after_provider"), bindparam("after_id"))
            )
            .order_by(o.provider, o.external_id)
            .limit(_limit)
        )
        self._prepare_one()

    # Pages

    def sessions(
        self, *, tenant: str | None, status: str | None, after: str, limit: int
    ) -> list[Line]:
        """Sessions by id, from behind `after`."""
        query = _of_tenant(self._lines, tenant)
        query = query if status is None else query.where(STATUSES[status])
        with self.database.look() as look:
            rows = look.all(query, {"after": after, "limit": limit})
        return [Line(**row._mapping) for row in rows]

    def sandboxes(
        self,
        *,
        tenant: str | None,
        state: SandboxState | None = None,
        quarantined: bool = False,
        after: tuple[str, int],
        limit: int,
    ) -> list[SandboxLine]:
        """Sandboxes by session and generation, from behind `after`."""
        query = _of_tenant(self._sandboxes, tenant)
        query = query if state is None else query.where(STATES[state])
        query = query.where(QUARANTINED) if quarantined else query
        of = {"after_id": after[0], "after_generation": after[1], "limit": limit}
        with self.database.look() as look:
            return [self._sandbox(row) for row in look.all(query, of)]

    def orphans(self, *, after: tuple[str, str], limit: int) -> list[OrphanLine]:
        """Sandboxes that no row explains, by provider and id."""
        of = {"after_provider": after[0], "after_id": after[1], "limit": limit}
        with self.database.look() as look:
            rows = look.all(self._orphans, of)
        return [
            OrphanLine(**_known(OrphanLine, row, name=sandbox_name(self.installation, row.key)))
            for row in rows
        ]

    def events(self, session_id: str, *, after: int, limit: int) -> list[EventLine]:
        """What happened to one session, in order."""
        with self.database.look() as look:
            rows = look.all(self._events, {"of": session_id, "after": after, "limit": limit})
        return [EventLine(**_known(EventLine, row)) for row in rows]

    # One

    def tenant_of(self, session_id: str) -> str | None:
        """Whose session it is, None when there is none."""
        with self.database.look() as look:
            row = look.one(self._tenant, {"of": session_id})
        return None if row is None else str(row.tenant)

    def turn(self, session_id: str, turn_id: str) -> HeldTurn | None:
        """A turn of this very session, None when it has none of this id."""
        with self.database.look() as look:
            row = look.one(self._turn, {"of": session_id, "turn_id": turn_id})
        return None if row is None else HeldTurn(**row._mapping)

    def opened(self, session_id: str, generation: int) -> tuple[str, str] | None:
        """Who opened this generation, and by which kind of event."""
        with self.database.look() as look:
            row = look.one(self._opened, {"of": session_id, "of_generation": generation})
        return None if row is None else (row.actor, row.kind)

    def _sandbox(self, row: Row[Any]) -> SandboxLine:
        fields = _known(SandboxLine, row, name=sandbox_name(self.installation, row.key))
        return SandboxLine(**{**fields, "state": SandboxState(row.state)})

    # Statements, built once

    def _prepare_one(self) -> None:
        of = bindparam("of", type_=String)
        self._events = (
            select(events)
            .where(e.session_id == of, e.id > bindparam("after", type_=e.id.type))
            .order_by(e.id)
            .limit(_limit)
        )
        self._tenant = select(s.tenant).where(s.id == of)
        self._turn = (
            select(s.tenant, t.generation, t.holder, t.hard_until, t.ended_at)
            .join_from(turns, sessions, t.session_id == s.id)
            .where(t.id == bindparam("turn_id", type_=String), t.session_id == of)
        )
        self._opened = (
            select(e.actor, e.kind)
            .where(
                e.session_id == of,
                e.generation == bindparam("of_generation", type_=Integer),
                e.kind.in_([literal(kind) for kind in OPENINGS]),
            )
            .order_by(e.id.desc())
            .limit(1)
        )


def _session_lines() -> Select[Any]:
    open_turns = (
        select(func.count())
        .select_from(turns)
        .where(t.session_id == s.id, t.ended_at.is_(None), t.generation == s.generation)
        .scalar_subquery()
    )
    return (
        select(
            s.id,
            s.tenant,
            s.status,
            s.generation,
            b.state.label("sandbox"),
            open_turns.label("turns_open"),
            s.last_activity_at,
            s.due_at,
            s.end_reason,
        )
        .join_from(sessions, sandboxes, OF_SESSION)
        .where(s.id > bindparam("after", type_=String))
        .order_by(s.id)
        .limit(_limit)
    )


def _of_tenant(query: Select[Any], tenant: str | None) -> Select[Any]:
    # Another statement, not a parameter that may be null: a plan is made for all of its values.
    return query if tenant is None else query.where(s.tenant == tenant)


def _known(line: Any, row: Row[Any], **more: object) -> dict[str, Any]:
    names = line.__dataclass_fields__
    return {**{name: row._mapping[name] for name in names if name not in more}, **more}
