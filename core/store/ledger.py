"""How events reach the ledger: any number of them by one statement of one text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    ColumnClause,
    ColumnElement,
    Insert,
    Integer,
    Select,
    String,
    bindparam,
    column,
    exists,
    func,
    insert,
    select,
)

from ..events import Event
from ..schema import events

COLUMNS: tuple[ColumnClause[Any], ...] = (
    column("kind", String),
    column("session_id", String),
    column("generation", Integer),
    column("actor", String),
    column("detail", JSON),
)


class Ledger:
    """The statements of one database. `now` is its clock."""

    def __init__(self, now: ColumnElement[datetime], dialect: str) -> None:
        entries = bindparam("entries", type_=JSON())
        fields = _of_postgresql(entries) if dialect == "postgresql" else _of_sqlite(entries)
        self._rows = select(now, *fields)
        self.insert = _insert(self._rows)

    def insert_with(self, change: CTE) -> Insert:
        """The same as part of a statement that changes something, when it did."""
        return _insert(self._rows.where(exists(select(1).select_from(change))))


def entries(happened: Sequence[Event]) -> dict[str, Any]:
    """The parameter of these statements."""
    return {"entries": [_entry(event) for event in happened]}


def _entry(event: Event) -> dict[str, Any]:
    return {
        "kind": event.kind.value,
        "session_id": event.session_id,
        "generation": event.generation,
        "actor": event.actor,
        "detail": dict(event.detail),
    }


def _insert(rows: Select[Any]) -> Insert:
    return insert(events).from_select(["at", *(column.name for column in COLUMNS)], rows)


def _of_postgresql(entries: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    rows = func.json_to_recordset(entries).table_valued(*COLUMNS).render_derived(with_types=True)
    return [*rows.c]


def _of_sqlite(entries: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    row = func.json_each(entries).table_valued("value").c.value
    return [func.json_extract(row, f"$.{column.name}") for column in COLUMNS]
