"""Maintenance windows: spans in which nothing is ended for idleness. The rest goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, select

from ..errors import InvalidArgument
from ..events import Event, EventKind
from ..model import TENANT, check_reason
from ..schema import windows
from .database import Database
from .rules import Rules

w = windows.c
EXAMPLE = "2026-12-24T18:00:00+01:00"


@dataclass(frozen=True, kw_only=True)
class Window:
    """One span, by the database's clock; `open` when it has begun and is not over."""

    name: str
    from_at: datetime
    until_at: datetime
    reason: str
    made_by: str
    open: bool


class Windows:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self._longest = rules.policy.longest_pin
        columns = (
            w.name,
            w.from_at,
            w.until_at,
            w.reason,
            w.made_by,
            rules.window_open.label("open"),
        )
        self._all = select(*columns).order_by(w.from_at, w.name)
        self._one = select(*columns, (w.until_at <= rules.now).label("over")).where(
            w.name == bindparam("of_name")
        )
        adding = database.insert(windows).values(made_at=rules.now)
        span = ("from_at", "until_at", "reason", "made_by", "made_at")
        self._add = adding.on_conflict_do_update(
            index_elements=["name"], set_={name: adding.excluded[name] for name in span}
        )
        self._remove = delete(windows).where(w.name == bindparam("of_name")).returning(w.name)

    def all(self) -> Sequence[Window]:
        """Those that there are, over or not, the earliest first."""
        with self.database.look() as look:
            return [_window(row._mapping) for row in look.all(self._all)]

    def add(
        self, name: str, from_at: datetime, until_at: datetime, *, reason: str, actor: str
    ) -> Window:
        """
        A span from one moment until another, at most LONGEST_PIN long; both with a zone. One of
        the same name takes its place. InvalidArgument says what makes no sense.
        """
        span = {"from_at": _zoned("from", from_at), "until_at": _zoned("until", until_at)}
        self._check(from_at, until_at)
        told = {"reason": check_reason(reason), "made_by": actor}
        with self.database.move() as move:
            move.run(self._add, {"name": _checked(name), **span, **told})
            row = move.connection.execute(self._one, {"of_name": name}).one()
            if row.over:
                raise InvalidArgument(
                    f"until {until_at.isoformat()}: is over already; give a moment that is to come"
                )
            found = _window(row._mapping)
            move.record(_event(found, actor, added=True))
        return found

    def remove(self, name: str, *, actor: str) -> Window:
        """End it, or take it back before it begins. InvalidArgument when there is none."""
        with self.database.move() as move:
            row = move.one(self._one, {"of_name": name})
            if row is None or move.one(self._remove, {"of_name": name}) is None:
                raise InvalidArgument(
                    f"no window {name!r}: `sandkeeper windows ls` has those that there are"
                )
            found = _window(row._mapping)
            move.record(_event(found, actor, added=False))
        return found

    def _check(self, from_at: datetime, until_at: datetime) -> None:
        seconds = (until_at - from_at).total_seconds()
        if seconds <= 0:
            raise InvalidArgument(
                f"until {until_at.isoformat()}: must be after from {from_at.isoformat()}"
            )
        if seconds > self._longest:
            raise InvalidArgument(
                f"until {until_at.isoformat()}: a window is at most {self._longest:g} seconds long "
                "(LONGEST_PIN), and this one has "
                f"{seconds:g}: idle sandboxes cost money all the while"
            )


def _window(fields: object) -> Window:
    row = dict(fields)  # type: ignore[call-overload] # a row's mapping
    known = {name: row[name] for name in Window.__dataclass_fields__}
    return Window(**{**known, "open": bool(row["open"])})


def _zoned(name: str, moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise InvalidArgument(
            f"{name} {moment.isoformat()}: give the zone as well, as in {EXAMPLE}"
        )
    return moment


def _checked(name: str) -> str:
    if TENANT.fullmatch(name):
        return name
    raise InvalidArgument(f"window {name[:60]!r}: use 1 to 64 characters of A-Z a-z 0-9 . _ : -")


def _event(window: Window, actor: str, *, added: bool) -> Event:
    detail = {
        "window": window.name,
        "change": "added" if added else "removed",
        "from": window.from_at.isoformat(),
        "until": window.until_at.isoformat(),
        "reason": window.reason,
    }
    return Event(kind=EventKind.WINDOW_CHANGED, actor=actor, detail=detail)
