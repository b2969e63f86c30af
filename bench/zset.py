"""Deadlines in a Redis sorted set: the usual recipe, on a server of our own that keeps a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import redis

from tests.services import start_valkey

KEY = "due"
TTL = 3600.0
BATCH = 500
EVERY_SECOND, ALWAYS = "everysec", "always"


class Deadlines:
    """One member a session, its score is when it is due."""

    def __init__(self, client: redis.Redis) -> None:
        self.live = 0
        self._client: Any = client

    def sync(self, when: str) -> None:
        """When the log has to be on the disk."""
        self._client.config_set("appendfsync", when)

    def grow(self, live: int) -> None:
        """Let there be so many, none of them due."""
        until = time.time() + TTL
        for first in range(self.live + 1, live + 1, 10_000):
            last = min(first + 10_000, live + 1)
            self._client.zadd(KEY, {f"conv-{number}": until for number in range(first, last)})
        self.live = max(live, self.live)

    def due(self) -> list[bytes]:
        """A batch of what is due."""
        found: list[bytes] = self._client.zrangebyscore(KEY, "-inf", time.time(), 0, BATCH)
        return found

    def push_back(self, number: int) -> None:
        """What a turn does."""
        self._client.zadd(KEY, {f"conv-{number}": time.time() + TTL}, xx=True)

    def expire(self, count: int) -> None:
        """Let the first so many be due, also those that were claimed before."""
        self._client.zadd(KEY, {f"conv-{number}": 0.0 for number in range(1, count + 1)})

    def claim(self) -> int:
        """Take all that is due: whose removal succeeds has it, so two sweepers share them."""
        claimed = 0
        while members := self.due():
            pipeline = self._client.pipeline(transaction=False)
            for member in members:
                pipeline.zrem(KEY, member)
            claimed += sum(pipeline.execute())
        return claimed

    def size(self) -> int:
        """Bytes of all of them in memory."""
        return int(self._client.memory_usage(KEY, samples=0))


@contextmanager
def deadlines() -> Iterator[Deadlines]:
    """On a server that writes a log, as one must that may not forget."""
    with start_valkey() as service, closing(redis.Redis.from_url(service.url)) as client:
        client.config_set("appendonly", "yes")
        yield Deadlines(client)
