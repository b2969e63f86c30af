"""
Kills whoever makes a sandbox before each of its system calls in turn, and looks at what is left.

    python -m tests.providers.local_killer <creator | supervisor> <empty folder>

prints what was wrong, one line each, and how many instants there were. Run as `local_killer.py
<root> <name> <lock> <ready>` it is a supervisor that dies at the instant in the file `instant`.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path
from types import FrameType

MODULES = {"posix", "fcntl", "select", "_posixsubprocess", "_signal", "_thread"}
METHODS = {"poll", "write", "flush", "read"}


def say(*words: object) -> None:
    """One line of the report."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def die_at(instant: int) -> None:
    """SIGKILL for this process, or for its fork, right before its n-th system call."""
    counter = count()

    def watch(frame: FrameType, event: str, call: object) -> None:
        if event != "c_call":
            return
        module, name = getattr(call, "__module__", None), getattr(call, "__name__", "")
        if (module in MODULES or name in METHODS) and next(counter) == instant:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)


def kill_creators(folder: Path) -> int:
    """The creator dies at each instant; a retry and a destroy each make the best of it."""
    for instant in count():
        survived = True
        for retried in (True, False):
            name = f"i{instant}-{'again' if retried else 'gone'}"
            ground = Ground(folder)
            ground.provider.scope()
            pid = os.fork()
            if pid == 0:
                die_at(instant)
                ground.create(name)
                sys.setprofile(None)
                os._exit(0)
            survived = os.waitpid(pid, 0)[1] == 0 and survived
            judge(ground, name, retried=retried, state=ProviderState.RUNNING)
        if survived:
            return instant
    raise AssertionError


def kill_supervisors(folder: Path) -> int:
    """Likewise for the launcher, the supervisor and its fork before exec."""
    local_launch.SUPERVISOR = __file__
    for instant in count():
        for retried in (True, False):
            name = f"i{instant}-{'again' if retried else 'gone'}"
            ground = Ground(folder)
            folder.with_name("instant").write_text(str(instant))
            try:
                ground.create(name)
            except ProviderError as error:
                if not error.retryable:
                    say(name, "made", repr(error))
            folder.with_name("instant").write_text("1000000")
            survived = bool(ground.alive()) and ground.state(name) is ProviderState.RUNNING
            judge(ground, name, retried=retried, state=None)
        if survived:
            return instant
    raise AssertionError


def judge(ground: Ground, name: str, *, retried: bool, state: ProviderState | None) -> None:
    """Say what is wrong: nothing may be left that a call by name does not see and end."""
    if retried:
        made = ground.create(name).state
        if made is not (state or made) or made not in {ProviderState.RUNNING, ProviderState.FAILED}:
            say(name, "is", made)
        if made is ProviderState.RUNNING and len(ground.alive()) != 2:
            say(name, "has processes", ground.alive())
    ground.destroy(name)
    if ground.get(name) is not None or not ground.nothing_is_left(name):
        say(name, "left", ground.alive(), sorted(os.listdir(ground.root)))


if __name__ == "__main__" and len(sys.argv) == 5:
    tree = Path(__file__).parents[2]
    sys.path.append(str(tree / "core/providers"))
    import local_supervisor  # type: ignore[import-not-found]

    die_at(int(Path(sys.argv[1]).with_name("instant").read_text()))
    local_supervisor.main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    sys.exit()

from core.errors import ProviderError  # noqa: E402 - a supervisor must not import the product
from core.providers import local_launch  # noqa: E402
from core.providers.base import ProviderState  # noqa: E402
from tests.providers.local_ground import Ground  # noqa: E402

if __name__ == "__main__":
    killed = {"creator": kill_creators, "supervisor": kill_supervisors}[sys.argv[1]]
    say(killed(Path(sys.argv[2])), "instants")
