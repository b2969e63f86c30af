"""What reconcile reads and writes: which rows explain a listing, what was sighted, what is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    String,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from ..events import Event, EventKind
from ..model import EndReason, OrphanKind, SandboxState, SessionStatus, sandbox_name
from ..schema import installation as installation_table
from ..schema import orphans, providers, sessions
from .database import Database, kept
from .endings import Endings
from .rules import ACTIVE, CLOSING, GONE, OF_SESSION, RUNNING, UNHELD, Rules, b, locked, s
from .sql import Earliest, later

ACTOR = "reconcile"
KEYS = 500  # that one statement asks about
o, p = orphans.c, providers.c


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The beginning of one comparison, by the database's clock."""

    began_at: datetime
    store_created_at: datetime
    cursor: str
    first: bool


@dataclass(frozen=True, kw_only=True)
class Known:
    """The row of a listed sandbox."""

    key: str
    session_id: str
    generation: int
    provider: str
    scope: str
    state: SandboxState
    external_id: str | None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A sandbox that its provider should have."""

    key: str
    name: str
    session_id: str
    external_id: str


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """A sandbox of ours that no row explains."""

    provider: str
    external_id: str
    key: str
    name: str
    scope: str
    kind: OrphanKind
    first_seen_at: datetime
    last_seen_at: datetime
    sightings: int
    attempts: int
    last_error: str | None


class Inventory:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules, installation: str) -> None:
        self.database = database
        self.installation = installation
        self._endings = Endings(rules)
        self._prepare_passes(rules)
        self._prepare_sightings(rules)
        self._prepare_kills(rules)
        self._prepare_missing(rules)

    # A pass

    def begin(self, provider: str) -> Pass:
        """Where the last pass came to, and the moment before the provider is asked."""
        with self.database.look() as look:
            row = look.connection.execute(self._begin, {"of_provider": provider}).one()
        return Pass(
            began_at=row.began_at,
            store_created_at=row.created_at,
            cursor=row.cursor or "",
            first=row.reconciled_at is None,
        )

    def finish(self, provider: str, cursor: str, report: Mapping[str, object]) -> None:
        """Keep where this pass came to, and what it found."""
        parameters = {"of_provider": provider, "new_cursor": cursor, "new_report": dict(report)}
        with self.database.move() as move:
            move.run(self._finish, parameters)

    def explain(self, keys: Sequence[str]) -> dict[str, Known]:
        """The rows that have these keys."""
        known: dict[str, Known] = {}
        with self.database.look() as look:
            for start in range(0, len(keys), KEYS):
                for row in look.all(self._explain, {"keys": list(keys[start : start + KEYS])}):
                    known[row.key] = Known(**{**row._mapping, "state": SandboxState(row.state)})
        return known

    # Orphans

    def sight(self, seen: Sequence[Mapping[str, object]]) -> None:
        """Note orphans: provider, external_id, key, scope and kind of each."""
        for start in range(0, len(seen), KEYS):
            with self.database.move() as move:
                move.run(self._sight, [dict(one) for one in seen[start : start + KEYS]])

    def forget_unseen(self, provider: str, scope: str, began_at: datetime) -> int:
        """
        Forget what a complete listing that began then did not have any more. Not what somebody is
        tearing down: that is forgotten by who records it.
        """
        of = {"of_provider": provider, "of_scope": scope, "began_at": began_at}
        with self.database.move() as move:
            return move.run(self._forget, of)

    def ready(self, provider: str, scope: str, limit: int) -> list[Orphan]:
        """
        Orphans whose time has come, the longest waiting first. A rowless one was seen in two
        passes, and for the whole grace; of the others the row itself is the proof.
        """
        of = {"of_provider": provider, "of_scope": scope, "limit": limit}
        with self.database.look() as look:
            return [self._orphan(row) for row in look.all(self._ready, of)]

    def ready_rowless(self, provider: str, scope: str) -> int:
        """How many of these are rowless, however many that are."""
        with self.database.look() as look:
            row = look.one(self._ready_rowless, {"of_provider": provider, "of_scope": scope})
        return 0 if row is None else int(row.rowless)

    def orphans(self, limit: int = 100) -> list[Orphan]:
        """All that are known, the first seen first."""
        with self.database.look() as look:
            return [self._orphan(row) for row in look.all(self._orphans, {"limit": limit})]

    def claim(self, orphan: Orphan) -> bool:
        """
        The right to tear one down, for claim_ttl seconds. The rows are read again by the same
        statement: False when one explains it by now, when another worker has it, or when
        everything destructive is held.
        """
        of = {"of_provider": orphan.provider, "of_external_id": orphan.external_id}
        with self.database.move() as move:
            return move.one(self._claim, of) is not None

    def gone(self, orphan: Orphan, *, found: bool) -> None:
        """The provider confirmed absence; `found` when it was there before we came."""
        of = {"of_provider": orphan.provider, "of_external_id": orphan.external_id}
        with self.database.move() as move:
            if move.run(self._delete, of) and found:
                move.record(
                    Event(
                        kind=EventKind.ORPHAN_GONE,
                        actor=ACTOR,
                        detail={
                            "name": orphan.name,
                            "external_id": orphan.external_id,
                            "kind": orphan.kind.value,
                        },
                    )
                )

    def failed(self, orphan: Orphan, error: str, pause: float) -> None:
        """Try again after `pause` seconds."""
        of = {"of_provider": orphan.provider, "of_external_id": orphan.external_id}
        with self.database.move() as move:
            move.run(self._postpone, {**of, "error": kept(error), "seconds": pause})

    # Missing sandboxes

    def running(self, provider: str, scope: str, after: str, born: datetime) -> list[Running]:
        """A page of what this provider should have had at `born`, in the order of keys."""
        of = {"of_provider": provider, "of_scope": scope, "after": after, "born": born}
        with self.database.look() as look:
            return [
                Running(
                    key=row.key,
                    name=sandbox_name(self.installation, row.key),
                    session_id=row.session_id,
                    external_id=row.external_id,
                )
                for row in look.all(self._running, of)
            ]

    def lost(self, missing: Running) -> bool:
        """
        End the session of a sandbox that its provider confirmed to be gone, so that its next turn
        is told that the workspace was reset. False when it moved on meanwhile, or all is held.
        """
        of = {"session_id": missing.session_id, "of_key": missing.key}
        with self.database.move() as move:
            move.run(self._hold, of)
            ended = move.all(self._lose, of)
            self._endings.close(move, ended, ACTOR)
        return bool(ended)

    def _orphan(self, row: Row[Any]) -> Orphan:
        known = {k: v for k, v in row._mapping.items() if k in Orphan.__dataclass_fields__}
        name = sandbox_name(self.installation, row.key)
        return Orphan(**{**known, "name": name, "kind": OrphanKind(row.kind)})

    # Statements, built once

    def _prepare_passes(self, rules: Rules) -> None:
        this = p.provider == bindparam("of_provider")
        self._begin = select(
            rules.now.label("began_at"),
            installation_table.c.created_at,
            p.cursor,
            p.reconciled_at,
        ).outerjoin_from(installation_table, providers, this)
        found = {
            "cursor": bindparam("new_cursor"),
            "report": bindparam("new_report", type_=p.report.type),
            "reconciled_at": rules.now,
        }
        self._finish = (
            self.database.insert(providers)
            .values(provider=bindparam("of_provider"), **found)
            .on_conflict_do_update(index_elements=["provider"], set_=found)
        )
        columns = [b.key, b.session_id, b.generation, b.provider, b.scope, b.state, b.external_id]
        self._explain = select(*columns).where(b.key.in_(bindparam("keys", expanding=True)))

    def _prepare_sightings(self, rules: Rules) -> None:
        insert = self.database.insert(orphans).values(
            provider=bindparam("of_provider"),
            external_id=bindparam("of_external_id"),
            key=bindparam("of_key"),
            scope=bindparam("of_scope"),
            kind=bindparam("of_kind"),
            first_seen_at=rules.now,
            last_seen_at=rules.now,
            not_before=rules.now,
            sightings=1,
            attempts=0,
        )
        same = and_(o.kind == insert.excluded.kind, o.key == insert.excluded.key)
        self._sight = insert.on_conflict_do_update(
            index_elements=["provider", "external_id"],
            set_={
                "key": insert.excluded.key,
                "kind": insert.excluded.kind,
                "scope": insert.excluded.scope,
                # A date in the future is from before the clock stepped back.
                "first_seen_at": case(
                    (same, Earliest(o.first_seen_at, rules.now)), else_=rules.now
                ),
                "last_seen_at": rules.now,
                "sightings": case((same, o.sightings + 1), else_=1),
            },
        )
        of = and_(o.provider == bindparam("of_provider"), o.scope == bindparam("of_scope"))
        self._forget = delete(orphans).where(
            of, o.last_seen_at < bindparam("began_at"), o.not_before <= rules.now
        )
        self._orphans = (
            select(orphans)
            .order_by(o.first_seen_at)
            .limit(bindparam("limit", type_=s.generation.type))
        )
        self._ready = (
            select(orphans)
            .where(of, _is_orphan(rules))
            .order_by(o.not_before)
            .limit(bindparam("limit", type_=s.generation.type))
        )
        self._ready_rowless = select(func.count().label("rowless")).where(
            of, _is_orphan(rules), o.kind == OrphanKind.ROWLESS.value
        )

    def _prepare_kills(self, rules: Rules) -> None:
        this = and_(
            o.provider == bindparam("of_provider"), o.external_id == bindparam("of_external_id")
        )
        self._claim = (
            update(orphans)
            .where(this, _is_orphan(rules), UNHELD)
            .values(not_before=rules.in_(rules.policy.claim_ttl), attempts=o.attempts + 1)
            .returning(o.key)
        )
        self._delete = delete(orphans).where(this)
        self._postpone = (
            update(orphans)
            .where(this)
            .values(
                not_before=rules.in_(bindparam("seconds", type_=rules.seconds)),
                last_error=bindparam("error"),
            )
        )

    def _prepare_missing(self, rules: Rules) -> None:
        self._running = (
            select(b.key, b.session_id, b.external_id)
            .where(
                RUNNING,
                b.provider == bindparam("of_provider"),
                b.scope == bindparam("of_scope"),
                b.key > bindparam("after", type_=String),
                b.running_at <= bindparam("born", type_=b.running_at.type),
            )
            .order_by(b.key)
            .limit(KEYS)
        )
        this = s.id == bindparam("session_id")
        self._hold = locked(select(s.id).where(this), skip=False)
        still = exists(
            select(1).where(OF_SESSION, RUNNING, b.key == bindparam("of_key")).correlate(sessions)
        )
        self._lose = (
            update(sessions)
            .where(this, ACTIVE, still, UNHELD)
            .values(
                status=SessionStatus.ENDED.value,
                ended_at=rules.now,
                end_reason=EndReason.LOST.value,
            )
            .returning(s.id, s.generation, s.end_reason)
        )


def _is_orphan(rules: Rules) -> ColumnElement[bool]:
    """
    The proof, by the row itself. A row that is gone, or has another id, cannot become untrue. That
    there is no row needs more: it was missed at two moments, and for the whole grace.
    """
    rows = select(1).where(b.key == o.key)
    late = and_(o.kind == OrphanKind.LATE.value, exists(rows.where(GONE)))
    twin = and_(
        o.kind == OrphanKind.TWIN.value,
        exists(rows.where(or_(RUNNING, CLOSING), b.external_id != o.external_id)),
    )
    rowless = and_(
        o.kind == OrphanKind.ROWLESS.value,
        ~exists(rows),
        o.first_seen_at <= rules.in_(-rules.policy.orphan_grace),
        o.last_seen_at >= later(o.first_seen_at, rules.policy.reconcile_interval / 2),
    )
    return and_(o.not_before <= rules.now, or_(late, twin, rowless))
