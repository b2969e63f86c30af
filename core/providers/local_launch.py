"""Starting the supervisor of one sandbox, and hearing from it how that went."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from ..errors import InvalidSpec, OutcomeUnknown, Unavailable
from .local_registry import LocalRegistry

SUPERVISOR = str(Path(__file__).with_name("local_supervisor.py"))


def launch(registry: LocalRegistry, name: str, lock: int, deadline: float) -> None:
    """Start the supervisor and wait until it says that the command runs, or why it does not."""
    answer, tells = os.pipe()
    command = [sys.executable, "-I", "-S", SUPERVISOR, registry.root, name]
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": f"{registry.folder(name)}/work",
        "LANG": "C.UTF-8",
        **registry.marks(name),
    }
    try:
        launcher = subprocess.Popen(  # noqa: S603 - our own file, run by our own interpreter
            [*command, str(lock), str(tells)],
            cwd="/",
            env=environ,
            pass_fds=(lock, tells),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a ^C for the API server is not for its sandboxes
        )
        os.close(tells)
        tells = -1
        try:
            said = _heard(answer, deadline)
        finally:
            launcher.kill()  # it has forked long ago; if not, it recorded nothing yet
            launcher.wait()
    finally:
        os.close(answer)
        if tells >= 0:
            os.close(tells)
    _judge(registry, name, said, deadline)


def _judge(registry: LocalRegistry, name: str, said: str | None, deadline: float) -> None:
    if said == "+":
        return
    if said is None:
        raise OutcomeUnknown(f"sandbox {name} did not start in time; a retry finds or makes it")
    if said.startswith("-"):
        raise InvalidSpec(f"the command of sandbox {name} cannot be run: {said[1:]}")
    if said.startswith("!"):
        raise Unavailable(f"sandbox {name} could not be started: {said[1:]}; try again")
    registry.kill(name, deadline)
    registry.remove(name, deadline)
    raise Unavailable(f"the supervisor of sandbox {name} died while it started; try again")


def _heard(answer: int, deadline: float) -> str | None:
    """What the supervisor says; empty when it died, None when it said nothing in time."""
    waiting = select.poll()
    waiting.register(answer, select.POLLIN)
    if not waiting.poll(max(0.0, min(deadline - time.monotonic(), 3600.0)) * 1000):
        return None
    return os.read(answer, 4096).decode(errors="replace")
