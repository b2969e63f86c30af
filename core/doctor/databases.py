"""Settings, and the database that they name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingsError
from ..settings import Settings
from ..store.checkup import Server
from .disks import Space, judged, space
from .findings import Answer, Examination, failure, note, ok, warning
from .patient import Patient

OLDEST = 140_000  # PostgreSQL 14, as server_version_num: what is older had its last fixes in 2025
NETWORK = frozenset(
    (
        "9p",
        "afs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
        "virtiofs",
    )
)
POOLER = (
    "let SANDKEEPER_DATABASE_URL name PostgreSQL itself, or the pooler in session mode: "
    "timeouts and prepared statements belong to a connection"
)


def settings(found: Settings) -> Answer:
    """Every `SANDKEEPER_` variable is known, and its value makes sense beside the others."""
    named = ", ".join(found.provider_names)
    return ok(f"provider {named}, idle TTL {found.idle_ttl:g} s, sweep {found.sweep_interval:g} s")


def database(address: str) -> Answer:
    """The database answers."""
    return ok(address)


def _reach(patient: Patient) -> str:
    file = patient.checkup.file
    if file is not None and not file.is_file():  # connecting would make it
        raise SettingsError(f"there is no file {file}")
    patient.checkup.now()
    return patient.checkup.address


@dataclass(frozen=True, kw_only=True)
class SQLite:
    """The file, and how it is kept."""

    file: Path
    journal: str
    file_system: str
    space: Space
    locked: str | None  # why nothing can be written


@dataclass(frozen=True, kw_only=True)
class PostgreSQL:
    """The server, and what is between us."""

    server: Server
    pooled: bool
    changing: bool


def _inspect(patient: Patient) -> SQLite | PostgreSQL:
    checkup = patient.checkup
    if checkup.file is None:
        pooled = checkup.is_pooled()
        changing = pooled and checkup.changes_backends()
        return PostgreSQL(server=checkup.server(), pooled=pooled, changing=changing)
    try:
        checkup.try_to_write()
        locked = None
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest can still be looked at
        locked = str(error)
    return SQLite(
        file=checkup.file,
        journal=checkup.journal_mode(),
        file_system=file_system(checkup.file, patient.mounts),
        space=space(checkup.file.parent, patient),
        locked=locked,
    )


def file_system(path: Path, mounts: Path) -> str:
    """The type of the file system that a path is on; empty where there is no table of mounts."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    real = Path(os.path.realpath(path))
    points = [
        (Path(fields[1].replace("\\040", " ")), fields[2]) for fields in lines if len(fields) > 2
    ]
    fitting = [(len(point.parts), kind) for point, kind in points if real.is_relative_to(point)]
    # Of several at one point the last one covers the others.
    return max(enumerate(fitting), key=lambda each: (each[1][0], each[0]))[1][1] if fitting else ""


def database_writable(found: SQLite | PostgreSQL) -> Answer:
    """It is no standby, not read-only, and nobody keeps it locked."""
    if isinstance(found, SQLite):
        if found.locked is None:
            return ok(f"{found.file}")
        return failure(
            found.locked, "make the file and its folder writable, and end who keeps it locked"
        )
    if found.server.standby or found.server.read_only:
        what = "a standby" if found.server.standby else "read-only"
        return failure(
            f"this PostgreSQL is {what}: nothing can be moved",
            "let SANDKEEPER_DATABASE_URL name the primary (target_session_attrs=read-write "
            "finds it among several hosts)",
        )
    return ok("a primary")


def database_version(found: SQLite | PostgreSQL) -> Answer:
    """PostgreSQL is 14 or newer: what is older had its last fixes in 2025."""
    if isinstance(found, SQLite):
        return ok("SQLite comes with Python")
    if found.server.number < OLDEST:
        return warning(
            f"PostgreSQL {found.server.version} gets no fixes any more", "upgrade PostgreSQL"
        )
    return ok(f"PostgreSQL {found.server.version}")


