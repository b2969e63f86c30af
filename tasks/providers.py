"""Commands about who runs the sandboxes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from core.providers.base import Spec
from core.providers.contract import CHECKS
from core.providers.spec import spec_of
from core.providers.trial import Subject
from core.providers.verdict import Verdict, verdicts
from tasks.commands import Context, as_json, plain, show, told

WORDS = {True: "kept", False: "NOT KEPT", None: "not claimed"}


@click.group()
def providers() -> None:
    """Who runs the sandboxes."""


@providers.command("ls")
@as_json
@click.pass_obj
@told
def providers_ls(context: Context, json_: bool) -> None:  # noqa: FBT001
    """List the providers that this process knows, with what they can do."""
    rows = [
        {
            "name": provider.name,
            "scope": provider.scope(),
            "capabilities": ", ".join(sorted(provider.capabilities)),
        }
        for provider in context.system.providers.values()
    ]
    show(rows, ("name", "scope", "capabilities"), json_=json_)


@providers.command("check")
@click.argument("name")
@click.option("--spec", help="What to run, as in SANDKEEPER_SPEC, which is used without it.")
@click.option(
    "--several",
    default=5,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Sandboxes to list: more than one page of them proves more.",
)
@click.option(
    "--short",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0.1, max=86_400),
    help="The shortest TTL that it can keep, in seconds.",
)
@click.option(
    "--patience",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1, max=3600),
    help="Seconds for one call, and for a destroy to be confirmed.",
)
@click.option(
    "--lag",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0, max=3600),
    help="Seconds that its listing may be behind.",
)
@as_json
@click.pass_obj
@told
def providers_check(
    context: Context,
    /,
    name: str,
    spec: str | None,
    json_: bool,  # noqa: FBT001
    **limits: Any,
) -> None:
    """
    Hold a provider to its contract, with real sandboxes in the account that this environment
    names. All that is made is destroyed again; nothing else is touched. Exit code 1 when a promise
    is not kept.
    """
    environ, what = dict(os.environ), _spec(context, spec)
    subject = Subject(provider=name, environ=environ, spec=what, **limits)
    found = _tried(subject)
    timings = _timings(found)
    if json_:
        checks = [asdict(verdict) for verdict in found]
        click.echo(json.dumps({"checks": checks, "calls": timings}, default=plain, indent=2))
    else:
        rows = [
            {
                "check": verdict.check.replace("_", " "),
                "verdict": WORDS[verdict.kept],
                "seconds": f"{verdict.seconds:.1f}",
                "said": verdict.said or None,
            }
            for verdict in found
        ]
        show(rows, ("check", "verdict", "seconds", "said"), json_=False)
        click.echo()
        show(timings, ("call", "times", "median_ms", "slowest_ms"), json_=False)
    broken = [verdict for verdict in found if verdict.kept is False]
    if broken:
        raise click.ClickException(f"{name} does not keep {len(broken)} of {len(found)} promises")


def _spec(context: Context, given: str | None) -> Spec:
    if given is None:
        return spec_of(context.settings.spec)
    try:
        return spec_of(json.loads(given))
    except ValueError as error:
        raise click.BadParameter(f"{given!r} is no JSON: {error}", param_hint="--spec") from error


def _tried(subject: Subject) -> list[Verdict]:
    found: list[Verdict] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(subject.provider, total=len(CHECKS))
        for verdict in verdicts(subject):
            found.append(verdict)
            progress.update(bar, advance=1, description=verdict.check.replace("_", " "))
    return found


def _timings(found: Iterable[Verdict]) -> Sequence[dict[str, object]]:
    """Of the calls that one process made, one after another."""
    calls: dict[str, list[float]] = {}
    for verdict in found:
        for call, seconds in verdict.calls.items():
            calls.setdefault(call, []).extend(seconds)
    return [
        {
            "call": call,
            "times": len(seconds),
            "median_ms": round(median(seconds) * 1000, 1),
            "slowest_ms": round(max(seconds) * 1000, 1),
        }
        for call, seconds in sorted(calls.items())
    ]
