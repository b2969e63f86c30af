"""The sweep, when nothing is due and when much is; beside whoever reads every session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from statistics import median

import psycopg

from core.reaper import Reaper, SweepReport

from .figures import Figure
from .ground import POLICY, Ground
from .meter import timed

NAME = "sweep"
FEW, MANY = 10_000, 1_000_000
LEAST = 1_000_000  # every tenth of them is one that can be made due
SWEEPS = 40  # of an empty sweep
DUE = (100, 10_000, 100_000)
COMPARED = 10_000
ROUNDS = 3
UNBOUNDED = replace(POLICY, in_flight=max(DUE))
IDLE_TTL = timedelta(minutes=30)

# Those numbered `first` and on, in steps of ten: they are active in every crowd.
THESE = "WHERE id IN (SELECT 'conv-' || (n * 10 + {digit}) FROM generate_series({first}, {last}) n)"
IDLE = (
    "UPDATE sessions SET due_at = now() - interval '1 minute', "
    "last_activity_at = now() - interval '2 hours' "
)
NOTICED = (
    "UPDATE sessions SET noticed_at = now() - interval '1 hour', "
    "noticed_activity_at = last_activity_at, due_at = now() - interval '1 minute' "
)
ACTIVE = "UPDATE sessions SET due_at = now() - interval '1 minute', last_activity_at = now() "

# The least that ends a session: its row, its sandbox's and the ledger's, a batch a statement.
BARE = b"""
WITH due AS (
    SELECT id FROM sessions WHERE status = 'active' AND due_at <= statement_timestamp()
    ORDER BY due_at LIMIT 500 FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE sessions AS s SET status = 'ended', ended_at = statement_timestamp(),
        end_reason = 'idle' FROM due WHERE s.id = due.id RETURNING s.id, s.generation
), closed AS (
    UPDATE sandboxes AS b SET state = 'closing', closing_at = statement_timestamp(),
        due_at = statement_timestamp(), not_before = statement_timestamp()
    FROM ended WHERE b.session_id = ended.id AND b.generation = ended.generation
    RETURNING b.session_id, b.generation
), told AS (
    INSERT INTO events (at, kind, session_id, generation, actor, detail)
    SELECT statement_timestamp(), 'session_ended', session_id, generation, 'sweep',
        '{"reason": "idle"}' FROM closed
)
SELECT count(*) FROM ended
"""


def run(here: Ground) -> Iterator[Figure]:
    """The figures, as they are found."""
    few = _few(here)
    here.grow(here.many or MANY)
    many = _empty(here)
    yield Figure(
        bench=NAME,
        what=f"nothing due among {here.live:,}",
        ours=many,
        peer=few,
        peer_is=f"among {FEW:,}",
        unit="s",
        at_most=1.5,
    )
    yield Figure(bench=NAME, what="the same", ours=1000 * many, unit="ms", at_most=10)
    yield _everything(here, many)
    for digit, due in enumerate(DUE, start=1):
        yield from _due(here, digit, due)
    yield _compared(here)
    yield from _side_by_side(here)


def _few(here: Ground) -> float:
    here.grow(FEW)
    return _empty(here)


def _reaper(here: Ground) -> Reaper:
    # All of it is published: what would wait for workers is no part of what a sweep costs.
    return Reaper(here.store(UNBOUNDED), {}, doorbell=lambda _: None)


def _empty(here: Ground) -> float:
    """The median of many sweeps that find nothing, the first ones left out."""
    reaper = _reaper(here)
    for _ in range(5):
        _expect(reaper.sweep(), SweepReport())
    return median(timed(reaper.sweep) for _ in range(SWEEPS))


def _everything(here: Ground, ours: float) -> Figure:
    """What almost everybody writes first: read all that is active, and look at each."""
    with here.connect() as connection:
        theirs = median(timed(lambda: _select_everything(connection)) for _ in range(ROUNDS))
    return Figure(
        bench=NAME,
        what=f"nothing due among {here.live:,}",
        ours=ours,
        peer=theirs,
        peer_is="SELECT every active one, compare in Python",
        unit="s",
    )


def _select_everything(connection: psycopg.Connection) -> None:
    rows = connection.execute("SELECT id, last_activity_at FROM sessions WHERE status = 'active'")
    until = datetime.now().astimezone() - IDLE_TTL
    assert not [session_id for session_id, active_at in rows if active_at < until]


def _due(here: Ground, digit: int, due: int) -> Iterator[Figure]:
    """Look at these, notice these, end these: each sweep takes its batches until one is short."""
    these = THESE.format(digit=digit, first=0, last=min(due, here.live // 10) - 1)
    for what, prepared, expected in (
        ("looked at again", ACTIVE, SweepReport(rearmed=due)),
        ("noticed", IDLE, SweepReport(noticed=due)),
        ("ended and published", NOTICED, SweepReport(ended=due, published=due)),
    ):
        _prepare(here, prepared + these)
        reaper = _reaper(here)
        took = timed(lambda reaper=reaper, expected=expected: _expect(reaper.sweep(), expected))  # type: ignore[misc]
        yield Figure(
            bench=NAME,
            what=f"each of {due:,} of {here.live:,} {what}",
            ours=took / due,
            unit="s",
        )


def _compared(here: Ground) -> Figure:
    """Ours and the bare statement in turns, each on thousands of its own."""
    ours: list[float] = []
    bare: list[float] = []
    for number in range(ROUNDS):
        for digit, took, end in ((4, ours, _end), (5, bare, _end_bare)):
            first = number * COMPARED
            these = THESE.format(digit=digit, first=first, last=first + COMPARED - 1)
            _prepare(here, IDLE + these)
            here.run(NOTICED + these)
            took.append(end(here))
    return Figure(
        bench=NAME,
        what=f"{COMPARED:,} of {here.live:,} ended",
        ours=median(ours),
        peer=median(bare),
        peer_is="the bare SQL of it",
        unit="s",
        at_most=1.5,
    )


def _end(here: Ground) -> float:
    store = here.store()
    return timed(lambda: _until_short(lambda: store.sweeps.sessions(500)[3]))


def _end_bare(here: Ground) -> float:
    with here.connect() as connection:
        return timed(lambda: _until_short(lambda: _one(connection)))


def _one(connection: psycopg.Connection) -> int:
    row = connection.execute(BARE).fetchone()
    return int(row[0]) if row else 0


def _until_short(step: Callable[[], int]) -> None:
    ended = 0
    while (count := step()) == 500:
        ended += count
    assert ended + count == COMPARED, ended + count


def _side_by_side(here: Ground) -> Iterator[Figure]:
    """Several sweepers share what is due, and none does twice what another did."""
    took = {}
    for digit, sweepers in ((6, 1), (7, 4)):
        these = THESE.format(digit=digit, first=0, last=COMPARED - 1)
        _prepare(here, IDLE + these)
        here.run(NOTICED + these)
        reapers = [_reaper(here) for _ in range(sweepers)]
        with ThreadPoolExecutor(sweepers) as pool:
            began = time.perf_counter()
            reports = list(pool.map(lambda reaper: reaper.sweep(), reapers))
            took[sweepers] = time.perf_counter() - began
        assert sum(report.ended for report in reports) == COMPARED, reports
    yield Figure(
        bench=NAME,
        what=f"{COMPARED:,} ended by four sweepers at once",
        ours=took[4],
        peer=took[1],
        peer_is="one sweeper",
        unit="s",
    )


def _prepare(here: Ground, statement: str) -> None:
    here.run(statement)
    here.run("VACUUM ANALYZE sessions")


def _expect(found: SweepReport, expected: SweepReport) -> None:
    assert found == expected, f"the sweep did {found}, and {expected} was due"
