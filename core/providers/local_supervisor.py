"""
The process above every local sandbox: starts its command, adopts what it leaves behind, ends it.

`LocalProvider` runs this file with a bare interpreter: `python -I -S local_supervisor.py <root>
<name> <lock> <ready>`. It must not import the rest of the product: it is paid for per sandbox.

Order matters, since anybody may be killed at any instant. The lock of the sandbox is inherited
from whoever creates it, so nobody judges a half-made sandbox while one of both lives. Our identity
is in the record before the command runs: from then on a destroy finds us, and we find all else.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from . import local_files as files
    from . import processes
else:
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import local_files as files
    import processes

TICK = 5.0  # seconds between looks at what sends no signal: suspend, a folder removed by hand
LOCK_PATIENCE = 10.0  # seconds; a stopped process may hold the lock and must not outlive the TTL
SIGNALS = {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP}
REFUSED = {  # of exec: this command can never be run
    errno.E2BIG,
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOEXEC,
    errno.ENOTDIR,
    errno.EPERM,
}


class Supervisor:
    """One sandbox, from the inside of its supervising process."""

    def __init__(self, root: str, name: str, lock: int, ready: int) -> None:
        self.root = root
        self.name = name
        self.folder = f"{root}/{name}"
        self.lock = lock
        self.ready = ready
        self.record: files.Record = {}
        self.main = 0
        self.claim = -1

    def start(self) -> None:
        """Record ourselves, run the command, let go of the lock, say so."""
        try:
            self.claim = files.claim_folder(self.folder)
            self.record = files.read_record(self.folder)
            self.record["supervisor"] = self._identity(os.getpid())
            files.write_record(self.folder, self.record)
            failure = self._run_command()
            if failure is None:
                self.record["state"] = "running"
                files.write_record(self.folder, self.record)
        except OSError as error:
            failure = f"!{error.strerror or error}"
        if failure is not None:
            self._undo(failure)
        os.close(self.lock)  # not unlocked: an unlock would also take it from who gave it to us
        self._say("+")

    def watch(self) -> None:
        """Wait for what ends the sandbox: a signal, its TTL, its command, its folder's removal."""
        while True:
            remaining = self._remaining()
            if remaining <= 0 and self._is_over():
                return self.close_down()
            if os.fstat(self.claim).st_nlink == 0:
                return self.end_all(0.0)
            got = signal.sigtimedwait(SIGNALS, max(0.0, min(TICK, remaining)))
            if got is None:
                continue
            if got.si_signo == signal.SIGTERM:
                self._mark("stopping")
                return self.close_down()
            if got.si_signo == signal.SIGUSR1:
                self._refresh()
            if got.si_signo == signal.SIGCHLD and self._main_exited():
                self._mark("failed")
                return self.end_all(self.record["grace"])

    def close_down(self) -> None:
        """End everything, then remove the folder; who calls destroy may do that instead."""
        self.end_all(self.record["grace"])
        try:
            lock = files.take_lock(self.root, self.name, time.monotonic() + LOCK_PATIENCE)
        except TimeoutError:
            return
        os.close(self.claim)
        files.discard(self.root, self.name, files.FOREVER)
        files.forget_lock(self.root, self.name)
        files.drop_lock(lock)

    def end_all(self, grace: float) -> None:
        """
        SIGTERM for every descendant, and after the grace SIGKILL until none is left. We are their
        subreaper, so having no child at all proves that there is no descendant anywhere.
        """
        until = time.monotonic() + grace
        if grace > 0:
            # A stopped process hears nothing until it is continued.
            self._signal_all(signal.SIGTERM, signal.SIGCONT)
        left = grace
        while self._anybody_left(signal.SIGKILL if left <= 0 else 0):
            left = until - time.monotonic()
            if left <= 0:
                if self.main:
                    os.killpg(self.main, signal.SIGKILL)  # at one instant: a fork storm loses
                self._signal_all(signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, min(0.05, left) if left > 0 else 0.005)

    def _run_command(self) -> str | None:
        """None once the command runs, otherwise why it does not."""
        told, tells = os.pipe()
        us = os.getpid()
        self.main = os.fork()
        if self.main == 0:
            try:
                self._become_command(us, tells)
            except OSError as error:
                kind = "-" if error.errno in REFUSED else "!"
                os.write(tells, f"{kind}{error.strerror}".encode())
            finally:
                os._exit(127)
        os.close(tells)
        with os.fdopen(told, "rb") as file:
            failure = file.read().decode()
        return failure or None

    def _become_command(self, supervisor: int, tells: int) -> NoReturn:
        processes.prctl(processes.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)  # it died before the line above: nobody would ever end us
        os.setsid()
        output = os.open(f"{self.folder}/output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.set_inheritable(self.claim, True)  # all that descend from us keep it
        os.chdir(f"{self.folder}/work")
        os.umask(0o022)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # Python changed them, exec would keep that
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        command = self.record["command"]
        if command:
            os.execvpe(command[0], command, {**os.environ, **self.record["env"]})
        for fd in (self.lock, self.ready, tells):
            os.close(fd)  # the last one says that we run
        while True:
            signal.pause()

    def _undo(self, failure: str) -> NoReturn:
        self.end_all(0.0)
        try:
            files.discard(self.root, self.name, files.FOREVER)
            files.forget_lock(self.root, self.name)
        finally:
            self._say(failure)
            os._exit(1)

    def _say(self, words: str) -> None:
        try:
            os.write(self.ready, words.encode())
            os.close(self.ready)
        except BrokenPipeError:
            pass  # the creator is dead: its retry finds us by the record

    def _remaining(self) -> float:
        until: float | None = self.record["until"]
        return files.FOREVER if until is None else until - processes.boot_clock()

    def _is_over(self) -> bool:
        """
        The TTL ran out, and no extension was granted before we said so. Under the lock: an
        extend() that comes later reads `stopping` and is refused.
        """
        return self._mark("stopping", still=lambda: self._remaining() <= 0)

    def _mark(self, state: str, still: Callable[[], bool] = lambda: True) -> bool:
        """Write our state, unless there is no cause for it any more once we hold the lock."""
        try:
            lock = files.take_lock(self.root, self.name, time.monotonic() + LOCK_PATIENCE)
        except (OSError, TimeoutError):
            return True  # a stopped extend(), or a registry that is gone, keeps nothing alive
        try:
            self._refresh()
            if not still():
                return False
            self.record["state"] = state
            files.write_record(self.folder, self.record)
        except OSError:
            pass  # nor does a full disk
        finally:
            files.drop_lock(lock)
        return True

    def _refresh(self) -> None:
        try:
            self.record = files.read_record(self.folder)
        except (OSError, files.Unreadable):
            pass  # what was promised before still holds

    def _main_exited(self) -> bool:
        """Whether the command itself ended. It is not reaped here: see _bury()."""
        if self.main:
            if os.waitid(os.P_PID, self.main, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return True
            self._reap()
        return self.main == 0

    def _anybody_left(self, number: int) -> bool:
        try:
            return self._bury(number)
        except OSError:
            return True  # the host is out of descriptors, say: who cannot look does not leave

    def _bury(self, number: int) -> bool:
        """
        Reap the dead and signal living children on sight (a child's number is its own until we
        reap it); whether anybody is left. The command is reaped last: its number is that of its
        group, and while it is our zombie no stranger's group can get it.
        """
        alive = False
        for process in processes.sightings():
            if process.parent != os.getpid():
                continue
            if not process.dead:
                alive = True
                os.kill(process.pid, number)
            elif process.pid != self.main:
                os.waitpid(process.pid, os.WNOHANG)
        return alive or self._reap()

    def _reap(self) -> bool:
        """Reap all the dead; whether any child is left."""
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if pid == self.main:
                    self.main = 0
        except ChildProcessError:
            return False
        return True

    def _signal_all(self, *numbers: int) -> None:
        try:
            processes.signal_descendants(os.getpid(), *numbers)
        except OSError:
            pass  # out of descriptors, say: we come again at once

    @staticmethod
    def _identity(pid: int) -> dict[str, int]:
        process = processes.look(pid)
        if process is None:
            raise OSError(f"/proc does not show process {pid}")
        return {"pid": pid, "start": process.start}


def main(root: str, name: str, lock: int, ready: int) -> None:
    """Become the supervisor: a grandchild of whoever creates, so that it is nobody's zombie."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for fd in (lock, ready):
        os.set_inheritable(fd, False)
    processes.prctl(processes.PR_SET_CHILD_SUBREAPER, 1)
    supervisor = Supervisor(root, name, lock, ready)
    supervisor.start()
    try:
        supervisor.watch()
    except BaseException:
        supervisor.end_all(0.0)  # a defect of ours must not leave the sandbox unsupervised
        raise


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
