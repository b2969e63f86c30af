"""Comparing a provider with the store: what it takes beyond what the provider takes itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice

import psycopg

from core.engines import opened
from core.model import sandbox_labels, sandbox_name
from core.providers.base import Capability, Page, ProviderState, SandboxInfo, SandboxRef
from core.reconcile import Reconciler, ReconcileReport
from core.store import Store

from .figures import Figure
from .ground import Ground
from .meter import timed
from .processes import alone, forget_peak, peak
from .providers import Nothing

NAME = "reconcile"
ROWS = 110_000  # of a crowd: what runs and what closes of it is listed, 100,100
PAGE = 100  # sandboxes; many providers give no more at a time
LONGEST_ROUND = 1_000  # passes
# A crowd's keys are numbers; ours have no 0, 1, 8 and 9.
LETTERS = str.maketrans("0123456789", "abcdefghij")
KEYS = (
    "ALTER TABLE sandboxes DISABLE TRIGGER sandboxes_monotone",
    "UPDATE sandboxes SET key = translate(key, '0123456789', 'abcdefghij')",
    "ALTER TABLE sandboxes ENABLE TRIGGER sandboxes_monotone",
    "VACUUM ANALYZE sandboxes",
)
# The least that compares: every row that is not gone.
BARE = b"SELECT key, external_id, state FROM sandboxes WHERE state <> 'gone'"


@dataclass(kw_only=True)
class Crowded(Nothing):
    """A provider that has a crowd's sandboxes. It makes them as it shows them, and keeps none."""

    installation: str
    rows: int
    capabilities: frozenset[Capability] = frozenset({Capability.LIST})
    took: float = 0.0  # seconds in its own calls
    asked: int = 0

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """The next page, in the order of their numbers."""
        began = time.perf_counter()
        numbers = [*islice(self.numbers(int(cursor or 0) + 1), PAGE)]
        last = len(numbers) < PAGE
        page = Page(
            items=tuple(self._shown(number) for number in numbers),
            cursor=None if last else str(numbers[-1]),
        )
        self.took += time.perf_counter() - began
        return page

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """Nothing is missing, so nobody should ask."""
        self.asked += 1
        return None

    def numbers(self, first: int = 1) -> Iterator[int]:
        """Of those that are not gone."""
        return (n for n in range(first, self.rows + 1) if n % 10 or n % 100 == 0)

    def _shown(self, number: int) -> SandboxInfo:
        key = f"{number:026}".translate(LETTERS)
        name = sandbox_name(self.installation, key)
        return SandboxInfo(
            ref=SandboxRef(name=name, external_id=f"box-{number}"),
            state=ProviderState.RUNNING,
            labels=sandbox_labels(self.installation, key, f"conv-{number}", 1, datetime.now(UTC)),
        )


def run(here: Ground) -> Iterator[Figure]:
    """The figures."""
    prepare(here, ROWS)
    found = alone(whole_round, here.url, ROWS)
    bare = timed(lambda: _compare(here, found["listed"]))
    figure = partial(Figure, bench=NAME)
    listed = f"{found['listed']:,} listed"
    yield figure(
        what=f"{listed}, one pass, beyond the provider's own time",
        ours=found["first"],
        peer=bare,
        peer_is="SELECT of all, compared in Python",
        unit="s",
    )
    yield figure(
        what=f"{listed}, all rows compared with it: {found['passes']:.0f} passes",
        ours=found["seconds"],
        unit="s",
        at_most=10,
    )
    yield figure(what="its process, at most", ours=found["peak"], unit="MB", at_most=200)
    yield figure(what="of it, above the same process before", ours=found["grown"], unit="MB")


def prepare(here: Ground, rows: int) -> None:
    """Let there be so many rows, with keys like ours."""
    here.grow(rows)
    for statement in KEYS:
        here.run(statement)


def whole_round(url: str, rows: int) -> dict[str, float]:
    """
    Passes until every running row was looked for once, in a process of its own. Seconds are
    those that the provider did not take.
    """
    with opened(url) as engine:
        store = Store(engine)
        provider = Crowded(installation=store.installation, rows=rows)
        reconciler = Reconciler(store, {provider.name: provider})
        forget_peak()
        before = peak()
        reports, seconds = list[ReconcileReport](), list[float]()
        while True:
            own = provider.took
            took = timed(lambda: reports.extend(reconciler.reconcile()))
            seconds.append(took - (provider.took - own))
            if not store.inventory.begin(provider.name).cursor:
                break
            assert len(reports) < LONGEST_ROUND, "the round does not come to its end"
        _check(reports, provider)
        return {
            "listed": reports[0].listed,
            "passes": len(reports),
            "first": seconds[0],
            "seconds": sum(seconds),
            "peak": peak(),
            "grown": peak() - before,
        }


def _check(reports: list[ReconcileReport], provider: Crowded) -> None:
    """A pass that explains all that is there, and a round that misses nobody."""
    listed = sum(1 for _ in provider.numbers())
    running = sum(1 for n in provider.numbers() if n % 10)
    for report in reports:
        assert report.listed == listed, report
        assert report.explained == running, report
        assert report.closing == listed - running, report
    assert sum(report.scanned for report in reports) == running, reports
    assert provider.asked == 0, reports


def _compare(here: Ground, listed: int) -> None:
    with psycopg.connect(here.url) as connection:
        rows = {key: (external_id, state) for key, external_id, state in connection.execute(BARE)}
    there = {f"{n:026}".translate(LETTERS): f"box-{n}" for n in range(1, ROWS + 1)}
    assert len(rows) == listed
    assert all(there.get(key) == external_id for key, (external_id, _) in rows.items())
