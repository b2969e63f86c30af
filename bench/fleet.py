"""A broker and workers for a bench, on queues that nobody else has."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kombu import Connection

from tests.services import delete_queues, rabbitmq

from .ground import Ground
from .providers import SLOW

ROOT = Path(__file__).resolve().parents[1]
LOOK_EVERY = 0.02
# Where the counting begins and ends, as shares of what was published: a worker that has just
# started, and one that runs dry, are not at their rate.
FROM, TO = 0.9, 0.1


@dataclass(frozen=True)
class Fleet:
    """`broker_url` and the prefix of its queues."""

    broker_url: str
    prefix: str

    @property
    def queue(self) -> str:
        """The one that teardowns wait in."""
        return f"{self.prefix}.teardown"

    @contextmanager
    def worker(
        self, here: Ground, *, pool: str, concurrency: int, seconds: float = 0.0
    ) -> Iterator[int]:
        """A worker of this database, whose provider takes so long for a call; its process id."""
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SANDKEEPER_DATABASE_URL": here.url.replace("postgresql://", "postgresql+psycopg://"),
            "SANDKEEPER_PROVIDER": "bench.providers:Nothing",
            SLOW: str(seconds),
        }
        command = [sys.executable, "-m", "celery", "-A", "bench.tasks", "worker", "-l", "warning"]
        command += ["-P", pool, "-c", str(concurrency), "-Q", self.queue]
        command += ["--without-gossip", "--without-mingle"]
        with tempfile.TemporaryFile() as log:
            worker = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=log, stderr=log)
            try:
                yield worker.pid
            finally:
                worker.send_signal(signal.SIGTERM)
                worker.wait(60)

    def forget(self) -> None:
        """What is left of one measurement is no part of the next one."""
        with Connection(self.broker_url) as connection:
            channel: Any = connection.default_channel
            channel.queue_purge(self.queue)

    def waiting(self, connection: Connection) -> int:
        """Messages that no worker has taken."""
        channel: Any = connection.default_channel
        return int(channel.queue_declare(self.queue, passive=True).message_count)

    def rate(self, published: int, alive: Callable[[], bool]) -> float:
        """Messages a second, from a tenth taken until nine tenths are."""
        with Connection(self.broker_url) as connection:
            began = self._when(connection, published * FROM, alive)
            ended = self._when(connection, published * TO, alive)
        return published * (FROM - TO) / (ended - began)

    def _when(self, connection: Connection, below: float, alive: Callable[[], bool]) -> float:
        while self.waiting(connection) > below:
            assert alive(), "the worker died"
            time.sleep(LOOK_EVERY)
        return time.perf_counter()


@contextmanager
def fleet() -> Iterator[Fleet]:
    """
    One on RabbitMQ. This process becomes a publisher of it, before anything reads the settings;
    its queues are deleted afterwards.
    """
    service = rabbitmq()
    prefix = os.environ.setdefault("SANDKEEPER_QUEUE_PREFIX", f"bench-{secrets.token_hex(4)}")
    os.environ["SANDKEEPER_BROKER_URL"] = service.url
    names = [f"{prefix}.{name}" for name in ("sweep", "teardown", "dead", "pidbox")]
    from tasks.app import app  # noqa: PLC0415 - its settings are read at import

    try:
        # Our own connection believes that what it declared for another bench is still there.
        with Connection(service.url) as connection:
            for queue in app.conf.task_queues:
                queue(connection.default_channel).declare()
        yield Fleet(service.url, prefix)
    finally:
        delete_queues(service.url, [prefix, *names, f"reply.{prefix}.pidbox"])


def is_alive(pid: int) -> bool:
    """Whether our child runs; one that ended and was not waited for does not."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
