"""The protocol holds in its model, each naive variant of it fails, and the names are the code's."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import core.store
from core.model import MOVES, SandboxState
from tests.protocol import names
from tests.protocol.__main__ import main
from tests.protocol.checker import Breach, Counterexample, Graph, Step, check
from tests.protocol.configurations import CONFIGURATIONS
from tests.protocol.model import Protocol
from tests.protocol.mutants import MUTANTS, Mutant
from tests.protocol.promises import L1, L2, L3, L4, S1, S2, S3, S4, S5
from tests.protocol.setup import Fault, Naive
from tests.protocol.state import World, with_key

# How many states each has at least: one that stops short proves nothing.
SIZES = {
    "turns": 9_000,
    "opening": 8_000,
    "reopening": 25_000,
    "teardown": 12_000,
    "generations": 40_000,
    "hangs": 5_000,
    "ages": 12_000,
    "reconcile": 9_000,
    "rowless": 8_000,
    "held": 7_000,
    "restore": 55_000,
}
# Faults that have no name of their own in a run: what is done about them has.
NAMED_OTHERWISE = {
    Fault.CREATE_REFUSED,
    Fault.MESSAGE_DOUBLED,
    Fault.CLOCK_STEPS_BACK,
    Fault.BREAKER_TRIPS,
}
# Not stores, but what they are made of.
MACHINERY = {"database", "rules", "sql"}
LOOKS = re.compile(r"database\.(look|snapshot)\(\)")
WRITES = re.compile(r"database\.(move|single)\(\)|self\.hold\(")

# Half a minute of computing, all of it in whichever test comes first; machines are shared.
pytestmark = pytest.mark.timeout(600)

Move = tuple[SandboxState, SandboxState]


class Explored(NamedTuple):
    """What is kept of a configuration; its states are many."""

    found: Counterexample[World] | None
    states: int
    fired: frozenset[str]
    moves: frozenset[Move]


@functools.cache
def explored(name: str) -> Explored:
    """A configuration, checked once for all tests."""
    graph = check(Protocol(CONFIGURATIONS[name]))
    return Explored(graph.found, len(graph.worlds), frozenset(graph.fired), frozenset(moves(graph)))


def moves(graph: Graph[World]) -> Iterator[Move]:
    """The moves of sandboxes' rows. A restore is none: it is what the moves are not told of."""
    for before, edges in zip(graph.worlds, graph.edges, strict=True):
        for _, to in edges:
            after = graph.worlds[to]
            if after.store.rows is before.store.rows or after.is_restored != before.is_restored:
                continue
            for row in after.store.rows:
                old = with_key(before.store.rows, row.key)
                if old is not None and old.state is not row.state:
                    yield old.state, row.state


def writing_methods() -> Iterator[str]:
    """The public methods of the store's classes, without those that only look."""
    for found in pkgutil.iter_modules(core.store.__path__):
        if found.name in MACHINERY:
            continue
        module = importlib.import_module(f"core.store.{found.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ != module.__name__ or dataclasses.is_dataclass(cls):
                continue
            for method in vars(cls).values():
                if not inspect.isfunction(method) or method.__name__.startswith("_"):
                    continue
                source = inspect.getsource(method)
                only_looks = LOOKS.search(source) and not WRITES.search(source)
                if not only_looks:
                    yield method.__qualname__


# The promises


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_protocol_keeps_its_promises(name: str) -> None:
    """No reachable state, step or fair run breaks one; and there was enough to look at."""
    result = explored(name)

    assert result.found is None, result.found
    assert result.states >= SIZES[name]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_naive_variant_breaks_the_promise_beside_it(mutant: Mutant) -> None:
    """Each safeguard is there for something, and the model would notice."""
    graph = check(Protocol(mutant.setup), {mutant.promise})

    assert graph.found is not None, f"{mutant.name} keeps {mutant.promise}"
    assert graph.found.promise == mutant.promise


def test_every_naive_variant_and_every_promise_has_a_mutant() -> None:
    """What is never broken on purpose may be a promise that the model does not look at."""
    assert {naive for mutant in MUTANTS for naive in mutant.naive} == set(Naive)
    assert {mutant.promise for mutant in MUTANTS} == {S1, S2, S3, S4, S5, L1, L2, L3, L4}


# In step with the code


def test_every_action_and_every_fault_happens_in_some_configuration() -> None:
    """A guard that is never passed makes whatever stands behind it true."""
    fired = frozenset[str]().union(*(explored(name).fired for name in CONFIGURATIONS))

    faults = {fault for fault in Fault if not any(action.startswith(fault) for action in fired)}

    assert fired >= names.OF_STORE | names.OF_PROVIDER
    assert faults == NAMED_OTHERWISE


def test_the_model_makes_the_moves_of_the_domain_and_no_others() -> None:
    """The states are the code's own; so are the moves, all of them."""
    made = frozenset[Move]().union(*(explored(name).moves for name in CONFIGURATIONS))

    assert made == {(state, then) for state in MOVES for then in MOVES[state]}


def test_every_method_of_the_store_that_writes_is_modelled_or_excused() -> None:
    """A new move of the store belongs into the model, or into the table that says why not."""
    assert set(writing_methods()) == names.OF_STORE | set(names.NOT_MODELLED)


# The checker itself


class Ring(NamedTuple):
    """Three places in a ring, with a way out of the second that is fair or is not."""

    is_fair: bool
    start: int = 0

    @property
    def goals(self) -> dict[str, Leaves]:
        return {"leaves": Leaves()}

    def steps(self, world: int) -> Iterator[Step[int]]:
        if world < 3:
            yield Step("goes on", "walker", (world + 1) % 3)
        if world == 1:
            yield Step("goes out", "walker", 3, self.is_fair)
        elif self.is_fair and world != 3:
            yield Step("goes out", "walker", 3)

    def breaches(self, world: int) -> Iterator[Breach]:
        if world == 2:
            yield Breach("never two", "it is there")


class Leaves:
    """The place outside of the ring."""

    def __call__(self, world: int) -> bool:
        return world == 3


def test_the_checker_finds_a_shortest_way_to_a_breach() -> None:
    """Breadth first: nothing that is shorter was overlooked."""
    found = check(Ring(is_fair=True), {"never two"}).found

    assert found is not None
    assert [label for label, _ in found.trace] == ["", "walker: goes on", "walker: goes on"]


def test_what_stays_possible_for_ever_is_taken_at_last() -> None:
    """Weak fairness: going round for ever past an open door is no run."""
    assert check(Ring(is_fair=True), {"leaves"}).found is None


def test_what_is_never_owed_may_never_happen() -> None:
    """A fault or a caller's wish cannot be what liveness rests on."""
    found = check(Ring(is_fair=False), {"leaves"}).found

    assert found is not None
    assert found.rounds == ("walker: goes on",)


def test_a_run_by_hand_tells_the_shortest_counterexample(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`python -m tests.protocol first-sight` is how a person looks at one."""
    assert main(["first-sight"]) == 0

    told = capsys.readouterr().out
    assert "breaks S5" in told
    assert "sweep: Sweeps.sessions" in told
