"""One whole run: a copy of the tree, a stack, a crew, a director; then all that they wrote."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE

from tests import services
from tests.chaos.controls import Control, copied
from tests.chaos.crew import Crew
from tests.chaos.director import Director
from tests.chaos.evidence import Evidence, collect, unfinished
from tests.chaos.faults import STORM, Chances
from tests.chaos.journal import Journal
from tests.chaos.judge import Expected, Findings, judge
from tests.chaos.stacks import Stack, stack
from tests.chaos.timings import Timings

SIZES: Mapping[str, int] = {"cloud": 1, "worker": 3, "beat": 2, "client": 3}
THREADS = 4  # of each API server: so many conversations at once
READY_WITHIN = 60.0

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run."""

    seconds: float
    stack: str
    seed: int
    folder: Path
    control: Control | None = None
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)

    @property
    def chances(self) -> Chances:
        """What the cloud does wrong."""
        ours = None if self.control is None else self.control.chances
        return STORM if ours is None else ours

    @property
    def expected(self) -> Expected:
        """What an innocent run of this length has to have tried; less at the very least."""
        return Expected(
            turns=int(self.seconds),
            silent=int(self.seconds / 10),
            teardowns=int(self.seconds / 3),
            classes=10,
            times=max(1, int(self.seconds / 30)),
        )


def run(plan: Plan, tell: Tell) -> Findings:
    """Play and judge."""
    evidence = play(plan, tell)
    return judge(evidence, plan.expected)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the processes of one run share."""

    plan: Plan
    timings: Timings
    on: Stack
    tree: Path  # a copy: whoever works on the tree meanwhile does not change what is judged
    installation: str
    queue_prefix: str
    cloud_port: int

    def environ(self) -> dict[str, str]:
        """The environment of every process."""
        kept = ("SANDKEEPER_", "CELERY_", "PYTEST", "PYTHON", "PG")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(kept)}
        numbers = self.timings.settings.items()
        return {
            **inherited,
            **{f"SANDKEEPER_{name}": f"{value:g}" for name, value in numbers},
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",
            "SANDKEEPER_DATABASE_URL": self.on.database_url,
            "SANDKEEPER_BROKER_URL": self.on.broker_url,
            "SANDKEEPER_QUEUE_PREFIX": self.queue_prefix,
            "SANDKEEPER_INSTALLATION": self.installation,
            "SANDKEEPER_PROVIDER": "tests.chaos.provider:ChaosCloud",
            "CHAOS_CLOUD": f"127.0.0.1:{self.cloud_port}",
        }


def play(plan: Plan, tell: Tell) -> Evidence:
    """Start everything, let the director play, heal, wait, and collect."""
    chance = random.Random(plan.seed)
    with ExitStack() as exits:
        ground = _ground(exits, plan, chance)
        journal = Journal(plan.folder / "director.jsonl")
        exits.callback(journal.close)
        crew = _crew(ground, journal)
        exits.callback(crew.destroy)
        director = Director(
            crew,
            ground.on,
            ground.timings,
            journal,
            installation=ground.installation,
            chances=plan.chances,
            chance=chance,
            only=plan.control.only if plan.control else (),
        )
        _start(crew, ground.on, journal, tell)
        director.play(plan.seconds, tell)
        director.heal()
        tell("healed: waiting for everything to be gone")
        _wait(crew, ground, tell)
        crew.destroy()
        return collect(plan.folder, ground.timings, ground.installation, ground.on.direct_url)


def _ground(exits: ExitStack, plan: Plan, chance: random.Random) -> Ground:
    prefix = f"chaos-{secrets.token_hex(4)}"
    ground = Ground(
        plan=plan,
        timings=Timings.of(plan.control.settings if plan.control else {}),
        on=exits.enter_context(stack(plan.stack, plan.folder, prefix)),
        tree=copied(plan.folder / "tree", plan.control),
        installation=f"{chance.getrandbits(32):08x}",
        queue_prefix=prefix,
        cloud_port=services._free_port(),
    )
    command = [sys.executable, "-m", "tasks.cli", "db", "upgrade"]
    done = subprocess.run(command, env=ground.environ(), cwd=plan.folder, stdout=PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"the database could not be migrated: exit code {done.returncode}")
    return ground


def _crew(ground: Ground, journal: Journal) -> Crew:
    return Crew(
        ground.plan.folder,
        ground.environ(),
        journal,
        sizes=ground.plan.sizes,
        cloud_port=ground.cloud_port,
        seed=str(ground.plan.seed),
        threads=THREADS,
    )


def _start(crew: Crew, on: Stack, journal: Journal, tell: Tell) -> None:
    on.wait()
    crew.start("cloud", "worker", "beat")
    crew.wait_for_cloud()
    crew.start("client")
    crew.wait_until_ready(READY_WITHIN)
    journal.write("clocks", wall=time.time())
    tell("everybody is ready")


def _wait(crew: Crew, ground: Ground, tell: Tell) -> None:
    """Until all is gone, at the longest for the bound."""
    bound = ground.timings.bound
    end = time.monotonic() + bound
    while time.monotonic() < end:
        crew.refill_all_but("client")
        left = _left(crew, ground.on.direct_url)
        if not any(left.values()):
            return
        time.sleep(0.5)
    shown = ", ".join(f"{count} {what}" for what, count in left.items() if count)
    tell(f"{bound:.0f} s later there are still {shown}")


def _left(crew: Crew, database_url: str) -> Mapping[str, int]:
    try:
        alive = [box for box in crew.cloud("boxes") if box["planted"] != "foreign"]
        busy: int = crew.cloud("busy")
    except OSError:
        return {"clouds down": 1}
    return {
        "API servers": len(crew.of("client")),
        "calls under way": busy,
        "sandboxes": len(alive),
        "rows not final": unfinished(database_url),
    }
