"""The tests are tested: without its safeguard every promise is broken, and some test says so."""

from __future__ import annotations

import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, copy_tree, run
from tests.mutants_doctor import DOCTOR_MUTANTS
from tests.mutants_health import HEALTH_MUTANTS
from tests.mutants_reconcile import RECONCILE_MUTANTS
from tests.mutants_tallies import TALLIES_MUTANTS
from tests.mutants_web import WEB_MUTANTS

SIDE_BY_SIDE = 2  # mutants at a time: each is a pytest of its own
EVERY = (
    *MUTANTS,
    *RECONCILE_MUTANTS,
    *HEALTH_MUTANTS,
    *TALLIES_MUTANTS,
    *WEB_MUTANTS,
    *DOCTOR_MUTANTS,
)
# One in three every time, of all tables; all when they are asked for, which takes ten minutes.
ALL = os.environ.get("MUTANTS") == "all"
TRIED = EVERY if ALL else EVERY[::3]


def outcome(mutant: Mutant, tree: Path) -> str:
    """Empty when it was noticed, else what happened instead."""
    ran = run(copy_tree(tree, mutant), mutant.tests, "-x", "--timeout=60")
    red = ran.returncode == 1 and re.search(r"\b1 failed\b", ran.stdout) is not None
    return "" if red else f"{mutant.name} ({mutant.promise}): {ran.stdout}{ran.stderr}"


@pytest.mark.timeout(7200 if ALL else 900)
def test_every_safeguard_that_is_taken_away_is_missed(tmp_path: Path) -> None:
    """No mutant survives, and no test fails by accident: unchanged sources pass all of them."""
    every = sorted({test for mutant in TRIED for test in mutant.tests})
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        control = pool.submit(lambda: run(copy_tree(tmp_path / "control"), every))
        judged: list[Future[str]] = [
            pool.submit(outcome, mutant, tmp_path / f"mutant-{number}")
            for number, mutant in enumerate(TRIED)
        ]
        survivors = [future.result() for future in judged if future.result()]
        unchanged = control.result()

    assert not survivors, "\n".join(survivors)
    assert unchanged.returncode == 0, unchanged.stdout + unchanged.stderr


def test_mutants_are_told_apart_by_name() -> None:
    """The name is what a failure is reported by."""
    assert len({mutant.name for mutant in EVERY}) == len(EVERY)


@pytest.mark.parametrize("mutant", EVERY, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_of_the_sources(mutant: Mutant) -> None:
    """Where the code moved on, the table moves with it, also for those that are seldom tried."""
    assert mutant.source() != (ROOT / mutant.file).read_text(encoding="utf-8")
