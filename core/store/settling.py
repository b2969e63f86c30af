"""
The limits on a session's row, as its layers have them. They are copied there because every hot
statement reads them; a policy that changes is followed row by row, in bounded batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import FromClause, Row, Select, and_, bindparam, case, func, select, update

from ..layers import LIMITS, OPEN, Layer
from ..schema import policies, sessions
from ..settings import LONGEST
from .database import Database, Move
from .policies import Change
from .rules import ACTIVE, OPEN_TURN, TICK, Rules, locked, s, t
from .sql import Latest, Seconds, any_of

LIMIT = bindparam("limit", type_=s.generation.type)
# The strongest first.
STACK = (Layer.PROFILE, Layer.TENANT, Layer.INSTALLATION)
_OF = {
    Layer.PROFILE: s.profile,
    Layer.TENANT: s.tenant,
    Layer.INSTALLATION: "",
}


class Settling:
    """
    No change of a policy is missed by a session that is opened meanwhile: whoever walks begins
    after the change was committed, and meets every row that was committed before; and each later
    row is settled once more when its sandbox is recorded, by a statement that sees the change.
    """

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        policy = rules.policy
        self._defaults: Mapping[str, float | None] = {
            name: getattr(policy, name) for name in LIMITS
        }
        these = any_of(s.id, "ids")
        self._lock = locked(select(s.id).where(these, ACTIVE), skip=True)
        self._lock_one = locked(select(s.id).where(s.id == bindparam("of_session")), skip=False)
        self._layers = _with_layers().where(these, ACTIVE)
        self._members = {
            Layer.INSTALLATION: _members(),
            Layer.TENANT: _members(s.tenant == bindparam("of_name")),
            Layer.PROFILE: _members(s.profile == bindparam("of_name")),
        }
        self._write = (
            update(sessions)
            .where(s.id == bindparam("of_session"), ACTIVE)
            .values(
                **{name: bindparam(f"new_{name}", type_=s[name].type) for name in LIMITS},
                **{f"{name}_by": bindparam(f"new_{name}_by") for name in LIMITS},
            )
            .values(max_age=_promised_age(rules))
        )
        # What was noticed is looked at within the confirm interval anyway, and its date is part
        # of the proof that it was looked at again.
        self._look_sooner = (
            update(sessions)
            .where(these, ACTIVE, s.noticed_at.is_(None), s.due_at > rules.next_look)
            .values(due_at=rules.next_look)
        )

    def settle(self, move: Move, ids: Sequence[str]) -> dict[str, dict[str, str | None]]:
        """
        Give these sessions, whose rows the transaction has locked, the limits of their layers.
        Returns which layer set each limit, by session.
        """
        rows = move.all(self._layers, {"ids": list(ids)})
        wanted = {row.id: self._wanted(row) for row in rows}
        changed = [row.id for row in rows if _differs(row, wanted[row.id])]
        for session_id in changed:
            new = {f"new_{name}": value for name, value in wanted[session_id].items()}
            move.run(self._write, {"of_session": session_id, **new})
        return {
            session_id: {name: of[f"{name}_by"] for name in LIMITS}
            for session_id, of in wanted.items()
        }

    def members(self, change: Change, limit: int) -> list[str]:
        """The next active sessions that this policy is for, in the order of their ids."""
        of = {"cursor": change.cursor, "limit": limit}
        if change.name:
            of["of_name"] = change.name
        with self.database.look() as look:
            return [row.id for row in look.all(self._members[change.layer], of)]

    def follow(self, ids: Sequence[str]) -> list[str]:
        """
        Settle these sessions, and look at them sooner where that is due now. Returns those that
        somebody held: nobody waits while he holds others, whose turns could not beat.
        """
        with self.database.move() as move:
            free = {row.id for row in move.all(self._lock, {"ids": list(ids)})}
            self._follow(move, [session_id for session_id in ids if session_id in free])
        return [session_id for session_id in ids if session_id not in free]

    def follow_one(self, session_id: str) -> None:
        """The same for one of those, with a wait for who holds it; RowLocked when it is long."""
        with self.database.move() as move:
            move.one(self._lock_one, {"of_session": session_id})
            self._follow(move, [session_id])

    def _follow(self, move: Move, ids: Sequence[str]) -> None:
        if ids:
            self.settle(move, ids)
            move.run(self._look_sooner, {"ids": list(ids)})

    def _wanted(self, row: Row[Any]) -> dict[str, Any]:
        found = dict(row._mapping)
        wanted: dict[str, Any] = {}
        for name in LIMITS:
            value, by = found[name], found[f"{name}_by"]
            if by not in {OPEN, None}:  # None: opened by an earlier version, which kept no layers
                value, by = self._effective(found, name)
            wanted |= {name: value, f"{name}_by": by}
        return wanted

    def _effective(self, found: Mapping[str, Any], name: str) -> tuple[float | None, str]:
        for layer in STACK:
            value = found[f"{layer}_{name}"]
            if value is not None:
                return value, layer.value
        return self._defaults[name], Layer.INSTALLATION.value


def _differs(row: Row[Any], wanted: Mapping[str, Any]) -> bool:
    return any(row._mapping[name] != value for name, value in wanted.items())


def _members(*where: Any) -> Select[Any]:
    after = s.id > bindparam("cursor", type_=s.id.type)
    return select(s.id).where(ACTIVE, after, *where).order_by(s.id).limit(LIMIT)


def _with_layers() -> Select[Any]:
    columns: list[Any] = [s.id]
    for name in LIMITS:
        columns += [s[name], s[f"{name}_by"]]
    query, joined = columns, cast("FromClause", sessions)
    for layer in STACK:
        of = policies.alias(f"of_{layer}")
        query += [of.c[name].label(f"{layer}_{name}") for name in LIMITS]
        joined = joined.outerjoin(of, and_(of.c.layer == layer.value, of.c.name == _OF[layer]))
    return select(*query).select_from(joined)


def _promised_age(rules: Rules) -> Any:
    """
    The new max age, or what was promised under the old one: no turn that is open loses its
    ceiling, and no extension or pin its date.
    """
    new = bindparam("new_max_age", type_=s.max_age.type)
    ceiling = (
        select(func.max(t.hard_until))
        .where(OPEN_TURN, t.hard_until > rules.now)
        .correlate(sessions)
        .scalar_subquery()
    )
    dates: Iterable[Any] = (ceiling, *rules.kept())
    until = Latest(s.opened_at, *(func.coalesce(date, s.opened_at) for date in dates))
    # A tick more: rounding must not take the last of it.
    promised = Seconds(s.opened_at, until) + TICK
    longer = and_(until > s.opened_at, promised > new)
    # Ten years are asked for by who wants no end: no column takes more, and no row may be one that
    # can never follow. Where the new one is none, it is none.
    too_long = and_(longer, promised > LONGEST)
    return case((too_long, LONGEST), (longer, promised), else_=new)
