"""Who is killed, stopped or runs wild: real processes, and what is left of them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir

import pytest

from core.errors import Busy, ProviderError
from core.providers import local, processes
from core.providers import local_files as files
from core.providers.base import ProviderState, SandboxRef, Spec
from tests.providers.contract import eventually
from tests.providers.local_ground import LABELS, Ground, in_python, is_alive

TREE = Path(__file__).parents[2]
# Forks the next of its kind and exits, as fast as it can: its pid is stale whenever it is known.
HYDRA = '#!/bin/sh\ntrap \'\' TERM\necho >>"$0.born"\n{} "$0" &\n'
HIDDEN = "env -i setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' & "


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """A registry whose processes are killed in the end, whatever happened."""
    ground = Ground(tmp_path / "root")
    yield ground
    ground.clear()


@pytest.fixture
def storm(tmp_path: Path) -> Iterator[Callable[[str], tuple[Path, Path]]]:
    """
    Make a program that forks itself for ever, and the file that grows with each of them. One test
    at a time has a storm: several leave no time for anything else. Without its file it ends.
    """
    script = tmp_path / "hydra"

    def made(how: str) -> tuple[Path, Path]:
        script.write_text(HYDRA.format(how))
        script.chmod(0o700)
        return script, tmp_path / "hydra.born"

    with Path(gettempdir(), "sandkeeper-storm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield made
        finally:
            script.unlink(missing_ok=True)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal it, and with SIGKILL wait until it is dead."""
    os.kill(pid, number)
    if number == signal.SIGKILL:
        eventually(lambda: not is_alive(pid))


