"""
The pages of the dashboard, as a browser has them and as a caller does: `sandkeeper serve` in a
process of its own, PostgreSQL, and a fleet of a hundred thousand, then a million sessions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from statistics import median

from playwright.sync_api import Browser

from core.web.dashboard.shared import KEPT
from tests.services import ServiceMissing
from tests.web.dashboard.chromium import browsing, found

from .due import rows_for
from .figures import Figure
from .ground import Ground
from .web import serving

NAME = "dashboard"
SIZES = (100_000, 1_000_000)  # active sessions
ROUNDS = 5
PAGES = {
    "Fleet": "/",
    "Sessions": "/sessions",
    "Sessions, filtered": "/sessions?idle=600&prefix=conv-9",
    "Sessions, overdue": "/sessions?overdue=1&status=",
    "Sessions, from the middle": "/sessions?after=conv-5",
    "Quarantine": "/quarantine",
    "Session": "/sessions/conv-17",
    "Audit": "/audit?kind=session_ended",
}
AGED = ("Fleet",)  # what is kept for a moment: each look waits until it is asked for again
PAINTED = 1.0  # seconds, of Fleet at the first size: what a person takes for at once
# A ledger as long as a crowd of this size has, for what reads it.
LEDGER = """
INSERT INTO events (at, kind, session_id, generation, actor, detail)
SELECT now() - interval '1 hour', 'session_opened', 'conv-' || n, 1, 'bench', '{{}}'
FROM generate_series({first}, {last}) AS n
"""
PAINT = (
    "() => performance.getEntriesByName('first-contentful-paint').map(one => one.startTime)[0]"
    " / 1000 || null"
)

figure = partial(Figure, bench=NAME, unit="s")


def run(here: Ground, sizes: Sequence[int] = SIZES) -> Iterator[Figure]:
    """The figures, at each of these numbers of active sessions."""
    chromium = found()
    if chromium is None:
        raise ServiceMissing("no Chromium: install Debian's package chromium")
    before: dict[str, tuple[float, float]] = {}
    for live in sizes:
        _grow(here, live)
        with serving("ours", here.url) as port, browsing(chromium) as browser:
            took = {
                name: (_first_byte(port, name), _painted(browser, port, name)) for name in PAGES
            }
        yield from _figures(live, took, before, limited=live == sizes[0])
        before = before or took


def _grow(here: Ground, live: int) -> None:
    first = here.live + 1
    here.grow(rows_for(live))
    here.run(LEDGER.format(first=first, last=here.live))
    here.run("UPDATE installation SET swept_at = now()")
    here.run("VACUUM ANALYZE")


def _figures(
    live: int,
    took: dict[str, tuple[float, float]],
    before: dict[str, tuple[float, float]],
    *,
    limited: bool,
) -> Iterator[Figure]:
    for name, (byte, paint) in took.items():
        peers = before.get(name, (None, None))
        of = partial(figure, live=live, peer_is="at the first size" if before else "")
        yield of(what=f"{name} of {live:,}, first byte", ours=byte, peer=peers[0])
        limit = PAINTED if limited and name == "Fleet" else None
        yield of(what=f"{name} of {live:,}, painted", ours=paint, peer=peers[1], at_most=limit)


def _first_byte(port: int, name: str) -> float:
    """Seconds until an answer begins; each page is rendered as a whole before."""
    took = []
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        for _ in range(ROUNDS):
            _age(name)
            began = time.perf_counter()
            connection.request("GET", PAGES[name])
            answer = connection.getresponse()
            took.append(time.perf_counter() - began)
            text = answer.read()
            assert (answer.status, b"</html>" in text) == (200, True), text[:500]
    return median(took)


def _painted(browser: Browser, port: int, name: str) -> float:
    """Seconds until a browser that was never here shows something, its files fetched too."""
    took = []
    for _ in range(ROUNDS):
        _age(name)
        with closing(browser.new_context(base_url=f"http://127.0.0.1:{port}")) as context:
            page = context.new_page()
            page.goto(PAGES[name])
            took.append(float(page.wait_for_function(PAINT).json_value()))
    return median(took)


def _age(name: str) -> None:
    if name in AGED:
        time.sleep(KEPT + 0.1)
