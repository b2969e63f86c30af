"""Resident memory of each process of a deployment, beside the least of its kind."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from kombu import Connection

from tests.services import delete_queues

from . import eta, footprint
from .due import NOTICED, closing, gone, grow_live
from .figures import Figure
from .fleet import LOOK_EVERY, Fleet, fleet, is_alive
from .ground import Ground
from .processes import alone, celery, resident, settled, wait_for

NAME = "memory"
COUNT = 100_000  # sessions that one sweep ends, and whose sandboxes one worker tears down
WARM = 10_000  # teardowns, after which a worker should grow no more
LONGEST = 240.0  # seconds: then as many as were done
BATCH = 500
AHEAD = 5_000  # messages that wait while more are published
TURNS = 100

figure = partial(Figure, bench=NAME, unit="MB")


def run(here: Ground) -> Iterator[Figure]:
    """The figures, as they are found."""
    grow_live(here, COUNT)
    yield _api(here)
    yield _sweep(here)
    with fleet() as own:
        yield from _idle(here, own)
        yield _growth(here, own)


def _api(here: Ground) -> Figure:
    # Every tenth of a crowd has ended.
    ids = [f"conv-{number}" for number in range(1, 2 * TURNS) if number % 10][:TURNS]
    environ = {
        "SANDKEEPER_DATABASE_URL": here.url.replace("postgresql://", "postgresql+psycopg://"),
        "SANDKEEPER_PROVIDER": "bench.providers:Nothing",
    }
    return figure(
        what=f"Lifecycle in an API process, after {TURNS} turns",
        ours=alone(footprint.api, ids, environ=environ),
        peer=alone(footprint.driver, here.url),
        peer_is="SQLAlchemy, psycopg, one connection",
    )


def _sweep(here: Ground) -> Figure:
    found = alone(footprint.sweep_of, here.url, NOTICED.format(count=COUNT))
    assert found["ended"] == COUNT, found
    return figure(
        what=f"sweep that ends {COUNT:,}, above the same process before",
        ours=found["peak"] - found["idle"],
        at_most=50,
    )


def _idle(here: Ground, own: Fleet) -> Iterator[Figure]:
    """Ours beside an application of Celery with one task, on the same broker."""
    url = here.url.replace("postgresql://", "postgresql+psycopg://")
    environ = {"SANDKEEPER_DATABASE_URL": url, "SANDKEEPER_PROVIDER": "bench.providers:Nothing"}
    beside = partial(figure, peer_is="the same of an app with one empty task")
    bare = ["-A", "bench.eta", "-b", own.broker_url]
    quiet = ["-P", "threads", "-c", "8", "--without-gossip", "--without-mingle"]
    try:
        with celery("-A", "bench.tasks", "beat", environ=environ) as pid:
            beat = settled(pid)
        with celery(*bare, "beat", "-S", "celery.beat:Scheduler") as pid:
            yield beside(what="beat", ours=beat, peer=settled(pid))
        with own.worker(here, pool="threads", concurrency=8) as pid:
            worker = settled(pid)
        with celery(*bare, "worker", *quiet) as pid:
            yield beside(what="worker, idle, 8 threads", ours=worker, peer=settled(pid))
    finally:
        delete_queues(own.broker_url, eta.QUEUES)


def _growth(here: Ground, own: Fleet) -> Figure:
    """
    Of a worker whose threads live as long as it does (prefork replaces its children): those that
    the sweep has ended are torn down, as many as there is time for.
    """
    pairs = closing(here)
    assert len(pairs) == COUNT, len(pairs)
    with own.worker(here, pool="threads", concurrency=8) as pid:
        warm = _torn_down(here, own, pairs[:WARM], pid)
        before = resident(pid)
        more = _torn_down(here, own, pairs[WARM:], pid)
        grown = resident(pid) - before
    return figure(
        what=f"worker, from {warm:,} to {warm + more:,} teardowns", ours=grown, at_most=10
    )


def _torn_down(here: Ground, own: Fleet, pairs: Sequence[tuple[str, int]], pid: int) -> int:
    """
    Publish, never far ahead of the worker, until all are done or the time is up. Gives how many
    were torn down, which the rows have to confirm.
    """
    from tasks.app import app  # noqa: PLC0415 - its settings are read at import
    from tasks.doorbell import FanOut  # noqa: PLC0415 - likewise

    ring, published, before = FanOut(app), 0, gone(here)
    until = time.monotonic() + LONGEST
    with Connection(own.broker_url) as connection:
        while published < len(pairs) and time.monotonic() < until:
            assert is_alive(pid), "the worker died"
            if own.waiting(connection) >= AHEAD:
                time.sleep(LOOK_EVERY)
                continue
            batch = pairs[published : published + BATCH]
            with suppress(TimeoutError):  # a slow broker: some of it is published twice then
                ring(batch)
                published += len(batch)
    wait_for("the last teardowns", lambda: gone(here) - before >= published, LONGEST)
    assert gone(here) - before == published
    return published
