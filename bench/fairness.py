"""A small tenant behind a big one's backlog: until its teardowns are done, beside first come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from core.reaper import Reaper

from .figures import Figure
from .fleet import fleet, is_alive
from .ground import Ground
from .teardown import close_all

NAME = "fairness"
BIG, SMALL = 20_000, 10
THREADS = 8
AT_WORK = 500  # of the big one's, when the small one's come due
PATIENCE = 600.0  # seconds
LOOK_EVERY = 0.05
# conv-1 and on are the big one's; the last ones wait until they are called.
SMALLS = "session_id IN (SELECT 'conv-' || n FROM generate_series({first}, {last}) n)"
DUE = "UPDATE sandboxes SET due_at = now(), not_before = now()"


def run(here: Ground) -> Iterator[Figure]:
    """The figure: both ways from the same rows, with the same worker."""
    from tasks.app import app  # noqa: PLC0415 - the settings are read at import
    from tasks.doorbell import FanOut  # noqa: PLC0415 - likewise

    with fleet() as own:
        ring = FanOut(app)

        def ours() -> None:
            Reaper(here.store(), {}, doorbell=ring).sweep()

        def first_come() -> None:
            # What is in flight already is published no second time; this is the order of dates.
            with here.connect() as connection:
                rows = connection.execute(
                    "UPDATE sandboxes SET due_at = now() + interval '1 hour' "
                    "WHERE state = 'closing' AND due_at <= now() RETURNING session_id, generation"
                ).fetchall()
            for first in range(0, len(rows), 500):
                ring(rows[first : first + 500])

        took = {}
        for name, sweep in (("ours", ours), ("first come", first_come)):
            close_all(here, BIG + SMALL)
            smalls = SMALLS.format(first=BIG + 1, last=BIG + SMALL)
            here.run(f"UPDATE sandboxes SET tenant = 'small' WHERE {smalls}")  # noqa: S608 - ours
            here.run(f"{DUE} WHERE NOT {smalls}")
            sweep()
            with own.worker(here, pool="threads", concurrency=THREADS) as pid:
                _wait(here, "TRUE", BIG + SMALL - AT_WORK, lambda pid=pid: is_alive(pid))  # type: ignore[misc]
                here.run(f"{DUE} WHERE {smalls}")
                began = time.perf_counter()
                sweep()
                _wait(here, smalls, 0, lambda pid=pid: is_alive(pid))  # type: ignore[misc]
                took[name] = time.perf_counter() - began
            own.forget()
    yield Figure(
        bench=NAME,
        what=f"{SMALL} teardowns of one tenant, behind {BIG:,} of another, from due to gone",
        ours=took["ours"],
        peer=took["first come"],
        peer_is="first come, first served",
        unit="s",
    )


def _wait(here: Ground, which: str, left: int, alive: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    count = f"SELECT count(*) FROM sandboxes WHERE state = 'closing' AND {which}".encode()  # noqa: S608 - ours
    with here.connect() as connection:
        while int((connection.execute(count).fetchone() or [0])[0]) > left:
            assert alive(), "the worker died"
            assert time.monotonic() < until, "it takes for ever"
            time.sleep(LOOK_EVERY)
