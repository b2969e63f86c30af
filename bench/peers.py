"""What a user would pick instead, at the same number of live sessions, in the same run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from statistics import median
from typing import Any

import redis

from core.lifecycle import Keeper
from core.reaper import Reaper, SweepReport
from tests.services import Service, ServiceMissing, start_valkey

from . import eta, footprint
from .due import NOTICED, grow_live
from .everything import idle_among
from .figures import Figure, left_out
from .ground import Ground
from .meter import timed
from .processes import ROOT, alone, celery, each, resident, settled, wait_for
from .providers import Nothing
from .zset import ALWAYS, EVERY_SECOND, Deadlines, deadlines

NAME = "peers"
LIVE = (1_000, 10_000, 30_000, 100_000, 1_000_000)
CULLED = 30_000  # sessions; with more, one sweep of the culler takes minutes
CULLER = "jupyterhub-idle-culler"
CULLER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SWEEPS = 20  # before the peers have their turn, and as many after
ROUNDS = 3
LOOKS = 200  # at a sorted set
PUSHED = 2_000  # deadlines that are pushed back, one after the other
CLAIMED = 10_000
TIMERS = 20_000
LATER = 3600.0  # seconds; no timer goes off while it is measured

figure = partial(Figure, bench=NAME)
took = partial(figure, unit="s")
rate = partial(figure, unit="/s")


def run(here: Ground) -> Iterator[Figure]:
    """The figures, as they are found."""
    with ExitStack() as stack:
        zset = _sorted_set(stack)
        for live in LIVE:
            yield from _nothing_due(here, zset, live)
        yield from _pushed_back(here, zset)
        if zset is not None:
            yield from _claimed(here, zset)
    yield from _timers(here)


def _sorted_set(stack: ExitStack) -> Deadlines | None:
    try:
        return stack.enter_context(deadlines())
    except ServiceMissing as error:
        left_out("a Redis sorted set", error)
        return None


# The sweep


def _nothing_due(here: Ground, zset: Deadlines | None, live: int) -> Iterator[Figure]:
    """Ours before the others and after them, so that a slow minute is slow for all."""
    grow_live(here, live)
    store = here.store()
    reaper = Reaper(store, {}, doorbell=lambda _: None)
    sweeps = _sweeps(reaper)
    peers = {"SELECT every row, ORM": _select_everything(here, live)}
    if zset is not None:
        peers["ZRANGEBYSCORE, Redis"] = _look(zset, live)
    if live <= CULLED and (culler := culled(live)):
        peers[CULLER] = culler
    ours = median(sweeps + _sweeps(reaper))
    for name, seconds in peers.items():
        yield took(
            what=f"nothing due among {live:,}",
            ours=ours,
            peer=seconds,
            peer_is=name,
            at_most=0.001 if (name, live) == (CULLER, CULLED) else None,
            live=live,
        )


def _sweeps(reaper: Reaper) -> list[float]:
    for _ in range(3):
        report = reaper.sweep()
        assert report == SweepReport(), f"nothing is due, and the sweep did {report}"
    return [timed(reaper.sweep) for _ in range(SWEEPS)]


def _select_everything(here: Ground, live: int) -> float:
    found = list[tuple[int, int]]()
    with idle_among(here.url) as look:
        rounds = range(1 if live > CULLED else ROUNDS)
        seconds = [timed(lambda: found.append(look())) for _ in rounds]
    assert set(found) == {(0, live)}, found
    return median(seconds)


def _look(zset: Deadlines, live: int) -> float:
    zset.grow(live)
    assert not zset.due()
    return median(timed(zset.due) for _ in range(LOOKS))


def culled(live: int) -> float | None:
    """Seconds of one of its sweeps, with none idle; None when it is not installed."""
    if not CULLER_PYTHON.exists():
        left_out(CULLER, "`./run peers` installs it")
        return None
    said = culler_swept(live, idle=0, sweeps=ROUNDS)
    assert said["culled"] == 0, said
    seconds: list[float] = said["seconds"]
    return median(seconds)


def culler_swept(live: int, *, idle: int, sweeps: int) -> Mapping[str, Any]:
    """The seconds of each of its sweeps, and how many servers it culled in all of them."""
    program = [CULLER_PYTHON, ROOT / "bench" / "culler.py"]
    counts = [str(count) for count in (live, idle, sweeps)]
    done = subprocess.run([*program, *counts], check=True, stdout=subprocess.PIPE)
    said: Mapping[str, Any] = json.loads(done.stdout)
    return said


# What a turn does to a deadline, and what a sweep takes


def _pushed_back(here: Ground, zset: Deadlines | None) -> Iterator[Figure]:
    """A turn begins: its session is due later than it was."""
    ours, what = _touches(here), "deadlines pushed back, one client"
    yield rate(what=what, ours=ours)
    if zset is None:
        return
    for sync in (EVERY_SECOND, ALWAYS):
        zset.sync(sync)
        seconds = timed(lambda: each(zset.push_back, range(1, PUSHED + 1)))
        peer_is = f"ZADD, fsync {sync}"
        yield rate(what=what, ours=ours, peer=PUSHED / seconds, peer_is=peer_is)
    yield figure(
        what="a session's row with its indexes",
        ours=_row_size(here),
        peer=zset.size() / zset.live,
        peer_is="a member of a sorted set",
        unit="B",
    )


def _touches(here: Ground) -> float:
    """A second, of different sessions."""
    query = f"SELECT id FROM sessions WHERE status = 'active' LIMIT {PUSHED}"  # noqa: S608 - a number
    with here.connect() as connection:
        ids = [str(row[0]) for row in connection.execute(query.encode())]
    with Keeper(here.store(), Nothing()) as keeper:
        return len(ids) / timed(lambda: each(keeper.touch, ids))


def _row_size(here: Ground) -> float:
    with here.connect() as connection:
        row = connection.execute("SELECT pg_total_relation_size('sessions')").fetchone()
    return (row[0] if row else 0) / here.live


def _claimed(here: Ground, zset: Deadlines) -> Iterator[Figure]:
    """Ours ends them: their rows, their sandboxes' and the ledger's. Theirs takes them out."""
    here.run(NOTICED.format(count=CLAIMED))
    here.run("VACUUM ANALYZE sessions")
    reaper = Reaper(here.store(), {}, doorbell=lambda _: None)
    reports = []
    ours = timed(lambda: reports.append(reaper.sweep()))
    assert reports == [SweepReport(ended=CLAIMED, published=CLAIMED)], reports
    for sync in (EVERY_SECOND, ALWAYS):
        zset.sync(sync)
        zset.expire(CLAIMED)
        claimed: list[int] = []
        seconds = timed(lambda claimed=claimed: claimed.append(zset.claim()))  # type: ignore[misc]
        assert claimed == [CLAIMED], claimed
        yield took(
            what=f"{CLAIMED:,} due, taken by a sweep",
            ours=ours,
            peer=seconds,
            peer_is=f"ZREM, fsync {sync}",
        )


# A timer for each session


def _timers(here: Ground) -> Iterator[Figure]:
    try:
        with start_valkey() as service, closing(redis.Redis.from_url(service.url)) as client:
            yield from _eta(here, service, client)
    except ServiceMissing as error:
        left_out("a Celery task with an ETA for each session", error)


def _eta(here: Ground, service: Service, client: Any) -> Iterator[Figure]:
    ours = _touches(here)
    with _worker(service) as pid:
        empty = settled(pid)
    before = client.info("memory")["used_memory"]
    seconds = timed(lambda: eta.publish(service.url, TIMERS, LATER))
    each = (client.info("memory")["used_memory"] - before) / TIMERS
    assert client.llen(eta.QUEUE) == TIMERS
    with _worker(service) as pid:
        taking = wait_for("the timers", lambda: client.hlen("unacked") == TIMERS, 600)
        full = resident(pid)
    again = alone(footprint.watcher, here.url)
    beside = partial(figure, peer_is=f"{TIMERS:,} Celery tasks with an ETA")
    yield beside(what="deadlines set, one client", ours=ours, peer=TIMERS / seconds, unit="/s")
    yield beside(what="kept for a session", ours=_row_size(here), peer=each, unit="B")
    yield beside(
        what=f"memory of who watches, ours {LIVE[-1]:,}",
        ours=again["resident"],
        peer=full,
        unit="MB",
    )
    yield beside(
        what="of it, for each session",
        ours=1e6 * again["grown"] / LIVE[-1],
        peer=1e6 * (full - empty) / TIMERS,
        unit="B",
    )
    yield beside(
        what="started again, and has seen them all", ours=again["seconds"], peer=taking, unit="s"
    )


def _worker(service: Service) -> Any:
    command = ["-A", "bench.eta", "-b", service.url, "worker", "-l", "warning"]
    return celery(*command, "-P", "threads", "-c", "1", "--without-gossip", "--without-mingle")
