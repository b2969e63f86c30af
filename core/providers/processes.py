"""
Processes as /proc and pidfds show them: who one is, whose child it is, what marks it carries.

Nothing is signalled on the strength of a number. A pidfd is opened first and the process behind
the number is looked at afterwards: when that look shows the process that is meant, the pidfd
cannot be another one, because the number was taken from then until now. Zombies count as dead.

The supervisor of every sandbox imports this file: it has no imports that cost memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PIDFD_SIGNAL_PROCESS_GROUP = 4  # Linux 6.9: all of a process group at one instant
KERNEL_THREAD = 0x00200000


class Process:
    """One process at the moment of a look. `pid` and `start` together name it for one boot."""

    __slots__ = ("dead", "kernel", "parent", "pid", "start")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.dead = fields[0] in {b"Z", b"X", b"x"}
        self.parent = int(fields[1])
        self.kernel = bool(int(fields[6]) & KERNEL_THREAD)
        self.start = int(fields[19])  # clock ticks after boot

    def is_same(self, other: Process | None) -> bool:
        return other is not None and (self.pid, self.start) == (other.pid, other.start)


Table = dict[int, Process]
Proof = Callable[[], bool]


def boot_id() -> str:
    """The kernel's name for this boot: pids and start times of another one mean nothing."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def pid_namespace() -> int:
    """The inode of our pid namespace: pids of another one mean other processes, or none."""
    return os.stat("/proc/self/ns/pid").st_ino


def boot_clock() -> float:
    """Seconds since boot, suspend included; no clock step moves it and all processes share it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def prctl(option: int, argument: int) -> None:
    """The system call; raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def look(pid: int) -> Process | None:
    """The process that has this pid now; None when there is none, or /proc hides it from us."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command's name stands in brackets and may hold brackets and blanks itself.
    return Process(pid, line[line.rindex(b")") + 2 :].split())


def sightings() -> Iterator[Process]:
    """
    All processes that /proc shows, each at the moment it is given out, the newest first: a chain
    in which each forks the next and exits is gone from a list that is read to its end.
    """
    for pid in _pids():
        process = look(pid)
        if process is not None:
            yield process


def everyone() -> Table:
    """All processes that /proc shows, each looked at once and not all at the same instant."""
    return {process.pid: process for process in sightings()}


def carries(pid: int, marks: frozenset[bytes]) -> bool:
    """
    Whether the environment that this process was started with holds all of the marks. Raises
    PermissionError when we may not see it.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            found = file.read()
            # Few environments have the marks anywhere, and only those are taken apart.
            return all(mark in found for mark in marks) and marks <= set(found.split(b"\0"))
    except (FileNotFoundError, ProcessLookupError):
        return False


def marked(marks: frozenset[bytes]) -> Iterator[Process]:
    """
    The living processes that carry the marks. Those whose environment we may not see belong to
    other users or hide it, and cannot be proved to be anybody's.
    """
    for pid in _pids():
        # The environment first: it is one file a process, and all but ours end here.
        if _surely_carries(pid, marks):
            process = look(pid)
            if process is not None and not (process.dead or process.kernel):
                yield process


def locks(pid: int, folder: str) -> bool:
    """
    Whether the process has the descriptor by which `folder` is claimed. It can only have been
    inherited, so this holds for who cleared its environment and lost all its ancestors too.
    """
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == folder:
                with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
                    if b"FLOCK" in file.read():
                        return True
    except OSError:
        pass  # gone, or not ours to look at
    return False


