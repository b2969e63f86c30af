"""What the tests of provider `local` stand on: a registry, its real processes, their removal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.providers import processes
from core.providers.base import ProviderState, SandboxInfo, SandboxRef, Spec
from core.providers.local import LocalProvider
from tests.providers.contract import eventually

LABELS = {"sandkeeper-installation": "abcd2345", "sandkeeper-key": "k"}


class Ground:
    """One registry in a folder of the test, and all processes that belong to it."""

    def __init__(self, root: Path, grace: float = 0.5) -> None:
        self.root = root
        self.provider = LocalProvider(root, grace=grace)

    def create(self, name: str, *command: str, ttl: float | None = None) -> SandboxInfo:
        """A sandbox that runs this command."""
        return self.provider.create(
            name, LABELS, Spec(command=command), ttl=ttl, deadline=time.monotonic() + 20
        )

    def script(self, name: str, text: str) -> SandboxInfo:
        """A sandbox that runs a Python program, once that has said that it is ready."""
        ready = self.provider.workdir(SandboxRef(name=name)) / "ready"
        text = f"import os, signal, sys, time\n{text}\nopen('ready', 'w').close()\nsignal.pause()"
        info = self.create(name, sys.executable, "-I", "-S", "-c", text)
        eventually(ready.exists)
        return info

    def get(self, name: str) -> SandboxInfo | None:
        """What the provider says of it."""
        return self.provider.get(SandboxRef(name=name), deadline=time.monotonic() + 20)

    def state(self, name: str) -> ProviderState | None:
        """Likewise, only how it is."""
        info = self.get(name)
        return None if info is None else info.state

    def destroy(self, name: str, seconds: float = 20.0) -> None:
        """Destroy it."""
        self.provider.destroy(SandboxRef(name=name), deadline=time.monotonic() + seconds)

    def record(self, name: str) -> dict[str, Any]:
        """Its record as it is on disk."""
        record: dict[str, Any] = json.loads((self.root / name / "record.json").read_text())
        return record

    def rewrite(self, name: str, **changes: object) -> None:
        """Change its record behind everybody's back."""
        record = self.record(name) | changes
        (self.root / name / "record.json").write_text(json.dumps(record))

    def supervisor(self, name: str) -> int:
        """The pid of its supervisor."""
        pid: int = self.record(name)["supervisor"]["pid"]
        return pid

    def main(self, name: str) -> int:
        """The pid of its command."""
        return self.children(self.supervisor(name))[0]

    def children(self, pid: int) -> list[int]:
        """The living children of a process."""
        table = processes.everyone().values()
        return [process.pid for process in table if process.parent == pid and not process.dead]

    def alive(self) -> list[int]:
        """All living processes of this registry: by their mark, or by the claim they inherited."""
        mark = os.fsencode(f"SANDKEEPER_SANDBOX_ROOT={os.path.realpath(self.root)}")
        return [
            pid
            for pid, process in processes.everyone().items()
            if not process.dead and (self._carries(pid, mark) or self._holds(pid))
        ]

    def nothing_is_left(self, name: str) -> bool:
        """No process, no folder, no lock."""
        paths = (name, f".new-{name}", f".old-{name}", f".locks/{name}")
        return not self.alive() and not any((self.root / path).exists() for path in paths)

    def clear(self) -> None:
        """Kill whatever a test left, by pid, until nobody is there."""
        while found := self.alive():
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in found:
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        continue

    def _carries(self, pid: int, mark: bytes) -> bool:
        try:
            return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (OSError, ProcessLookupError):
            return False

    def _holds(self, pid: int) -> bool:
        try:
            fds = list(Path(f"/proc/{pid}/fd").iterdir())
            links = [str(fd.readlink()) for fd in fds]
        except OSError:
            return False
        return pid != os.getpid() and any(link.startswith(f"{self.root}/") for link in links)


def is_alive(pid: int) -> bool:
    """Whether it is there and no zombie."""
    process = processes.look(pid)
    return process is not None and not process.dead


def in_python(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, from the top of the tree."""
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
