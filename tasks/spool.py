"""
A spool folder: messages as files, for the processes of one host. Nothing about Celery in here.

A message is one file, and every step it takes is one rename, so it is always in exactly one place:

    tmp/              being written; a reader never sees half a message
    queues/<queue>/   waiting; names sort by age
    taken/<reader>/   delivered, not yet acknowledged; `lock` in there is held while it lives
    bad/              what could not be read, and what was returned too often
    exchanges/        who gets what, a table each
    owners/           a lock for each queue that goes when its reader goes (remote control, events)
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from kombu.utils.json import dumps, loads

from tasks.filelock import acquire, dead, turn

logger = logging.getLogger("sandkeeper")

RECOVER: Final = 5.0  # seconds between two looks for what dead readers left
RETURNS: Final = 10  # a message that comes back more often kills its readers; the sweep rings again
STALE: Final = 3600.0  # seconds after which a half-written file is nobody's
BAD: Final = 100  # how many bad files are kept for a human
NEVER: Final = 10**20 - 1
NAME: Final = re.compile(r"(\d{20})\.(\d{20})\.([0-9a-f]{32})\.(\d{1,9})")

Row = tuple[str, str, str]  # routing key, pattern, queue


class Filed(NamedTuple):
    """What the name of a message's file says. Times are nanoseconds since the epoch."""

    published: int
    expires: int
    id: str
    returns: int

    @property
    def name(self) -> str:
        return f"{self.published:020d}.{self.expires:020d}.{self.id}.{self.returns}"


def filed(name: str) -> Filed | None:
    """The name taken apart, None for a file that is not ours."""
    found = NAME.fullmatch(name)
    return found and Filed(int(found[1]), int(found[2]), found[3], int(found[4]))


