"""The worker: a message says where to look, the claim decides, its token fences the result."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import SandboxState

from . import names, provider
from .checker import Breach, Step
from .promises import of_acting, of_believing, of_confirming, of_moving
from .setup import Fault, Naive, Setup, faulted
from .state import (
    At,
    Due,
    Row,
    Session,
    Wire,
    Worker,
    World,
    current,
    with_key,
    with_row,
    with_worker,
)
from .sweep import ENQUEUES


def steps(world: World, setup: Setup) -> Iterator[Step[World]]:
    """What each worker does next, and what becomes of the messages."""
    resting = [number for number, worker in enumerate(world.workers) if worker.at is At.REST]
    for generation in sorted(world.bells):
        heard = world._replace(bells=world.bells - {generation})
        if resting:  # workers at rest are alike: let the first one hear it
            yield from _taken(heard, setup, resting[0], generation)
            if setup.may(world, Fault.MESSAGE_DOUBLED):
                yield from _taken(faulted(world), setup, resting[0], generation, fair=False)
        if setup.may(world, Fault.MESSAGE_LOST):
            yield Step(Fault.MESSAGE_LOST, f"message {generation}", faulted(heard), fair=False)
    for number, worker in enumerate(world.workers):
        if worker.at is not At.REST:
            yield from _at_work(world, setup, number, worker)
    yield from _retried_now(world)


def _of(number: int) -> str:
    return f"worker {number + 1}"


def _at_work(world: World, setup: Setup, number: int, worker: Worker) -> Iterator[Step[World]]:
    if worker.at is At.CLAIMED:
        yield from _destroying(world, setup, number, worker)
    elif worker.at is At.LOOKING:
        yield from _looking(world, setup, number, worker)
    elif worker.at is At.ABSENT:
        yield _confirmed(world, setup, number, worker)
    else:
        yield _released(world, setup, number, worker)
    if setup.may(world, Fault.WORKER_CRASH):
        killed = with_worker(faulted(world), number, Worker())
        yield Step(Fault.WORKER_CRASH, _of(number), killed, fair=False)


# The claim


def _taken(
    world: World, setup: Setup, number: int, generation: int, *, fair: bool = True
) -> Iterator[Step[World]]:
    """Refused, the message is forgotten: whoever has the claim, or the sweep, goes on."""
    of = f"{_of(number)}, generation {generation}"
    rows = world.store.rows
    row = rows[generation - 1] if generation <= len(rows) else None
    if setup.naive & ENQUEUES:
        is_mine = row is not None and _is_idle_enough(world, setup, row)
    else:
        is_held = world.is_held and Naive.HOLD_IGNORED not in setup.naive
        is_mine = _is_claimable(row) and not is_held
    if row is None or not is_mine:
        yield Step(names.CLAIM, of, world, fair)
        return
    yield Step(names.CLAIM, of, _claimed(world, number, generation, row), fair, _acting(world))


def _acting(world: World) -> tuple[Breach, ...]:
    return tuple(of_acting(world))


def _is_claimable(row: Row | None) -> bool:
    """A message may be an early retry, so a pause holds nobody up; a claim does."""
    return row is not None and row.state is SandboxState.CLOSING and row.due is not Due.CLAIMED


def _is_idle_enough(world: World, setup: Setup, row: Row) -> bool:
    session = world.store.session or Session(is_active=False)
    is_idle = session.is_active and session.is_idle and not session.is_extended
    is_looked_at = Naive.ENQUEUE_AND_LOOK in setup.naive
    return row.state is SandboxState.RUNNING and (is_idle or not is_looked_at)


def _claimed(world: World, number: int, generation: int, row: Row) -> World:
    """The next token: whoever had the claim before has an old one from now on."""
    for other, worker in enumerate(world.workers):
        if worker.key == row.key and worker.has_token:
            world = with_worker(world, other, worker._replace(has_token=False))
    if row.state is SandboxState.CLOSING:
        world = with_row(world, row._replace(due=Due.CLAIMED))
    claim = Worker(At.CLAIMED, row.key, generation, row.external_id, has_token=True)
    return with_worker(world, number, claim)


# Between the claim and its result


def _destroying(world: World, setup: Setup, number: int, worker: Worker) -> Iterator[Step[World]]:
    name = setup.name(worker.key, worker.generation)
    answered = with_worker(world, number, worker._replace(at=At.LOOKING))
    after, breaches = provider.destroy(
        answered, provider.numbers(world, name, worker.external_id), worker.key
    )
    yield Step(names.DESTROY, _of(number), after, breaches=breaches)
    if setup.may(world, Fault.DESTROY_LATE):
        after = provider.on_the_wire(faulted(answered), Wire("destroy", name, worker.key))
        yield Step(Fault.DESTROY_LATE, _of(number), after, fair=False)
    if setup.may(world, Fault.DESTROY_FAILS):
        after = with_worker(faulted(world), number, worker._replace(at=At.FAILED))
        yield Step(Fault.DESTROY_FAILS, _of(number), after, fair=False)


def _looking(world: World, setup: Setup, number: int, worker: Worker) -> Iterator[Step[World]]:
    """Only the provider's own "it is not there" is absence; no answer is a failure like another."""
    name = setup.name(worker.key, worker.generation)
    absent = with_worker(world, number, worker._replace(at=At.ABSENT))
    failed = with_worker(world, number, worker._replace(at=At.FAILED))
    is_there = bool(provider.numbers(world, name, worker.external_id))
    yield Step(names.GET, _of(number), failed if is_there else absent)
    if setup.may(world, Fault.GET_FAILS):
        is_naive = Naive.FAILED_LOOK_IS_ABSENCE in setup.naive
        breaches = tuple(of_believing(world, name)) if is_naive else ()
        after = faulted(absent if is_naive else failed)
        yield Step(Fault.GET_FAILS, _of(number), after, fair=False, breaches=breaches)


