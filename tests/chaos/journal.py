"""
Journals: what one process knows, a JSON object a line, whole or absent whoever is killed meanwhile.

Every line has `at` from time.monotonic(), which on Linux is one clock for all processes of a host
and is not touched by steps of the wall clock: lines of different journals can be compared.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Journal:
    """One process's own. A line is one write: it outlives kill -9 of its writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, what: str, **facts: Any) -> Line:
        """Write one line; returns it."""
        line: Line = {"at": time.monotonic(), "what": what, **facts}
        os.write(self._fd, f"{json.dumps(line, separators=(',', ':'))}\n".encode())
        return line

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path) -> list[Line]:
    """The lines that were finished, in order."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