def descendants(table: Table, ancestor: int) -> list[Process]:
    """Children, grandchildren and so on, the dead left out; the ancestor itself is not in it."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [ancestor]
    while queue:
        for child in children.get(queue.pop(), ()):
            queue.append(child.pid)
            found.append(child)
    return [process for process in found if not process.dead]


def hold(pid: int, start: int, proof: Proof) -> int | None:
    """
    A pidfd of exactly this process, or None when it is gone, or when the proof, taken after the
    pidfd was opened, fails. Raises PermissionError when it lives and we may not look at it. The
    caller closes the pidfd.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENOENT}:
            return None  # the last two: the number is now a thread's
        raise
    try:
        now = _look_behind(pidfd, pid)
        if now is not None and now.start == start and not now.dead and proof():
            return pidfd
    except BaseException:
        os.close(pidfd)
        raise
    os.close(pidfd)
    return None


def send(process: Process, number: int, proof: Proof) -> None:
    """
    Signal exactly this process. That it is gone, cannot be proved ours or is not ours to signal
    is no error: the next look tells.
    """
    try:
        pidfd = hold(process.pid, process.start, proof)
    except PermissionError:
        return
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, number)
        if number in {signal.SIGKILL, signal.SIGSTOP}:
            # A fork storm outruns whoever signals one process after another: where this one leads
            # a group, all of the group at once. It may be no leader, and old kernels know no flag.
            signal.pidfd_send_signal(pidfd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
    except OSError as error:
        if error.errno not in {errno.ESRCH, errno.EPERM, errno.EINVAL}:
            raise
    finally:
        os.close(pidfd)


def exited(pidfd: int, timeout: float) -> bool:
    """Whether the process exits within so many seconds."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(max(0.0, timeout) * 1000))


def signal_descendants(ancestor: int, *numbers: int) -> None:
    """Signal all that descend from a process that cannot go away meanwhile: the caller itself."""
    table = everyone()
    for process in descendants(table, ancestor):
        proof = partial(_descends, process, ancestor, table)
        for number in numbers:
            send(process, number, proof)


def strike(marks: frozenset[bytes]) -> bool:
    """
    One blow at all that carry the marks and all that descends from them, whatever environment
    those have; False when there was nobody to hit. The caller repeats it.

    Everybody is stopped first, so that nobody forks any more. Those at the top, a supervisor
    among them, die last: it adopts what loses its parent, so that a process that cleared its
    environment stays in its tree until it is hit.
    """
    proofs: dict[int, Proof] = {}
    tops = {}
    for top in marked(marks):
        tops[top.pid] = top
        proofs[top.pid] = partial(_surely_carries, top.pid, marks)
        send(top, signal.SIGSTOP, proofs[top.pid])
    table = everyone() | tops
    for pid in tops:
        for below in descendants(table, pid):
            proofs.setdefault(below.pid, partial(_descends, below, pid, table))
    for pid, proof in proofs.items():
        send(table[pid], signal.SIGSTOP, proof)
    below_others = [pid for pid in proofs if table[pid].parent in proofs]
    for pid in below_others or proofs:
        send(table[pid], signal.SIGKILL, proofs[pid])
    return bool(proofs)


def strike_holders(folder: str) -> None:
    """Likewise for those that only the claim of the folder gives away."""
    for process in sightings():
        if not (process.dead or process.kernel) and locks(process.pid, folder):
            send(process, signal.SIGKILL, partial(locks, process.pid, folder))


def _pids() -> Iterator[int]:
    return (int(entry) for entry in reversed(os.listdir("/proc")) if entry.isdigit())


def _look_behind(pidfd: int, pid: int) -> Process | None:
    now = look(pid)
    if now is None and not exited(pidfd, 0.0):
        raise PermissionError(errno.EACCES, "/proc hides the process", str(pid))
    return now


def _surely_carries(pid: int, marks: frozenset[bytes]) -> bool:
    try:
        return carries(pid, marks)
    except PermissionError:
        return False


def _descends(process: Process, ancestor: int, table: Table) -> bool:
    """
    Whether each link up to the ancestor was the same process when the table was read and is now:
    then it was so in between too, and the number of a parent did not pass to a stranger.
    """
    pid = process.pid
    while True:
        link = look(pid)
        if link is None or not link.is_same(table.get(pid)):
            return False
        if pid == ancestor:
            return True
        pid = link.parent
