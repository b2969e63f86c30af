"""
pytest on copies of the tree. What tests import from elsewhere takes longer than most of them, so
that is imported once, by a process that every run is forked from.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# None of it is ours: that is imported by each run, from its own tree. A name that is missing here
# costs time and nothing else.
ELSEWHERE = (
    "alembic.command",
    "celery.app.amqp",
    "docker",
    "fastapi.testclient",
    "hypothesis.stateful",
    "psycopg",
    "redis",
    "rich.console",
    "schemathesis.pytest.plugin",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "structlog",
    "xdist.plugin",
)
OURS = {"bench", "celeryconfig", "core", "examples", "tasks", "tests"}
OPTIONS = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "tests.mutants"]
OPTIONS += ["--hypothesis-profile=mutants", "--tb=line"]
# Plugins that are there already: too early for their own asserts to be explained.
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


@dataclass(frozen=True)
class Ran:
    """A run's exit code, 0 is green, 1 is red, the rest is an accident; and what it printed."""

    returncode: int | None
    output: str


def run(tree: Path, tests: Iterable[str], *options: str) -> Ran:
    """pytest in a copy of the tree. Safe to call from several threads."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([*ELSEWHERE])
    said = tree / "said"
    process = forks.Process(target=_pytest, args=(tree, said, [*OPTIONS, *options, *tests]))
    process.start()
    process.join()
    return Ran(process.exitcode, said.read_text(errors="replace") if said.exists() else "")


def _pytest(tree: Path, said: Path, arguments: Sequence[str]) -> None:
    """As `python -m pytest` there would do."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]  # this file, and what the package around it needs
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.exit(pytest.main([*arguments]))
