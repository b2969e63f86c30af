"""How many worlds it takes to miss a safeguard that was taken away."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import Mutant, copy_tree
from tests.simulation.crowd import Accident, elsewhere


@dataclass(frozen=True, kw_only=True)
class Hunt:
    """How one went: `worlds` is 0 when it was not found."""

    mutant: Mutant
    worlds: int
    promise: str
    how: str


def hunt(mutant: Mutant, *, first: int, most: int) -> Hunt:
    """World after world on a copy of the sources without the safeguard."""
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder), mutant)
        number = 0
        try:
            for report in elsewhere(range(first, first + most), tree=tree, stop=True):
                number += 1
                if report.promise:
                    return Hunt(
                        mutant=mutant, worlds=number, promise=report.promise, how=report.how
                    )
        except Accident as accident:
            return Hunt(mutant=mutant, worlds=0, promise="accident", how=str(accident))
    return Hunt(mutant=mutant, worlds=0, promise="", how=f"not found in {most} worlds")


def hunt_all(mutants: Iterable[Mutant], *, first: int, most: int, jobs: int) -> Iterator[Hunt]:
    """In the order of the table."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda mutant: hunt(mutant, first=first, most=most), mutants)


def median(hunts: Sequence[Hunt]) -> float:
    """Of the worlds that it took; one that was not found took for ever."""
    return statistics.median(hunt.worlds or float("inf") for hunt in hunts)
