"""One installation under test: its settings, its processes, and what is true of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, Row, exc, func, select, update

from core import schema
from core.engines import make_engine
from core.lifecycle import Keeper
from core.model import sandbox_name
from core.providers.base import SandboxInfo
from core.providers.local import LocalProvider
from core.wiring import System
from tests.acceptance.processes import Found, Program, Seen, marked, until

ROOT = Path(__file__).parents[2]
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")
# Seconds for the teardowns themselves: 200 processes end in some six seconds of two idle cores. A
# machine that others keep busy needs more.
SLACK = float(os.environ.get("ACCEPTANCE_SLACK", "10"))

TIMINGS = {
    "IDLE_TTL": 2.0,
    "SWEEP_INTERVAL": 1.0,
    "CONFIRM_INTERVAL": 1.0,
    "HEARTBEAT": 0.4,
    "CREATE_DEADLINE": 2.0,
    "CLAIM_TTL": 5.0,
    "PUBLISH_LEASE": 2.0,
    "RETRY_BASE": 0.5,
    "RETRY_MAX": 2.0,
    "QUARANTINE_RETRY": 2.0,
}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A database, migrated, and a broker."""

    name: str
    database_url: str
    broker_url: str
    queue_prefix: str
    wipe: Callable[[], None]  # the broker forgets all of this installation's messages


