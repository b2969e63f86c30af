"""How an explanation and a rehearsal look in a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from core.explain import Explanation
from core.reaper import Rehearsal
from tasks.commands import plain, show


def print_explanation(found: Explanation) -> None:
    """The sentences under their headings; headings with nothing below are left out."""
    click.echo(f"{found.session_id}, generation {found.generation}: {found.state}")
    click.echo(found.sentence)
    parts: dict[str, list[str | None]] = {
        "why": [found.not_reaped, found.taken],
        "activity": [found.activity.sentence, *(turn.sentence for turn in found.turns)],
        "kept by": [point.sentence for point in found.kept],
        "held up by": [point.sentence for point in found.obstacles],
        "next": [point.sentence for point in found.next],
        "earlier sandboxes": [point.sentence for point in found.earlier],
        "limits": [limit.sentence for limit in found.limits],
    }
    for heading, sentences in parts.items():
        said = [sentence for sentence in sentences if sentence is not None]
        if said:
            click.echo(f"\n{heading}")
            click.echo("\n".join(f"  {sentence}" for sentence in said))
    click.echo("\nhistory")
    history = [asdict(line) for line in found.history]
    show(history, ("at", "kind", "generation", "actor", "detail"), json_=False)


def print_rehearsal(found: Rehearsal, *, json_: bool) -> None:
    """What a sweep would do: the counts, then each event and each teardown that it would have."""
    if json_:
        click.echo(json.dumps(asdict(found), default=plain, indent=2))
        return
    report = asdict(found.report)
    show(
        [{"would be": name, "rows": rows} for name, rows in report.items()],
        ("would be", "rows"),
        json_=False,
    )
    if found.events:
        click.echo()
        show(
            [asdict(event) for event in found.events],
            ("kind", "session_id", "generation", "detail"),
            json_=False,
        )
    if found.rung:
        click.echo()
        rung = [{"teardown of": name, "generation": number} for name, number in found.rung]
        show(rung, ("teardown of", "generation"), json_=False)
    click.echo("nothing was changed")
