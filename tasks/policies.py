"""Limits by layer, and the spans in which nothing is ended for idleness."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

from core.errors import InvalidArgument
from core.layers import FIELDS, parse_scope
from core.store.windows import EXAMPLE
from tasks.commands import Context, as_json, show, told

POLICY = ("scope", *FIELDS, "changed_by", "followed")
WINDOW = ("name", "from_at", "until_at", "open", "reason", "made_by")


@click.group()
def policies() -> None:
    """
    Limits in layers: installation, tenant:NAME, profile:NAME, and what open() is given. The later
    one wins; what none of them has is decided by the settings.

    Fields: idle_ttl, max_age, max_turn, never_used_ttl in seconds, max_live live sandboxes of a
    tenant, when_full refuse or evict-oldest-idle.
    """


@policies.command("ls")
@as_json
@click.pass_obj
@told
def policies_ls(context: Context, json_: bool) -> None:  # noqa: FBT001
    """List what was set. `followed` is false until all open sessions have the new limits."""
    rows = [asdict(line) for line in context.system.store.policies.all()]
    show(rows, POLICY, json_=json_)


@policies.command("show")
@click.argument("scope")
@as_json
@click.pass_obj
@told
def policies_show(context: Context, scope: str, json_: bool) -> None:  # noqa: FBT001
    """Show one policy."""
    line = asdict(context.system.store.policies.get(parse_scope(scope)))
    if json_:
        show([line], (), json_=True)
        return
    show([{"field": k, "value": v} for k, v in line.items()], ("field", "value"), json_=False)


@policies.command("set")
@click.argument("scope")
@click.argument("fields", nargs=-1, required=True, metavar="FIELD=VALUE...")
@click.pass_obj
@told
def policies_set(context: Context, scope: str, fields: tuple[str, ...]) -> None:
    """
    Set limits; the others stay as they are. Open sessions follow with the next sweep: not below
    what an extension, a pin or an open turn was promised, and never what their open() was given.
    """
    values = dict(_pair(field) for field in fields)
    if len(values) < len(fields):
        raise InvalidArgument(f"{' '.join(fields)}: a field is there twice; keep one")
    store = context.system.store.policies
    store.set(parse_scope(scope), values, actor=context.actor)
    click.echo(f"{scope}: {', '.join(fields)}; open sessions follow with the next sweep")


@policies.command("unset")
@click.argument("scope")
@click.argument("fields", nargs=-1, metavar="[FIELD]...")
@click.pass_obj
@told
def policies_unset(context: Context, scope: str, fields: tuple[str, ...]) -> None:
    """Leave limits to the layer below: those that are named, or all of them."""
    context.system.store.policies.unset(parse_scope(scope), fields, actor=context.actor)
    said = ", ".join(fields) or "everything"
    click.echo(f"{scope}: {said} is left to the layer below")


@click.group()
def windows() -> None:
    """Maintenance windows: nothing is ended for idleness. Max age and `sessions end` still act."""


@windows.command("ls")
@as_json
@click.pass_obj
@told
def windows_ls(context: Context, json_: bool) -> None:  # noqa: FBT001
    """List them, those that are over as well."""
    rows = [asdict(window) for window in context.system.store.windows.all()]
    show(rows, WINDOW, json_=json_)


@windows.command("add")
@click.argument("name")
@click.argument("from_", metavar="FROM")
@click.argument("until")
@click.option("--reason", required=True, help="Why: everybody sees it.")
@click.pass_obj
@told
def windows_add(context: Context, name: str, from_: str, until: str, reason: str) -> None:
    """
    Add a window, or change the one of this name. FROM and UNTIL are ISO 8601 with a zone, as in
    2026-12-24T18:00:00+01:00; at most LONGEST_PIN apart.
    """
    window = context.system.store.windows.add(
        name, _moment("from", from_), _moment("until", until), reason=reason, actor=context.actor
    )
    click.echo(f"{window.name}: from {window.from_at} until {window.until_at}")


@windows.command("rm")
@click.argument("name")
@click.pass_obj
@told
def windows_rm(context: Context, name: str) -> None:
    """Take a window away: what fell due in it is ended by the next sweeps."""
    click.echo(f"{context.system.store.windows.remove(name, actor=context.actor).name} is removed")


def _pair(field: str) -> tuple[str, str]:
    name, equals, value = field.partition("=")
    if not equals:
        raise InvalidArgument(f"{field!r}: write FIELD=VALUE, as in idle_ttl=600")
    return name, value


def _moment(name: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgument(f"{name} {text!r}: write it as in {EXAMPLE}") from error
