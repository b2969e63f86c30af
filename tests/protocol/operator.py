"""The operator: backup and restore, the hold and who lifts it, and the retention that passes."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import SandboxState

from . import names
from .checker import Step
from .setup import Call, Fault, Naive, Setup, faulted
from .state import (
    NOBODY,
    At,
    Due,
    Noticed,
    Patrol,
    Row,
    Session,
    Store,
    World,
    with_api,
    with_box,
    with_key,
)


def steps(world: World, setup: Setup) -> Iterator[Step[World]]:
    """What happens to the installation as a whole."""
    if setup.may(world, Fault.BREAKER_TRIPS) and not world.is_held:
        yield _step(names.HOLD, faulted(world)._replace(is_held=True))
    if world.is_held and world.is_restored:
        yield _step(names.PARDON, _pardoned(world))
        if world.is_pardoned or Naive.NO_AMNESTY in setup.naive:
            yield _step(names.RESTORED, world._replace(is_held=False))
    elif world.is_held:
        yield _step(names.APPROVE, world._replace(is_held=False))
    elif world.is_restored and not world.approved:
        yield _step(names.APPROVE, _approved(world))
    if setup.may(world, Fault.RESTORED):
        if world.backup is None:
            yield _step("takes a backup", world._replace(backup=world.store))
        elif _may_restore(world, setup):
            yield _step(Fault.RESTORED, _restored(faulted(world), world.backup))
    if Call.PURGE in setup.wishes and world.calls:
        yield from _purged(world._replace(calls=world.calls - 1))


def _step(action: str, world: World) -> Step[World]:
    return Step(action, "operator", world, fair=False)


def _approved(world: World) -> World:
    """Whoever says that what no row explains may go has answered for its callers."""
    is_explained = with_key(world.store.rows, world.kept) is not None
    return world._replace(approved=True, kept=world.kept if is_explained else NOBODY)


def _may_restore(world: World, setup: Setup) -> bool:
    """Workers are stopped first, and what they have sent has been carried out."""
    if Naive.WORKERS_RUNNING in setup.naive:
        return True
    are_stopped = all(worker.at is At.REST for worker in world.workers)
    is_quiet = all(wire.verb == "create" for wire in world.wires)
    return are_stopped and is_quiet and world.patrol == Patrol()


def _restored(world: World, backup: Store) -> World:
    """
    The store is what it was, with dates that have long come; the provider, the callers and the
    messages are not. The interlock is part of what every destructive statement asks, so all is
    held. What a caller was promised for a session that the backup has is void with it.
    """
    rows = tuple(_overdue(row) for row in backup.rows)
    for number, api in enumerate(world.apis):
        if api.at is At.TURN:
            world = with_api(world, number, api._replace(is_heard=False))
    for number in range(1, len(world.boxes) + 1):
        world = with_box(world, number, sighted=0)
    return world._replace(
        store=backup._replace(session=backup.session and _long_ago(backup.session), rows=rows),
        backup=None,
        is_restored=True,
        is_held=True,
        is_pardoned=False,
        kept=NOBODY if with_key(rows, world.kept) is not None else world.kept,
        looked=False,
        over=frozenset(row.key for row in rows if row.state is SandboxState.GONE),
    )


def _overdue(row: Row) -> Row:
    is_final = row.state in (SandboxState.RUNNING, SandboxState.GONE)
    return row if is_final else row._replace(due=Due.NOW)


def _long_ago(session: Session) -> Session:
    if not session.is_active:
        return session
    was_noticed = session.noticed is not Noticed.NOT
    noticed = Noticed.LONG_AGO if was_noticed else Noticed.NOT
    return session._replace(is_idle=True, is_due=True, is_extended=False, noticed=noticed)


def _pardoned(world: World) -> World:
    """What the backup has open has its whole time again from now."""
    world = world._replace(is_pardoned=True)
    session, rows = world.store.session, world.store.rows
    if session is None or not session.is_active:
        return world
    session = session._replace(is_idle=False, noticed=Noticed.NOT, is_due=False)
    if rows[-1].state is SandboxState.CREATING:
        rows = (*rows[:-1], rows[-1]._replace(due=Due.LATER))
    return world._replace(store=world.store._replace(session=session, rows=rows))


def _purged(world: World) -> Iterator[Step[World]]:
    """Only when all of it was confirmed gone; what lands later is explained by no row."""
    session, rows = world.store.session, world.store.rows
    if session is None or session.is_active:
        return
    if all(row.state is SandboxState.GONE for row in rows):
        store = Store(turns=(NOBODY,) * len(world.apis))
        yield Step(names.PURGE, "time", world._replace(store=store), fair=False)
