"""The changes of rows that several moves share, as the code shares them."""

from __future__ import annotations

from core.model import SandboxState

from .setup import Naive, Setup
from .state import (
    NOBODY,
    At,
    Due,
    Noticed,
    Row,
    Session,
    World,
    current,
    with_api,
    with_row,
    with_session,
)

OPEN_STATES = (SandboxState.CREATING, SandboxState.RUNNING)


def is_usable(session: Session) -> bool:
    """Whether callers may do anything with it but open or end it."""
    return session.is_active and not session.is_too_old


def activity(world: World) -> World:
    """last_activity_at = now: it is not idle, and what the sweep saw is no longer so."""
    session = world.store.session
    if session is None or not is_usable(session):
        return world
    return with_session(world, is_idle=False, noticed=Noticed.NOT)._replace(looked=False)


def next_generation(world: World, row: Row) -> World:
    """A session that is active again, with an intent."""
    store = world.store._replace(session=Session(), rows=(*world.store.rows, row))
    return world._replace(store=store, looked=False)


def closed(world: World, setup: Setup) -> World:
    """Active → ended, and its sandbox closing and due: both rows in one transaction."""
    row = current(world.store)
    store = world.store._replace(session=Session(is_active=False))
    world = world._replace(store=store, looked=False)
    if row is None or row.state not in OPEN_STATES:
        return world
    world = with_row(world, row._replace(state=SandboxState.CLOSING, due=Due.NOW))
    if Naive.NO_REPUBLICATION in setup.naive:
        return rung(with_row(world, row._replace(state=SandboxState.CLOSING, due=Due.LATER)))
    return world


def rung(world: World) -> World:
    """A message about the current generation is waiting."""
    return world._replace(bells=world.bells | {len(world.store.rows)})


def ended_by_caller(world: World, setup: Setup) -> World:
    """Ending is not asking: no turn on it, and no extension, is promised anything after this."""
    return rung(closed(without_promises(world), setup))


def without_promises(world: World) -> World:
    """Nothing was promised of the current sandbox any more, by the caller's or the clock's word."""
    row = current(world.store)
    key = row.key if row is not None else NOBODY
    for number, api in enumerate(world.apis):
        if api.at is At.TURN and api.key == key and api.trusts:
            world = with_api(world, number, api._replace(trusts=False))
    return world._replace(kept=NOBODY) if world.kept == key else world
