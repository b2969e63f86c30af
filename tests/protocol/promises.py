"""The promises, each stated once: over a step that may break it, or over a state."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import SandboxState

from .checker import Breach
from .state import FOREIGN, NOBODY, At, Due, Fate, World, may_move, with_key

S1, S2, S3, S4, S5 = "S1", "S2", "S3", "S4", "S5"
L1, L2, L3, L4 = "L1", "L2", "L3", "L4"


def of_destroying(world: World, box: int, key: int) -> Iterator[Breach]:
    """Before the provider makes this sandbox go because we said so, for `key` or as an orphan."""
    victim = world.boxes[box - 1]
    if victim.name == FOREIGN:
        yield Breach(S2, "a sandbox of somebody else is destroyed")
    if any(api.at is At.TURN and api.trusts and api.box == box for api in world.apis):
        yield Breach(S1, f"sandbox {box} is destroyed under a live turn")
    if world.kept != NOBODY and victim.born == world.kept and _is_the_one(world, box):
        yield Breach(S1, f"sandbox {box} is destroyed, and its extension was acknowledged")
    if key not in (NOBODY, victim.born):
        yield Breach(S3, f"sandbox {box} of key {victim.born} is destroyed for key {key}")


def _is_the_one(world: World, box: int) -> bool:
    """Not a second sandbox of the same name, which no caller was ever given."""
    row = with_key(world.store.rows, world.boxes[box - 1].born)
    return row is None or row.external_id == box


def of_beginning(world: World, box: int) -> Iterator[Breach]:
    """Before a turn is given this sandbox. A restored row may name one that went since."""
    if world.boxes[box - 1].fate is Fate.DESTROYED and not world.is_restored:
        yield Breach(S1, f"a turn begins on sandbox {box}, which was destroyed")


def of_recording(world: World, box: int, key: int) -> Iterator[Breach]:
    """Before this sandbox is written into the row of `key`."""
    if world.boxes[box - 1].born != key:
        yield Breach(S3, f"sandbox {box} was made for another generation than key {key}")


def of_moving(before: SandboxState, after: SandboxState) -> Iterator[Breach]:
    """Before a row's state is written."""
    if not may_move(before, after):
        yield Breach(S3, f"a row goes from {before} to {after}")


def of_believing(world: World, name: int) -> Iterator[Breach]:
    """Before a worker believes that nothing of this name is there."""
    if any(box.is_there and box.name == name for box in world.boxes):
        yield Breach(S4, "a sandbox is there, and is taken for absent")


def of_confirming(world: World, key: int) -> Iterator[Breach]:
    """Before a row is moved to gone."""
    if key in world.over:
        yield Breach(S3, f"key {key} is confirmed gone twice")


def of_losing(world: World, box: int) -> Iterator[Breach]:
    """Before a running row is closed because its sandbox is lost."""
    if world.boxes[box - 1].is_there:
        yield Breach(S4, f"sandbox {box} is there, and is taken for lost")


def of_ending_idle(world: World) -> Iterator[Breach]:
    """Before the sweep ends a session."""
    if not world.looked:
        yield Breach(S5, "a session is ended that was not seen idle before")


def of_acting(world: World) -> Iterator[Breach]:
    """Before anything that leads to the end of a sandbox, by the system's own decision."""
    if world.is_held:
        yield Breach(S5, "something is decided while everything is held")


def of_resting(world: World) -> Iterator[Breach]:
    """In every state: what is not final has a due time, or a session that has one."""
    session, rows = world.store.session, world.store.rows
    for generation, row in enumerate(rows, 1):
        if row.state in (SandboxState.CREATING, SandboxState.CLOSING) and row.due is Due.NEVER:
            yield Breach(L2, f"generation {generation} is {row.state} and never due")
        is_looked_at = session is not None and session.is_active and generation == len(rows)
        if row.state is SandboxState.RUNNING and not is_looked_at:
            yield Breach(L2, f"generation {generation} is running in a session that is not active")
