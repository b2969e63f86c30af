"""A figure beside its limit, and how both are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """
    `ours` beside `peer`, both in `unit`; without a peer, `ours` itself. `at_most` or `at_least` is
    the target of ours / peer, or of ours. A figure without a target is there to be seen. `live` is
    how many sessions lived, where a picture shows what that changes.
    """

    bench: str
    what: str
    ours: float
    unit: str
    peer: float | None = None
    peer_is: str = ""
    at_most: float | None = None
    at_least: float | None = None
    live: int | None = None

    @property
    def value(self) -> float:
        """What the target is about."""
        return self.ours if self.peer is None else self.ours / self.peer

    @property
    def meets(self) -> bool | None:
        """Whether it is as good as wanted; None where nobody said what is."""
        if self.at_most is not None:
            return self.value <= self.at_most
        if self.at_least is not None:
            return self.value >= self.at_least
        return None

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self), "value": self.value, "meets": self.meets})


def show(figures: Iterable[Figure], console: Console) -> None:
    """As a table for people."""
    table = Table("what", "ours", "beside", "", "ratio", "target", "met", box=None)
    for name in ("ours", "beside", "ratio", "target"):
        next(column for column in table.columns if column.header == name).justify = "right"
    for figure in figures:
        beside = "" if figure.peer is None else amount(figure.peer, figure.unit)
        table.add_row(
            figure.what,
            amount(figure.ours, figure.unit),
            beside,
            figure.peer_is,
            "" if figure.peer is None else f"{figure.value:.3g}",
            figure.target,
            {True: "yes", False: "[red]no[/]", None: ""}[figure.meets],
        )
    console.print(table)


def left_out(what: str, why: object) -> None:
    """Say what is not measured here, and why."""
    print(f"  {what} is left out: {why}", file=sys.stderr)


def amount(value: float, unit: str) -> str:
    """Three digits that count, with the unit that keeps them readable."""
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
            if value * factor >= 1 or name == "µs":
                return f"{digits(value * factor)} {name}"
    return f"{digits(value)} {unit}".strip()


def digits(value: float) -> str:
    """3.14, 31.4, 314, 31,416."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
