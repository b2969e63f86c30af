"""What a person sees: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

STYLES = {"running": "green", "closing": "yellow", "gone": "dim", "creating": "cyan"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One session, as the database, the provider and the process table have it."""

    session: str
    server: str
    doing: str
    status: str
    sandbox: str
    provider: str
    pids: tuple[int, ...]

    @property
    def said(self) -> tuple[str, ...]:
        return (self.status, self.sandbox, self.provider, self.doing)


class View:
    """The table with what was done above it. Where there is no terminal it prints what changes."""

    def __init__(self) -> None:
        self.console = Console()
        self.started = time.monotonic()
        self._rows: dict[str, Row] = {}
        self._live = Live(console=self.console, refresh_per_second=8, transient=False)
        self._is_live = self.console.is_terminal

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.__exit__(kind, error, trace)

    def say(self, line: str, style: str = "") -> None:
        """Something was done or found, with the seconds since the start."""
        seconds = f"{time.monotonic() - self.started:5.1f} s  "
        self.console.print(Text(seconds, "dim") + Text(line, style), soft_wrap=True)

    def show(self, rows: list[Row]) -> None:
        """How things stand now."""
        if self._is_live:
            self._live.update(Group(Text(), _table(rows)))
            return
        for row in rows:
            before = self._rows.get(row.session)
            if before is None or before.said != row.said:
                pids = f", processes {' '.join(map(str, row.pids))}" if row.pids else ""
                self.say(
                    f"{row.session}: session {row.status}, sandbox {row.sandbox}, "
                    f"provider says {row.provider}{pids}"
                )
        self._rows = {row.session: row for row in rows}


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("session", "API", "doing", "session is", "sandbox is", "provider says", "pids"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.session,
            row.server,
            row.doing,
            row.status,
            Text(row.sandbox, STYLES.get(row.sandbox, "")),
            Text(row.provider, "dim" if row.provider == "gone" else "green"),
            " ".join(map(str, row.pids)) or "-",
        )
    return table