class Site:
    """
    What an operator has: settings in the environment, and processes. Everything that it starts,
    sandboxes included, ends with it; if the tests are killed, a guardian removes the sandboxes'
    folder, which ends them.
    """

    def __init__(self, stack: Stack, folder: Path, **settings: object) -> None:
        self.stack = stack
        self.folder = folder
        self.root = folder / "sandboxes"
        self.journals = folder / "journals"
        self.timings = {
            name: float(str(settings.get(name, default))) for name, default in TIMINGS.items()
        }
        # Killing two of three API servers makes the mass of ends that the breaker asks about.
        self.settings: dict[str, object] = {"BREAKER_RATIO": 1, **self.timings, **settings}
        self._programs: list[Program] = []
        self._exits = ExitStack()
        self.journals.mkdir()

    @cached_property
    def environ(self) -> dict[str, str]:
        """The environment of every process of this installation."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SANDKEEPER_", "CELERY_", "PYTEST"))
        }
        ours = {f"SANDKEEPER_{name}": str(value) for name, value in self.settings.items()}
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SANDKEEPER_DATABASE_URL": self.stack.database_url,
            "SANDKEEPER_BROKER_URL": self.stack.broker_url,
            "SANDKEEPER_QUEUE_PREFIX": self.stack.queue_prefix,
            "SANDKEEPER_LOCAL_ROOT": str(self.root),
            "SANDKEEPER_LOCAL_GRACE": "0.5",
            **ours,
        }

    # Its processes

    def worker(self, *, pool: str = "threads", concurrency: int = 8, **environ: str) -> Program:
        """A real Celery worker."""
        name = f"worker{len(self._programs)}"
        return self._celery(
            name,
            ["worker", "-P", pool, "-c", str(concurrency), "-n", f"{name}@%h", *QUIET],
            environ,
        )

    def beat(self) -> Program:
        """A real Celery beat."""
        return self._celery(f"beat{len(self._programs)}", ["beat"], {})

    def api(self, role: str, **arguments: object) -> Api:
        """A process that uses Lifecycle as API servers do; see api.py for the roles."""
        name = f"{role}{len(self._programs)}"
        journal = self.journals / name
        command = [sys.executable, "-m", "tests.acceptance.api", role]
        command += [str(journal), json.dumps(arguments)]
        return Api(self._start(name, command, {}), journal)

    def start(self, name: str, command: list[str], **environ: str) -> Program:
        """Any other program of this installation, which runs until it is killed."""
        return self._start(name, command, environ)

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command of this installation to its end."""
        return subprocess.run(
            [sys.executable, *command],
            env={**self.environ, **environ},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def _celery(self, name: str, command: list[str], environ: Mapping[str, str]) -> Program:
        celery = [sys.executable, "-m", "celery", "-A", "tasks"]
        return self._start(name, [*celery, *command, "-l", "info"], environ)

    def _start(self, name: str, command: list[str], environ: Mapping[str, str]) -> Program:
        program = Program(name, command, {**self.environ, **environ}, self.folder)
        self._programs.append(program)
        return program

    # What is true

    @cached_property
    def system(self) -> System:
        """A look from the outside, with the installation's own settings."""
        system = System.from_env(self.environ)
        self._exits.callback(system.close)
        return system

    @cached_property
    def keeper(self) -> Keeper:
        """For tests that open and end sessions themselves. Nobody rings for what it ends."""
        keeper = self.system.keeper()
        self._exits.callback(keeper.close)
        return keeper

    @cached_property
    def provider(self) -> LocalProvider:
        """The provider itself, whatever the installation wraps around it."""
        return LocalProvider(self.root)

    @cached_property
    def engine(self) -> Engine:
        engine = make_engine(self.stack.database_url)
        self._exits.callback(engine.dispose)
        return engine

    def processes(self) -> list[Seen]:
        """The process table: every living process of every sandbox."""
        return marked(self.root)

    def alive(self) -> set[str]:
        """The names of the sandboxes that have any process."""
        return {seen.sandbox for seen in self.processes()}

    def on_disk(self) -> set[str]:
        """Whatever sandboxes left in the registry, half-made folders and locks included."""
        found = {path.name for path in self.root.glob("*")} - {"id", ".locks"}
        return found | {path.name for path in self.root.glob(".locks/*")} - {".registry"}

    def listed(self) -> list[SandboxInfo]:
        """What the provider says."""
        return list(self.provider.list({}, cursor=None, deadline=time.monotonic() + 10).items)

    def sandbox(self, session_id: str, generation: int = 1) -> Row[Any] | None:
        """The row of one sandbox."""
        table = schema.sandboxes
        query = select(table).where(
            table.c.session_id == session_id, table.c.generation == generation
        )
        with self.engine.connect() as connection:
            return connection.execute(query).one_or_none()

    def session(self, session_id: str) -> Row[Any] | None:
        """The row of one session."""
        query = select(schema.sessions).where(schema.sessions.c.id == session_id)
        with self.engine.connect() as connection:
            return connection.execute(query).one_or_none()

    def turns(self, session_id: str) -> list[Row[Any]]:
        """The rows of a session's turns, in order."""
        table = schema.turns
        query = select(table).where(table.c.session_id == session_id).order_by(table.c.started_at)
        with self.engine.connect() as connection:
            return list(connection.execute(query).all())

    def sandboxes(self) -> list[Row[Any]]:
        """The rows of all sandboxes."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(schema.sandboxes)).all())

    def swept_at(self) -> datetime | None:
        """The sweep's pulse."""
        return self.system.store.history.swept_at()

    def is_locked(self, session_id: str) -> bool:
        """Whether somebody keeps us from writing this session's row for longer than a second."""
        if self.engine.dialect.name == "sqlite":
            engine = make_engine(self.stack.database_url, connect_args={"timeout": 1.0})
        else:
            engine = make_engine(
                self.stack.database_url, connect_args={"options": "-c lock_timeout=1s"}
            )
        table = schema.sessions
        try:
            with engine.begin() as connection:
                connection.execute(
                    update(table).where(table.c.id == session_id).values(tenant=table.c.tenant)
                )
        except exc.OperationalError:
            return True
        finally:
            engine.dispose()
        return False

    def names(self) -> dict[str, tuple[str, int]]:
        """Which session and generation each name is, by the rows."""
        installation = self.system.store.installation
        return {
            sandbox_name(installation, row.key): (row.session_id, row.generation)
            for row in self.sandboxes()
        }

    def name(self, session_id: str, generation: int = 1) -> str:
        """The provider's name of one sandbox."""
        row = self.sandbox(session_id, generation)
        assert row is not None, session_id
        return sandbox_name(self.system.store.installation, row.key)

    def recorded(self, kind: str) -> Counter[tuple[str, int]]:
        """How often the ledger says so, by session and generation."""
        e = schema.events.c
        query = select(e.session_id, e.generation, func.count()).where(e.kind == kind)
        with self.engine.connect() as connection:
            rows = connection.execute(query.group_by(e.session_id, e.generation)).all()
        return Counter({(row[0], row[1]): row[2] for row in rows})

    # Promises

    @property
    def bound(self) -> float:
        """L1, in seconds: idle TTL (or what a create may take) + 3 sweeps + the teardown."""
        longest = max(self.timings["IDLE_TTL"], self.timings["CREATE_DEADLINE"])
        return longest + 3 * self.timings["SWEEP_INTERVAL"] + SLACK

    def until(
        self, look: Callable[[], Found | None], what: str, within: float | None = None
    ) -> Found:
        """Wait for a row or a process; a failure shows what there is and the ends of the logs."""
        return until(
            look,
            within=self.bound if within is None else within,
            what=what,
            explain=self.explain,
        )

    def gone(self, session_id: str, generation: int = 1) -> bool:
        """Whether the provider, the process table and the row agree that it is gone."""
        row = self.sandbox(session_id, generation)
        return (
            row is not None
            and row.state == "gone"
            and self.name(session_id, generation) not in self.alive()
        )

    def wait_until_gone(self, within: float | None = None) -> None:
        """Until no process and no row of a sandbox is left."""
        self.until(
            lambda: not self.alive() and all(row.state == "gone" for row in self.sandboxes()),
            "every sandbox is gone",
            within,
        )

    def assert_nothing_left(self) -> None:
        """The provider has nothing, and every sandbox was torn down once: S3, L1, H1."""
        assert self.processes() == []
        assert self.on_disk() == set()
        assert self.listed() == []
        rows = self.sandboxes()
        assert {row.state for row in rows} <= {"gone"}
        every = Counter((row.session_id, row.generation) for row in rows)
        assert self.recorded("sandbox_gone") == every
        assert self.recorded("session_ended") == every

    def explain(self) -> str:
        """What a person would look at first."""
        counts = Counter(row.state for row in self.sandboxes())
        lines = [f"rows: {dict(counts)}, with processes: {len(self.alive())}"]
        lines += [str(row) for row in self.sandboxes() if row.state != "gone"][:5]
        for program in self._programs:
            tail = program.log.read_text(errors="replace").splitlines()[-25:]
            lines += [f"-- {program.name} (exit code {program.exit_code})", *tail]
        return "\n".join(lines)

    # The end

    def __enter__(self) -> Self:
        # Its pipe closes when we die, however that happens.
        guardian = subprocess.Popen(
            ["sh", "-c", 'read -r _; rm -rf "$1"', "guardian", str(self.root)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._exits.enter_context(guardian)
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.destroy()
        for seen in self.processes():
            _kill(seen.pid)
        self._exits.close()
        shutil.rmtree(self.root, ignore_errors=True)


class Api:
    """A process with the role of an API server, and what it wrote down."""

    def __init__(self, program: Program, journal: Path) -> None:
        self.program = program
        self.journal = journal

    def said(self, what: str) -> list[dict[str, Any]]:
        """The lines about this, in order; only whole ones."""
        try:
            text = self.journal.read_text()
        except FileNotFoundError:
            return []
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        return [line for line in lines if line["what"] == what]

    def tell(self, what: str) -> None:
        """What api.py's `told` waits for."""
        Path(f"{self.journal}.{what}").touch()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
