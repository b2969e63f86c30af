"""Reconcile: the provider is listed first, the store is read second, and a lack is not believed."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import SandboxState

from . import names, provider
from .checker import Step
from .promises import of_acting, of_losing
from .rows import closed
from .setup import Fault, Naive, Setup, faulted
from .state import FOREIGN, NOBODY, At, Patrol, Row, Wire, World, with_box


def steps(world: World, setup: Setup) -> Iterator[Step[World]]:
    """One reconcile at a time; two beside each other would only repeat themselves."""
    if setup.reconciles_at_once:
        yield from _done_at_once(world, setup)
        return
    at = world.patrol.at
    if at is At.REST and Naive.STORE_FIRST in setup.naive:
        patrol = Patrol(At.READ, rows=world.store.rows)
        yield Step("reads the store", "reconcile", world._replace(patrol=patrol))
    elif at in (At.REST, At.READ):
        yield from _listed(world, setup)
    elif at is At.LISTED:
        yield from _compared(world, setup)
    else:
        yield from _killed(world, setup)


def _done_at_once(world: World, setup: Setup) -> Iterator[Step[World]]:
    """
    All that a complete listing says, in one step. A row that is gone, absent (it goes before its
    sandbox, and no key is used twice) or has an external id stays so, and what was destroyed stays
    away: nothing that happens between the steps could change a verdict.
    """
    if world.is_held and Naive.HOLD_IGNORED not in setup.naive:
        return
    listed = world._replace(patrol=Patrol(At.LISTED, _there(world)))
    for step in (*_orphans(listed, setup), *_missing(listed, setup)):
        if step.world.patrol.at is At.KILLING:
            yield from _killed(step.world, setup)
        else:
            yield step._replace(world=step.world._replace(patrol=Patrol()))


def _there(world: World) -> frozenset[int]:
    return frozenset(number for number, box in enumerate(world.boxes, 1) if box.is_there)


def _listed(world: World, setup: Setup) -> Iterator[Step[World]]:
    """All pages, or nothing is concluded; and all pages may still lack what was born meanwhile."""
    there = _there(world)
    listed = Patrol(At.LISTED, there, rows=world.patrol.rows)
    yield Step(names.LIST, "reconcile", world._replace(patrol=listed))
    stale = faulted(world)._replace(patrol=listed._replace(seen=frozenset(), is_stale=True))
    if setup.may(world, Fault.LIST_STALE) and there:
        yield Step(Fault.LIST_STALE, "reconcile", stale, fair=False)
    if setup.may(world, Fault.LIST_TRUNCATED) and there:
        is_believed = Naive.LOST_FROM_A_LIST in setup.naive
        after = stale if is_believed else faulted(world)._replace(patrol=Patrol())
        yield Step(Fault.LIST_TRUNCATED, "reconcile", after, fair=False)


def _compared(world: World, setup: Setup) -> Iterator[Step[World]]:
    if world.is_held and Naive.HOLD_IGNORED not in setup.naive:
        yield Step("is held", "reconcile", world._replace(patrol=Patrol()))
        return
    decisions = [*_orphans(world, setup), *_missing(world, setup)]
    yield from decisions
    if not decisions:
        yield Step("has nothing to do", "reconcile", world._replace(patrol=Patrol()))


def _orphans(world: World, setup: Setup) -> Iterator[Step[World]]:
    rows = world.patrol.rows if Naive.STORE_FIRST in setup.naive else world.store.rows
    for number in sorted(world.patrol.seen):
        box = world.boxes[number - 1]
        if box.name == FOREIGN and Naive.OWNERSHIP_UNCHECKED not in setup.naive:
            continue
        row = _explaining(rows, setup, box.name)
        if row is None:
            yield from _rowless(world, setup, number)
        elif _is_orphan(row, number) and Naive.ORPHANS_IGNORED not in setup.naive:
            yield _condemned(world, number)


def _explaining(rows: tuple[Row, ...], setup: Setup, name: int) -> Row | None:
    """The row whose name this is: the newest, where a naive name fits several."""
    fitting = [row for place, row in enumerate(rows, 1) if setup.name(row.key, place) == name]
    return fitting[-1] if fitting else None


def _is_orphan(row: Row, number: int) -> bool:
    """Facts that cannot become untrue: gone is final, and an external id is written once."""
    if row.state is SandboxState.RUNNING:
        return row.external_id != number
    return row.state is SandboxState.GONE


def _rowless(world: World, setup: Setup, number: int) -> Iterator[Step[World]]:
    """Seen in two passes with the grace between them; after a restore an operator is asked."""
    box = world.boxes[number - 1]
    if Naive.ROWLESS_IGNORED in setup.naive:
        return
    if Naive.NO_GRACE not in setup.naive and box.sighted < 2:
        if box.sighted == 0 and box.is_there:
            after = with_box(world, number, sighted=1)
            seen = world.patrol.seen - {number}
            after = after._replace(patrol=world.patrol._replace(seen=seen))
            yield Step(names.SIGHT, f"reconcile, sandbox {number}", after)
        return
    is_trusted = world.approved or not world.is_restored
    if is_trusted or Naive.ROWLESS_BREAKER_OFF in setup.naive:
        yield _condemned(world, number)


def _condemned(world: World, number: int) -> Step[World]:
    patrol = Patrol(At.KILLING, target=number)
    after, breaches = world._replace(patrol=patrol), tuple(of_acting(world))
    return Step(names.CLAIM_ORPHAN, f"reconcile, sandbox {number}", after, breaches=breaches)


def _killed(world: World, setup: Setup) -> Iterator[Step[World]]:
    """By external id: the name may be that of the sandbox in use."""
    number, done = world.patrol.target, world._replace(patrol=Patrol())
    targets = (number,) if world.boxes[number - 1].is_there else ()
    after, breaches = provider.destroy(done, targets)
    yield Step(names.DESTROY, f"reconcile, sandbox {number}", after, breaches=breaches)
    if setup.may(world, Fault.DESTROY_LATE):
        after = provider.on_the_wire(faulted(done), Wire("kill", number))
        yield Step(Fault.DESTROY_LATE, "reconcile", after, fair=False)


def _missing(world: World, setup: Setup) -> Iterator[Step[World]]:
    """A running row whose sandbox no list has and no get finds: its session is ended as lost."""
    for row in world.store.rows[-1:]:
        is_missed = row.external_id != NOBODY and row.external_id not in world.patrol.seen
        if row.state is not SandboxState.RUNNING or not is_missed:
            continue
        is_asked = Naive.LOST_FROM_A_LIST not in setup.naive
        if is_asked and world.boxes[row.external_id - 1].is_there:
            continue
        after = closed(world, setup)._replace(patrol=Patrol())
        breaches = (*of_acting(world), *of_losing(world, row.external_id))
        yield Step(names.LOST, f"reconcile, key {row.key}", after, breaches=breaches)
