"""Commands for the day that something is wrong: the breaker, reconcile, a restored backup."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import Progress

from core.errors import InvalidArgument, words
from core.policy import duration
from core.store.guard import HoldReason
from tasks.commands import Context, as_json, show, told


def _at_most_ten_years(_: click.Context, __: click.Parameter, seconds: float) -> float:
    try:
        return duration("--for", seconds)
    except InvalidArgument as error:  # neither `nan` nor `inf` is a date
        raise click.BadParameter(str(error)) from error


REASONS = click.Choice([reason.value for reason in HoldReason])
an_answer = click.option(
    "--for",
    "seconds",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(min=1.0),
    callback=_at_most_ten_years,
    help="How long the answer holds, in seconds.",
)


@click.group()
def breaker() -> None:
    """What waits for an operator: while a question is open nothing is torn down."""


@breaker.command("status")
@as_json
@click.pass_obj
@told
def breaker_status(context: Context, json_: bool) -> None:  # noqa: FBT001
    """Show the questions, and the answers that still hold."""
    rows = [asdict(hold) for hold in context.system.store.guard.holds()]
    columns = ("reason", "since", "open", "detail", "decision", "decided_by", "until")
    show(rows, columns, json_=json_)
    if not json_ and not any(row["open"] for row in rows):
        click.echo("nothing is held")


@breaker.command("approve")
@click.argument("reason", type=REASONS)
@an_answer
@click.pass_obj
@told
def breaker_approve(context: Context, reason: str, seconds: float) -> None:
    """
    Go on. `database` and `rewound`: this database is the right one, and nothing was lost. After a
    restore from backup use `db restored`, which does more.
    """
    context.system.store.guard.approve(HoldReason(reason), seconds, actor=context.actor)
    click.echo(f"{reason} is approved")


@breaker.command("deny")
@click.argument("reason", type=REASONS)
@an_answer
@click.pass_obj
@told
def breaker_deny(context: Context, reason: str, seconds: float) -> None:
    """Leave what was asked about alone. `database` and `rewound` go on holding everything."""
    context.system.store.guard.deny(HoldReason(reason), seconds, actor=context.actor)
    click.echo(f"{reason} is denied")


@breaker.command("hold")
@click.argument("why")
@click.pass_obj
@told
def breaker_hold(context: Context, why: str) -> None:
    """Hold everything destructive now, until `breaker approve operator`."""
    context.system.store.guard.hold(HoldReason.OPERATOR, {"why": why}, actor=context.actor)
    click.echo("everything destructive is held: `breaker approve operator` lets it go on")


@click.command("orphans")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000))
@as_json
@click.pass_obj
@told
def orphans(context: Context, limit: int, json_: bool) -> None:  # noqa: FBT001
    """List sandboxes that carry our labels and that no row explains."""
    rows = [asdict(orphan) for orphan in context.system.store.orphans.all(limit)]
    columns = ("name", "provider", "kind", "first_seen_at", "sightings", "attempts", "last_error")
    show(rows, columns, json_=json_)


@click.command("reconcile")
@click.option("--dry-run", is_flag=True, help="Conclude the same, and change nothing.")
@as_json
@click.pass_obj
@told
def reconcile(context: Context, dry_run: bool, json_: bool) -> None:  # noqa: FBT001
    """Compare the providers with the database once, now, in this process."""
    reports = [asdict(report) for report in context.system.reconciler().reconcile(dry_run=dry_run)]
    if json_:
        show(reports, (), json_=True)
        return
    for report in reports:
        show(
            [{"rule": name, "count": value} for name, value in report.items() if value is not None],
            ("rule", "count"),
            json_=False,
        )


@click.command("restored")
@click.option("--workers-stopped", is_flag=True, help="Do not ask the broker whether they are.")
@click.option("--yes", is_flag=True, help="Do not ask me either.")
@click.pass_obj
@told
def db_restored(context: Context, workers_stopped: bool, yes: bool) -> None:  # noqa: FBT001
    """
    Say that this database was brought back from a backup. With the workers stopped: every active
    session gets a full idle TTL from now, claims of before the restore are worth nothing, and
    sandboxes that the backup does not know are kept until `breaker approve mass_orphans`.
    """
    store = context.system.store
    store.guard.hold(HoldReason.RESTORE, {"why": "restore from backup"}, actor=context.actor)
    if not workers_stopped:
        _expect_no_workers()
    if not yes and not click.confirm(
        "This database was restored from a backup, and is the one to use?"
    ):
        raise InvalidArgument(
            "nothing was changed, and everything destructive is held: say `db restored` again, or "
            "`breaker approve restore` if there was no restore"
        )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("claims of before run out", total=store.policy.claim_ttl)
        _wait(store.policy.claim_ttl, lambda seconds: progress.update(bar, completed=seconds))
        bar = progress.add_task("amnesty", total=None)
        restore = store.restore
        sessions = restore.everything(lambda done: progress.update(bar, completed=done))
    restore.finish(actor=context.actor)
    click.echo(
        f"{sessions} active sessions have a full idle TTL; start the workers, and look at "
        "`sandkeeper orphans` before you approve mass_orphans"
    )
    for hold in store.guard.holds():
        if hold.open:
            click.echo(f"still held: {hold.reason.value}, {dict(hold.detail)}")


def _expect_no_workers() -> None:
    from tasks.app import app  # noqa: PLC0415 - celery takes long to import, and few need it

    try:
        found = sorted(app.control.inspect(timeout=3.0).ping() or {})
    except Exception as error:
        raise InvalidArgument(
            f"the broker cannot be asked whether workers run ({words(error)}). See that they are "
            "stopped and say it again with --workers-stopped. Until then everything is held"
        ) from error
    if found:
        raise InvalidArgument(
            f"workers are running: {', '.join(found)}. Stop them and say it again: what they began "
            "before the restore would end on rows that are older. Until then everything is held"
        )


def _wait(seconds: float, show_progress: Callable[[float], None]) -> None:
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        show_progress(passed)
        time.sleep(min(0.2, seconds - passed))
