"""`sandkeeper doctor`: everything that an operator would look at, each with what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from core.doctor import GROUND, REST, Examination, Finding, Level, Patient, examine, worst
from tasks.commands import Context, as_json, show, told

COLUMNS = ("level", "check", "says", "fix")


def examinations() -> tuple[Examination[Any], ...]:
    """All of them, in the order in which somebody would mend what they find."""
    from tasks.app import app  # noqa: PLC0415 - celery takes long to import
    from tasks.doctor.broker import broker_of  # noqa: PLC0415
    from tasks.doctor.workers import workers_of  # noqa: PLC0415

    return (*GROUND, broker_of(app), workers_of(app), *REST)


def diagnosis(patient: Patient) -> list[Finding]:
    """
    Every finding. The settings come first: where they are wrong, celery's cannot even be read, and
    there is nothing else to look at.
    """
    found = list(examine(patient, GROUND[:1]))
    if not worst(found).is_ok:
        return found
    with Progress(console=Console(stderr=True), transient=True) as progress:
        every = examinations()
        bar = progress.add_task("looking", total=None)
        found = []
        for finding in examine(patient, every):
            found.append(finding)
            progress.update(bar, advance=1, description=finding.check.replace("_", " "))
    return found


@click.command("doctor")
@click.option("--quiet", is_flag=True, help="Only what is a warning or a failure.")
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings too.")
@click.option(
    "--within",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=1, max=600),
    help="Seconds that one look may take.",
)
@click.option(
    "--self-test",
    is_flag=True,
    help="Open a real sandbox, kill its holder with -9 in the middle of a turn, and see it go.",
)
@click.option("--yes", is_flag=True, help="Do the self-test though other sessions are active.")
@as_json
@click.pass_obj
@told
def doctor(  # noqa: PLR0917 - click calls it by name
    context: Context,
    quiet: bool,  # noqa: FBT001
    strict: bool,  # noqa: FBT001
    within: float,
    self_test: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
    json_: bool,  # noqa: FBT001
) -> None:
    """
    Look at everything an operator would, and say what to do: settings, database, broker, workers,
    beat, providers, and what waits. It moves nothing. Exit code 1 when something failed; with
    --strict also for a warning. docs/doctor.md says what each check means.

    --self-test proves the promise here, with a session of its own that it cleans up: in a staging
    of yours rather than where users are.
    """
    if self_test and json_:
        raise click.UsageError("--self-test prints its steps as lines, and no JSON")
    patient = Patient(environ=dict(os.environ), within=within)
    context.closing.callback(patient.close)
    if self_test:
        from tasks.doctor.selftest import self_test as prove  # noqa: PLC0415

        raise SystemExit(prove(context, patient, yes=yes))
    found = diagnosis(patient)
    _print(found, quiet=quiet, json_=json_)
    level = worst(found)
    raise SystemExit(0 if level.is_ok or (level is Level.WARNING and not strict) else 1)


def _print(found: Iterable[Finding], *, quiet: bool, json_: bool) -> None:
    rows = [asdict(finding) for finding in found if not (quiet and finding.level.is_ok)]
    if rows or json_:
        show(rows, COLUMNS, json_=json_)
