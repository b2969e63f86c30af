"""`./run bench [name ...]`: measure, show, and say what misses its target."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from . import fanout, sweep, teardown, touch
from .figures import Figure, show
from .ground import Ground, described, ground

BENCHES: dict[str, Callable[[Ground], Iterator[Figure]]] = {
    touch.NAME: touch.run,
    sweep.NAME: sweep.run,
    fanout.NAME: fanout.run,
    teardown.NAME: teardown.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every figure that has a target meets it, 1 when one does not."""
    parser = argparse.ArgumentParser(
        prog="./run bench", description="What it costs, beside its limit or its peers."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHES))
    parser.add_argument("--json", action="store_true", help="one line a figure, and no tables")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(BENCHES)):
        parser.error(f"no bench {unknown[0]!r}: there are {', '.join(BENCHES)}")
    missed = 0
    console, told = Console(), Console(stderr=True)
    for name in options.names or BENCHES:
        with ground() as here:
            told.print(f"[bold]{name}[/] on {described(here)}")
            figures = []
            for figure in BENCHES[name](here):
                figures.append(figure)
                missed += figure.meets is False
                told.print(f"  {figure.what} ...", style="dim")
                if options.json:
                    print(figure.line(), flush=True)
        if not options.json:
            show(figures, console)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
