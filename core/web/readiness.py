"""Whether this server can do its work: database, schema, broker, and somebody who sweeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from .. import migrations
from ..store import Store

OK: Final = "ok"
KEPT: Final = 1.0  # seconds that an answer is good for: anybody may ask, and asking costs


class Readiness:
    """
    `broker` raises when the broker cannot be reached. The reasons are for people and probes that
    have no token: they name no host.
    """

    def __init__(self, store: Store, broker: Callable[[], None] | None) -> None:
        self._store = store
        self._broker = broker
        self._checked: Mapping[str, str] = {}
        self._until = 0.0

    def checks(self) -> Mapping[str, str]:
        """Each check with `ok` or what is wrong. One thread at a time may ask."""
        if time.monotonic() >= self._until:
            self._checked = self._look()
            self._until = time.monotonic() + KEPT
        return self._checked

    def _look(self) -> Mapping[str, str]:
        found = {"database": self._of(self._database, "it cannot be used now")}
        if found["database"] == OK:
            found["schema"] = self._of(self._schema, "run `sandkeeper db upgrade`")
            found["pulse"] = self._of(self._pulse, "the sweep cannot be looked at")
        if self._broker is not None:
            found["broker"] = self._of(self._broker, "it cannot be reached")
        return found

    def _of(self, check: Callable[[], str | None], wrong: str) -> str:
        try:
            return check() or OK
        except Exception:  # noqa: BLE001 - whatever the broker's library raises
            return wrong

    def _database(self) -> None:
        self._store.history.swept_at()

    def _schema(self) -> None:
        migrations.require(self._store.database.engine)

    def _pulse(self) -> str | None:
        pulse = self._store.watch.pulse()
        if not pulse.late(self._store.policy.late_after):
            return None
        if pulse.age is None:
            return "no sweep ever ran: start a worker and a beat"
        return f"the last sweep was {pulse.age:.0f} s ago: look at the worker and the beat"
