"""The supervisor, with real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 30.0  # seconds; nothing here takes more than one

SUPERVISOR = """
import sys
from tasks.up import Command, supervise
scripts = sys.argv[2:]
commands = [Command(name=f"p{i}", argv=[sys.executable, "-c", s]) for i, s in enumerate(scripts)]
sys.exit(supervise(commands, grace=float(sys.argv[1])))
"""
RUNS = "import time; print('up', flush=True); time.sleep(600)"
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(600)"
)
EXITS = "print('came', flush=True)"

Start = Callable[..., "Supervised"]


class Supervised:
    """A supervisor in a process of its own, and what it prints."""

    def __init__(self, log: Path, *scripts: str, grace: float) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, str(grace), *scripts],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    def says(self, word: str, times: int = 1) -> None:
        """Wait until the word was printed so often."""
        until(lambda: self.log.read_text().count(word) >= times, self.log)

    def children(self) -> list[int]:
        """The processes that it said it started, and that are alive."""
        started = re.findall(r"started, process (\d+)", self.log.read_text())
        return [int(pid) for pid in started if alive(int(pid))]


def alive(pid: int) -> bool:
    """Whether it runs. One that nobody has asked for its exit code yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return sys.platform != "linux"
    return state != "Z"


def until(condition: Callable[[], bool], log: Path) -> None:
    """Wait for something that can be looked at."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a supervisor; it and all that it started are gone after the test."""
    started: list[Supervised] = []

    def begin(*scripts: str, grace: float = 20.0) -> Supervised:
        started.append(Supervised(tmp_path / f"{len(started)}.log", *scripts, grace=grace))
        return started[-1]

    yield begin
    for supervised in started:
        family = supervised.children()
        if supervised.process.poll() is None:
            supervised.process.kill()
            supervised.process.wait()
        for pid in filter(alive, family):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stops_all_children_when_it_is_asked_to(start: Start, number: signal.Signals) -> None:
    """A signal that asks it to stop leaves no child behind, and the exit code says all is well."""
    supervised = start(RUNS, RUNS)
    supervised.says("up\n", times=2)
    children = supervised.children()

    supervised.process.send_signal(number)

    assert supervised.process.wait(LIMIT) == 0
    assert len(children) == 2
    assert not any(alive(child) for child in children)


def test_starts_a_child_again_that_was_killed(start: Start) -> None:
    """kill -9 of a child costs a pause, and the other one is left alone."""
    supervised = start(RUNS, RUNS)
    supervised.says("up\n", times=2)
    victim, other = supervised.children()

    os.kill(victim, signal.SIGKILL)

    supervised.says("up\n", times=3)
    assert "exited with SIGKILL, starting it again in 0.5 s" in supervised.log.read_text()
    assert alive(other)


def test_waits_longer_each_time_a_child_exits_at_once(start: Start) -> None:
    """A program that cannot run does not keep the machine busy."""
    supervised = start(EXITS)

    supervised.says("came", times=3)
    supervised.says("starting it again", times=3)

    pauses = [
        line.split()[-2] for line in supervised.log.read_text().splitlines() if "again" in line
    ]
    assert pauses[:3] == ["0.5", "1", "2"]


def test_goes_on_without_a_program_that_does_not_exist(start: Start, tmp_path: Path) -> None:
    """What cannot be started is tried again, and does not take the others down."""
    log = tmp_path / "missing.log"
    script = (
        "import sys; from tasks.up import Command, supervise; "
        "supervise([Command(name='gone', argv=['/nonexistent/program']), "
        f"Command(name='here', argv=[sys.executable, '-c', {RUNS!r}])])"
    )
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=output, cwd=ROOT)

    until(lambda: "up\n" in log.read_text(), log)
    process.terminate()

    assert process.wait(LIMIT) == 0
    assert "gone cannot be started (No such file or directory)" in log.read_text()


def test_kills_a_child_that_does_not_stop(start: Start) -> None:
    """After the grace it is killed, and the exit code says so."""
    supervised = start(DEAF, grace=0.3)
    supervised.says("up\n")
    (child,) = supervised.children()

    supervised.process.terminate()

    assert supervised.process.wait(LIMIT) == 1
    assert not alive(child)
    assert "p0 did not stop, killing it" in supervised.log.read_text()


def test_a_second_signal_ends_the_grace(start: Start) -> None:
    """Somebody who presses Ctrl-C twice means it."""
    supervised = start(DEAF, grace=600)
    supervised.says("up\n")

    supervised.process.send_signal(signal.SIGINT)
    supervised.says("stopping on SIGINT")
    supervised.process.send_signal(signal.SIGINT)

    assert supervised.process.wait(LIMIT) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_children_die_with_a_supervisor_that_is_killed(start: Start) -> None:
    """kill -9 of the supervisor leaves no worker behind that nobody supervises."""
    supervised = start(RUNS, DEAF)
    supervised.says("up\n", times=2)
    children = supervised.children()

    os.kill(supervised.process.pid, signal.SIGKILL)

    supervised.process.wait()
    assert len(children) == 2
    until(lambda: not any(alive(child) for child in children), supervised.log)


def test_the_commands_are_what_a_celery_user_would_type() -> None:
    """The worker and beat of this package, with the pool whose memory does not grow with it."""
    from tasks.up import commands

    worker, beat = commands(concurrency=7)

    assert worker.argv[1:6] == ["-m", "celery", "-A", "tasks", "worker"]
    assert "threads" in worker.argv
    assert "7" in worker.argv
    assert beat.argv[1:6] == ["-m", "celery", "-A", "tasks", "beat"]
    assert (Path(worker.environ["PYTHONPATH"].split(os.pathsep)[0]) / "celeryconfig.py").exists()


def test_the_api_is_one_more_program_where_it_has_an_address() -> None:
    """`./run up` keeps it running like the others; who wants none of it gets none."""
    from tasks.up import commands

    *_, api = commands(api=("127.0.0.1", 8585))

    assert [command.name for command in commands()] == ["worker", "beat"]
    assert api.name == "api"
    assert api.argv[1:4] == ["-m", "tasks.cli", "serve"]
    assert api.argv[4:] == ["--host", "127.0.0.1", "--port", "8585"]
