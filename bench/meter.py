"""What a piece of work costs: its time, and what the database spent on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psycopg

ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one operation: seconds of the caller, CPU seconds of the server, bytes of WAL."""

    seconds: float
    cpu: float
    wal: float


class Meter:
    """
    Reads the server's own counters. Its processes have to be on this machine; nobody else may use
    the server meanwhile.
    """

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def of(self, work: Callable[[], object], times: int) -> Cost:
        """One round: `work` does `times` operations, on connections that stay open."""
        cpu, wal = self._counters()
        seconds = timed(work)
        cpu_after, wal_after = self._counters()
        return Cost(
            seconds=seconds / times, cpu=(cpu_after - cpu) / times, wal=(wal_after - wal) / times
        )

    def hot_share(self) -> float:
        """
        Of all updates of `sessions` ever, those that touched no index. A connection tells its
        counts when it ends, or after a while.
        """
        return self._one(
            "SELECT n_tup_hot_upd::float8 / greatest(n_tup_upd, 1) FROM pg_stat_user_tables "
            "WHERE relname = 'sessions'"
        )

    def _counters(self) -> tuple[float, float]:
        clients = self._connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
        wal = self._one("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8")
        return sum(cpu_of(pid) for (pid,) in clients), wal

    def _one(self, query: str) -> float:
        row = self._connection.execute(query.encode()).fetchone()
        return float(row[0]) if row else 0.0


def cpu_of(pid: int) -> float:
    """Seconds that a process has had a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def in_turns(works: Mapping[str, Callable[[], Cost]], rounds: int = ROUNDS) -> dict[str, Cost]:
    """Each work in each round, so that a slow minute is slow for all of them; the medians."""
    found: dict[str, list[Cost]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(work())
    return {name: middle(costs) for name, costs in found.items()}


def middle(costs: Sequence[Cost]) -> Cost:
    """The median of each of its parts."""
    return Cost(
        seconds=median(cost.seconds for cost in costs),
        cpu=median(cost.cpu for cost in costs),
        wal=median(cost.wal for cost in costs),
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
