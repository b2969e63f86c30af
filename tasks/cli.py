"""The command line: what operators run by hand. Exit code 0 done, 1 refused or failed, 2 usage."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from core import migrations
from core.engines import opened
from core.events import Event, EventKind
from core.model import check_session_id
from tasks.commands import Context, as_json, cell, plain, show, told
from tasks.completion import completion, session_ids
from tasks.doctor.command import doctor
from tasks.explained import print_explanation, print_rehearsal
from tasks.policies import policies, windows
from tasks.providers import providers
from tasks.safety import breaker, db_restored, orphans, reconcile
from tasks.savings import savings
from tasks.serve import host_option, port_option, serve
from tasks.tokens import tokens


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """
    Sandkeeper ends idle sessions and tears their sandboxes down.

    Settings come from SANDKEEPER_ environment variables; docs/settings.md lists them.
    """
    context.obj = Context()
    context.call_on_close(context.obj.closing.close)


@main.group()
def db() -> None:
    """Migrate the database."""


@db.command("upgrade")
@click.pass_obj
@told
def db_upgrade(context: Context) -> None:
    """Bring the tables to this version. Safe to run twice, and from two places at once."""
    with opened(context.settings.database_url) as engine:
        migrations.upgrade(engine)
        click.echo(f"the database is at revision {migrations.current(engine)}")


@db.command("check")
@click.pass_obj
@told
def db_check(context: Context) -> None:
    """Fail when the tables are not the ones that this version needs."""
    with opened(context.settings.database_url) as engine:
        migrations.require(engine)
        differences = migrations.differences(engine)
    if differences:
        raise click.ClickException("the tables differ: " + "; ".join(differences))
    click.echo("the tables are the ones that this version needs")


@db.command("current")
@click.pass_obj
@told
def db_current(context: Context) -> None:
    """Print the revision that the database is at."""
    with opened(context.settings.database_url) as engine:
        click.echo(migrations.current(engine) or "never migrated")


db.add_command(db_restored)


@main.group()
def sessions() -> None:
    """Look at sessions, and act on them."""


LINE = (
    "id",
    "tenant",
    "status",
    "generation",
    "sandbox",
    "turns_open",
    "last_activity_at",
    "due_at",
    "end_reason",
)


@sessions.command("ls")
@click.option("--status", type=click.Choice(["active", "ended"]), help="Only these.")
@click.option("--after", default="", help="Go on behind this session id.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000))
@as_json
@click.pass_obj
@told
def sessions_ls(context: Context, status: str | None, after: str, limit: int, json_: bool) -> None:  # noqa: FBT001
    """List sessions by id."""
    after = check_session_id(after) if after else after
    lines = context.system.store.history.lines(status=status, after=after, limit=limit)
    show([asdict(line) for line in lines], LINE, json_=json_)


@sessions.command("show")
@click.argument("session_id", shell_complete=session_ids)
@as_json
@click.pass_obj
@told
def sessions_show(context: Context, session_id: str, json_: bool) -> None:  # noqa: FBT001
    """Show one session and its history."""
    session = asdict(context.system.keeper().get(session_id))
    history = [asdict(line) for line in context.system.store.history.of_session(session_id)]
    if json_:
        click.echo(json.dumps({**session, "history": history}, default=plain, indent=2))
        return
    sandbox = session.pop("sandbox")
    facts = {**session, "sandbox": sandbox["name"], "sandbox_state": sandbox["state"]}
    show([{"fact": k, "value": v} for k, v in facts.items()], ("fact", "value"), json_=False)
    click.echo()
    show(history, ("at", "kind", "generation", "actor", "detail"), json_=False)


@sessions.command("explain")
@click.argument("session_id", shell_complete=session_ids)
@as_json
@click.pass_obj
@told
def sessions_explain(context: Context, session_id: str, json_: bool) -> None:  # noqa: FBT001
    """Say why a session is still there, or why it was taken."""
    found = context.system.keeper().explain(session_id)
    if json_:
        click.echo(json.dumps(asdict(found), default=plain, indent=2))
        return
    print_explanation(found)


@sessions.command("end")
@click.argument("session_id", shell_complete=session_ids)
@click.option("--reason", default="ended by an operator", show_default=True)
@click.pass_obj
@told
def sessions_end(context: Context, session_id: str, reason: str) -> None:
    """End a session now. Its sandbox is torn down by the workers; open turns are told."""
    session = _keeper(context).end(session_id, reason=reason)
    click.echo(f"{session.id} is ended ({session.end_reason})")


@sessions.command("extend")
@click.argument("session_id", shell_complete=session_ids)
@click.argument("seconds", type=float)
@click.pass_obj
@told
def sessions_extend(context: Context, session_id: str, seconds: float) -> None:
    """Keep an idle session for so many seconds from now."""
    session = _keeper(context).extend(session_id, seconds)
    click.echo(f"{session.id} is kept until {cell(session.extended_until)}")


@sessions.command("pin")
@click.argument("session_id", shell_complete=session_ids)
@click.argument("seconds", type=float)
@click.option("--reason", required=True, help="Why: everybody sees it.")
@click.option("--owner", help="Whose pin it is; you when left out.")
@click.pass_obj
@told
def sessions_pin(
    context: Context, session_id: str, seconds: float, reason: str, owner: str | None
) -> None:
    """Keep a session from being ended by idleness for so many seconds from now."""
    session = _keeper(context).pin(session_id, seconds, reason=reason, owner=owner)
    click.echo(f"{session.id} is pinned until {cell(session.pinned_until)} by {session.pinned_by}")


@sessions.command("unpin")
@click.argument("session_id", shell_complete=session_ids)
@click.pass_obj
@told
def sessions_unpin(context: Context, session_id: str) -> None:
    """Lift a pin: the next sweep looks at what else keeps the session."""
    click.echo(f"{_keeper(context).unpin(session_id).id} is not pinned")


def _keeper(context: Context) -> Any:
    keeper = context.system.keeper()
    keeper.holder = context.actor
    return keeper


@main.command("sweep")
@click.option("--dry-run", is_flag=True, help="Say what a sweep would do, and change nothing.")
@as_json
@click.pass_obj
@told
def sweep(context: Context, dry_run: bool, json_: bool) -> None:  # noqa: FBT001
    """Sweep once, now, in this process; teardowns are published to the workers."""
    if dry_run:
        print_rehearsal(context.system.reaper(lambda _: None).rehearse(), json_=json_)
        return
    from tasks.app import app  # noqa: PLC0415 - celery takes long to import, and few need it
    from tasks.doorbell import FanOut  # noqa: PLC0415

    context.sinks = (_say_aloud,)
    report = asdict(context.system.reaper(FanOut(app)).sweep())
    show([report], tuple(report), json_=json_)


def _say_aloud(event: Event) -> None:
    """What went wrong, beside a report that would look as if nothing had been there to do."""
    if event.kind in {EventKind.FAN_OUT_FAILED, EventKind.ROW_POISONED}:
        click.echo(f"{event.kind.value}: {dict(event.detail)}", err=True)


@main.group()
def quarantine() -> None:
    """Teardowns that failed too often. They are retried all the same."""


@quarantine.command("ls")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000))
@as_json
@click.pass_obj
@told
def quarantine_ls(context: Context, limit: int, json_: bool) -> None:  # noqa: FBT001
    """List them, the longest quarantined first."""
    rows = [asdict(row) for row in context.system.store.teardowns.quarantined(limit)]
    columns = ("session_id", "generation", "provider", "name", "attempts", "last_error")
    show(rows, columns, json_=json_)


@quarantine.command("retry")
@click.argument("session_id", required=False, shell_complete=session_ids)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@click.pass_obj
@told
def quarantine_retry(context: Context, session_id: str | None, all_: bool) -> None:  # noqa: FBT001
    """Try again with the next sweep, without waiting for the pause to end."""
    if (session_id is None) != all_:
        raise click.UsageError("give a session id, or --all")
    session_id = None if session_id is None else check_session_id(session_id)
    retried = context.system.store.teardowns.retry_now(session_id, actor=context.actor)
    click.echo(f"{retried} to be tried again")


@main.command("up")
@click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1, 1000))
@host_option
@port_option
@click.option("--no-api", is_flag=True, help="Without the HTTP API.")
@click.pass_obj
@told
def up(context: Context, concurrency: int, host: str, port: int, no_api: bool) -> None:  # noqa: FBT001
    """Migrate the database, then run a worker, a beat and the HTTP API until Ctrl-C."""
    from tasks.app import app  # noqa: PLC0415
    from tasks.up import commands, supervise  # noqa: PLC0415

    broker = app.connection_for_write().as_uri()  # a bad setting ends here, not in each child
    with opened(context.settings.database_url) as engine:
        migrations.upgrade(engine)
        database = engine.url.render_as_string(hide_password=True)
        click.echo(f"database {database}, broker {broker}, in {Path.cwd()}")
    scope = context.system.provider.scope()
    click.echo(f"provider {context.system.provider.name} ({scope})")
    context.closing.close()  # the children connect by themselves
    api = None if no_api else (host, port)
    raise SystemExit(supervise(commands(concurrency=concurrency, api=api)))


for command in (
    breaker,
    completion,
    doctor,
    orphans,
    policies,
    providers,
    reconcile,
    savings,
    serve,
    tokens,
    windows,
):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="sandkeeper")
