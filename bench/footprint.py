"""
What processes have in memory. Each of these runs in a process of its own (processes.alone) and
imports what it measures by itself; megabytes and seconds come back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .processes import forget_peak, peak, resident

if TYPE_CHECKING:
    from core.reaper import Reaper

# ruff: noqa: PLC0415 - what is imported is what is measured


def driver(url: str) -> float:
    """The least that talks to the database as we do: SQLAlchemy, psycopg and one connection."""
    from sqlalchemy import create_engine, text

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        return resident()


def api(session_ids: Sequence[str]) -> float:
    """An API server's Lifecycle, as the environment describes it, with a turn on each of these."""
    from core import Lifecycle

    with Lifecycle.from_env() as keeper:
        for session_id in session_ids:
            with keeper.turn(session_id) as turn:
                turn.check()
        return resident()


def watcher(url: str) -> dict[str, float]:
    """
    A process that has just begun: the seconds until it has seen what is due, its memory then, and
    how much of that came with the sweep.
    """
    began = time.perf_counter()
    reaper = _reaper(url, [])
    before = resident()
    reaper.sweep()
    now = resident()
    return {"seconds": time.perf_counter() - began, "resident": now, "grown": now - before}


def sweep_of(url: str, prepare: str) -> dict[str, float]:
    """A sweep of what the statement made due, above the same process before it."""
    rung: list[int] = []
    reaper = _reaper(url, rung)
    reaper.sweep()
    with reaper.store.database.engine.begin() as connection:
        connection.exec_driver_sql(prepare)
    forget_peak()
    idle = resident()
    report = reaper.sweep()
    assert report.ended == report.published == sum(rung), report
    return {"ended": report.ended, "idle": idle, "peak": peak()}


def _reaper(url: str, rung: list[int]) -> Reaper:
    from core.engines import make_engine
    from core.policy import Policy
    from core.reaper import Reaper
    from core.store import Store

    store = Store(make_engine(url), policy=Policy(breaker_ratio=1.0))
    return Reaper(store, {}, doorbell=lambda pairs: rung.append(len(pairs)))
