"""What a turn writes, beside the least that does it: one UPDATE of one row by its key."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg

from core.lifecycle import Keeper
from core.store import Store

from .figures import Figure
from .ground import Ground
from .meter import Cost, Meter, in_turns, timed
from .providers import Nothing

NAME = "touch"
LIVE = 1_000_000
TOUCHED = 20_000  # sessions, all over the table
TIMES = 1_500  # operations in a round
OPEN_TURNS = 1_000
BASE = "UPDATE sessions SET last_activity_at = statement_timestamp() WHERE id = "


def run(here: Ground, live: int = LIVE) -> Iterator[Figure]:
    """The figures, as they are found."""
    here.grow(live)
    store = here.store()
    chance = random.Random(1)
    ids = [f"conv-{10 * number + 1}" for number in chance.sample(range(live // 10), TOUCHED)]

    def picked() -> list[str]:
        return chance.choices(ids, k=TIMES)

    with here.connect() as counters, here.connect() as raw, Keeper(store, Nothing()) as keeper:
        meter = Meter(counters)
        _warm(raw, ids)
        works: dict[str, Callable[[], Cost]] = {
            "psycopg": lambda: meter.of(lambda: _raw(raw, picked()), TIMES),
            "store": lambda: meter.of(lambda: _each(store.sessions.touch, picked()), TIMES),
            "keeper": lambda: meter.of(lambda: _each(keeper.touch, picked()), TIMES),
            "turn": lambda: meter.of(lambda: _turns(keeper, picked()), TIMES),
            "beat": lambda: _beat(meter, store, live),
        }
        if pgbench := shutil.which("pgbench"):
            works["pgbench"] = lambda: _pgbench(pgbench, here, live)
        found = in_turns(works)
    yield from _figures(found)
    here.close()  # a connection tells its counts when it ends
    with here.connect() as counters:
        yield Figure(
            bench=NAME,
            what="updates of sessions that touch no index",
            ours=100 * Meter(counters).hot_share(),
            unit="%",
            at_least=99,
        )


def _figures(found: dict[str, Cost]) -> Iterator[Figure]:
    base, touch, turn, beat = (found[name] for name in ("psycopg", "keeper", "turn", "beat"))
    peer = "one plain UPDATE"
    figure = partial(Figure, bench=NAME)
    beside = partial(figure, peer_is=peer)
    took = partial(figure, unit="s")
    yield beside(
        what="touch, CPU of the server", ours=touch.cpu, peer=base.cpu, unit="s", at_most=1.1
    )
    yield beside(
        what="touch, write-ahead log", ours=touch.wal, peer=base.wal, unit="B", at_most=1.1
    )
    yield took(
        what="touch by the store",
        ours=found["store"].seconds,
        peer=base.seconds,
        peer_is=f"{peer}, psycopg",
    )
    if limit := found.get("pgbench"):
        yield took(
            what="touch by Lifecycle",
            ours=touch.seconds,
            peer=limit.seconds,
            peer_is=f"{peer}, pgbench",
            at_most=2.5,
        )
    yield took(
        what="begin and end of a turn",
        ours=turn.seconds,
        peer=2 * touch.seconds,
        peer_is="two touches",
        at_most=1.5,
    )
    yield took(
        what=f"heartbeat of one of {OPEN_TURNS:,} open turns",
        ours=beat.seconds,
        peer=touch.seconds,
        peer_is="a touch",
        at_most=0.2,
    )
    yield from _server(figure, found)


def _server(figure: Callable[..., Figure], found: dict[str, Cost]) -> Iterator[Figure]:
    """What the cost model of docs/performance.md is made of."""
    touch = found["keeper"]
    for what, cost, touches, peer in (
        ("begin and end of a turn", found["turn"], 2, "two touches"),
        (f"heartbeat of one of {OPEN_TURNS:,}", found["beat"], 1, "a touch"),
    ):
        same = partial(figure, peer_is=peer)
        yield same(what=f"{what}, CPU", ours=cost.cpu, peer=touches * touch.cpu, unit="s")
        yield same(what=f"{what}, log", ours=cost.wal, peer=touches * touch.wal, unit="B")


def _warm(raw: psycopg.Connection, ids: list[str]) -> None:
    """The first change of a page after a checkpoint logs it whole: all of these had theirs."""
    raw.execute("CHECKPOINT")
    raw.execute(
        "UPDATE sessions SET last_activity_at = statement_timestamp() WHERE id = ANY(%s)", [ids]
    )


def _raw(connection: psycopg.Connection, ids: list[str]) -> None:
    statement = f"{BASE}%s".encode()
    for session_id in ids:
        connection.execute(statement, [session_id], prepare=True)


def _each(touch: Callable[[str], None], ids: list[str]) -> None:
    for session_id in ids:
        touch(session_id)


def _turns(keeper: Keeper, ids: list[str]) -> None:
    for session_id in ids:
        with keeper.turn(session_id):
            pass


def _beat(meter: Meter, store: Store, live: int) -> Cost:
    """All the heartbeats of a process with so many open turns; a heartbeat is one of them."""
    turns = [f"turn-{10 * number + 2}" for number in range(min(OPEN_TURNS, live // 10))]
    rounds = 5

    def beat() -> None:
        for _ in range(rounds):
            refused = store.turns.beat(turns)
            assert not refused, refused

    return meter.of(beat, rounds * len(turns))


def _pgbench(pgbench: str, here: Ground, live: int) -> Cost:
    """Only its time: its own connection is gone when it says how long it took."""
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "touch.sql"
        script.write_text(
            f"\\set n random(0, {live // 10 - 1}) * 10 + 1\n{BASE}'conv-' || :n;\n",
            encoding="utf-8",
        )
        command = [pgbench, "--no-vacuum", "--protocol=prepared", "--client=1"]
        command += [f"--transactions={TIMES}", f"--file={script}", here.url]
        seconds = timed(lambda: subprocess.run(command, check=True, capture_output=True))
    return Cost(seconds=seconds / TIMES, cpu=0.0, wal=0.0)
