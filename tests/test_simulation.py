"""
The whole core in simulated worlds: two hundred of them hold, each can be seen again, everything
that can go wrong did, and without a safeguard some world says so.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests.mutants import ROOT, Mutant
from tests.simulation.crowd import Report, Sum, elsewhere, spread
from tests.simulation.faults import Fault
from tests.simulation.hunt import hunt
from tests.simulation.mutants import EXTRA, UNSEEN, chosen

WORLDS = 200
SIDE_BY_SIDE = 2
# One of each kind: the sweep, a claim, a confirmation, a heartbeat.
QUICK = (
    "end without a notice",
    "a live claim can be claimed",
    "an accepted destroy is believed",
    "a beat of an older generation counts",
)
# What a process takes from its machine comes through core.host, so that a world can hand it in.
PORTS = {"host.py", "aio.py", "engines.py", "wiring.py", "witness.py"}
OUTSIDE = {"doctor", "migrations", "providers", "web"}  # what no world runs
FORBIDDEN = {
    "datetime.now",
    "datetime.today",
    "datetime.utcnow",
    "os.urandom",
    "threading.Thread",
    "threading.Timer",
    "uuid.uuid1",
    "uuid.uuid4",
    "uuid.uuid7",
}
FORBIDDEN_MODULES = {
    "asyncio",
    "concurrent",
    "multiprocessing",
    "random",
    "sched",
    "secrets",
    "time",
}


@pytest.fixture(scope="module")
def total() -> Sum:
    """The worlds of all seeds, run once."""
    total = Sum()
    for report in spread(0, WORLDS, SIDE_BY_SIDE):
        total.add(report)
    return total


@pytest.mark.timeout(300)
def test_every_world_holds(total: Sum) -> None:
    """Every promise, in every one of these worlds."""
    broken = [
        f"world {report.seed}: {report.how}\n  ./run simulate --replay {report.seed}"
        for report in total.broken
    ]

    assert total.worlds == WORLDS
    assert not broken, "\n".join(broken)


@pytest.mark.timeout(300)
def test_everything_that_can_go_wrong_did(total: Sum) -> None:
    """A fault that never happens proves nothing."""
    missing = [fault for fault in Fault if not total.faults[fault.value]]

    assert not missing


def test_a_seed_is_a_world() -> None:
    """The same steps in the same order, in another process, with other hashes of strings."""

    def digests(hash_seed: str) -> list[tuple[int, int, int]]:
        reports: Iterator[Report] = elsewhere(range(4), environ={"PYTHONHASHSEED": hash_seed})
        return [(report.seed, report.digest, report.steps) for report in reports]

    first = digests("1")

    assert len({digest for _, digest, _ in first}) == len(first)
    assert digests("2") == first


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", QUICK)
def test_a_world_misses_a_safeguard(name: str) -> None:
    """The judge is judged: it sees that a promise is broken, and soon."""
    (mutant,) = (mutant for mutant in chosen() if mutant.name == name)

    found = hunt(mutant, first=0, most=100)

    assert found.worlds, found.how
    assert found.promise != "accident", found.how


@pytest.mark.parametrize("mutant", EXTRA, ids=lambda mutant: mutant.name)
def test_each_mutant_finds_its_place(mutant: Mutant) -> None:
    """A safeguard that was rewritten is taken away nowhere, and nobody would notice."""
    assert mutant.source()


def test_what_no_world_sees_is_still_a_mutant() -> None:
    """The reasons are about mutants that there are."""
    assert UNSEEN.keys() <= {mutant.name for mutant in chain(every_mutant())}


def every_mutant() -> tuple[Mutant, ...]:
    """Those of the other tests too."""
    from tests.mutants import MUTANTS

    return (*MUTANTS, *EXTRA)


def test_core_reads_no_clock_chance_or_thread_behind_its_ports() -> None:
    """What it does not get through its ports, no simulation can decide, and no replay repeat."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted((ROOT / "core").rglob("*.py"))
        if path.name not in PORTS
        if not OUTSIDE & set(path.relative_to(ROOT / "core").parts)
        for line, what in behind_the_ports(path)
    ]

    assert not found, "\n".join(found)


def behind_the_ports(path: Path) -> Iterator[tuple[int, str]]:
    """Imports and calls that take something from the machine."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            if name in FORBIDDEN or name.partition(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, name
