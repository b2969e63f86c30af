"""
The quarantine as people look at it: teardowns that failed too often, the longest quarantined
first. One look filters a bounded stretch of them, and reads no row that is not in quarantine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    String,
    and_,
    bindparam,
    func,
    or_,
    select,
)

from ..schema import sandboxes
from .database import Database
from .rules import CLOSING, b, s

STRETCH: Final = 10_000  # of them, that one look filters
SAMPLED: Final = 1_000  # of them, whose providers and errors are offered as filters
BEGINNING: Final = (datetime(1, 1, 1, tzinfo=UTC), "")
IN_QUARANTINE = and_(CLOSING, b.quarantined_at.is_not(None))


@dataclass(frozen=True, kw_only=True)
class Among:
    """Which of them: of this tenant, at this provider, whose last error is of this kind."""

    tenant: str | None = None
    provider: str | None = None
    error: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """What is asked for, without the rest."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def parameters(self) -> dict[str, str]:
        """Of the conditions."""
        return {f"of_{name}": value for name, value in self.given.items()}

    def conditions(self, source: FromClause = sandboxes) -> list[ColumnElement[bool]]:
        """In SQL, of rows of `source`."""
        of, found = source.c, list[ColumnElement[bool]]()
        if self.provider is not None:
            found.append(of.provider == bindparam("of_provider", type_=String))
        if self.error is not None:
            kind = bindparam("of_error", type_=String)
            said = func.substr(of.last_error, 1, func.length(kind) + 1)
            found.append(or_(of.last_error == kind, said == kind.concat(":")))
        if self.tenant is not None:
            tenant = select(s.tenant).where(s.id == of.session_id).correlate(source)
            found.append(tenant.scalar_subquery() == bindparam("of_tenant", type_=String))
        return found


@dataclass(frozen=True, kw_only=True)
class Failing:
    """One of them as a list shows it."""

    key: str
    session_id: str
    generation: int
    tenant: str
    provider: str
    attempts: int
    due_at: datetime
    quarantined_at: datetime
    last_error: str | None

    @property
    def place(self) -> tuple[datetime, str]:
        """Behind which the next page begins."""
        return self.quarantined_at, self.key


@dataclass(frozen=True, kw_only=True)
class FailingPage:
    """Some of them, and the place behind which to go on; None at the end of all."""

    rows: Sequence[Failing]
    behind: tuple[datetime, str] | None


class Quarantine:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self.database = database
        at = bindparam("at", type_=b.quarantined_at.type)
        key = bindparam("key", type_=String)
        behind = or_(b.quarantined_at > at, and_(b.quarantined_at == at, b.key > key))
        self._looked = (
            select(sandboxes)
            .where(IN_QUARANTINE, b.quarantined_at >= at, behind)
            .order_by(b.quarantined_at, b.key)
            .limit(bindparam("stretch", type_=Integer))
        )

    def page(
        self, among: Among, *, after: tuple[datetime, str] = BEGINNING, limit: int
    ) -> FailingPage:
        """Those that match, from behind a place; fewer than there are when they are far apart."""
        of = {"at": after[0], "key": after[1], "stretch": STRETCH, **among.parameters}
        looked = self._looked.subquery("looked")
        end = select(looked.c.quarantined_at, looked.c.key).offset(STRETCH - 1)
        with self.database.look() as look:
            rows = look.all(_matching(looked, among).limit(limit + 1), of)
            last = look.one(end, of) if len(rows) <= limit else None
        found = [Failing(**row._mapping) for row in rows]
        if len(found) > limit:
            return FailingPage(rows=found[:limit], behind=found[limit - 1].place)
        return FailingPage(rows=found, behind=_behind(last))

    def count(self, among: Among) -> tuple[int, bool]:
        """How many match, and whether there may be more."""
        of = {"at": BEGINNING[0], "key": "", "stretch": STRETCH, **among.parameters}
        looked = self._looked.subquery("looked")
        matching = _matching(looked, among).order_by(None).subquery()
        query = select(
            select(func.count()).select_from(matching).scalar_subquery(),
            select(func.count()).select_from(self._looked.subquery("all")).scalar_subquery(),
        )
        with self.database.look() as look:
            found, seen = look.connection.execute(query, of).one()
        return int(found), seen >= STRETCH

    def choices(self) -> tuple[list[str], list[str]]:
        """The providers and the kinds of errors of those that are longest in it."""
        looked = self._looked.subquery("looked")
        of = {"at": BEGINNING[0], "key": "", "stretch": SAMPLED}
        with self.database.look() as look:
            rows = look.all(select(looked.c.provider, looked.c.last_error), of)
        providers, kinds = {row.provider for row in rows}, {kind_of(row.last_error) for row in rows}
        return sorted(providers), sorted(kinds - {""})


def _behind(last: Row[Any] | None) -> tuple[datetime, str] | None:
    return None if last is None else (last.quarantined_at, last.key)


def kind_of(error: str | None) -> str:
    """`AuthFailed` of `AuthFailed: 401`; empty where none was kept."""
    kind = (error or "").partition(":")[0]
    return kind if kind.isidentifier() else ""


def _matching(looked: FromClause, among: Among) -> Select[Any]:
    tenant = select(s.tenant).where(s.id == looked.c.session_id).correlate(looked)
    names = [name for name in Failing.__dataclass_fields__ if name != "tenant"]
    columns = [looked.c[name] for name in names]
    query = select(*columns, tenant.scalar_subquery().label("tenant"))
    query = query.where(*among.conditions(looked))
    return query.order_by(looked.c.quarantined_at, looked.c.key)
