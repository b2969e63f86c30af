"""
Provider `local`: sandboxes are process groups on this host. For development, tests and the demo.

It keeps every promise of the protocol against crashes and races, and none against hostile code:
what runs in a sandbox has the rights of whoever runs Sandkeeper. docs/decisions/0002 says why it
is made as it is.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from ..errors import Busy, ForeignConflict, Unavailable
from . import local_checks as checks
from . import local_files as files
from . import processes
from .base import Capability, Page, SandboxInfo, SandboxRef, Spec
from .local_launch import launch
from .local_registry import LocalRegistry, unknown

PAGE = 100
SLACK = 3.0  # seconds that a supervisor may need beyond its grace before it counts as stuck


class LocalProvider:
    """
    Sandboxes below one folder of this host, which is their registry: processes that share it,
    share them. `grace` is the seconds between SIGTERM and SIGKILL. Needs Linux 5.4 or newer;
    raises Unsupported elsewhere.
    """

    name = "local"
    capabilities = frozenset({Capability.LIST, Capability.TTL, Capability.IDEMPOTENT_CREATE})

    def __init__(self, root: Path, *, grace: float = 2.0) -> None:
        self._registry = LocalRegistry(os.path.realpath(root))
        self._grace = grace

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From SANDKEEPER_LOCAL_ROOT (a folder, `.sandkeeper/local` when not set) and
        SANDKEEPER_LOCAL_GRACE (seconds). Raises SettingsError.
        """
        root, grace = checks.settings(environ)
        return cls(root, grace=grace)

    def scope(self) -> str:
        """`local:` and the random name that this registry was given when it was first used."""
        with self._words("open the registry"):
            return f"local:{self._registry.open(time.monotonic() + 10)}"

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        """
        Start the command of `spec` (without one: a process that only waits) with `env` on top of
        a minimal environment. One of this name and these labels is adopted as it is, also when it
        has FAILED; one whose creator was killed before it ran is finished.
        """
        checks.check_name(name)
        checks.check_spec(spec, labels)
        if ttl is not None:
            checks.check_ttl(ttl)
        record = self._new_record(name, labels, spec, ttl)
        with self._words(f"create {name}"):
            self._registry.open(deadline)
            lock = self._registry.lock(name, deadline)
            try:
                info = self._adopt(name, record, deadline)
                if info is None:
                    files.lay_out(self._registry.root, name, record)
                    launch(self._registry, name, lock, deadline)
                    info = self._registry.info(name, files.read_record(self._registry.folder(name)))
            except BaseException:
                os.close(lock)  # not unlocked: a supervisor that is not recorded yet may hold it
                raise
            files.drop_lock(lock)
            return info

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """
        Look one up by name. None only when it has no folder and no process carries its mark.
        UNKNOWN when its record is damaged, FAILED when its command ended or its supervisor died.
        """
        checks.check_name(ref.name)
        with self._words(f"look at {ref.name}"):
            self._registry.open(deadline)
            try:
                info = self._registry.seen(ref.name)
            except files.Unreadable:
                return unknown(ref.name, {})
            if info is not None and _is_another(info, ref):
                return None
            if info is None and (
                os.path.lexists(self._registry.folder(ref.name))
                or self._registry.is_haunted(ref.name)
            ):
                return unknown(ref.name, {})
            return info

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """
        End every process of the sandbox and remove its folder; returns when both are gone. Raises
        Busy when that takes longer than `deadline` allows. Another sandbox under the same name,
        which a late create may have made, has another id and is left alone.
        """
        checks.check_name(ref.name)
        with self._words(f"destroy {ref.name}"):
            self._registry.open(deadline)
            if self._holds_another(ref):
                return
            left = self._ask_to_end(ref.name, deadline)
            lock = self._lock_for_good(ref.name, deadline)
            try:
                # A supervisor that left removed the folder last, when nobody descended from it
                # any more; whatever else there is has to be looked for in the whole of /proc.
                if not left or os.path.lexists(self._registry.folder(ref.name)):
                    self._registry.kill(ref.name, deadline)
                    self._registry.remove(ref.name, deadline)
                self._registry.forget_lock(ref.name)
            finally:
                files.drop_lock(lock)

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """
        All sandboxes with all of these labels, by name. One whose record is damaged has no labels
        that could be compared: it is listed when none are asked for.
        """
        with self._words("list sandboxes"):
            self._registry.open(deadline)
            items: list[SandboxInfo] = []
            for name in self._registry.names():
                if cursor is not None and name <= cursor:
                    continue
                if time.monotonic() > deadline:
                    raise Unavailable("the listing did not end in time: nothing follows from it")
                info = self._registry.listed(name)
                if info is None or not labels.items() <= info.labels.items():
                    continue
                if len(items) == PAGE:
                    return Page(items=tuple(items), cursor=items[-1].ref.name)
                items.append(info)
            return Page(items=tuple(items))

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """
        Let it live `ttl` seconds from now. Raises Unavailable when it is not there or is ending:
        a sandbox that is lost must not look extended.
        """
        checks.check_name(ref.name)
        checks.check_ttl(ttl)
        with self._words(f"extend {ref.name}"):
            self._registry.open(deadline)
            lock = self._registry.lock(ref.name, deadline)
            try:
                return self._extend(ref.name, ttl)
            finally:
                if not os.path.lexists(self._registry.folder(ref.name)):
                    self._registry.forget_lock(ref.name)
                files.drop_lock(lock)

    def _holds_another(self, ref: SandboxRef) -> bool:
        try:
            info = self._registry.seen(ref.name)
        except (files.Unreadable, Unavailable):
            return False
        return info is not None and _is_another(info, ref)

    def workdir(self, ref: SandboxRef) -> Path:
        """The current directory of the sandbox's command, where a turn may put and find files."""
        checks.check_name(ref.name)
        return Path(self._registry.folder(ref.name), "work")

    def _new_record(
        self, name: str, labels: Mapping[str, str], spec: Spec, ttl: float | None
    ) -> files.Record:
        now = time.time()
        return {
            "version": 1,
            "name": name,
            "labels": dict(labels),
            "command": list(spec.command),
            "env": {**spec.env, **self._registry.marks(name)},
            "grace": self._grace,
            "state": "starting",
            "supervisor": None,
            "boot": self._registry.boot,
            "namespace": self._registry.namespace,
            "created_at": now,
            "expires_at": None if ttl is None else now + ttl,
            "until": None if ttl is None else processes.boot_clock() + ttl,
        }

    def _adopt(self, name: str, wanted: files.Record, deadline: float) -> SandboxInfo | None:
        """What is there already, if it ever ran; None when we, who hold the lock, may begin."""
        try:
            record = files.read_record(self._registry.folder(name))
        except FileNotFoundError:
            if os.path.lexists(self._registry.folder(name)):
                raise ForeignConflict(
                    f"{self._registry.folder(name)} is there and is no sandbox"
                ) from None
            return None
        if record["labels"] != wanted["labels"]:
            raise ForeignConflict(f"sandbox {name} exists with other labels: it is left alone")
        info = self._registry.info(name, record)
        if record["state"] != "starting":
            return info
        # Its creator and its supervisor are both dead, since the lock was free, and nobody was
        # ever told that it runs: what they left is not worth keeping.
        self._registry.kill(name, deadline)
        self._registry.remove(name, deadline)
        return None

    def _extend(self, name: str, ttl: float) -> datetime:
        try:
            record = files.read_record(self._registry.folder(name))
        except FileNotFoundError:
            raise Unavailable(f"sandbox {name} is not there: nothing was extended") from None
        pidfd = self._registry.supervisor(name, record)
        if pidfd is None:
            raise Unavailable(f"sandbox {name} has no supervisor any more: nothing was extended")
        try:
            if record["state"] != "running":
                raise Unavailable(f"sandbox {name} is {record['state']}: nothing was extended")
            expires = time.time() + ttl
            record.update(until=processes.boot_clock() + ttl, expires_at=expires)
            files.write_record(self._registry.folder(name), record)
            signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        finally:
            os.close(pidfd)
        return datetime.fromtimestamp(expires, UTC)

    def _ask_to_end(self, name: str, deadline: float) -> bool:
        """SIGTERM, and time enough for a supervisor that is not stuck: True when it left."""
        try:
            pidfd = self._registry.supervisor(name, files.read_record(self._registry.folder(name)))
        except (FileNotFoundError, NotADirectoryError, files.Unreadable):
            return False
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            # It may be stopped, by somebody or by a destroy that ran out of time.
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            # A quarter is kept for force: a caller whose deadlines are all short ends it as well.
            left = (deadline - time.monotonic()) * 0.75
            return processes.exited(pidfd, min(self._grace + SLACK, left))
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)

    def _lock_for_good(self, name: str, deadline: float) -> int:
        """The lock, if need be by ending a supervisor that is stuck while it holds it."""
        now = time.monotonic()
        try:
            return self._registry.lock(name, now + (deadline - now) / 2)
        except TimeoutError:
            self._registry.kill(name, deadline)
            return self._registry.lock(name, deadline)

    @contextmanager
    def _words(self, doing: str) -> Iterator[None]:
        """No OSError leaves: every failure says what was attempted and what to do."""
        try:
            yield
        except TimeoutError as error:
            raise Busy(f"could not {doing} in time ({error}): try again") from error
        except files.Unreadable as error:
            raise Unavailable(f"cannot {doing}: {error}: destroy() still works") from error
        except OSError as error:
            raise Unavailable(
                f"cannot {doing} below {self._registry.root}: {error.strerror or error} "
                f"({error.filename or 'no file'}): see that it is writable and has room"
            ) from error


def _is_another(info: SandboxInfo, ref: SandboxRef) -> bool:
    """Whether this is not the sandbox that was meant, but one of the same name."""
    return None not in (ref.external_id, info.ref.external_id) and (
        info.ref.external_id != ref.external_id
    )
