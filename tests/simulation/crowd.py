"""Many worlds: one after the other in this process, or spread over several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.simulation.line import Line
from tests.simulation.plan import POLICIES
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One world in a few words, as one process tells another."""

    seed: int
    foci: str
    promise: str  # that was broken, or nothing
    how: str
    digest: int
    seconds: float
    steps: int
    faults: Mapping[str, int]


class Accident(Exception):
    """A process that ran worlds came to an end of its own."""


def worlds(seeds: Iterable[int], log: Callable[[str], None] | None = None) -> Iterator[Report]:
    """Run them here."""
    line = Line(POLICIES)
    for seed in seeds:
        result = World(seed, line, log).run()
        broken = result.violation
        yield Report(
            seed=seed,
            foci=", ".join(result.plan.foci),
            promise="" if broken is None else broken.promise,
            how="" if broken is None else str(broken),
            digest=result.digest,
            seconds=result.seconds,
            steps=result.steps,
            faults={fault.value: count for fault, count in sorted(result.faults.items())},
        )


def replay(seed: int, log: Callable[[str], None]) -> Report:
    """Run one, and say every step of it."""
    return next(worlds([seed], log))


def spread(first: int, count: int, jobs: int) -> Iterator[Report]:
    """Run `count` worlds from `first` on in `jobs` processes; reports come as they are ready."""
    queue: SimpleQueue[Report | None] = SimpleQueue()

    def feed(job: int) -> None:
        try:
            for report in elsewhere(range(first + job, first + count, jobs)):
                queue.put(report)
        finally:
            queue.put(None)

    with ThreadPoolExecutor(jobs) as pool:
        feeding = [pool.submit(feed, job) for job in range(jobs)]
        left = jobs
        while left:
            report = queue.get()
            if report is None:
                left -= 1
            else:
                yield report
        for future in feeding:
            future.result()


def elsewhere(
    seeds: range, *, tree: Path = ROOT, stop: bool = False, environ: Mapping[str, str] | None = None
) -> Iterator[Report]:
    """The same in a process of its own, on the sources of `tree`; `stop` at the first violation."""
    command = [sys.executable, "-m", "tests.simulation", "--report"]
    command += [f"--seed={seeds.start}", f"--worlds={len(seeds)}", f"--step={seeds.step}"]
    with subprocess.Popen(
        [*command, "--stop"] if stop else command,
        cwd=tree,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            yield Report(**json.loads(line))
        errors = process.stderr.read()
    if process.returncode:
        raise Accident(errors[-3000:])


def tell(seeds: range, *, stop: bool) -> None:
    """What `elsewhere` listens to."""
    for report in worlds(seeds):
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
        sys.stdout.flush()
        if stop and report.promise:
            return


@dataclass
class Sum:
    """What many worlds amount to."""

    worlds: int = 0
    seconds: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.broken: list[Report] = []

    def add(self, report: Report) -> None:
        """One more."""
        self.worlds += 1
        self.seconds += report.seconds
        self.steps += report.steps
        self.faults.update(report.faults)
        if report.promise:
            self.broken.append(report)
