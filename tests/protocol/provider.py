"""The provider: asynchronous, shared with a neighbour, and free to carry a request out late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .checker import Breach, Step
from .names import CREATE, DESTROY
from .promises import of_destroying
from .setup import Fault, Setup, faulted
from .state import FOREIGN, NOBODY, Box, Fate, Wire, World, with_box


def numbers(world: World, name: int, external_id: int = NOBODY) -> tuple[int, ...]:
    """The sandboxes that are there and have this name, or this id."""
    return tuple(
        number
        for number, box in enumerate(world.boxes, 1)
        if box.is_there and (box.name == name or number == external_id)
    )


def create(world: World, setup: Setup, wire: Wire, *, adopts: bool = True) -> tuple[World, int]:
    """One of this name, adopted or new, with its external id; NOBODY when there is no room."""
    there = numbers(world, wire.of)
    if there and adopts:
        return world, there[0]
    if len(world.boxes) >= setup.boxes:
        return world, NOBODY
    boxes = (*world.boxes, Box(wire.of, wire.born))
    return world._replace(boxes=boxes), len(boxes)


def destroy(
    world: World, targets: Iterable[int], key: int = NOBODY
) -> tuple[World, tuple[Breach, ...]]:
    """Without these sandboxes; and what that breaks."""
    breaches: list[Breach] = []
    for number in targets:
        breaches += of_destroying(world, number, key)
        world = with_box(world, number, fate=Fate.DESTROYED, sighted=0)
    return world, tuple(breaches)


def on_the_wire(world: World, wire: Wire) -> World:
    """A request that will be carried out when nobody waits for its answer any more."""
    return world._replace(wires=world.wires | {wire})


def steps(world: World, setup: Setup) -> Iterator[Step[World]]:
    """What the provider does with nobody waiting."""
    if setup.has_neighbour and not any(box.name == FOREIGN for box in world.boxes):
        boxes = (*world.boxes, Box(FOREIGN, NOBODY))
        yield Step(
            "a neighbour creates a sandbox", "provider", world._replace(boxes=boxes), fair=False
        )
    for wire in sorted(world.wires):
        yield from _landed(world._replace(wires=world.wires - {wire}), setup, wire)
    if setup.may(world, Fault.VANISHES):
        for number, box in enumerate(world.boxes, 1):
            if box.is_there and box.name != FOREIGN:
                after = with_box(faulted(world), number, fate=Fate.VANISHED, sighted=0)
                yield Step(Fault.VANISHES, f"sandbox {number}", after, fair=False)


def _landed(world: World, setup: Setup, wire: Wire) -> Iterator[Step[World]]:
    of = f"provider, late, {wire.verb} {wire.of}"
    if wire.verb == "create":
        yield Step(CREATE, of, create(world, setup, wire)[0])
        if setup.may(world, Fault.CREATE_TWICE) and numbers(world, wire.of):
            after, _ = create(faulted(world), setup, wire, adopts=False)
            yield Step(Fault.CREATE_TWICE, of, after, fair=False)
        return
    is_there = wire.verb == "kill" and world.boxes[wire.of - 1].is_there
    targets = numbers(world, wire.of) if wire.verb == "destroy" else (wire.of,) * is_there
    after, breaches = destroy(world, targets, wire.born)
    yield Step(DESTROY, of, after, breaches=breaches)
