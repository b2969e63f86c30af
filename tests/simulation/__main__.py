"""
Deterministic simulation of the core: one seed is one world, and the same seed the same world again.

    ./run simulate [--worlds N] [--seed FIRST] [--jobs N]
    ./run simulate --replay SEED
    ./run simulate --mutants [--markdown]
    ./run simulate --mutant NAME
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from tests.simulation import crowd
from tests.simulation.crowd import Sum
from tests.simulation.faults import Fault
from tests.simulation.hunt import Hunt, hunt_all, median
from tests.simulation.mutants import UNSEEN, chosen

WORLDS, MOST = 200, 300  # how many unless told: of them all, and for one mutant
SHOWN = 20  # violations, of so many as there may be


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; 1 when a promise was broken or a mutant not found."""
    options = _parser().parse_args(arguments)
    if options.report:
        stop = options.seed + (options.worlds or WORLDS) * options.step
        crowd.tell(range(options.seed, stop, options.step), stop=options.stop)
        return 0
    if options.replay is not None:
        return 1 if crowd.replay(options.replay, _say).promise else 0
    if options.mutants or options.mutant:
        return _mutants(options)
    return _worlds(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run simulate", description=(__doc__ or "").split("\n\n", maxsplit=1)[0].strip()
    )
    parser.add_argument(
        "--worlds", type=int, help=f"how many ({WORLDS}; for a mutant at most, {MOST})"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="show every step of one world")
    parser.add_argument("--mutants", action="store_true", help="take every safeguard away, once")
    parser.add_argument(
        "--mutant", metavar="NAME", action="append", default=[], help="take this one away"
    )
    parser.add_argument("--markdown", action="store_true", help="the mutants as a table for docs")
    parser.add_argument("--report", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--stop", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    return parser


def _worlds(options: argparse.Namespace) -> int:
    total, began, shown = Sum(), time.monotonic(), 0.0
    wanted = options.worlds or WORLDS
    for report in crowd.spread(options.seed, wanted, options.jobs):
        total.add(report)
        if report.promise and len(total.broken) <= SHOWN:
            _say(f"\nworld {report.seed} ({report.foci}): {shortened(report.how)}")
            _say(f"  to see it: ./run simulate --replay {report.seed}")
        if time.monotonic() - shown > 0.5 and sys.stderr.isatty():
            shown = time.monotonic()
            sys.stderr.write(f"\r{total.worlds} of {wanted} worlds ")
            sys.stderr.flush()
    _summary(total, time.monotonic() - began)
    return 1 if total.broken else 0


def _summary(total: Sum, took: float) -> None:
    _say(
        f"\n{total.worlds} worlds, {total.seconds / 3600:.1f} virtual hours, {total.steps} steps "
        f"in {took:.0f} s ({total.worlds / max(took, 0.001):.1f} worlds/s)"
    )
    for fault in Fault:
        _say(f"  {fault.value:<34}{total.faults[fault.value]:>9}")
    _say(f"violations: {len(total.broken)}")


def _mutants(options: argparse.Namespace) -> int:
    known = {mutant.name: mutant for mutant in chosen()}
    if unknown := [name for name in options.mutant if name not in known]:
        _say(f"no mutant is called {unknown[0]!r}: {', '.join(known)}")
        return 2
    mutants = [known[name] for name in options.mutant or known]
    most = options.worlds or MOST
    hunts = []
    if options.markdown:
        _say("| Safeguard taken away | Promise | Found after | Broken |\n|---|---|---:|---|")
    for hunt in hunt_all(mutants, first=options.seed, most=most, jobs=options.jobs):
        hunts.append(hunt)
        _say(_row(hunt) if options.markdown else _line(hunt, whole=bool(options.mutant)))
    if options.markdown and not options.mutant:
        for name, reason in UNSEEN.items():
            _say(f"| {name} | | not here | {reason} |")
    _say(f"\nmedian {median(hunts):g} worlds, {len([h for h in hunts if not h.worlds])} not found")
    return 0 if all(hunt.worlds for hunt in hunts) else 1


def _row(hunt: Hunt) -> str:
    return f"| {hunt.mutant.name} | {hunt.mutant.promise} | {hunt.worlds or '-'} | {hunt.promise} |"


def _line(hunt: Hunt, *, whole: bool) -> str:
    how = hunt.how if whole else shortened(hunt.how)
    return f"{hunt.worlds or '-':>4}  {hunt.mutant.name:<52} {how}"


def shortened(how: str) -> str:
    """A violation without the middle of its traceback."""
    lines = [line.strip() for line in how.splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
