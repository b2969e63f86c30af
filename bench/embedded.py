"""The embedded system, SQLite and a folder for a broker, beside raw sqlite3 and bare tasks."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from statistics import median

from core.lifecycle import Keeper
from core.reaper import Reaper, SweepReport

from .figures import Figure
from .ground import Ground
from .meter import timed
from .onehost import OneHost, one_host
from .processes import alone, each
from .providers import Nothing

NAME = "embedded"
FEW, MANY = 10_000, 100_000
TOUCHES = 5_000  # in a round
ROUNDS = 3
SWEEPS = 20
TEARDOWNS = 2_000
THREADS = 16  # of a worker, as `sandkeeper up` starts it
FROM, TO = 0.1, 0.9  # the shares between which a rate is counted
PATIENCE = 300.0  # seconds
LOOK_EVERY = 0.05
TOUCH = (
    "UPDATE sessions SET last_activity_at = strftime('%Y-%m-%d %H:%M:%f000', 'now') WHERE id = ?"
)

figure = partial(Figure, bench=NAME)


def run(_: Ground) -> Iterator[Figure]:
    """The figures."""
    with one_host() as host:
        host.grow(FEW)
        few = _empty_sweep(host)
        host.grow(MANY)
        many = _empty_sweep(host)
        yield figure(
            what=f"nothing due among {MANY:,}",
            ours=many,
            peer=few,
            peer_is=f"among {FEW:,}",
            unit="s",
            at_most=1.5,
        )
        yield figure(what="the same", ours=1000 * many, unit="ms", at_most=10)
        yield _touches(host)
        yield _teardowns(host)


def _empty_sweep(host: OneHost) -> float:
    with host.store() as store:
        reaper = Reaper(store, {}, doorbell=lambda _: None)
        for _ in range(3):
            report = reaper.sweep()
            assert report == SweepReport(), f"nothing is due, and the sweep did {report}"
        return median(timed(reaper.sweep) for _ in range(SWEEPS))


def _touches(host: OneHost) -> Figure:
    """Ours and raw ones in turns, each on sessions all over the table."""
    chance = random.Random(1)
    ours, raw = [], []
    with (
        host.store() as store,
        Keeper(store, Nothing()) as keeper,
        closing(host.connect()) as connection,
    ):
        for _ in range(ROUNDS):
            ids = [f"conv-{chance.randint(1, host.live)}" for _ in range(TOUCHES)]
            ours.append(timed(partial(each, keeper.touch, ids)))
            raw.append(timed(partial(each, partial(_touch, connection), ids)))
    return figure(
        what=f"touches by Lifecycle, one process, {host.live:,} live",
        ours=TOUCHES / median(ours),
        peer=TOUCHES / median(raw),
        peer_is="UPDATE by raw sqlite3",
        unit="/s",
    )


def _touch(connection: sqlite3.Connection, session_id: str) -> None:
    connection.execute(TOUCH, [session_id])


def _teardowns(host: OneHost) -> Figure:
    """Idle sessions from due to gone: swept, published into the folder, torn down, confirmed."""
    host.notice(TEARDOWNS)
    with host.worker(THREADS):
        ours = _rate(host.gone)
    alone(publish_nothing, TEARDOWNS, environ=host.environ)
    assert host.waiting() == TEARDOWNS
    with host.worker(THREADS):
        nothing = _rate(lambda: TEARDOWNS - host.waiting())
    return figure(
        what="idle sessions ended and torn down, no-op provider",
        ours=ours,
        peer=nothing,
        peer_is="tasks that do nothing, the same worker",
        unit="/s",
    )


def publish_nothing(count: int) -> None:
    """Tasks that do nothing, into the folder that the environment names."""
    from .tasks import nothing  # noqa: PLC0415 - the settings are read at import

    with nothing.app.producer_or_acquire() as producer:
        for number in range(1, count + 1):
            nothing.apply_async((f"conv-{number}", 1), producer=producer)


def _rate(done: Callable[[], int]) -> float:
    """So many a second, from a tenth done until nine tenths are; then all of them have to be."""
    began, first = _when(done, TEARDOWNS * FROM)
    ended, last = _when(done, TEARDOWNS * TO)
    _when(done, TEARDOWNS)
    return (last - first) / (ended - began)


def _when(done: Callable[[], int], enough: float) -> tuple[float, int]:
    until = time.monotonic() + PATIENCE
    while (count := done()) < enough:
        assert time.monotonic() < until, f"{count} of {TEARDOWNS} are done, and no more"
        time.sleep(LOOK_EVERY)
    return time.perf_counter(), count
