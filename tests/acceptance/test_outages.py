from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.acceptance.site import SLACK, Site


def test_what_went_idle_while_nobody_reaped_is_gone_soon_after(site: Site) -> None:
    """
    L1: beat and the only worker are killed and stay away for longer than the TTL. S3: two beats
    and two workers come back at once, and each session is ended once all the same.
    """
    worker, beat = site.worker(), site.beat()
    site.until(site.swept_at, "a sweep ran")
    ids = [f"conv-{n}" for n in range(6)]
    for of in ids:
        site.keeper.open(of)
    beat.kill()
    worker.kill()
    site.until(lambda: all(_is_idle(site, of) for of in ids), "all sessions are over their TTL")
    assert site.alive() == set(site.names())

    back = time.time()
    for _ in range(2):
        site.worker()
        site.beat()
    site.wait_until_gone()

    last = max(row.gone_at for row in site.sandboxes()).timestamp()
    assert last - back < 3 * site.timings["SWEEP_INTERVAL"] + SLACK
    assert {row.session_id for row in site.sandboxes()} == set(ids)
    site.assert_nothing_left()


def _is_idle(site: Site, session_id: str) -> bool:
    row = site.session(session_id)
    assert row is not None
    over: float = row.last_activity_at.timestamp() + site.timings["IDLE_TTL"]
    return over < time.time()


def test_a_broker_that_forgets_everything_costs_a_lease(make_site: Callable[..., Site]) -> None:
    """
    L1, L2: a broker that is wiped between publication and delivery, and again under a worker and
    a beat that live, delays teardowns by the publish lease at most: the row is due again.
    """
    site = make_site(IDLE_TTL=60.0, PUBLISH_LEASE=4.0)
    bound = site.timings["PUBLISH_LEASE"] + 3 * site.timings["SWEEP_INTERVAL"] + SLACK
    first, second = ([f"{name}-{n}" for n in range(5)] for name in ("unheard", "later"))
    for of in (*first, *second):
        site.keeper.open(of)
    worker = site.worker()
    site.until(site.swept_at, "a sweep ran")
    worker.kill()
    site.beat()

    for of in first:
        site.keeper.end(of)
    swept = site.run("-m", "tasks.cli", "sweep", "--json")
    site.stack.wipe()
    unheard = {row.claim_token for row in site.sandboxes()}
    site.worker()
    site.until(lambda: all(site.gone(of) for of in first), "they were published again", bound)
    site.stack.wipe()
    for of in second:
        site.keeper.end(of)
    site.until(lambda: all(site.gone(of) for of in second), "later ones are published", bound)

    assert json.loads(swept.stdout)[0]["published"] == len(first), swept.stderr
    assert unheard == {0}
    site.assert_nothing_left()


@pytest.mark.parametrize("stack", ["sqlite+folder"], indirect=True)
def test_eager_mode_runs_everything_inline(site: Site) -> None:
    """A sweep ends, tears down and confirms where it is called: no worker, no beat."""
    api = site.api("eager", ids=["ended", "idle-1", "idle-2"])

    site.until(lambda: api.said("all_gone"), "the eager sweeps did it all", 30)

    assert api.said("ended_one")[0]["state"] == "gone"
    reports = [line["report"] for line in api.said("swept")]
    assert sum(report["noticed"] for report in reports) == 2
    assert sum(report["ended"] for report in reports) == 2
    assert sum(report["published"] for report in reports) == 2
    site.assert_nothing_left()
