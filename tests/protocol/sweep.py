"""The sweep: each step is one method of the store, and any number of sweeps may run at once."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import SandboxState

from . import names
from .checker import Step
from .promises import of_acting, of_ending_idle
from .rows import closed, rung
from .setup import Fault, Naive, Setup, faulted
from .state import Due, Noticed, Row, Session, World, current, with_row, with_session

ENQUEUES = frozenset({Naive.ENQUEUE_BLINDLY, Naive.ENQUEUE_AND_LOOK})


def steps(world: World, setup: Setup) -> Iterator[Step[World]]:
    """What a sweep does with what is due."""
    session, row = world.store.session, current(world.store)
    is_held = world.is_held and Naive.HOLD_IGNORED not in setup.naive
    if session is not None and session.is_active and session.is_due and row is not None:
        yield from _looked(world, setup, session, row, is_held=is_held)
    if row is not None and _is_expired(row) and not is_held:
        yield Step(names.EXPIRE, "sweep", closed(world, setup), breaches=tuple(of_acting(world)))
    if Naive.NO_REPUBLICATION not in setup.naive and not is_held:
        yield from _published(world, setup)
    if setup.may(world, Fault.CLOCK_STEPS_BACK):
        yield Step(names.CLAMP, "sweep", _clamped(faulted(world)), fair=False)


def _is_expired(row: Row) -> bool:
    """It is the current one: a row is creating only as long as its session is active."""
    return row.state is SandboxState.CREATING and row.due is Due.NOW


def _looked(
    world: World, setup: Setup, session: Session, row: Row, *, is_held: bool
) -> Iterator[Step[World]]:
    """Re-arm, wait, notice or end: no row takes two of these steps in one sweep."""
    is_over = session.is_too_old or (session.is_idle and not session.is_extended)
    if not is_over:
        after = with_session(world, is_due=False, noticed=Noticed.NOT)
        yield Step(names.SWEEP, "sweep", after)
    elif row.state is not SandboxState.RUNNING:
        yield Step(names.SWEEP, "sweep", with_session(world, is_due=False))
    elif session.noticed is Noticed.LONG_AGO or Naive.FIRST_SIGHT in setup.naive:
        if is_held:
            yield Step(names.SWEEP, "sweep", with_session(world, is_due=False))
        else:
            breaches = (*of_acting(world), *of_ending_idle(world))
            yield Step(names.SWEEP, "sweep", _ended(world, setup), breaches=breaches)
    else:
        after = with_session(world, is_due=False, noticed=Noticed.ONCE)
        yield Step(names.SWEEP, "sweep", after._replace(looked=True))


def _ended(world: World, setup: Setup) -> World:
    if setup.naive & ENQUEUES:
        return rung(with_session(world, is_due=False))
    return closed(world, setup)


def _published(world: World, setup: Setup) -> Iterator[Step[World]]:
    """The lease is committed first: a crash before the message is sent costs the lease."""
    due = Due.NEVER if Naive.MISSING_DUE in setup.naive else Due.LATER
    for generation, row in enumerate(world.store.rows, 1):
        if row.state is not SandboxState.CLOSING or row.due is not Due.NOW:
            continue
        leased = with_row(world, row._replace(due=due))
        after = leased._replace(bells=leased.bells | {generation})
        yield Step(names.PUBLISH, f"sweep, generation {generation}", after)
        if setup.may(world, Fault.SWEEP_CRASH):
            after = faulted(leased)
            yield Step(Fault.SWEEP_CRASH, f"generation {generation}", after, fair=False)


def _clamped(world: World) -> World:
    """Every date is further away than any code writes: all are brought to now, claims as well."""
    session = world.store.session
    if session is not None and session.is_active:
        world = with_session(world, is_due=True)
    for row in world.store.rows:
        if row.state is SandboxState.CLOSING:
            world = with_row(world, row._replace(due=Due.NOW))
    return world
