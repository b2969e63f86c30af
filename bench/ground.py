"""Where a bench stands: a database of its own, with as many sessions as it wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from sqlalchemy import Engine

from core.engines import make_engine, opened
from core.migrations import upgrade
from core.policy import Policy
from core.store import Store
from tests.crowd import fill
from tests.services import Databases, postgresql

# A mass that ends is what a bench is about: nobody is to be asked.
POLICY = Policy(breaker_ratio=1.0)
DEFAULTS = ("fsync", "synchronous_commit", "shared_buffers", "full_page_writes")


@dataclass
class Ground:
    """
    A migrated PostgreSQL database. `live` counts its sessions, a tenth of which has ended. `many`
    and `minutes` are what a bench was asked for, where it lets itself be asked.
    """

    url: str
    live: int = 0
    many: int | None = None
    minutes: float | None = None
    _engines: list[Engine] = field(default_factory=list)

    def grow(self, live: int) -> None:
        """Let there be at least so many sessions, conv-1 to conv-`live`."""
        if live > self.live:
            fill(self.url, live, first=self.live + 1)
            self.live = live

    def store(self, policy: Policy = POLICY) -> Store:
        """A store on it, as production has one."""
        engine = make_engine(self.url)
        self._engines.append(engine)
        return Store(engine, policy=policy)

    def connect(self) -> psycopg.Connection:
        """A plain connection, on which each statement is a transaction."""
        return psycopg.connect(self.url, autocommit=True)

    def run(self, statement: str) -> None:
        """Prepare what is to be measured."""
        with self.connect() as connection:
            connection.execute(statement.encode())

    def close(self) -> None:
        """Let go of the database."""
        for engine in self._engines:
            engine.dispose()


@contextmanager
def ground(*, many: int | None = None, minutes: float | None = None) -> Iterator[Ground]:
    """One that is dropped afterwards."""
    with postgresql() as service:
        databases = Databases(service.url, _migrate)
        try:
            with databases.fresh() as url:
                here = Ground(url, many=many, minutes=minutes)
                try:
                    yield here
                finally:
                    here.close()
        finally:
            databases.close()


def described(here: Ground) -> str:
    """What the figures depend on: the server and how it was set."""
    with here.connect() as connection:
        row = connection.execute("SHOW server_version").fetchone()
        version = str(row[0]).split()[0] if row else "?"
        settings = [
            f"{name} {value[0]}"
            for name in DEFAULTS
            if (value := connection.execute(f"SHOW {name}".encode()).fetchone())
        ]
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    return f"PostgreSQL {version} ({', '.join(settings)}), {cores} cores"


def _migrate(url: str) -> None:
    with opened(url) as engine:
        upgrade(engine)
