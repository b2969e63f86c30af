"""Tearing down through broker, worker, rows and provider: beside tasks that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .fanout import BATCH, publish_teardowns
from .figures import Figure
from .fleet import Fleet, fleet, is_alive
from .ground import Ground
from .processes import wait_for

NAME = "teardown"
TEARDOWNS = 5_000  # in a round
SLOW_CALL = 0.05  # seconds
WIDE = 100  # threads
PATIENCE = 30.0  # seconds for the last ones
CLOSE = """
UPDATE sessions SET status = 'ended', ended_at = now(), end_reason = 'idle' WHERE status = 'active'
"""
CLOSING = """
UPDATE sandboxes SET state = 'closing', closing_at = now(), due_at = now() + interval '1 hour',
    not_before = now(), gone_at = NULL WHERE state = 'running'
"""


def run(here: Ground) -> Iterator[Figure]:
    """The figures."""
    with fleet() as own:
        for pool, concurrency in (("prefork", 2), ("threads", 8)):
            nothing = _rate(here, own, _publish_nothing, pool=pool, concurrency=concurrency)
            ours = _rate(here, own, publish_teardowns, pool=pool, concurrency=concurrency)
            yield Figure(
                bench=NAME,
                what=f"teardowns, {pool}, {concurrency}",
                ours=ours,
                peer=nothing,
                peer_is="tasks that do nothing, the same worker",
                unit="/s",
                at_least=0.5,
            )
        wide = _rate(here, own, publish_teardowns, pool="threads", concurrency=WIDE)
        slow = _rate(
            here, own, publish_teardowns, pool="threads", concurrency=WIDE, seconds=SLOW_CALL
        )
        yield Figure(
            bench=NAME,
            what=f"a provider that takes {SLOW_CALL * 1000:.0f} ms, {WIDE} threads",
            ours=slow,
            peer=min(wide, WIDE / SLOW_CALL),
            peer_is="one that takes none",
            unit="/s",
            at_least=0.8,
        )


def _rate(
    here: Ground,
    own: Fleet,
    publish: Callable[[int], None],
    *,
    pool: str,
    concurrency: int,
    seconds: float = 0.0,
) -> float:
    """Publish while no worker is there; then see how fast one is."""
    count = TEARDOWNS // BATCH * BATCH
    close_all(here, count)
    publish(count)
    with own.worker(here, pool=pool, concurrency=concurrency, seconds=seconds) as pid:
        rate = own.rate(count, lambda: is_alive(pid))
        if publish is publish_teardowns:
            # A rate counts only when all were really torn down.
            wait_for("the last teardowns", lambda: not _closing(here), PATIENCE)
    return rate


def close_all(here: Ground, count: int) -> None:
    """Let exactly conv-1 to conv-`count` be sandboxes that are to be torn down."""
    here.run("TRUNCATE events, turns, sandboxes, sessions")
    here.live = 0
    here.grow(count)
    here.run(CLOSE)
    here.run("ALTER TABLE sandboxes DISABLE TRIGGER sandboxes_monotone")
    here.run(CLOSING.replace("WHERE state = 'running'", ""))
    here.run("ALTER TABLE sandboxes ENABLE TRIGGER sandboxes_monotone")


def _closing(here: Ground) -> int:
    with here.connect() as connection:
        row = connection.execute("SELECT count(*) FROM sandboxes WHERE state = 'closing'")
        (count,) = row.fetchone() or (0,)
    return int(count)


def _publish_nothing(count: int) -> None:
    from .tasks import nothing  # noqa: PLC0415 - the settings are read at import

    with nothing.app.producer_or_acquire() as producer:
        options: dict[str, Any] = {"producer": producer, "confirm_timeout": 5}
        for number in range(1, count + 1):
            nothing.apply_async((f"conv-{number}", 1), **options)