class Spool:
    """The folder, as one connection sees it. Every method may raise OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last = 0
        self._listed: dict[str, list[str]] = {}
        self._held: dict[str, Path] = {}
        self._process = os.getpid()
        self._desk: tuple[Path, int] | None = None  # where we keep what we took, and its lock
        self._owned: dict[str, int] = {}
        self._recovered = 0.0

    def prepare(self) -> None:
        """Make the folders."""
        for name in ("tmp", "queues", "taken", "bad", "exchanges", "owners"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    # Waiting messages

    def put(self, queue: str, text: str, ttl: float | None) -> None:
        """Add a message that nobody wants after `ttl` seconds (None: for ever)."""
        self._last = max(time.time_ns(), self._last + 1)  # the clock may step back; we keep order
        expires = NEVER if ttl is None else self._last + max(int(ttl * 1e9), 0)
        name = Filed(self._last, min(expires, NEVER), uuid.uuid4().hex, 0).name
        self._write(self.root / "queues" / _safe(queue) / name, text)

    def take(self, queue: str) -> dict[str, Any] | None:
        """The oldest message, now held under its new delivery tag until settled or given back."""
        self._recover_now_and_then()
        folder = _safe(queue)
        for name in self._names(folder):
            if (held := self._hold(folder, name)) and (message := self._read(held)):
                tag = uuid.uuid4().hex  # never the publisher's: a fanout's copies share that one
                self._held[tag] = held
                message["properties"]["delivery_tag"] = tag
                if not held.name.endswith(".0"):
                    message["properties"]["delivery_info"]["redelivered"] = True
                return message
        return None

    def settle(self, tag: str) -> None:
        """Forget a message that was dealt with."""
        if held := self._held.pop(tag, None):
            held.unlink(missing_ok=True)

    def reject(self, tag: str, why: str) -> None:
        """Put a message that cannot be delivered out of the way, where a human can read it."""
        if held := self._held.pop(tag, None):
            self._set_aside(held, why)

    def give_back(self, tag: str) -> None:
        """Let somebody else have a message: at its old place in the queue."""
        if held := self._held.pop(tag, None):
            self._return(held)

    def size(self, queue: str) -> int:
        now = time.time_ns()
        names = (filed(name) for name in _list(self.root / "queues" / _safe(queue)))
        return sum(1 for name in names if name and name.expires > now)

    def purge(self, queue: str) -> int:
        """Drop what waits, also what no reader could read. Gives how many there were."""
        waiting = self.root / "queues" / _safe(queue)
        names = _list(waiting)
        for name in names:
            with suppress(FileNotFoundError):
                (waiting / name).unlink()
        return len(names)

    # Queues and who is bound to what

    def declare(self, queue: str, *, passing: bool) -> None:
        """Make the queue; a passing one goes when this process does."""
        folder = _safe(queue)
        if passing and folder not in self._owned:
            lock = acquire(self.root / "owners" / folder, patience=0.2)
            if lock is not None:  # else somebody else here reads it too, and lives
                self._owned[folder] = lock
        (self.root / "queues" / folder).mkdir(mode=0o700, parents=True, exist_ok=True)

    def has(self, queue: str) -> bool:
        return (self.root / "queues" / _safe(queue)).is_dir()

    def drop(self, queue: str) -> None:
        """Remove the queue, its messages and its bindings."""
        folder = _safe(queue)
        self._drop(folder)
        if (lock := self._owned.pop(folder, None)) is not None:
            os.close(lock)

    def table(self, exchange: str) -> list[Row]:
        """Who gets what is published to this exchange."""
        return self._table(_safe(exchange))

    def bind(self, exchange: str, row: Row) -> None:
        if row not in self.table(exchange):
            self._change(_safe(exchange), lambda rows: rows if row in rows else [*rows, row])

    def unbind(self, exchange: str, row: Row) -> None:
        self._change(_safe(exchange), lambda rows: [other for other in rows if other != row])

    def close(self) -> None:
        """Give back what is held and let go of every lock. In a forked child: leave both alone."""
        if self._process == os.getpid():
            for tag in list(self._held):
                self.give_back(tag)
            for folder, lock in self._owned.items():
                self._drop(folder)
                os.close(lock)
            if self._desk:
                shutil.rmtree(self._desk[0], ignore_errors=True)
                os.close(self._desk[1])
        self._held, self._owned, self._desk = {}, {}, None

    # Private: one message

    def _names(self, folder: str) -> Iterator[str]:
        """What waits, oldest first. One listing serves many takes: thousands may be waiting."""
        if not self._listed.get(folder):
            self._listed[folder] = sorted(_list(self.root / "queues" / folder), reverse=True)
        names = self._listed[folder]
        while names:
            yield names.pop()

    def _hold(self, folder: str, name: str) -> Path | None:
        waiting, known = self.root / "queues" / folder / name, filed(name)
        if known is None or known.returns > RETURNS:
            why = f"returned {known.returns} times" if known else "not a message"
            self._set_aside(waiting, why)
            return None
        if known.expires <= time.time_ns():
            waiting.unlink(missing_ok=True)
            return None
        held = self._own_desk() / f"{folder},{name}"
        try:
            waiting.rename(held)
        except FileNotFoundError:  # another reader was faster
            return None
        return held

    def _read(self, held: Path) -> dict[str, Any] | None:
        try:
            message = _json(held)
            if isinstance(message["properties"]["delivery_info"], dict):
                return dict(message, body=message["body"])
            self._set_aside(held, "not a message")
        except OSError:  # the disk, or too many open files: not the message's fault
            self._return(held)
            raise
        except Exception as error:  # noqa: BLE001 - whatever somebody wrote into this folder, a reader goes on
            self._set_aside(held, repr(error))
        return None

    def _return(self, held: Path) -> None:
        folder, _, name = held.name.partition(",")
        if known := filed(name):
            target = self.root / "queues" / folder / known._replace(returns=known.returns + 1).name
            with suppress(FileNotFoundError):  # settled meanwhile, or its queue is gone
                held.rename(target)
            self._listed.pop(folder, None)  # it is older than what is listed

    def _set_aside(self, path: Path, why: str) -> None:
        """Move a file that is no use to `bad/`. It is logged once, because it is moved once."""
        with suppress(FileNotFoundError):  # another reader was faster
            path.rename(self.root / "bad" / f"{time.time_ns()}-{path.name}"[-250:])
            logger.error("Set aside %s: %s", path.name, why)
            for name in sorted(_list(self.root / "bad"))[:-BAD]:
                (self.root / "bad" / name).unlink(missing_ok=True)

    def _own_desk(self) -> Path:
        """
        Where this process keeps what it took. The lock is held before the folder shows up among
        the others, so nobody can take it for a dead reader's.
        """
        if self._process != os.getpid():  # forked: what the parent holds is the parent's
            self._process, self._held, self._owned, self._desk = os.getpid(), {}, {}, None
        if self._desk is None or not self._desk[0].exists():
            draft = self.root / "tmp" / uuid.uuid4().hex
            draft.mkdir(mode=0o700, parents=True)
            lock = acquire(draft / "lock")
            if lock is None:
                raise BlockingIOError(f"{draft}: locked by somebody who cannot know its name")
            desk = self.root / "taken" / draft.name
            desk.parent.mkdir(mode=0o700, exist_ok=True)
            draft.rename(desk)
            self._desk = (desk, lock)
        return self._desk[0]

    def _table(self, name: str) -> list[Row]:
        path = self.root / "exchanges" / name
        try:
            return [(str(key), str(pattern), str(queue)) for key, pattern, queue in _json(path)]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError):  # publishers bind again when nobody gets what they publish
            self._set_aside(path, "not a table of bindings")
            return []

    def _change(self, name: str, change: Callable[[list[Row]], list[Row]]) -> None:
        with turn(self.root / "exchanges" / ".lock"):
            before = self._table(name)
            after = change(before)
            if after != before:
                self._write(self.root / "exchanges" / name, dumps(after))

    def _write(self, path: Path, text: str) -> None:
        """Make the file whole, or not at all: nobody sees it before it has its name."""
        draft = self.root / "tmp" / uuid.uuid4().hex
        try:
            try:
                draft.write_text(text, encoding="utf-8")
                draft.rename(path)
            except FileNotFoundError:  # somebody removed a folder under us
                for folder in (draft.parent, path.parent):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                draft.write_text(text, encoding="utf-8")
                draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)  # a full disk must not fill up with halves
            raise

    # Private: what others left behind

    def _recover_now_and_then(self) -> None:
        if time.monotonic() - self._recovered < RECOVER:
            return
        self._recovered = time.monotonic()
        for name in _list(self.root / "taken"):
            desk = self.root / "taken" / name
            with dead(desk / "lock") as is_dead:
                if is_dead:
                    self._clear(desk)
            with suppress(OSError):
                desk.rmdir()  # only an empty one: its clearing was interrupted
        for folder in _list(self.root / "owners"):
            with dead(self.root / "owners" / folder) as is_dead:
                if is_dead:
                    self._drop(folder)
        for name in _list(self.root / "tmp"):
            _forget_if_stale(self.root / "tmp" / name)

    def _clear(self, desk: Path) -> None:
        names = [name for name in _list(desk) if name != "lock"]
        for name in names:
            self._return(desk / name)
        if names:
            logger.warning("A reader died; its messages wait again messages=%d", len(names))
        shutil.rmtree(desk, ignore_errors=True)

    def _drop(self, folder: str) -> None:
        for exchange in _list(self.root / "exchanges"):
            if not exchange.startswith("."):
                self._change(
                    exchange, lambda rows: [row for row in rows if _safe(row[2]) != folder]
                )
        shutil.rmtree(self.root / "queues" / folder, ignore_errors=True)
        (self.root / "owners" / folder).unlink(missing_ok=True)


def _safe(name: str) -> str:
    """A file name for a queue or an exchange: one folder deep, and short enough."""
    quoted = quote(name, safe="@") or "%00"
    if quoted.startswith("."):
        quoted = "%2E" + quoted[1:]
    return quoted if len(quoted) <= 150 else sha256(name.encode()).hexdigest()


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _json(path: Path) -> Any:
    return loads(path.read_bytes())


def _forget_if_stale(path: Path) -> None:
    with suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > STALE:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
