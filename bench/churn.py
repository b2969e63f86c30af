"""
Sessions that come and go: whether what is purged leaves its room to what comes. First by the code,
for some time, then a million of them by statements of the same effect.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from core.lifecycle import Keeper
from core.policy import Policy
from core.providers.base import ProviderState, SandboxInfo, SandboxRef, Spec
from core.reaper import Reaper, SweepReport, TeardownOutcome

from .figures import Figure
from .ground import Ground
from .meter import Meter, timed
from .providers import Nothing
from .turnover import turn_over

NAME = "churn"
MINUTES = 1.0
LIVES = 1_000_000  # besides, by the statements alone
THREADS = 4
TOUCHES = 3  # of a session, besides its turn
RETENTION = 5.0  # seconds: what is there at a time is soon as much as there ever is
SWEEP_EVERY = 2.0
SWEEPS = 20  # of an empty sweep
TABLES = ("sessions", "sandboxes", "turns", "events")
GROWS = 1.5  # from the middle to the end, at most: vacuum comes when it comes


@dataclass
class Made(Nothing):
    """Makes whatever it is asked for, and it is gone when somebody looks."""

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        """At once."""
        ref = SandboxRef(name=name, external_id=f"box-{name}")
        return SandboxInfo(ref=ref, state=ProviderState.RUNNING, labels=labels)


def run(here: Ground) -> Iterator[Figure]:
    """The figures."""
    minutes = here.minutes or MINUTES
    policy = Policy(breaker_ratio=1.0, retention=RETENTION)  # no settings would allow it
    store, provider = here.store(policy), Made()
    reaper = Reaper(store, {provider.name: provider}, doorbell=lambda _: None)
    before = _empty(reaper)
    until = time.monotonic() + 60 * minutes
    numbers, done, stopped = itertools.count(1), itertools.count(), threading.Event()

    def live() -> None:
        with Keeper(store, provider) as keeper:
            while time.monotonic() < until:
                _one(keeper, reaper, f"churn-{next(numbers)}")
                next(done)

    with ThreadPoolExecutor(THREADS + 1) as threads:
        keeping = threads.submit(_keep_house, reaper, stopped)
        lives = [threads.submit(live) for _ in range(THREADS)]
        time.sleep(30 * minutes)
        middle = _sizes(here)
        for each in lives:
            each.result()
        stopped.set()
        keeping.result()
    count, last = next(done), _sizes(here)
    yield Figure(
        bench=NAME,
        what=f"sessions opened, used, ended, torn down and purged, {minutes:g} minutes",
        ours=count / (60 * minutes),
        unit="/s",
    )
    for table in TABLES:
        yield Figure(
            bench=NAME,
            what=f"{table}, with its indexes",
            ours=last[table] / 1e6,
            peer=middle[table] / 1e6,
            peer_is="half of the time before",
            unit="MB",
            at_most=GROWS,
        )
    yield from _rows(here)
    yield _after("nothing due, after it", reaper, before)
    vacuums = turn_over(here, LIVES)
    what = f"nothing due, after {LIVES:,} more and {vacuums} vacuums of ours"
    yield _after(what, reaper, before)


def _after(what: str, reaper: Reaper, before: float) -> Figure:
    return Figure(
        bench=NAME,
        what=what,
        ours=_empty(reaper),
        peer=before,
        peer_is="before",
        unit="s",
        at_most=2.0,
    )


def _one(keeper: Keeper, reaper: Reaper, session_id: str) -> None:
    """A whole life."""
    session = keeper.open(session_id)
    with keeper.turn(session_id):
        pass
    for _ in range(TOUCHES):
        keeper.touch(session_id)
    keeper.end(session_id)
    done = reaper.teardown(session_id, session.generation, worker=NAME)
    assert done.outcome is TeardownOutcome.GONE, done


def _keep_house(reaper: Reaper, stopped: threading.Event) -> None:
    while not stopped.wait(SWEEP_EVERY):
        reaper.sweep()
        reaper.purge()


def _rows(here: Ground) -> Iterator[Figure]:
    here.close()  # a connection tells its counts when it ends
    with here.connect() as connection:
        yield Figure(
            bench=NAME,
            what="updates of sessions that touch no index",
            ours=100 * Meter(connection).hot_share(),
            unit="%",
        )
        for table in TABLES:
            row = connection.execute(
                "SELECT n_dead_tup, n_live_tup, autovacuum_count FROM pg_stat_user_tables "
                "WHERE relname = %s",
                [table],
            ).fetchone()
            dead, alive, vacuums = row or (0, 0, 0)
            yield Figure(
                bench=NAME,
                what=f"{table}: dead rows, after {vacuums} vacuums",
                ours=dead,
                peer=max(1, alive),
                peer_is="live ones",
                unit="",
            )


def _sizes(here: Ground) -> dict[str, int]:
    with here.connect() as connection:
        return {
            table: int(
                (
                    connection.execute(
                        f"SELECT pg_total_relation_size('{table}')".encode()
                    ).fetchone()
                    or [0]
                )[0]
            )
            for table in TABLES
        }


def _empty(reaper: Reaper) -> float:
    """The median of sweeps that find nothing."""
    for _ in range(5):
        reaper.sweep()
    reports: list[SweepReport] = []
    took = median(timed(lambda: reports.append(reaper.sweep())) for _ in range(SWEEPS))
    assert set(reports) == {SweepReport()}, reports
    return took
