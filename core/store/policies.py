"""Limits by layer, as operators set them; and how far open sessions have come to follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, bindparam, case, null, or_, select, update

from ..errors import InvalidArgument
from ..events import Event, EventKind
from ..layers import FIELDS, LIMITS, Layer, Scope, Value, check_fields, check_values
from ..schema import policies
from .database import Database, Move
from .rules import Rules

p = policies.c


@dataclass(frozen=True, kw_only=True)
class PolicyLine:
    """One layer's policy. None leaves a limit to the layer below; durations are seconds."""

    scope: str
    idle_ttl: float | None
    max_age: float | None
    max_turn: float | None
    never_used_ttl: float | None
    max_live: int | None
    when_full: str | None
    changed_at: datetime
    changed_by: str
    followed: bool  # by all sessions that are open


@dataclass(frozen=True, kw_only=True)
class Change:
    """A policy that open sessions have yet to follow: those up to `cursor` do."""

    layer: Layer
    name: str
    revision: int
    cursor: str


class Policies:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._policy = rules.policy
        this = (p.layer == bindparam("of_layer"), p.name == bindparam("of_name"))
        self._one = select(policies).where(*this)
        self._all = select(policies).order_by(p.layer, p.name)
        self._make = (
            database.insert(policies)
            .values(revision=0, changed_at=rules.now, again=0)
            .on_conflict_do_nothing(index_elements=["layer", "name"])
        )
        self._change = update(policies).where(*this)
        self._changed = {
            "revision": p.revision + 1,
            "changed_at": rules.now,
            "changed_by": bindparam("actor"),
        }
        waiting = select(p.name).where(p.cursor.is_not(None)).order_by(p.layer, p.name)
        self.to_follow = waiting  # what a sweep looks for
        behind = or_(
            p.layer > bindparam("behind_layer", type_=p.layer.type),
            and_(
                p.layer == bindparam("behind_layer", type_=p.layer.type),
                p.name > bindparam("behind_name", type_=p.name.type),
            ),
        )
        self._next = waiting.add_columns(p.layer, p.revision, p.cursor).where(behind).limit(1)
        at = bindparam("at", type_=p.cursor.type)
        here = (p.revision == bindparam("of_revision"), p.cursor == bindparam("cursor_was"))
        again = or_(p.again == 1, bindparam("missed", type_=p.again.type) == 1)
        self._advance = (
            update(policies)
            .where(*this, *here)
            .values(
                cursor=case((at.is_not(None), at), (again, ""), else_=null()),
                again=case((at.is_(None), 0), (again, 1), else_=0),
            )
        )

    def all(self) -> Sequence[PolicyLine]:
        """Those that were ever set, by layer and name."""
        with self.database.look() as look:
            return [_line(row) for row in look.all(self._all)]

    def get(self, scope: Scope) -> PolicyLine:
        """One of them, or InvalidArgument that says how to make it."""
        with self.database.look() as look:
            row = self._row(look, scope)
        if row is None:
            raise _unknown(scope)
        return _line(row)

    def exists(self, look: Move, scope: Scope) -> bool:
        """Whether it was ever set, inside somebody's transaction."""
        return self._row(look, scope) is not None

    def set(self, scope: Scope, values: Mapping[str, object], *, actor: str) -> PolicyLine:
        """
        Set these fields and leave the others as they are. InvalidArgument says which is wrong.
        Sessions that are open follow with the next sweep.
        """
        return self._write(scope, check_values(values, scope, self._policy), actor)

    def unset(self, scope: Scope, names: Sequence[str] = (), *, actor: str) -> PolicyLine:
        """Leave these fields to the layer below, all of them when none is named."""
        check_fields(names, scope)
        self.get(scope)  # one that nobody made is a slip of the pen; none is ever deleted
        return self._write(scope, dict.fromkeys(names or FIELDS), actor)

    def edit(self, scope: Scope, values: Mapping[str, object], *, actor: str) -> PolicyLine:
        """Both at once: a field that is None is left to the layer below."""
        gone = [name for name, value in values.items() if value is None]
        check_fields(gone, scope)
        given = {name: value for name, value in values.items() if value is not None}
        checked = check_values(given, scope, self._policy)
        return self._write(scope, {**dict.fromkeys(gone), **checked}, actor)

    def change(self, behind: Change | None = None) -> Change | None:
        """One that open sessions have yet to follow, the first one behind another, if any."""
        layer, name = ("", "") if behind is None else (behind.layer.value, behind.name)
        with self.database.look() as look:
            row = look.one(self._next, {"behind_layer": layer, "behind_name": name})
        if row is None:
            return None
        return Change(
            layer=Layer(row.layer), name=row.name, revision=row.revision, cursor=row.cursor
        )

    def advance(self, change: Change, cursor: str | None, *, missed: bool) -> None:
        """
        Sessions up to `cursor` follow it, all of them where it is None; unless some were missed,
        for which the whole is done again. Nothing where it was changed since: that began anew.
        """
        of = {"of_layer": change.layer.value, "of_name": change.name}
        here = {"of_revision": change.revision, "cursor_was": change.cursor}
        with self.database.single() as move:
            move.run(self._advance, {**of, **here, "at": cursor, "missed": int(missed)})

    def _row(self, move: Move, scope: Scope) -> Row[Any] | None:
        return move.one(self._one, {"of_layer": scope.layer.value, "of_name": scope.name})

    def _write(self, scope: Scope, values: Mapping[str, Value | None], actor: str) -> PolicyLine:
        if not values:
            raise InvalidArgument(f"policy {scope}: give at least one of {', '.join(FIELDS)}")
        # A quota is asked by each open(); limits are in the rows of the sessions, which follow.
        # A walk that is under way keeps in mind whom it has missed, until it begins anew.
        follow = {"cursor": "", "again": 0} if set(values) & set(LIMITS) else {}
        of = {"of_layer": scope.layer.value, "of_name": scope.name, "actor": actor}
        made = {"layer": scope.layer.value, "name": scope.name, "changed_by": actor}
        with self.database.move() as move:
            move.run(self._make, made)
            move.run(self._change.values(**values, **self._changed, **follow), of)
            row = self._row(move, scope)
            assert row is not None  # noqa: S101 - it was made, and nobody deletes them
            detail = {"policy": str(scope), **values}
            move.record(Event(kind=EventKind.POLICY_CHANGED, actor=actor, detail=detail))
            return _line(row)


def _line(row: Row[Any]) -> PolicyLine:
    fields = {name: row._mapping[name] for name in (*FIELDS, "changed_at", "changed_by")}
    scope = Scope(layer=Layer(row.layer), name=row.name)
    return PolicyLine(scope=str(scope), followed=row.cursor is None, **fields)


def _unknown(scope: Scope) -> InvalidArgument:
    return InvalidArgument(
        f"no policy {str(scope)!r}: `sandkeeper policies ls` has those that there are, and "
        f"`sandkeeper policies set {scope} idle_ttl=…` makes one"
    )
