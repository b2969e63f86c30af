"""
Time that passes, as dates that come, in any order and at any instant; with the three rhythms that
the policy guarantees. A holder that is neither paused nor cut off beats within any confirm
interval (HEARTBEAT is at most half of it); within any create deadline and any grace after a
restore; and a claim outlives the calls that are made on it, unless its worker is paused.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.model import SandboxState

from .checker import Step
from .rows import without_promises
from .setup import Fault, Naive, Setup, faulted
from .state import (
    NOBODY,
    At,
    Due,
    Noticed,
    Row,
    Session,
    World,
    with_api,
    with_box,
    with_row,
    with_session,
)


def steps(world: World, setup: Setup) -> Iterator[Step[World]]:
    """The dates that may come next."""
    session = world.store.session
    if session is not None and session.is_active:
        yield from _of_session(world, setup, session)
    if session is not None and (session.is_extended or world.kept != NOBODY):
        yield _extension_over(world, session)
    for row in world.store.rows:
        yield from _of_row(world, setup, row)
    yield from _of_turns(world, setup)
    yield from _of_rowless(world, setup)


def _came(what: str, world: World) -> Step[World]:
    return Step(what, "time", world)


def _of_session(world: World, setup: Setup, session: Session) -> Iterator[Step[World]]:
    if not session.is_idle:
        yield _came("the idle TTL is over", with_session(world, is_idle=True))
    if not session.is_due:
        yield _came("the session is due", with_session(world, is_due=True))
    if session.noticed is Noticed.ONCE and not _has_beating_turn(world, setup):
        after = with_session(_out_of_touch(world), noticed=Noticed.LONG_AGO)
        yield _came("the confirm interval is over", after)
    if setup.has_max_age and not session.is_too_old:
        yield _came("the max age is over", _aged(world))


def _has_beating_turn(world: World, setup: Setup, *, unheard: bool = False) -> bool:
    """Whether some holder is still to beat before this much time has passed."""
    if Naive.NO_HEARTBEATS in setup.naive:
        return False
    return any(
        api.at is At.TURN and not api.is_paused and not (unheard and api.is_heard)
        for api in world.apis
    )


def _out_of_touch(world: World) -> World:
    """Who could not beat for so long has no live turn, whatever he thinks."""
    for number, api in enumerate(world.apis):
        if api.at is At.TURN and api.is_paused and api.trusts:
            world = with_api(world, number, api._replace(trusts=False))
    return world


def _aged(world: World) -> World:
    """The hard ceiling of each of its turns, and the last date of any extension, was this one."""
    after = with_session(without_promises(world), is_too_old=True)
    key = world.store.rows[-1].key
    for number, api in enumerate(after.apis):
        if api.at is At.TURN and api.key == key:
            after = with_api(after, number, api._replace(is_capped=True))
    return after


def _extension_over(world: World, session: Session) -> Step[World]:
    """An extension is of the session that has it; a restore may have parted the two."""
    if world.kept in (NOBODY, world.store.rows[-1].key):
        return _came(
            "the extension is over", with_session(world, is_extended=False)._replace(kept=NOBODY)
        )
    return _came("the extension of a lost session is over", world._replace(kept=NOBODY))


def _of_row(world: World, setup: Setup, row: Row) -> Iterator[Step[World]]:
    after = with_row(world, row._replace(due=Due.NOW))
    if row.state is SandboxState.CREATING and row.due is Due.LATER:
        if not _has_beating_turn(world, setup, unheard=True):
            yield _came(f"the create deadline of key {row.key} is over", _out_of_touch(after))
    elif row.due is Due.LATER:
        yield _came(f"the publish lease of key {row.key} is over", after)
    elif row.due is Due.PAUSED:
        yield _came(f"the pause of key {row.key} is over", after)
    elif row.due is Due.CLAIMED:
        yield from _claim_over(world, setup, row, after)


def _claim_over(world: World, setup: Setup, row: Row, after: World) -> Iterator[Step[World]]:
    if not any(worker.key == row.key and worker.has_token for worker in world.workers):
        yield _came(f"the claim on key {row.key} is over", after)
    elif setup.may(world, Fault.CLAIM_OUTLIVED):
        yield Step(Fault.CLAIM_OUTLIVED, f"key {row.key}", faulted(after), fair=False)


def _of_turns(world: World, setup: Setup) -> Iterator[Step[World]]:
    """A holder knows the ceiling of its turn: it was told when it began."""
    if Fault.TURN_HANGS not in setup.accidents or Naive.NO_CEILING in setup.naive:
        return
    for number, api in enumerate(world.apis):
        if api.at is At.TURN and not api.is_capped:
            capped = api._replace(is_capped=True, trusts=False)
            yield _came(f"the ceiling of api {number + 1}'s turn", with_api(world, number, capped))


def _of_rowless(world: World, setup: Setup) -> Iterator[Step[World]]:
    for number, box in enumerate(world.boxes, 1):
        is_waiting = box.sighted == 1 and box.is_there
        if is_waiting and not _has_beating_turn(world, setup, unheard=True):
            after = with_box(_out_of_touch(world), number, sighted=2)
            yield _came(f"the grace of sandbox {number} is over", after)
