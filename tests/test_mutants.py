"""The tests are tested: without its safeguard every promise is broken, and some test says so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.mutant_runs import run
from tests.mutants import MUTANTS, ROOT, Mutant, copy_tree
from tests.mutants_doctor import DOCTOR_MUTANTS
from tests.mutants_health import HEALTH_MUTANTS
from tests.mutants_policies import POLICIES_MUTANTS
from tests.mutants_reconcile import RECONCILE_MUTANTS
from tests.mutants_tallies import TALLIES_MUTANTS
from tests.mutants_web import WEB_MUTANTS

EVERY = (
    *MUTANTS,
    *RECONCILE_MUTANTS,
    *HEALTH_MUTANTS,
    *TALLIES_MUTANTS,
    *WEB_MUTANTS,
    *DOCTOR_MUTANTS,
    *POLICIES_MUTANTS,
)
# One in three every time, of all tables; all when they are asked for, which takes some minutes.
TRIED = EVERY if os.environ.get("MUTANTS") == "all" else EVERY[::3]


@pytest.fixture
def tree() -> Iterator[Path]:
    """Where a copy of the tree goes; it does not stay, there are many."""
    with TemporaryDirectory(prefix="sandkeeper-mutant-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("mutant", TRIED, ids=lambda mutant: mutant.name)
@pytest.mark.timeout(600)
def test_a_safeguard_that_is_taken_away_is_missed(mutant: Mutant, tree: Path) -> None:
    """No mutant survives: a test fails, which is more than that something went wrong."""
    ran = run(copy_tree(tree, mutant), mutant.tests, "-x", "--timeout=60")

    assert ran.returncode == 1, f"{mutant.promise}: {ran.output}"
    assert re.search(r"\b1 failed\b", ran.output), f"{mutant.promise}: {ran.output}"


@pytest.mark.timeout(1200)
def test_nothing_is_missed_where_nothing_is_taken_away(tree: Path) -> None:
    """No test fails by accident: unchanged sources pass all of them."""
    every = sorted({test for mutant in TRIED for test in mutant.tests})

    ran = run(copy_tree(tree), every)

    assert ran.returncode == 0, ran.output


def test_mutants_are_told_apart_by_name() -> None:
    """The name is what a failure is reported by."""
    assert len({mutant.name for mutant in EVERY}) == len(EVERY)


@pytest.mark.parametrize("mutant", EVERY, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_of_the_sources(mutant: Mutant) -> None:
    """Where the code moved on, the table moves with it, also for those that are seldom tried."""
    assert mutant.source() != (ROOT / mutant.file).read_text(encoding="utf-8")
