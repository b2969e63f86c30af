"""Sandboxes of ours that no row explains: as they were sighted, and the right to tear one down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    true,
    update,
)

from ..events import Event, EventKind
from ..model import OrphanKind, sandbox_name
from ..schema import orphans
from .database import Database, kept
from .rules import CLOSING, GONE, RUNNING, UNHELD, Rules, b
from .sql import Earliest, later

ACTOR = "reconcile"
KEYS = 500  # that one statement writes
o = orphans.c


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


class Orphans:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules, installation: str) -> None:
        self.database = database
        self.installation = installation
        self._prepare_sightings(rules)
        self._prepare_looks(rules)
        self._prepare_kills(rules)

    def sight(self, seen: Sequence[Mapping[str, object]]) -> None:
        """Note orphans: provider, external_id, key, scope and kind of each."""
        for start in range(0, len(seen), KEYS):
            with self.database.move() as move:
                move.run(self._sight, [dict(one) for one in seen[start : start + KEYS]])

    def forget_unseen(self, provider: str, scope: str, began_at: datetime) -> int:
        """
        Forget what a complete listing that began then did not have any more. Not what somebody
        tears down, or tried to: that is forgotten by who records that it went.
        """
        of = {"of_provider": provider, "of_scope": scope, "began_at": began_at}
        with self.database.move() as move:
            return move.run(self._forget, of)

    def ready(self, provider: str, scope: str, limit: int, *, rowless: bool = True) -> list[Orphan]:
        """
        Orphans whose time has come, the longest waiting first. A rowless one was seen in two
        passes, and for the whole grace; of the others the row itself is the proof.
        """
        of = {"of_provider": provider, "of_scope": scope, "limit": limit, "rowless": rowless}
        with self.database.look() as look:
            return [self._orphan(row) for row in look.all(self._ready, of)]

    def ready_rowless(self, provider: str, scope: str) -> int:
        """How many of these are rowless, however many that are."""
        with self.database.look() as look:
            row = look.one(self._ready_rowless, {"of_provider": provider, "of_scope": scope})
        return 0 if row is None else int(row.rowless)

    def all(self, limit: int = 100) -> list[Orphan]:
        """All that are known, the first seen first."""
        with self.database.look() as look:
            return [self._orphan(row) for row in look.all(self._all, {"limit": limit})]

    def claim(self, orphan: Orphan) -> bool:
        """
        The right to tear one down, for claim_ttl seconds. The rows are read again by the same
        statement: False when one explains it by now, when another worker has it, or when
        everything destructive is held.
        """
        of = {"of_provider": orphan.provider, "of_external_id": orphan.external_id}
        with self.database.move() as move:
            return move.one(self._claim, of) is not None

    def gone(self, orphan: Orphan, *, went: bool) -> None:
        """The provider confirmed absence; `went` when it was there until one of us came."""
        of = {"of_provider": orphan.provider, "of_external_id": orphan.external_id}
        with self.database.move() as move:
            if move.run(self._delete, of) and went:
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

    def _orphan(self, row: Row[Any]) -> Orphan:
        known = {k: v for k, v in row._mapping.items() if k in Orphan.__dataclass_fields__}
        name = sandbox_name(self.installation, row.key)
        return Orphan(**{**known, "name": name, "kind": OrphanKind(row.kind)})

    # Statements, built once

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

    def _prepare_looks(self, rules: Rules) -> None:
        of = and_(o.provider == bindparam("of_provider"), o.scope == bindparam("of_scope"))
        limit = bindparam("limit", type_=o.attempts.type)
        self._forget = delete(orphans).where(
            of,
            o.last_seen_at < bindparam("began_at"),
            o.not_before <= rules.now,
            or_(o.attempts == 0, ~_is_orphan(rules)),
        )
        self._all = select(orphans).order_by(o.first_seen_at).limit(limit)
        is_rowless = o.kind == OrphanKind.ROWLESS.value
        wanted = or_(bindparam("rowless", type_=true().type), ~is_rowless)
        ready = select(orphans).where(of, _is_orphan(rules), wanted)
        self._ready = ready.order_by(o.not_before).limit(limit)
        self._ready_rowless = select(func.count().label("rowless")).where(
            of, _is_orphan(rules), is_rowless
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
