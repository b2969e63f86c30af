"""
The process that the self-test kills: it opens a session, begins a turn, and does not end it. It
goes when its standard input closes, so that it does not outlive whoever was to kill it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

from core.errors import SandkeeperError
from core.settings import Settings
from core.wiring import System


def main(session_id: str, idle_ttl: float) -> None:
    """Print one line of JSON when the turn is open, or what is wrong; then wait for the end."""
    try:
        # Not a Lifecycle, whose watchdog would sweep where no worker does: that is to be seen.
        system = System(Settings.from_env(os.environ), environ=os.environ, sinks=())
        keeper = system.keeper()
        keeper.open(session_id, idle_ttl=idle_ttl, metadata={"made_by": "sandkeeper doctor"})
        with keeper.turn(session_id):
            _say({"turn": session_id})
            sys.stdin.read()
            os._exit(1)  # as killed: the turn stays open
    except SandkeeperError as error:
        _say({"error": str(error)})
        raise SystemExit(1) from None


def _say(line: Mapping[str, str]) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 - whoever started us reads it


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
