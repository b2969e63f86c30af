"""What a process under test was told, in lines that outlive it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


class Journal:
    """Lines that are whole or absent, whoever is killed meanwhile."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def write(self, what: str, **facts: object) -> None:
        line = json.dumps({"what": what, "at": time.time(), **facts})
        os.write(self._fd, f"{line}\n".encode())

    def told(self, what: str) -> bool:
        """Whether the test said so."""
        return Path(f"{self.path}.{what}").exists()

    def wait_until_told(self, what: str) -> None:
        while not self.told(what):
            time.sleep(0.05)
