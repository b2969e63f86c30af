from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from core import migrations
from tests.acceptance.processes import Program, Sampler
from tests.acceptance.site import QUIET, ROOT, Api, Site

# The last commit before the migrations 0008 and later; the last release, once there is one.
OLD = "d670c4b5530dc64ace316d4de6c408ab13b6446a"
OLD_SCHEMA = "0007"
ENOUGH = 4  # more of each act, in each phase
HELD = 3  # turns, by each version
SHARED = ["shared-0", "shared-1"]  # sessions that both versions use


@pytest.fixture(scope="session")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old version's own code."""
    try:
        archive = subprocess.run(
            ["git", "archive", OLD, "core", "tasks", "celeryconfig.py"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("git is not here, so neither is the version before")
    if archive.returncode:
        pytest.skip(f"{OLD[:7]} is not in this history: a shallow clone, or none at all")
    tree = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tree, filter="data")
    return tree


class Version:
    """The processes of one version. Both have the same settings, database, broker and provider."""

    def __init__(self, site: Site, name: str, *code: Path) -> None:
        self.site = site
        self.name = name
        self.environ = {"PYTHONPATH": os.pathsep.join(map(str, (*code, ROOT)))}

    def start(self, shared: list[str]) -> None:
        """A worker, a beat, and a server that holds turns and works."""
        celery = [sys.executable, "-m", "celery", "-A", "tasks"]
        worker = ["worker", "-P", "threads", "-c", "4", "-n", f"{self.name}@%h", *QUIET]
        self.worker = self._start("worker", [*celery, *worker, "-l", "info"])
        self.beat = self._start("beat", [*celery, "beat", "-l", "info"])
        held = [f"{self.name}-held-{n}" for n in range(HELD)]
        arguments = json.dumps({"name": self.name, "held": held, "shared": shared})
        journal = self.site.journals / self.name
        command = [sys.executable, "-m", "tests.acceptance.rolling", str(journal), arguments]
        self.server = Api(self._start("server", command), journal)

    def stop_server(self) -> None:
        """It finishes the turns that it holds, and ends."""
        self.server.tell("end")
        assert self.server.program.wait(30) == 0

    def stop(self) -> None:
        """As an orchestrator does it."""
        self.stop_server()
        for program in (self.beat, self.worker):
            program.signal(signal.SIGTERM)
        assert [program.wait(30) for program in (self.beat, self.worker)] == [0, 0]

    def done(self) -> Counter[str]:
        """How much it has done: the acts of its server, and the teardowns of its worker."""
        acts = Counter({act: len(self.server.said(act)) for act in ("shared", "churned")})
        return acts + Counter(gone=self.worker.log.read_bytes().count(b"SandboxGone "))

    def complaints(self) -> list[str]:
        """What its processes were not told by their callers: warnings and errors that they log."""
        programs = (self.server.program, self.worker, self.beat)
        lines = [line for each in programs for line in each.log.read_text().splitlines()]
        return [line for line in lines if re.search(r"WARN|ERROR|CRITICAL|Traceback", line)]

    def _start(self, what: str, command: list[str]) -> Program:
        return self.site.start(f"{self.name}-{what}", command, **self.environ)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stack", ["postgresql+rabbitmq"], indirect=True)
def test_two_versions_work_beside_each_other(
    old_tree: Path, make_site: Callable[..., Site]
) -> None:
    """
    The order of docs/upgrades.md: the schema first, under load and turns that are held; then the
    new version's processes beside the old ones'; then the old ones end. S1: no turn is lost. L1,
    S3: every sandbox is gone, once. And nobody is told of any error.
    """
    site = make_site(IDLE_TTL=4.0)
    old, new = Version(site, "old", old_tree), Version(site, "new")
    _at_the_old_schema(site, old)

    with Sampler(site.root) as sampler:
        old.start(SHARED)
        _works_on(site, old)
        command = [sys.executable, "-m", "tasks.cli", "db", "upgrade"]
        assert site.start("upgrade", command).wait(90) == 0, site.explain()
        _works_on(site, old)
        new.start(SHARED)
        _works_on(site, old, new)
        until = {"old": time.time()}
        old.stop()
        _works_on(site, new)
        until["new"] = time.time()
        new.stop_server()
        site.wait_until_gone(30)

    assert old.server.said("serves")[0]["schema"] == OLD_SCHEMA
    assert new.server.said("serves")[0]["schema"] == migrations.head()
    for version in (old, new):
        assert version.server.said("failed") == []
        assert version.complaints() == []
        held = version.server.said("held")
        assert len(held) == len(version.server.said("let_go")) == HELD
        for line in held:
            name = site.name(line["id"])
            assert sampler.absences(name, line["at"], until[version.name]) == []
            assert site.sandbox(line["id"], 2) is None
    site.assert_nothing_left()


def _at_the_old_schema(site: Site, old: Version) -> None:
    """The database as the old version makes it."""
    with site.engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    made = site.run("-m", "tasks.cli", "db", "upgrade", **old.environ)
    assert f"revision {OLD_SCHEMA}" in made.stdout, made.stderr


def _works_on(site: Site, *versions: Version) -> None:
    """Until each of them has done some more of all that it does."""
    before = {version: version.done() for version in versions}
    site.until(
        lambda: all(
            version.done()[act] >= before[version][act] + ENOUGH
            for version in versions
            for act in ("shared", "churned", "gone")
        ),
        f"{' and '.join(version.name for version in versions)} worked on",
        60,
    )
