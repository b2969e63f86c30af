from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ProviderError
from core.providers import processes
from core.providers.base import ProviderState, SandboxRef
from tests.providers.local_ground import Ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """A registry whose processes are killed in the end, whatever happened."""
    ground = Ground(tmp_path / "root")
    yield ground
    ground.clear()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any sandbox, and that lives on whatever happened."""
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            yield stranger
            with pytest.raises(subprocess.TimeoutExpired):
                stranger.wait(0.3)
        finally:
            stranger.kill()


def test_a_reused_pid_is_never_signalled(ground: Ground, stranger: subprocess.Popen[bytes]) -> None:
    """The record points at a stranger, start time and all: FAILED, and the stranger lives on."""
    ground.create("a")
    ground.clear()
    seen = processes.look(stranger.pid)
    assert seen is not None
    ground.rewrite("a", supervisor={"pid": seen.pid, "start": seen.start})

    assert ground.state("a") is ProviderState.FAILED
    with pytest.raises(ProviderError):
        ground.provider.extend(SandboxRef(name="a"), ttl=5.0, deadline=time.monotonic() + 5)
    ground.destroy("a")


def test_a_pid_passed_on_between_look_and_signal_is_spared(
    stranger: subprocess.Popen[bytes],
) -> None:
    """What the number meant when it was looked up is proved again once the pidfd is open."""
    seen = processes.look(stranger.pid)
    assert seen is not None
    assert processes.hold(seen.pid, seen.start, lambda: False) is None

    seen.start -= 1  # whom we meant had this pid before
    processes.send(seen, signal.SIGKILL, lambda: True)
