"""The naive variants, each with the promise that it breaks and where that shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .configurations import CONFIGURATIONS
from .promises import L1, L2, L3, L4, S1, S2, S3, S4, S5
from .setup import Naive, Setup


@dataclass(frozen=True)
class Mutant:
    """`naive` in the configuration `where` breaks `promise`."""

    name: str
    promise: str
    where: str
    naive: frozenset[Naive]

    @property
    def setup(self) -> Setup:
        return replace(CONFIGURATIONS[self.where], naive=self.naive)


def _mutant(promise: str, where: str, *naive: Naive) -> Mutant:
    name = naive[0].name.lower().replace("_", "-")
    return Mutant(name, promise, where, frozenset(naive))


MUTANTS = (
    _mutant(S1, "reconcile", Naive.RECORD_AFTER_CREATE),
    _mutant(S1, "restore", Naive.NO_GRACE),
    # The grace covers for the order as well, so it goes with it.
    _mutant(S1, "reconcile", Naive.STORE_FIRST, Naive.NO_GRACE),
    _mutant(S1, "turns", Naive.NO_HEARTBEATS),
    _mutant(S1, "turns", Naive.ENQUEUE_BLINDLY),
    _mutant(S1, "turns", Naive.ENQUEUE_AND_LOOK),
    _mutant(S3, "generations", Naive.NAME_WITHOUT_GENERATION),
    _mutant(S3, "teardown", Naive.WRITES_WITHOUT_TOKEN),
    _mutant(L1, "teardown", Naive.NO_REPUBLICATION),
    _mutant(S4, "reconcile", Naive.LOST_FROM_A_LIST),
    _mutant(L1, "hangs", Naive.NO_CEILING),
    _mutant(S3, "restore", Naive.NAMES_REUSED),
    _mutant(S1, "restore", Naive.NO_AMNESTY),
    _mutant(S1, "restore", Naive.WORKERS_RUNNING),
    _mutant(S1, "restore", Naive.ROWLESS_BREAKER_OFF),
    _mutant(S5, "turns", Naive.FIRST_SIGHT),
    _mutant(S1, "opening", Naive.CLEANS_UP_AFTER_ITSELF),
    _mutant(S5, "held", Naive.HOLD_IGNORED),
    _mutant(S2, "rowless", Naive.OWNERSHIP_UNCHECKED),
    _mutant(S4, "teardown", Naive.FAILED_LOOK_IS_ABSENCE),
    _mutant(L3, "teardown", Naive.NEVER_RETRIED),
    _mutant(L2, "teardown", Naive.MISSING_DUE),
    _mutant(L4, "rowless", Naive.ROWLESS_IGNORED),
    _mutant(L1, "opening", Naive.ORPHANS_IGNORED),
)
