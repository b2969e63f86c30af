"""
What a local sandbox is on disk: its folder, its record, its lock. No processes in here.

    <root>/id                  the registry's name, written once
    <root>/.locks/<name>       held by whoever creates, extends or removes the sandbox
    <root>/<name>/record.json  what is promised and who supervises it; replaced, never edited
    <root>/<name>/output.log   what its command printed
    <root>/<name>/work/        its current directory
    <root>/.new-<name>         a folder that is not complete yet
    <root>/.old-<name>         a folder that is nearly removed

A folder appears with its record inside and disappears whole: by rename. The supervisor of every
sandbox imports this file: it has no imports that cost memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time

TYPE_CHECKING = False  # typing itself would cost every supervisor memory
if TYPE_CHECKING:
    from typing import Any

Record = dict[str, "Any"]
FOREVER = float("inf")
KEYS = {"labels", "command", "env", "grace", "state", "supervisor", "boot", "namespace", "until"}
KEYS |= {"name", "created_at", "expires_at"}


class Unreadable(Exception):
    """The record is there, and is not one that we wrote."""


def read_record(folder: str) -> Record:
    """Raises FileNotFoundError when there is none, Unreadable when it makes no sense."""
    try:
        with open(f"{folder}/record.json", "rb") as file:
            record = json.loads(file.read())
    except ValueError as error:
        raise Unreadable(f"{folder}/record.json is damaged ({error})") from error
    if not isinstance(record, dict) or record.get("version") != 1 or not record.keys() >= KEYS:
        raise Unreadable(f"{folder}/record.json was not written by this version")
    return record


def write_record(folder: str, record: Record) -> None:
    """Replace the record at one instant: a reader, or a crash, sees the old one or the new one."""
    temporary = f"{folder}/record.json.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(json.dumps(record, sort_keys=True).encode())
        file.flush()
        os.fsync(fd)
    os.rename(temporary, f"{folder}/record.json")
    sync(folder)


def sync(folder: str) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lay_out(root: str, name: str, record: Record) -> None:
    """Make the folder, complete at the first instant that anybody can see it."""
    new = f"{root}/.new-{name}"
    remove_tree(new, FOREVER)  # its maker was killed before the rename
    os.makedirs(f"{new}/work", mode=0o700)
    write_record(new, record)
    os.rename(new, f"{root}/{name}")
    sync(root)


def discard(root: str, name: str, deadline: float) -> None:
    """
    Remove the folder. The record goes last: while anything of it is left, and whoever is killed
    here, get() finds the sandbox and a later destroy() ends what this one began.
    """
    remove_tree(f"{root}/{name}/work", deadline)
    old = f"{root}/.old-{name}"
    remove_tree(old, deadline)  # a remover was killed after the rename
    if os.path.isdir(f"{root}/{name}"):
        os.rename(f"{root}/{name}", old)
        sync(root)
    remove_tree(old, deadline)
    remove_tree(f"{root}/.new-{name}", deadline)


def remove_tree(top: str, deadline: float) -> None:
    """
    Remove a folder and all in it, following no link; that it is gone already is no error. Raises
    TimeoutError when it is not done by `deadline` (monotonic).
    """
    while True:
        try:
            inside = _emptied(top, top)
        except FileNotFoundError:
            return
        if not inside:
            break
        for folder in inside:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{top} is not removed yet")
            _emptied(folder, top)
            os.rmdir(folder)
    os.rmdir(top)


def _emptied(folder: str, top: str) -> list[str]:
    """
    The folders in `top`, after all else in `folder` was removed. Folders deeper down are moved up
    to `top`: a sandbox may have nested them deeper than a path, or our stack, may grow.
    """
    os.chmod(folder, stat.S_IRWXU)  # what runs in a sandbox may lock its own folders
    found = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                _unlink(entry.path)
            elif folder == top:
                found.append(entry.path)
            else:
                os.chmod(entry.path, stat.S_IRWXU)
                os.rename(entry.path, f"{top}/{os.urandom(8).hex()}")
    return found


def take_lock(root: str, name: str, deadline: float) -> int:
    """
    The lock of one sandbox, as a descriptor. It is held until drop_lock(), or until every
    process that inherited it is gone. Raises TimeoutError at `deadline` (monotonic).
    """
    pause = 0.001
    while True:
        fd = os.open(_lock_path(root, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(fd, _lock_path(root, name)):
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{name} is being changed by somebody else")
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def drop_lock(fd: int) -> None:
    """
    Give the lock back at once, also when a fork of ours still has the descriptor. Whoever handed
    it to a supervisor that is not ready only closes it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def forget_lock(root: str, name: str) -> None:
    """
    Remove the lock of a sandbox that is gone. Only its holder may: whoever waits for it finds
    that it is not the file of that name any more and begins anew.
    """
    _unlink(_lock_path(root, name))


def read_id(root: str) -> str | None:
    """The registry's name; None when it has none yet."""
    try:
        with open(f"{root}/id", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def write_id(root: str, fresh: str, deadline: float) -> None:
    """Name the registry, unless somebody else has done so meanwhile."""
    lock = take_lock(root, ".registry", deadline)
    try:
        if read_id(root) is None:
            temporary = f"{root}/.id.new"
            with open(temporary, "w", encoding="ascii") as file:
                file.write(f"{fresh}\n")
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, f"{root}/id")
            sync(root)
    finally:
        drop_lock(lock)


def claim_folder(folder: str) -> int:
    """
    A descriptor by which its holder is known to live, whoever cannot see its process. Raises
    BlockingIOError when somebody else holds one.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock_path(root: str, name: str) -> str:
    return f"{root}/.locks/{name}"


def _is_current(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
