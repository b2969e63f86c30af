from __future__ import annotations

import os
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.acceptance.site import Site

pytestmark = pytest.mark.parametrize("stack", ["sqlite+folder"], indirect=True)

CLI = ("-m", "tasks.cli")
LS = (*CLI, "sessions", "ls")
SWEEP = (*CLI, "sweep")
UPGRADE = (*CLI, "db", "upgrade")
END = (*CLI, "sessions", "end", "conv")
WORKER = ("-m", "celery", "-A", "tasks", "worker", "-P", "threads", "-c", "2")
BEAT = ("-m", "celery", "-A", "tasks", "beat")
UP = (*CLI, "up")

UNREACHABLE = "postgresql://nobody:secret@127.0.0.1:1/nothing"


def test_an_unknown_setting_is_named(site: Site) -> None:
    """A misspelt limit would be a limit that nobody enforces: every program refuses to start."""
    commands = [LS, UP, WORKER, BEAT]

    _assert_refused(site, commands, "SANDKEEPER_IDEL_TTL", SANDKEEPER_IDEL_TTL="60")


def test_nonsense_in_a_setting_is_named(site: Site) -> None:
    """The setting's name and its value, in one line."""
    _assert_refused(site, [LS, WORKER], "SANDKEEPER_IDLE_TTL", SANDKEEPER_IDLE_TTL="-1")


def test_a_database_url_that_is_none_is_refused(site: Site) -> None:
    """And never printed: it may hold a password."""
    said = _assert_refused(site, [LS, UP, WORKER], "DATABASE_URL", SANDKEEPER_DATABASE_URL="secret")

    assert all("secret" not in text for text in said)


def test_a_database_that_does_not_answer_is_one_line(site: Site) -> None:
    """With what the driver said, and without the password."""
    said = _assert_refused(site, [SWEEP, UPGRADE], "database", SANDKEEPER_DATABASE_URL=UNREACHABLE)

    assert all("secret" not in text for text in said)


def test_a_database_that_was_never_migrated_is_one_line(site: Site) -> None:
    """It says which command to run."""
    url = f"sqlite:///{site.folder}/empty.db"

    _assert_refused(site, [LS, SWEEP, END], "db upgrade", SANDKEEPER_DATABASE_URL=url)


def test_a_worker_refuses_a_database_that_was_never_migrated(site: Site) -> None:
    """A worker that can do nothing must not look alive."""
    url = f"sqlite:///{site.folder}/empty.db"

    _assert_refused(site, [WORKER], "db upgrade", SANDKEEPER_DATABASE_URL=url)


def test_a_database_that_is_read_only_is_one_line(site: Site) -> None:
    """What reads goes on; what writes says why it cannot."""
    site.keeper.open("conv")
    path = site.stack.database_url.removeprefix("sqlite:///")
    url = f"sqlite:///file:{path}?mode=ro&uri=true"

    _assert_refused(site, [SWEEP, END], "read-only", SANDKEEPER_DATABASE_URL=url)

    assert _run(site, LS, {"SANDKEEPER_DATABASE_URL": url}).returncode == 0
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT status FROM sessions").fetchall() == [("active",)]


def test_wrong_usage_is_exit_code_2(site: Site) -> None:
    """As every command line has it."""
    wrong = [(*CLI, "sessions", "end"), (*CLI, "quarantine", "retry"), (*CLI, "no-such-command")]

    for done in _run_all(site, wrong, {}):
        assert done.returncode == 2, done.args
        assert "Traceback" not in done.stdout + done.stderr


def _assert_refused(
    site: Site, commands: list[tuple[str, ...]], words: str, **environ: str
) -> list[str]:
    """Each is refused with one line that has these words, and exit code 1."""
    said = []
    for done in _run_all(site, commands, environ):
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said.append(done.stdout + done.stderr)
        assert done.returncode == 1, (done.args, said[-1])
        assert "Traceback" not in said[-1]
        assert len(lines) == 1, (done.args, lines)
        assert words in lines[0], done.args
    return said


def _run_all(
    site: Site, commands: list[tuple[str, ...]], environ: dict[str, str]
) -> list[subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda command: _run(site, command, environ), commands))


def _run(
    site: Site, command: tuple[str, ...], environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    # Whoever runs these tests as root is warned of that by every worker.
    return site.run("-W", "ignore", *command, **environ)
