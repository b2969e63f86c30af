"""
A small explicit-state model checker: every state that can be reached, breadth first, so that the
first counterexample is a shortest one. It knows nothing of sessions or sandboxes.

Safety is a breach that a step or a state reports. Liveness is "under weak fairness a good state
is inevitable, from every reachable state". It is refuted by a run that stays among bad states for
ever without being unfair, and that is looked for directly: such a run ends up going round inside
one strongly connected component of the bad states. A component can hold one exactly if every fair
action is taken inside of it, or is disabled in one of its states. (If so, going round the whole
component is fair. If not, some action stays enabled wherever one goes and is never taken.) So the
search is sound and complete for weak fairness, and needs no counting of time. A bad state in which
nothing fair can happen is a component of its own: the run may stop there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

W = TypeVar("W", bound=Hashable)


class Breach(NamedTuple):
    """A promise that was broken, and how."""

    promise: str
    how: str


class Step(NamedTuple, Generic[W]):
    """
    One atomic move. `action` with `of` (who, or on what) is what fairness is about. A fair step is
    taken at last if it stays possible; an unfair one (a caller's wish, a fault) need never be.
    """

    action: str
    of: str
    world: W
    fair: bool = True
    breaches: tuple[Breach, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.of}: {self.action}"


class System(Protocol[W]):
    """What is checked. `goals` are the good states of each liveness promise."""

    @property
    def start(self) -> W: ...

    @property
    def goals(self) -> Mapping[str, Callable[[W], bool]]: ...

    def steps(self, world: W) -> Iterable[Step[W]]:
        """All that can happen next. A step that changes nothing is counted, and not taken."""
        ...

    def breaches(self, world: W) -> Iterable[Breach]:
        """What is wrong with this state, however it was reached."""
        ...


@dataclass(frozen=True)
class Counterexample(Generic[W]):
    """A shortest run to a breach; or to a state from which `rounds` repeats for ever."""

    promise: str
    how: str
    trace: tuple[tuple[str, W], ...]
    rounds: tuple[str, ...] = ()


@dataclass
class Graph(Generic[W]):
    """What was reached. An edge has the number of its fair action, or -1, and where it leads."""

    worlds: list[W]
    came: list[tuple[int, str]] = field(default_factory=lambda: [(-1, "")])
    edges: list[list[tuple[int, int]]] = field(default_factory=list)
    actions: dict[str, int] = field(default_factory=dict)
    fired: Counter[str] = field(default_factory=Counter)
    found: Counterexample[W] | None = None

    @property
    def transitions(self) -> int:
        return sum(map(len, self.edges))

    def trace(self, index: int) -> tuple[tuple[str, W], ...]:
        """How this state was reached first."""
        steps: list[tuple[str, W]] = []
        while index >= 0:
            before, label = self.came[index]
            steps.append((label, self.worlds[index]))
            index = before
        return tuple(reversed(steps))


def check(system: System[W], promises: Iterable[str] | None = None) -> Graph[W]:
    """
    Look for a breach of these promises, or of any. The graph has what was `found`, None when the
    promises hold.
    """
    wanted = None if promises is None else frozenset(promises)
    graph = explore(system, wanted)
    for promise, is_good in system.goals.items():
        if graph.found is None and (wanted is None or promise in wanted):
            graph.found = _trapped(graph, promise, is_good)
    return graph


def explore(system: System[W], wanted: frozenset[str] | None) -> Graph[W]:
    """All reachable states, until a step or a state breaches one of the `wanted` promises."""
    graph = Graph([system.start])
    seen = {system.start: 0}
    for index, world in enumerate(graph.worlds):  # grows while it is walked
        edges: list[tuple[int, int]] = []
        graph.edges.append(edges)
        for step in system.steps(world):
            graph.fired[step.action] += 1
            if step.breaches and (breach := _first(step.breaches, wanted)):
                trace = (*graph.trace(index), (step.label, step.world))
                graph.found = Counterexample(*breach, trace)
                return graph
            if step.world == world:
                continue
            to = seen.setdefault(step.world, len(graph.worlds))
            number = graph.actions.setdefault(step.label, len(graph.actions)) if step.fair else -1
            edges.append((number, to))
            if to < len(graph.worlds):
                continue
            graph.worlds.append(step.world)
            graph.came.append((index, step.label))
            if breach := _first(system.breaches(step.world), wanted):
                graph.found = Counterexample(*breach, graph.trace(to))
                return graph
    return graph


def _first(breaches: Iterable[Breach], wanted: frozenset[str] | None) -> Breach | None:
    return next((b for b in breaches if wanted is None or b.promise in wanted), None)


def _trapped(
    graph: Graph[W], promise: str, is_good: Callable[[W], bool]
) -> Counterexample[W] | None:
    """The fair way to stay bad that begins nearest to the start."""
    bad = [not is_good(world) for world in graph.worlds]
    traps = [part for part in _Components(graph.edges, bad) if _can_stay(graph, part)]
    if not traps:
        return None
    nearest = min(traps, key=min)
    names = {number: label for label, number in graph.actions.items()}
    taken = sorted(names[number] for number in _taken(graph, set(nearest)) if number >= 0)
    how = "nothing more happens" if len(nearest) == 1 else "it goes round for ever"
    return Counterexample(promise, how, graph.trace(min(nearest)), tuple(taken))


def _taken(graph: Graph[W], part: set[int]) -> set[int]:
    """The numbers of the actions that stay inside."""
    return {number for index in part for number, to in graph.edges[index] if to in part}


def _can_stay(graph: Graph[W], part: list[int]) -> bool:
    always = set.intersection(*({number for number, _ in graph.edges[i]} for i in part)) - {-1}
    return always <= _taken(graph, set(part))


class _Components:
    """
    Strongly connected components of the bad states: Tarjan, "Depth-first search and linear graph
    algorithms", 1972, with a path of its own because runs are deeper than Python's stack.
    """

    def __init__(self, edges: list[list[tuple[int, int]]], bad: list[bool]) -> None:
        self.edges = edges
        self.bad = bad
        self.number = [0] * len(edges)  # when it was entered, from 1
        self.lowest = [0] * len(edges)
        self.is_open = bytearray(len(edges))
        self.waiting: list[int] = []  # entered, and not yet in a component
        self.entered = 0

    def __iter__(self) -> Iterator[list[int]]:
        for root, is_bad in enumerate(self.bad):
            if is_bad and not self.number[root]:
                yield from self._from(root)

    def _from(self, root: int) -> Iterator[list[int]]:
        path = [(root, self._enter(root))]
        while path:
            here, rest = path[-1]
            below = self._next(here, rest)
            if below is not None:
                path.append((below, self._enter(below)))
                continue
            path.pop()
            if path:
                above = path[-1][0]
                self.lowest[above] = min(self.lowest[above], self.lowest[here])
            if self.lowest[here] == self.number[here]:
                yield self._leave(here)

    def _enter(self, index: int) -> Iterator[tuple[int, int]]:
        self.entered += 1
        self.number[index] = self.lowest[index] = self.entered
        self.waiting.append(index)
        self.is_open[index] = True
        return iter(self.edges[index])

    def _next(self, here: int, rest: Iterator[tuple[int, int]]) -> int | None:
        """The next state to enter from here, None when all behind it were seen."""
        for _, to in rest:
            if not self.bad[to]:
                continue
            if not self.number[to]:
                return to
            if self.is_open[to]:
                self.lowest[here] = min(self.lowest[here], self.number[to])
        return None

    def _leave(self, first: int) -> list[int]:
        part: list[int] = []
        while not part or part[-1] != first:
            part.append(self.waiting.pop())
            self.is_open[part[-1]] = False
        return part
