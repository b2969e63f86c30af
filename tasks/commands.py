"""What all commands share: the system that they act on, how they fail, how they print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import cached_property, wraps
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from core.errors import SandkeeperError
from core.events import Sink
from core.settings import Settings
from core.store.database import kept
from core.wiring import System

Command = TypeVar("Command", bound=Callable[..., Any])

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")


class Context:
    """What commands share. Nothing is connected before a command needs it."""

    def __init__(self) -> None:
        self.closing = ExitStack()
        self.sinks: Sequence[Sink] = ()

    @cached_property
    def settings(self) -> Settings:
        return Settings.from_env(os.environ)

    @cached_property
    def system(self) -> System:
        system = System(self.settings, environ=os.environ, sinks=self.sinks)
        self.closing.callback(system.close)
        return system

    @property
    def actor(self) -> str:
        return kept(f"operator {os.environ.get('USER') or os.getuid()}")[:200]


def told(command: Command) -> Command:
    """An operator's mistake is one line and exit code 1, never a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SandkeeperError as error:
            raise click.ClickException(str(error)) from error

    return run  # type: ignore[return-value]


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, json_: bool) -> None:
    """Rows as a table, or as one JSON array."""
    if json_:
        click.echo(json.dumps(list(rows), default=plain, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(cell(row[column]) for column in columns))
    # What callers and providers wrote is shown as it is, whatever it looks like to rich.
    # Into a pipe a table keeps its width: what reads it counts columns, not a terminal's cells.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)


def plain(value: object) -> object:
    """As JSON has it."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def cell(value: object) -> str:
    """As a table has it."""
    if value is None:
        return "-"
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)