def database_mode(found: SQLite | PostgreSQL) -> Answer:
    """
    SQLite: the file is in WAL mode, on a file system of this host: on a network's two hosts may
    write at once, and WAL does not work at all. PostgreSQL: our connections read what is committed,
    in UTC, and have the timeouts that end the transactions of processes that were stopped.
    """
    if isinstance(found, SQLite):
        return _sqlite_mode(found)
    server = found.server
    if server.isolation != "read committed":
        return failure(
            f"transactions are {server.isolation}, and the statements are written for READ "
            "COMMITTED",
            "take default_transaction_isolation out of the options of SANDKEEPER_DATABASE_URL",
        )
    timeouts = {
        "lock_timeout": server.lock_timeout,
        "statement_timeout": server.statement_timeout,
        "idle_in_transaction_session_timeout": server.idle_timeout,
    }
    missing = [name for name, value in timeouts.items() if value == "0"]
    if missing:
        return warning(
            f"our connections have no {', '.join(missing)}: a process that is stopped in a "
            "transaction holds its locks for ever",
            "take `options` out of SANDKEEPER_DATABASE_URL, which replaces ours, or set them "
            "there; a pooler must not ignore `options`",
        )
    if server.zone != "UTC":
        return note(f"the time zone of our connections is {server.zone}, not UTC")
    return ok(f"read committed, statements end after {server.statement_timeout}")


def _sqlite_mode(found: SQLite) -> Answer:
    if found.file_system in NETWORK:
        return failure(
            f"{found.file} is on {found.file_system}, a network's file system",
            "move it to a disk of this host, or use PostgreSQL",
        )
    if found.journal != "wal":
        return warning(
            f"the journal is {found.journal}, not WAL: whoever reads holds up who writes",
            "move the file to a file system that can share memory, and take `vfs` out of the URL",
        )
    return ok(f"WAL on {found.file_system or 'a disk'}")


def database_pooler(found: SQLite | PostgreSQL) -> Answer:
    """
    Nobody between us and PostgreSQL gives each transaction another server process: a pooler in
    transaction mode loses prepared statements and session settings. One in session mode is a note.
    """
    if isinstance(found, SQLite):
        return ok("none")
    if found.changing:
        return failure("a pooler gives each transaction another server process", POOLER)
    if found.pooled:
        return note("there is a pooler; see that it is in session mode", POOLER)
    return ok("none")


def database_connections(found: SQLite | PostgreSQL) -> Answer:
    """PostgreSQL has connections to spare: a worker that gets none does nothing."""
    if isinstance(found, SQLite):
        return ok("SQLite has no limit of them")
    server = found.server
    says = f"{server.used} of {server.most} connections are taken"
    if server.used >= 0.85 * server.most:
        return warning(
            says, "raise max_connections, or run fewer workers with a lower --concurrency"
        )
    return ok(says)


def database_space(found: SQLite | PostgreSQL) -> Answer:
    """The disk that the SQLite file is on has room. PostgreSQL's is looked at from its own host."""
    if isinstance(found, SQLite):
        return judged(found.space)
    return ok("is on the server's host")


SETTINGS = Examination(
    name="settings",
    look=lambda patient: patient.settings,
    checks=(settings,),
    fix="correct the variable: docs/settings.md has every setting",
)
DATABASE = Examination(
    name="database",
    look=_reach,
    checks=(database,),
    fix="see that SANDKEEPER_DATABASE_URL is right, that the server runs and lets us in; "
    "`sandkeeper db upgrade` makes a new one",
    needs=("settings",),
)
SERVER = Examination(
    name="server",
    look=_inspect,
    checks=(
        database_writable,
        database_version,
        database_mode,
        database_pooler,
        database_connections,
        database_space,
    ),
    fix="look at the database's log",
    needs=("database",),
)
