"""What sandboxes cost, and what reaping saves: all of it, with progress on a terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from core.bill import Bill, Line, bill, said
from core.explain.said import span as in_words
from core.model import check_tenant
from core.prices import HOUR
from core.savings import Book, Span, check_ttls, parse_span
from core.store.savings import Savings
from tasks.commands import Context, as_json, plain, show, told

AT_A_TIME = 2_000  # sandboxes between two words on the progress


@click.command("savings")
@click.option("--since", default="7d", show_default=True, help="How far back: 7d, 12h, 30m or 90s.")
@click.option("--tenant", help="This tenant's alone.")
@click.option(
    "--ttl", "ttls", type=float, multiple=True, help="Try this idle TTL, in seconds; repeat it."
)
@as_json
@click.pass_obj
@told
def savings(
    context: Context,
    since: str,
    tenant: str | None,
    ttls: tuple[float, ...],
    json_: bool,  # noqa: FBT001
) -> None:
    """
    Say what sandboxes cost, how much of it was idle, and what reaping saved.

    With --ttl also what another idle TTL would have saved, and how many sessions it would have
    reset. In money where SANDKEEPER_PRICES says what an hour costs. docs/savings.md says what is
    counted.
    """
    tries, seconds = check_ttls(ttls), parse_span(since)
    tenant = None if tenant is None else check_tenant(tenant)
    store = context.system.store.savings
    span = store.span(seconds)
    found = bill(span, _all(store, span, tries, tenant), context.settings.prices)
    if json_:
        click.echo(json.dumps(asdict(found), default=plain, indent=2))
        return
    _print(found)


def _all(store: Savings, span: Span, ttls: list[float], tenant: str | None) -> Book:
    book, read, after = Book(ttls), 0, ""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("reading sandboxes", total=None)
        while True:
            found = store.read(span, ttls, tenant=tenant, after=after, most=AT_A_TIME)
            book.add(found.book)
            read += found.read
            progress.update(task, description=f"{read:,} sandboxes read")
            if found.behind is None:
                return book
            after = found.behind


def _print(found: Bill) -> None:
    click.echo(f"{found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC")
    several = len(found.lines) > 1
    rows = [_row(line, found.currency) for line in [*found.lines, *[found.total] * several]]
    if not rows:
        click.echo("no sandbox was there")
        return
    show(rows, tuple(rows[0]), json_=False)
    if found.total.what_if:
        click.echo()
        tried = [
            {"idle_ttl": in_words(one.ttl), "saved": _amount(one.saved, one.saved_cost, found)}
            | {"resets": one.resets, "sessions_reset": one.sessions, "resets_spared": one.spared}
            for one in found.total.what_if
        ]
        show(tried, tuple(tried[0]), json_=False)
        click.echo()
        for one in found.total.what_if:
            click.echo(said(one, in_words(one.ttl), found.currency))


def _row(line: Line, currency: str | None) -> dict[str, Any]:
    total = line.provider is None
    tenant = "total" if total else line.tenant or "all others"
    hours = {
        "billed_h": line.billed,
        "busy_h": line.busy,
        "idle_h": line.idle,
        "saved_h": line.saved,
    }
    row: dict[str, Any] = {"tenant": tenant, "provider": line.provider, "sandboxes": line.sandboxes}
    row |= {name: f"{seconds / HOUR:,.1f}" for name, seconds in hours.items()}
    if currency is not None:
        costs = {"billed": line.billed_cost, "idle": line.idle_cost, "saved": line.saved_cost}
        for name, cost in costs.items():
            row[f"{name}_{currency}"] = None if cost is None else f"{cost:,.2f}"
    return row


def _amount(seconds: float, cost: float | None, found: Bill) -> str:
    hours = f"{seconds / HOUR:,.1f} h"
    return hours if cost is None else f"{cost:,.2f} {found.currency} ({hours})"