# The result


def _is_fenced_out(setup: Setup, worker: Worker, row: Row | None) -> bool:
    if row is None:
        return True
    if Naive.WRITES_WITHOUT_TOKEN in setup.naive or setup.naive & ENQUEUES:
        return False
    return not worker.has_token or row.state is not SandboxState.CLOSING


def _confirmed(world: World, setup: Setup, number: int, worker: Worker) -> Step[World]:
    after, row = with_worker(world, number, Worker()), with_key(world.store.rows, worker.key)
    if row is None or _is_fenced_out(setup, worker, row):
        return Step(names.GONE, _of(number), after)
    breaches = (*of_moving(row.state, SandboxState.GONE), *of_confirming(world, row.key))
    after = with_row(after, row._replace(state=SandboxState.GONE, due=Due.NEVER))
    if setup.naive & ENQUEUES and row == current(world.store):
        after = after._replace(store=after.store._replace(session=Session(is_active=False)))
    after = after._replace(over=after.over | {row.key})
    return Step(names.GONE, _of(number), after, breaches=breaches)


def _released(world: World, setup: Setup, number: int, worker: Worker) -> Step[World]:
    after, row = with_worker(world, number, Worker()), with_key(world.store.rows, worker.key)
    if row is None or setup.naive & ENQUEUES or _is_fenced_out(setup, worker, row):
        return Step(names.RELEASE, _of(number), after)
    breaches = tuple(of_moving(row.state, SandboxState.CLOSING))
    due = Due.NEVER if Naive.NEVER_RETRIED in setup.naive else Due.PAUSED
    after = with_row(after, row._replace(state=SandboxState.CLOSING, due=due))
    return Step(names.RELEASE, _of(number), after, breaches=breaches)


def _retried_now(world: World) -> Iterator[Step[World]]:
    """An operator ends the pause of a quarantined teardown."""
    for row in world.store.rows:
        if row.due is Due.PAUSED:
            after = with_row(world, row._replace(due=Due.NOW))
            yield Step(names.RETRY_NOW, f"operator, key {row.key}", after, fair=False)
