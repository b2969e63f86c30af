"""The ledger and the rows of one session, as a person reads them: the latest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Integer, Row, Select, String, bindparam, func, select

from ..events import Event
from ..schema import events
from .database import Database
from .rules import b, t

STRETCH = 20_000  # lines of the ledger that one page looks at
e = events.c
_limit = bindparam("limit", type_=Integer)
_before = bindparam("before", type_=BigInteger)
NEWEST = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger."""

    id: int
    at: datetime
    kind: str
    session_id: str | None
    generation: int | None
    actor: str
    detail: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Some lines, and the number before which to go on; None at the beginning of the ledger."""

    lines: Sequence[Entry]
    before: int | None


@dataclass(frozen=True, kw_only=True)
class TurnRow:
    """One turn of a session."""

    id: str
    generation: int
    holder: str
    started_at: datetime
    hard_until: datetime
    ended_at: datetime | None
    outcome: str | None


@dataclass(frozen=True, kw_only=True)
class SandboxRow:
    """One generation of a session."""

    generation: int
    provider: str
    scope: str
    external_id: str | None
    state: str
    due_at: datetime | None
    not_before: datetime | None
    attempts: int
    claimed_by: str | None
    last_error: str | None
    quarantined_at: datetime | None
    created_at: datetime
    running_at: datetime | None
    closing_at: datetime | None
    gone_at: datetime | None
    expires_at: datetime | None


class Records:
    """Reads only, but for what it is asked to note."""

    def __init__(self, database: Database) -> None:
        self.database = database
        of = bindparam("of", type_=String)
        self._of_session = (
            select(events)
            .where(e.session_id == of, e.id < _before)
            .order_by(e.session_id, e.id.desc())
            .limit(_limit)
        )
        self._oldest = (
            select(e.id).where(e.id < _before).order_by(e.id.desc()).offset(STRETCH).limit(1)
        )
        self._turns = (
            select(*(t[name] for name in TurnRow.__dataclass_fields__))
            .where(t.session_id == of)
            .order_by(t.started_at.desc(), t.id.desc())
            .limit(_limit)
        )
        self._sandboxes = (
            select(*(b[name] for name in SandboxRow.__dataclass_fields__))
            .where(b.session_id == of)
            .order_by(b.session_id, b.generation.desc())
            .limit(_limit)
        )

    def of_session(self, session_id: str, *, before: int = NEWEST, limit: int) -> list[Entry]:
        """What happened to one session."""
        of = {"of": session_id, "before": before, "limit": limit}
        with self.database.look() as look:
            return [_entry(row) for row in look.all(self._of_session, of)]

    def entries(
        self,
        *,
        kind: str | None = None,
        actor: str | None = None,
        session_id: str | None = None,
        before: int = NEWEST,
        limit: int,
    ) -> Entries:
        """Lines of this kind, whose actor has this in it. It looks at STRETCH of them at most."""
        given = {"kind": kind, "actor": actor, "of": session_id}
        of: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        of |= {"before": before, "limit": limit + 1}
        with self.database.look() as look:
            oldest = None if session_id else look.one(self._oldest, {"before": before})
            if oldest is not None:
                of["oldest"] = oldest.id
            lines = [_entry(row) for row in look.all(_lines(of), of)]
        if len(lines) > limit:
            return Entries(lines=lines[:limit], before=lines[limit - 1].id)
        return Entries(lines=lines, before=None if oldest is None else oldest.id + 1)

    def turns(self, session_id: str, *, limit: int) -> list[TurnRow]:
        """The turns of one session."""
        with self.database.look() as look:
            rows = look.all(self._turns, {"of": session_id, "limit": limit})
        return [TurnRow(**row._mapping) for row in rows]

    def sandboxes(self, session_id: str, *, limit: int) -> list[SandboxRow]:
        """The generations of one session."""
        with self.database.look() as look:
            rows = look.all(self._sandboxes, {"of": session_id, "limit": limit})
        return [SandboxRow(**row._mapping) for row in rows]

    def note(self, event: Event) -> None:
        """Write into the ledger what moves no row, such as what an operator asked for."""
        with self.database.move() as move:
            move.record(event)


def _lines(of: Mapping[str, Any]) -> Select[Any]:
    # Another statement for each filter, as a plan is made for its words.
    query = select(events).where(e.id < _before)
    if "of" in of:
        query = query.where(e.session_id == bindparam("of", type_=String))
    if "oldest" in of:
        query = query.where(e.id > bindparam("oldest", type_=BigInteger))
    if "kind" in of:
        query = query.where(e.kind == bindparam("kind", type_=String))
    if "actor" in of:
        actor = bindparam("actor", type_=String)
        query = query.where(func.replace(e.actor, actor, "") != e.actor)
    return query.order_by(e.id.desc()).limit(_limit)


def _entry(row: Row[Any]) -> Entry:
    return Entry(**{name: row._mapping[name] for name in Entry.__dataclass_fields__})
