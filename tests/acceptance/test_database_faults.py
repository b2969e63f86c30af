from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.processes import Sampler
from tests.acceptance.site import Site, Stack
from tests.chaos.servers import Postgresql
from tests.conftest import migrate

TTL = 2.0
LIVE = 20
HOUR = 3600.0


@pytest.fixture
def postgresql() -> Iterator[Postgresql]:
    """A PostgreSQL server of our own, which may be stopped, and whose clock may be stepped."""
    with ExitStack() as exits:
        yield Postgresql(exits)


@pytest.fixture
def broken_site(postgresql: Postgresql, tmp_path: Path, queue_prefix: str) -> Iterator[Site]:
    """An installation on it: 20 live turns, and one session that is silent for good."""
    migrate(postgresql.url)
    stack = Stack(
        name="postgresql+folder",
        database_url=postgresql.url,
        broker_url=f"sandkeeper+filesystem:///{tmp_path / 'broker'}",
        queue_prefix=queue_prefix,
        wipe=lambda: None,
    )
    # A clock that steps makes creates late and provider TTLs short; neither is what this is about.
    with Site(stack, tmp_path, IDLE_TTL=TTL, BACKSTOP="none", CREATE_DEADLINE=30) as site:
        site.worker()
        site.beat()
        yield site


def test_an_outage_of_three_ttls_harms_no_live_turn(
    broken_site: Site, postgresql: Postgresql
) -> None:
    """S5: when the database is back, heartbeats come before the second look of any sweep."""
    site = broken_site
    with Sampler(site.root) as sampler:
        api = site.api("hold", silent=[f"live-{n}" for n in range(LIVE)], chatty=[])
        site.until(lambda: len(api.said("begun")) == LIVE, "all turns began", 60)
        begun = max(line["at"] for line in api.said("begun"))
        site.keeper.open("silent")
        site.keeper.close()

        postgresql.server.signal(signal.SIGKILL)
        postgresql.server.wait(10)
        time.sleep(3 * TTL)
        postgresql.server.start()
        site.until(lambda: site.gone("silent"), "the silent one was reaped after it", 60)
        ended = time.time()
        api.tell("end")
        site.until(lambda: len(api.said("ended")) == LIVE, "all turns ended", 30)

    assert api.said("lost") == []
    for number in range(LIVE):
        assert sampler.absences(site.name(f"live-{number}"), begun, ended) == []
    api.program.kill()
    site.wait_until_gone()
    site.assert_nothing_left()


@pytest.mark.parametrize("step", [2 * HOUR, -HOUR], ids=["ahead", "back"])
def test_a_clock_that_steps_harms_no_live_turn(
    broken_site: Site, postgresql: Postgresql, step: float
) -> None:
    """S5, F27: two hours ahead, or one back; live turns live, and silent sessions are reaped."""
    if not postgresql.has_clock:
        pytest.skip("libfaketime is not installed")
    site = broken_site
    with Sampler(site.root) as sampler:
        api = site.api("hold", silent=[f"live-{n}" for n in range(LIVE)], chatty=[])
        site.until(lambda: len(api.said("begun")) == LIVE, "all turns began", 60)
        begun = max(line["at"] for line in api.said("begun"))
        site.keeper.open("silent")
        before = site.session("silent")

        postgresql.step(step)
        site.until(lambda: site.gone("silent"), "the silent one was reaped all the same", 60)
        ended = time.time()
        api.tell("end")
        site.until(lambda: len(api.said("ended")) == LIVE, "all turns ended", 30)

    after = site.session("silent")
    assert before is not None
    assert after is not None
    stepped = (after.ended_at - before.opened_at).total_seconds()
    assert abs(stepped - step) < HOUR / 2, "the database's clock did step"
    assert api.said("lost") == []
    for number in range(LIVE):
        assert sampler.absences(site.name(f"live-{number}"), begun, ended) == []
    api.program.kill()
    site.wait_until_gone()
    site.assert_nothing_left()
