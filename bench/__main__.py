"""`./run bench [name ...]`: measure, show, and say what misses its target."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from tests.services import ServiceMissing

from . import (
    churn,
    dashboard,
    embedded,
    fairness,
    fanout,
    memory,
    peers,
    plot,
    reconcile,
    sweep,
    teardown,
    touch,
    web,
)
from .figures import Figure, left_out, show
from .ground import Ground, described, ground

BENCHES: dict[str, Callable[[Ground], Iterator[Figure]]] = {
    touch.NAME: touch.run,
    sweep.NAME: sweep.run,
    fanout.NAME: fanout.run,
    teardown.NAME: teardown.run,
    fairness.NAME: fairness.run,
    churn.NAME: churn.run,
    peers.NAME: peers.run,
    reconcile.NAME: reconcile.run,
    web.NAME: web.run,
    dashboard.NAME: dashboard.run,
    embedded.NAME: embedded.run,
    memory.NAME: memory.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every figure that has a target meets it, 1 when one does not."""
    parser = argparse.ArgumentParser(
        prog="./run bench", description="What it costs, beside its limit or its peers."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHES))
    parser.add_argument("--json", action="store_true", help="one line a figure, and no tables")
    parser.add_argument(
        "--plot", action="store_true", help=f"draw what {peers.NAME} finds, into docs/sweep.svg"
    )
    parser.add_argument(
        "--live", type=int, help=f"sessions of bench {sweep.NAME}, instead of {sweep.MANY:,}"
    )
    parser.add_argument(
        "--minutes", type=float, help=f"of bench {churn.NAME}, instead of {churn.MINUTES:g}"
    )
    options = parser.parse_args(arguments)
    if options.live is not None and options.live < sweep.LEAST:
        parser.error(f"--live {options.live}: what is due is picked from {sweep.LEAST:,} or more")
    if unknown := sorted(set(options.names) - set(BENCHES)):
        parser.error(f"no bench {unknown[0]!r}: there are {', '.join(BENCHES)}")
    if options.plot and peers.NAME not in (options.names or [peers.NAME]):
        parser.error(f"--plot draws what bench {peers.NAME} finds: name it too")
    missed = 0
    console = Console()
    for name in options.names or ([peers.NAME] if options.plot else BENCHES):
        figures = []
        for figure in _measured(name, options):
            figures.append(figure)
            missed += figure.meets is False
            if options.json:
                print(figure.line(), flush=True)
        if not options.json:
            show(figures, console)
    return 1 if missed else 0


def _measured(name: str, options: argparse.Namespace) -> Iterator[Figure]:
    """The figures of one bench, as they are found."""
    told = Console(stderr=True)
    figures = []
    try:
        with ground(many=options.live, minutes=options.minutes) as here:
            where = described(here)
            told.print(f"[bold]{name}[/] on {where}")
            for figure in BENCHES[name](here):
                figures.append(figure)
                told.print(f"  {figure.what} ...", style="dim")
                yield figure
    except ServiceMissing as error:
        left_out(f"what is left of bench {name}", error)
    if options.plot and name == peers.NAME:
        plot.TARGET.write_text(plot.svg(plot.lines(figures), where), encoding="utf-8")
        told.print(f"wrote {plot.TARGET}")


if __name__ == "__main__":
    sys.exit(main())
