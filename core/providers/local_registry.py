"""The registry of local sandboxes: its folder, and the processes of this host that are theirs."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from ..errors import Busy, ForeignConflict, Unavailable, Unsupported
from . import local_checks as checks
from . import local_files as files
from . import processes
from .base import ProviderState, SandboxInfo, SandboxRef

STATES = {
    "starting": ProviderState.PENDING,
    "running": ProviderState.RUNNING,
    "stopping": ProviderState.STOPPING,
    "failed": ProviderState.FAILED,
}


class LocalRegistry:
    """
    One folder, seen from one pid namespace of one boot. Besides errors of the product its methods
    raise OSError (TimeoutError at a deadline) and files.Unreadable, for the provider to put into
    words.
    """

    def __init__(self, root: str) -> None:
        self.boot, self.namespace = _kernel()
        self.root = root
        self._id: str | None = None

    def open(self, deadline: float) -> str:
        """
        The name of the registry, made at its first use. That a registry which we knew is now gone
        or another one is a failed look, not an absence of all sandboxes.
        """
        if self._id is None:
            Path(self.root, ".locks").mkdir(mode=0o700, parents=True, exist_ok=True)
            if files.read_id(self.root) is None:
                files.write_id(self.root, secrets.token_hex(8), deadline)
        found = files.read_id(self.root)
        if not found or self._id not in {None, found}:
            raise Unavailable(
                f"the registry {self.root} was {self._id} and is now {found or 'without a name'}: "
                "bring it back, or restart to use it as a new one"
            )
        self._id = found
        return found

    def folder(self, name: str) -> str:
        """Where a sandbox of this name is, if there is one."""
        return f"{self.root}/{name}"

    def marks(self, name: str) -> dict[str, str]:
        """What the environment of each of its processes holds; the root keeps registries apart."""
        return {checks.MARK: name, checks.ROOT_MARK: self.root}

    def _marked(self, name: str) -> frozenset[bytes]:
        return frozenset(os.fsencode(f"{key}={value}") for key, value in self.marks(name).items())

    def names(self) -> list[str]:
        """All that could be sandboxes, in order."""
        return sorted(entry for entry in os.listdir(self.root) if checks.NAME.fullmatch(entry))

    def lock(self, name: str, deadline: float) -> int:
        """See files.take_lock()."""
        return files.take_lock(self.root, name, deadline)

    def forget_lock(self, name: str) -> None:
        """See files.forget_lock()."""
        files.forget_lock(self.root, name)

    def kill(self, name: str, deadline: float) -> None:
        """
        Force, until two scans in a row find nobody (between exec and its first instruction a
        process shows an empty environment) and nobody has inherited the claim of the folder.
        """
        clean = 0
        while clean < 2:
            clean = 0 if processes.strike(self._marked(name)) else clean + 1
            if clean == 2 and self._is_claimed(name):
                processes.strike_holders(self.folder(name))
                clean = 0
            if clean == 0 and time.monotonic() > deadline:
                raise TimeoutError("some of its processes are still dying")
            time.sleep(0.003)

    def remove(self, name: str, deadline: float) -> None:
        """Remove the folder of a sandbox without processes, unless it is not ours or in use."""
        folder = self.folder(name)
        if os.path.lexists(folder):
            if not os.path.lexists(f"{folder}/record.json"):
                raise ForeignConflict(f"{folder} is there and is no sandbox: it is left alone")
            if self._is_claimed(name):
                raise Busy(f"sandbox {name} has a process that we cannot see")
        files.discard(self.root, name, deadline)

    def seen(self, name: str) -> SandboxInfo | None:
        """What its record says, unless the folder goes while we look; None without a record."""
        try:
            info = self.info(name, files.read_record(self.folder(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        gone = info.state is ProviderState.FAILED and not os.path.lexists(self.folder(name))
        return None if gone else info

    def listed(self, name: str) -> SandboxInfo | None:
        """Likewise for a listing, which one sandbox that we may not judge must not stop."""
        try:
            return self.seen(name)
        except files.Unreadable:
            return unknown(name, {})
        except Unavailable:
            return unknown(name, files.read_record(self.folder(name))["labels"])

    def info(self, name: str, record: files.Record) -> SandboxInfo:
        """A record, and whether there is life behind it. Raises Unavailable: see supervisor()."""
        pidfd = self.supervisor(name, record)
        identity = record["supervisor"]
        if pidfd is not None:
            os.close(pidfd)
            state = STATES[record["state"]]
        elif identity is None and record["boot"] == self.boot:
            state = ProviderState.PENDING
        else:
            state = ProviderState.FAILED
        external_id = identity and f"{record['boot'][:8]}-{identity['pid']}-{identity['start']}"
        return SandboxInfo(
            ref=SandboxRef(name=name, external_id=external_id),
            state=state,
            labels=record["labels"],
            created_at=datetime.fromtimestamp(record["created_at"], UTC),
            expires_at=record["expires_at"] and datetime.fromtimestamp(record["expires_at"], UTC),
        )

    def supervisor(self, name: str, record: files.Record) -> int | None:
        """
        A pidfd of the process that supervises it, None when that is dead. Raises Unavailable
        where we cannot know.
        """
        if record["boot"] != self.boot:
            return None
        if record["namespace"] != self.namespace:
            raise Unavailable(
                f"sandbox {name} is in another pid namespace: ask from there; if that container "
                f"is gone, remove {self.folder(name)}"
            )
        if record["supervisor"] is None:
            return None
        pid, start = record["supervisor"]["pid"], record["supervisor"]["start"]
        try:
            return processes.hold(pid, start, partial(processes.carries, pid, self._marked(name)))
        except PermissionError as error:
            raise Unavailable(
                f"process {pid} of sandbox {name} is another user's: use that user's rights"
            ) from error

    def is_haunted(self, name: str) -> bool:
        """Whether a process carries its mark though there is no folder. Looks twice: see kill()."""
        for _ in range(2):
            if any(processes.marked(self._marked(name))):
                return True
            time.sleep(0.003)
        return False

    def _is_claimed(self, name: str) -> bool:
        """Whether any process of the sandbox lives, also one that /proc does not show us."""
        try:
            os.close(files.claim_folder(self.folder(name)))
        except BlockingIOError:
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        return False


def _kernel() -> tuple[str, int]:
    try:
        os.close(os.pidfd_open(os.getpid()))
        return processes.boot_id(), processes.pid_namespace()
    except (AttributeError, OSError) as error:
        raise Unsupported(
            f"provider `local` needs Linux 5.4 or newer with /proc and pidfds ({error}): choose "
            "another one with SANDKEEPER_PROVIDER, or run Sandkeeper in a Linux VM or container"
        ) from error


def unknown(name: str, labels: Mapping[str, str]) -> SandboxInfo:
    """One that is there and of which more cannot be told."""
    return SandboxInfo(ref=SandboxRef(name=name), state=ProviderState.UNKNOWN, labels=labels)
