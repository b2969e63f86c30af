"""The demo shows what it says, and says so when it does not hold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.providers.base import SandboxInfo, SandboxRef
from examples.demo.__main__ import SILENT, Story
from examples.demo.stage import Rhythm, Stage
from examples.demo.view import View
from tests.engines import IMAGE, DockerEngine

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 12.0


@contextmanager
def opened(stage: Stage) -> Iterator[Story]:
    """A story on this stage, and an empty stage afterwards."""
    try:
        with View() as view:
            yield Story(stage, view, kill="api")
    finally:
        stage.failed = False  # nobody will read the logs
        stage.close()


def demo(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """As a person runs it, without a terminal."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "examples.demo", "--seconds", f"{SECONDS}", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.parametrize("kill", ["api", "all"])
def test_the_demo_holds(kill: str) -> None:
    """Exit code 0, plain lines, and a summary whose figures come from provider and /proc."""
    run = demo("--kill", kill)

    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stdout + run.stderr
    assert "HOLDS" in lines[-1]
    assert "left behind: 0 sandboxes, 0 processes" in lines[-1]
    assert ("the worker is dead" in run.stdout) == (kill == "all")


def test_the_demo_holds_with_containers(dockerd: DockerEngine) -> None:
    """The same story; the engine says what is left, and what else it runs is not ours."""
    client = dockerd.client()
    other = client.create_container(IMAGE, name="somebody-elses")["Id"]
    client.start(other)

    run = demo("--provider", "docker", "--image", IMAGE, **dockerd.environ)

    last = run.stdout.splitlines()[-1]
    assert run.returncode == 0, run.stdout + run.stderr
    assert "HOLDS" in last
    assert "left behind: 0 sandboxes, 0 processes" in last
    assert [found["Id"] for found in client.containers(all=True)] == [other]
    client.close()


def test_the_demo_says_what_it_lacks(dockerd: DockerEngine, tmp_path: Path) -> None:
    """An image, or an engine; nothing is started."""
    image = demo("--provider", "docker", "--image", "no-such", **dockerd.environ)
    engine = demo("--provider", "docker", DOCKER_HOST=f"unix://{tmp_path}/none.sock")

    assert (image.returncode, engine.returncode) == (1, 1)
    assert "docker pull no-such" in image.stderr
    assert "is the engine running?" in engine.stderr


def test_the_demo_fails_when_sandboxes_are_left() -> None:
    """Without a worker and beat nothing is reaped, and the demo does not say otherwise."""

    class WithoutWorker(Stage):
        def start(self) -> None:
            super().start()
            assert self.system is not None
            self.system.terminate()
            self.system.wait()

    with opened(WithoutWorker(Rhythm.within(SECONDS))) as story:
        assert story.run() is False
        assert len(story.stage.sandboxes()) == 6


def test_the_demo_fails_when_the_live_turn_is_harmed() -> None:
    """A sandbox that goes away under its turn is seen, although nothing is left in the end."""

    class Careless(Stage):
        def sandboxes(self) -> dict[str, SandboxInfo]:
            victims = [s for s in self.store.history.lines() if s.id == SILENT and s.turns_open]
            for victim in victims:
                name = self.store.sessions.get(victim.id).sandbox.name
                ref = SandboxRef(name=name)
                self.provider.destroy(ref, deadline=time.monotonic() + 10)
            return super().sandboxes()

    with opened(Careless(Rhythm.within(SECONDS))) as story:
        assert story.run() is False
        assert story.silent.deaths
