from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.api import STEPS
from tests.acceptance.site import Site

NEVER_COMMITTED = "before the intent is committed"
BEGUN = {"after the begin of a turn is committed", "in a turn"}


@pytest.mark.parametrize("stack", ["sqlite+folder", "postgresql+redis"], indirect=True)
def test_an_open_that_was_killed_at_any_step_is_adopted_or_goes_away(
    make_site: Callable[..., Site],
) -> None:
    """
    L1: kill -9 at each step of open and of a turn; nobody comes back, or somebody opens the same
    session at once. Never two sandboxes for one session: a second open adopts what the first made.
    """
    site = make_site(CREATE_DEADLINE=12.0)
    deserted = {f"deserted-{n}": step for n, step in enumerate(STEPS)}
    adopted = {f"adopted-{n}": step for n, step in enumerate(STEPS)}

    api = site.api("steps", victims={**deserted, **adopted}, adopt=list(adopted))
    site.until(lambda: api.said("all_dead"), "all victims are dead", 40)
    twins = [name for name, count in _supervisors(site).items() if count != 1]
    # Not before: a sweep that comes first would rightly make the second open a new generation.
    reaping = time.time()
    site.worker()
    site.beat()
    site.wait_until_gone()

    assert api.said("failed") == []
    assert {line["exit"] for line in api.said("victim")} == {-9}
    assert {line["exit"] for line in api.said("adopter")} == {0}
    assert twins == []
    assert len(api.said("adopted")) == len(adopted)
    for line in api.said("adopted"):
        _assert_adopted(site, line, adopted[line["id"]])
    _assert_rows(site, deserted, adopted)
    for line in api.said("victim"):
        if line["id"] in deserted and deserted[line["id"]] != NEVER_COMMITTED:
            row = site.sandbox(line["id"])
            assert row is not None
            assert row.gone_at.timestamp() - max(line["at"], reaping) < site.bound
    site.assert_nothing_left()


def _supervisors(site: Site) -> Counter[str]:
    """How many process trees each sandbox has."""
    processes = site.processes()
    marked = {seen.pid for seen in processes}
    return Counter(seen.sandbox for seen in processes if seen.parent not in marked)


def _assert_adopted(site: Site, line: dict[str, Any], step: str) -> None:
    row = site.sandbox(line["id"])
    assert row is not None, step
    assert line["generation"] == 1, step
    assert line["name"] == site.name(line["id"]), step
    assert line["external_id"] == row.external_id, step
    assert line["fresh"] is (step not in BEGUN), step


def _assert_rows(site: Site, deserted: dict[str, str], adopted: dict[str, str]) -> None:
    """One generation each, and only what was committed."""
    expected = {of for of, step in deserted.items() if step != NEVER_COMMITTED} | set(adopted)
    assert Counter(row.session_id for row in site.sandboxes()) == Counter(expected)
