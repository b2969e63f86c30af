"""The protocol as a transition system: every process at every instruction, and its promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from core.model import SandboxState

from . import api, clock, operator, provider, reconcile, sweep, worker
from .checker import Breach, Step
from .promises import L1, L3, L4, of_resting
from .setup import Setup
from .state import FOREIGN, World, with_key

PARTS = (api, sweep, worker, reconcile, provider, clock, operator)


@dataclass(frozen=True)
class Protocol:
    """One configuration of it, as a system to check."""

    setup: Setup

    @property
    def start(self) -> World:
        return self.setup.start

    @property
    def goals(self) -> Mapping[str, Callable[[World], bool]]:
        """What comes true at last, or an operator has been asked."""
        return {L1: _nothing_is_left, L3: _nothing_is_closing, L4: self._nothing_is_rowless}

    def steps(self, world: World) -> Iterator[Step[World]]:
        for part in PARTS:
            yield from part.steps(world, self.setup)

    def breaches(self, world: World) -> Iterator[Breach]:
        return of_resting(world)

    def _nothing_is_rowless(self, world: World) -> bool:
        if world.is_held or (world.is_restored and not world.approved):
            return True
        return not any(
            box.is_there and box.name != FOREIGN and with_key(world.store.rows, box.born) is None
            for box in world.boxes
        )


def _nothing_is_left(world: World) -> bool:
    """No session is active, and no sandbox is there that a row explains."""
    if world.is_held:
        return True
    session, rows = world.store.session, world.store.rows
    if session is not None and session.is_active:
        return False
    return not any(box.is_there and with_key(rows, box.born) is not None for box in world.boxes)


def _nothing_is_closing(world: World) -> bool:
    """Every teardown has come to its end."""
    return world.is_held or all(row.state is not SandboxState.CLOSING for row in world.store.rows)
