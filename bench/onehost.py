"""Where the embedded bench stands: a SQLite file with a crowd, and a folder that is the broker."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.engines import make_engine, opened, witness
from core.migrations import upgrade
from core.store import Store
from tasks.spool import Spool

from .ground import POLICY
from .processes import celery

PREFIX = "bench"
FILL = (
    """
WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
INSERT INTO sessions (id, tenant, status, generation, turn_count, turns_before, idle_ttl, max_turn,
    metadata, created_at, opened_at, last_activity_at, due_at)
SELECT 'conv-' || n, 'default', 'active', 1, 1, 0, 1800, 21600, '{}', :earlier, :earlier, :now,
    :later
FROM numbers
""",
    """
WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
INSERT INTO sandboxes (key, session_id, generation, provider, scope, spec, external_id, state,
    attempts, claim_token, created_at, running_at)
SELECT printf('%026d', n), 'conv-' || n, 1, 'fake', 'test-account', '{}', 'box-' || n, 'running',
    0, 0, :earlier, :earlier
FROM numbers
""",
)
NOTICE = """
UPDATE sessions SET due_at = :due, last_activity_at = :earlier, noticed_at = :earlier,
    noticed_activity_at = :earlier
WHERE id IN (SELECT id FROM sessions WHERE status = 'active' LIMIT :count)
"""


@dataclass
class OneHost:
    """`folder` holds all of it. `live` counts the sessions, conv-1 and on, all of them active."""

    folder: Path
    live: int = 0

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "sandkeeper.db"

    @property
    def url(self) -> str:
        """The same, as settings name it."""
        return f"sqlite:///{self.database}"

    @property
    def environ(self) -> Mapping[str, str]:
        """What makes a process one of this host's. Whoever ends many is not asked."""
        return {
            "SANDKEEPER_DATABASE_URL": self.url,
            "SANDKEEPER_BROKER_URL": f"sandkeeper+filesystem:///{self.folder}/broker",
            "SANDKEEPER_PROVIDER": "bench.providers:Nothing",
            "SANDKEEPER_QUEUE_PREFIX": PREFIX,
            "SANDKEEPER_BREAKER_RATIO": "1",
        }

    def grow(self, live: int) -> None:
        """Let there be at least so many sessions, none of them due."""
        numbers = {"first": self.live + 1, "last": live}
        with closing(self.connect()) as connection:
            connection.execute("BEGIN")
            for statement in FILL:
                connection.execute(statement, numbers | _moments())
            connection.execute("COMMIT")
        self.live = live

    def notice(self, count: int) -> None:
        """Let so many of them be what the next sweep ends."""
        with closing(self.connect()) as connection:
            connection.execute(NOTICE, {"count": count} | _moments())

    def gone(self) -> int:
        """Sandboxes that were torn down."""
        with closing(self.connect()) as connection:
            query = "SELECT count(*) FROM sandboxes WHERE state = 'gone'"
            return int(connection.execute(query).fetchone()[0])

    def waiting(self) -> int:
        """Messages in the folder that nobody has taken."""
        return Spool(self.folder / "broker").size(f"{PREFIX}.teardown")

    def connect(self) -> sqlite3.Connection:
        """A plain connection as ours are: WAL, synchronous NORMAL, no transaction by itself."""
        connection = sqlite3.connect(self.database, timeout=20, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    @contextmanager
    def store(self) -> Iterator[Store]:
        """A store on it, as production has one."""
        engine = make_engine(self.url)
        try:
            yield Store(engine, policy=POLICY, witness=witness(engine))
        finally:
            engine.dispose()

    def worker(self, threads: int) -> AbstractContextManager[int]:
        """The worker of `sandkeeper up`; its process id."""
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        pool = ["-P", "threads", "-c", str(threads), "-l", "warning"]
        return celery("-A", "bench.tasks", "worker", *pool, *quiet, environ=self.environ)


@contextmanager
def one_host() -> Iterator[OneHost]:
    """One that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        host = OneHost(Path(folder))
        with opened(host.url) as engine:
            upgrade(engine)
        yield host


def _moments() -> dict[str, str]:
    """As the schema keeps them."""
    now = datetime.now(UTC)
    moments = {
        "earlier": now - timedelta(days=1),
        "due": now - timedelta(hours=1),
        "now": now,
        "later": now + timedelta(seconds=1800),
    }
    return {name: f"{moment:%Y-%m-%d %H:%M:%S.%f}" for name, moment in moments.items()}
