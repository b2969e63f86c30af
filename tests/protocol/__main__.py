"""
`python -m tests.protocol [NAME ...]`: check configurations or mutants by name, all without one;
`turns+` is the configuration `turns` with one wish and one accident more, which may take minutes.
Prints what was visited and, where a promise is broken, the shortest run that breaks it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from .checker import Counterexample, Graph, check
from .configurations import CONFIGURATIONS
from .model import Protocol
from .mutants import MUTANTS
from .setup import Setup
from .state import World


def main(names: list[str]) -> int:
    """0 when each configuration holds and each mutant breaks its promise."""
    mutants = {mutant.name: mutant for mutant in MUTANTS}
    failures = 0
    for name in names or [*CONFIGURATIONS, *mutants]:
        began = time.perf_counter()
        if name.removesuffix("+") in CONFIGURATIONS:
            graph = check(Protocol(_setup(name)))
            failures += graph.found is not None
        else:
            mutant = mutants[name]
            graph = check(Protocol(mutant.setup), {mutant.promise})
            failures += graph.found is None
        _say(name, graph, time.perf_counter() - began)
    return 1 if failures else 0


def _setup(name: str) -> Setup:
    setup = CONFIGURATIONS[name.removesuffix("+")]
    if not name.endswith("+"):
        return setup
    return replace(setup, calls=setup.calls + 1, faults=setup.faults + 1)


def _say(name: str, graph: Graph[World], seconds: float) -> None:
    said = f"{name}: {len(graph.worlds)} states, {graph.transitions} transitions, {seconds:.1f} s"
    _tell(said if graph.found is None else f"{said} - breaks {graph.found.promise}")
    for line in () if graph.found is None else _run(graph.found):
        _tell(line)


def _run(found: Counterexample[World]) -> Iterator[str]:
    """Each step, and what it changed; budgets aside."""
    before = found.trace[0][1]
    for number, (label, world) in enumerate(found.trace[1:], 1):
        yield f"  {number:2} {label}"
        for name, old, new in zip(World._fields, before, world, strict=True):
            if old != new and name not in ("calls", "faults", "keys"):
                yield f"       {name} = {new}"
        before = world
    yield f"  {found.promise}: {found.how}"
    yield from (f"     again: {label}" for label in found.rounds)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
