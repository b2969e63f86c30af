"""
An API server of either version, for the rolling upgrade: `python -m tests.acceptance.rolling
<journal> <arguments>`. Of ours it knows only `core`, which is the version's own.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from itertools import count

from core import Lifecycle
from core.migrations import head
from tests.acceptance.journal import Journal

PAUSE = 0.02  # seconds between two acts


class Server:
    """It holds long turns, and meanwhile opens, uses and ends sessions, until told to `end`."""

    def __init__(self, keeper: Lifecycle, journal: Journal, name: str) -> None:
        self.keeper = keeper
        self.journal = journal
        self.name = name

    def hold(self, session_id: str) -> None:
        """One long turn that says nothing: heartbeats alone keep it."""
        self.keeper.open(session_id)
        with self.keeper.turn(session_id) as turn:
            turn.lost.on(lambda error: self._failed("hold", session_id, error))
            self.journal.write("held", id=session_id)
            self.journal.wait_until_told("end")
        self.journal.write("let_go", id=session_id)

    def share(self, session_id: str) -> None:
        """Turns on a session that servers of both versions use."""
        while not self.journal.told("end"):
            self.keeper.open(session_id)
            self._turn(session_id)
            self.keeper.extend(session_id, by=5.0)
            self.keeper.touch(session_id)
            self.journal.write("shared", id=session_id)
            time.sleep(PAUSE)

    def churn(self, which: str) -> None:
        """
        Sessions of one's own, each opened, used, ended and opened again. Every third one is left
        to whoever sweeps.
        """
        for number in count():
            if self.journal.told("end"):
                return
            session_id = f"{self.name}-{which}-{number}"
            self.keeper.open(session_id, tenant=f"{self.name}-{which}")
            self._turn(session_id)
            if number % 3:
                self.keeper.end(session_id)
                self.keeper.open(session_id, tenant=f"{self.name}-{which}")
                self._turn(session_id)
                self.keeper.end(session_id)
            self.journal.write("churned", id=session_id)

    def _turn(self, session_id: str) -> None:
        with self.keeper.turn(session_id):
            time.sleep(PAUSE)

    def attempt(self, act: Callable[[str], None], session_id: str) -> None:
        """An act, and what became of it."""
        try:
            act(session_id)
        except Exception as error:  # noqa: BLE001 - the test shows whatever it was
            self._failed(act.__name__, session_id, error)

    def _failed(self, act: str, session_id: str, error: BaseException) -> None:
        self.journal.write("failed", act=act, id=session_id, error=repr(error))


def main(journal: Journal, *, name: str, held: list[str], shared: list[str]) -> None:
    """Serve until told to `end`."""
    with Lifecycle.from_env() as keeper:
        server = Server(keeper, journal, name)
        journal.write("serves", schema=head())
        acts: list[tuple[Callable[[str], None], str]] = [(server.hold, of) for of in held]
        acts += [(server.share, of) for of in shared]
        acts += [(server.churn, which) for which in "ab"]
        threads = [threading.Thread(target=server.attempt, args=act) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    journal.write("done")


if __name__ == "__main__":
    main(Journal(sys.argv[1]), **json.loads(sys.argv[2]))
