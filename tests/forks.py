"""Forking out of a test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

LIMIT = 20  # seconds for the child, should it be stuck after all


def in_child(check: Callable[[], bool]) -> bool:
    """Whether a check held in a forked child: one that is stuck or raises did not hold."""
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)
        held = False
        try:
            held = check()
        finally:
            os._exit(0 if held else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0