@pytest.mark.timeout(400)  # some 200 sandboxes: seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("who", ["creator", "supervisor"])
def test_killed_at_every_instant(who: str, ground: Ground, tmp_path: Path) -> None:
    """
    Whoever makes a sandbox is killed before each of its system calls in turn: a retry finishes it
    with exactly one group of processes, a destroy leaves nothing, and get agrees.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.providers.local_killer", who, str(tmp_path / "root")],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )

    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[1:] == ["instants"], done.stdout
    assert int(words[0]) > 20


def test_thirty_creates_make_one_group(ground: Ground) -> None:
    """Six processes with five threads each create one name: one supervisor and one command."""
    program = """if True:
        import sys, threading
        from pathlib import Path
        from tests.providers.local_ground import Ground
        ground = Ground(Path(sys.argv[1]))
        barrier = threading.Barrier(5)
        def create():
            barrier.wait()
            sys.stdout.write(ground.create("a").ref.external_id + "\\n")
        threads = [threading.Thread(target=create) for _ in range(5)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """
    ids: list[str] = []

    def run() -> None:
        done = in_python(program, ground.root)
        ids.extend(done.stdout.split() or [done.stderr])

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 30
    assert len(set(ids)) == 1
    assert sorted(ground.alive()) == sorted([ground.supervisor("a"), ground.main("a")])


def test_a_dead_supervisor_takes_the_command_with_it(ground: Ground) -> None:
    """kill -9 of the supervisor: the command dies at once, the sandbox is FAILED, not absent."""
    ground.create("a", "sleep", "1000")
    main = ground.main("a")

    kill(ground.supervisor("a"))

    eventually(lambda: not is_alive(main))
    assert ground.state("a") is ProviderState.FAILED
    assert ground.create("a").state is ProviderState.FAILED
    page = ground.provider.list(LABELS, cursor=None, deadline=time.monotonic() + 5)
    assert [item.state for item in page.items] == [ProviderState.FAILED]
    ground.destroy("a")
    assert ground.nothing_is_left("a")


@pytest.mark.parametrize("hidden", [False, True])
def test_grandchildren_of_a_dead_supervisor_are_found(ground: Ground, *, hidden: bool) -> None:
    """
    A grandchild with a session of its own, and even without our marks in its environment,
    outlives supervisor and command, and does not outlive destroy.
    """
    start = HIDDEN if hidden else HIDDEN.replace("env -i ", "")
    ground.create("a", "sh", "-c", f"{start} exec sleep 1000")
    eventually(lambda: len(ground.alive()) == 4)  # ours, theirs, the grandchild and its sleep
    kill(ground.supervisor("a"))
    eventually(lambda: 1 <= len(ground.alive()) <= 2)

    ground.destroy("a")

    assert ground.nothing_is_left("a")


def test_a_stopped_supervisor_is_no_obstacle(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP for the supervisor: destroy wakes it, and it ends all in good order."""
    monkeypatch.setattr(local, "SLACK", 60.0)  # longer than the call: it never counts as stuck
    ground.create("a", "sh", "-c", f"{HIDDEN} exec sleep 1000")
    eventually(lambda: len(ground.alive()) == 4)
    kill(ground.supervisor("a"), signal.SIGSTOP)

    ground.destroy("a")

    assert ground.nothing_is_left("a")


def test_a_stuck_supervisor_is_killed(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no signal but SIGKILL reaches: force, its hidden grandchild first."""
    ground.create("a", "sh", "-c", f"{HIDDEN} exec sleep 1000")
    eventually(lambda: len(ground.alive()) == 4)
    kill(ground.supervisor("a"), signal.SIGSTOP)
    send = signal.pidfd_send_signal

    def deaf(pidfd: int, number: int, info: None = None, flags: int = 0) -> None:
        if number != signal.SIGCONT:
            send(pidfd, number, info, flags)

    monkeypatch.setattr(signal, "pidfd_send_signal", deaf)
    ground.destroy("a", 3.0)

    assert ground.nothing_is_left("a")


def test_what_cannot_be_killed_in_time_is_busy(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No success before the last process is dead; a later call finishes it."""
    ground.create("a", "sleep", "1000")
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
        with pytest.raises(Busy, match="dying"):
            ground.destroy("a", 0.5)
    assert ground.state("a") is ProviderState.RUNNING

    ground.destroy("a")

    assert ground.nothing_is_left("a")


def test_sigterm_first_then_sigkill(ground: Ground) -> None:
    """A command may use its grace to finish; one that ignores SIGTERM does not outlast it."""
    file = ground.root.parent / "finished"
    ground.script(
        "polite",
        f"def end(*_):\n    time.sleep(0.1)\n    open({str(file)!r}, 'w')\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)",
    )
    ground.script("stubborn", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")

    ground.destroy("polite")
    began = time.monotonic()
    ground.destroy("stubborn")

    assert file.exists()
    assert 0.45 < time.monotonic() - began < 3
    assert not ground.alive()


def test_a_stopped_command_hears_sigterm(ground: Ground) -> None:
    """A command that was stopped is continued, so that it does not sit out its grace."""
    ground.provider = type(ground.provider)(ground.root, grace=10.0)
    ground.create("a", "sleep", "1000")
    kill(ground.main("a"), signal.SIGSTOP)

    began = time.monotonic()
    ground.destroy("a")

    assert time.monotonic() - began < 3


@pytest.mark.parametrize("orphaned", [False, True])
@pytest.mark.parametrize("how", ["", "setsid"])
def test_a_fork_storm_ends(
    ground: Ground, storm: Callable[[str], tuple[Path, Path]], how: str, *, orphaned: bool
) -> None:
    """
    Processes that fork the next and exit, thousands a second, each in a session of its own or
    not, with or without a supervisor: none is left, and none was overlooked for a moment.
    """
    script, born = storm(how)
    ground.create("a", "sh", "-c", f"{script} & {script} & exec sleep 1000")
    # Not by a look at the processes: they are gone before it comes to them.
    eventually(lambda: born.exists() and born.stat().st_size > 10)
    if orphaned:
        kill(ground.supervisor("a"))

    ground.destroy("a")

    assert ground.get("a") is None
    assert not ground.alive()


def test_a_growing_fork_storm_ends(ground: Ground) -> None:
    """Four hundred processes, each of which replaces every child that dies."""
    ground.script(
        "a",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        open('ready', 'w').close()\n"
        "        for _ in range(130): os.fork() or signal.pause()\n"
        "        while True:\n            os.wait()\n            os.fork() or signal.pause()\n",
    )

    ground.destroy("a")

    assert ground.nothing_is_left("a")


def test_the_ttl_needs_nobody(ground: Ground) -> None:
    """Its creator is dead and nobody looks: TTL over, no process, no folder, no lock is left."""
    done = in_python(
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.providers.local_ground import Ground\n"
        "Ground(Path(sys.argv[1])).create('a', 'sh', '-c', sys.argv[2], ttl=1.5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        ground.root,
        f"{HIDDEN} sleep 1000",
    )
    assert done.returncode == -signal.SIGKILL
    assert ground.alive()

    eventually(lambda: ground.nothing_is_left("a"))


def test_a_ttl_that_is_shortened_is_kept(ground: Ground) -> None:
    """The supervisor is told of a new expiry at once, also when it is an earlier one."""
    info = ground.create("a", "sleep", "1000", ttl=300.0)

    ground.provider.extend(info.ref, ttl=0.2, deadline=time.monotonic() + 5)

    eventually(lambda: ground.nothing_is_left("a"), 4.0)


def test_an_extension_at_the_last_moment_holds(ground: Ground) -> None:
    """The TTL runs out while extend() has the lock: what it wrote counts, or it is refused."""
    ground.create("a", "sleep", "1000", ttl=0.3)
    lock = ground.provider._registry.lock("a", time.monotonic() + 5)
    time.sleep(0.5)  # nothing must happen: the supervisor has to wait for the lock
    ground.rewrite("a", until=processes.boot_clock() + 300)
    files.drop_lock(lock)

    time.sleep(0.3)  # nothing must happen
    assert ground.state("a") is ProviderState.RUNNING
    ground.rewrite("a", state="stopping")
    with pytest.raises(ProviderError, match="is stopping: nothing was extended"):
        ground.provider.extend(SandboxRef(name="a"), ttl=5.0, deadline=time.monotonic() + 5)


def test_a_command_that_ends_takes_all_with_it(ground: Ground) -> None:
    """The command exits: its grandchildren die too, and it is FAILED until it is destroyed."""
    ground.create("a", "sh", "-c", f"{HIDDEN} sleep 0.2")
    eventually(lambda: not ground.alive())

    assert ground.state("a") is ProviderState.FAILED
    assert ground.record("a")["state"] == "failed"
    ground.destroy("a")
    assert ground.nothing_is_left("a")


def test_a_destroy_that_is_killed_is_finished_by_the_next(ground: Ground) -> None:
    """kill -9 of a worker in the middle of a teardown: get still sees it, a retry ends it."""
    ground.script("a", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    program = (
        "import sys; from pathlib import Path; from tests.providers.local_ground import Ground\n"
        "print('begun', flush=True); Ground(Path(sys.argv[1])).destroy('a')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(ground.root)], cwd=TREE, stdout=subprocess.PIPE
    ) as worker:
        eventually(lambda: ground.state("a") is ProviderState.STOPPING)
        worker.kill()

    ground.provider.destroy(SandboxRef(name="a"), deadline=time.monotonic() + 20)
    assert ground.nothing_is_left("a")


def test_a_creator_that_is_stopped_blocks_nobody_for_ever(ground: Ground) -> None:
    """Whoever holds the lock and does not go on makes others Busy, in time; never two sandboxes."""
    ground.provider.scope()
    lock = ground.provider._registry.lock("a", time.monotonic())
    try:
        began = time.monotonic()
        with pytest.raises(Busy):
            ground.provider.create("a", LABELS, Spec(), ttl=None, deadline=began + 0.3)
        with pytest.raises(Busy):
            ground.destroy("a", 0.3)
        assert time.monotonic() - began < 2
    finally:
        os.close(lock)
    assert ground.create("a").state is ProviderState.RUNNING
