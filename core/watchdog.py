"""
Whether anybody sweeps, asked by those who do not: API processes. When the pulse is old they say
so, and one of them sweeps in place of the worker and beat that should.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import SandkeeperError, words
from .events import Event, EventKind
from .host import Host
from .store import Store
from .store.watch import Pulse

WARNINGS = 10  # looks between two warnings while the sweep stays late


class Watchdog:
    """
    Looks at the sweep's pulse, about every third of LATE_AFTER, in the background. `stand_in` is
    one sweep. Warns at the first look when no worker and beat were ever seen.
    """

    def __init__(
        self, store: Store, *, stand_in: Callable[[], object], host: Host, actor: str
    ) -> None:
        self.store = store
        self.late_after = store.policy.late_after
        self._stand_in = stand_in
        self._host = host
        self._actor = actor
        self._late = 0
        self._loop = host.loop("sandkeeper-watchdog", self.look, min(1.0, self._pause()))

    def start(self) -> None:
        """Look in the background, in this process; a second call changes nothing."""
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop()

    def look(self) -> float:
        """One look; gives the seconds until the next."""
        try:
            pulse = self.store.watch.pulse()
            self._warn(pulse)
            if pulse.needs_stand_in(self.late_after):
                self._stand_in()
        except SandkeeperError as error:
            # Whoever cannot reach the database hears of it from every other call.
            self._tell(error=str(error))
        except Exception as error:  # noqa: BLE001 - the watch goes on
            self._tell(error=words(error))
        return self._pause()

    def _warn(self, pulse: Pulse) -> None:
        never = pulse.age is None
        if not never and not pulse.late(self.late_after):
            self._late = 0
            return
        if self._late % WARNINGS == 0:
            advice = "start `celery -A tasks worker` and `celery -A tasks beat`"
            said = "no sweep ever ran" if never else f"the last sweep was {pulse.age:.0f} s ago"
            self._tell(error=f"{said}: {advice}", overdue=round(pulse.overdue, 1))
        self._late += 1

    def _pause(self) -> float:
        # Spread, so that of many processes that see the same late pulse one is the first.
        return self.late_after / 3 * (0.75 + self._host.spread() / 2)

    def _tell(self, **detail: object) -> None:
        self.store.database.tell(Event(kind=EventKind.SWEEP_LATE, actor=self._actor, detail=detail))
