from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.acceptance.processes import Sampler
from tests.acceptance.site import Api, Site

TTL = 1.5


@pytest.mark.parametrize("stack", ["sqlite+folder", "postgresql+rabbitmq"], indirect=True)
def test_a_turn_lives_exactly_as_long_as_its_heartbeats(make_site: Callable[..., Site]) -> None:
    """
    S1: a turn that is silent for ten times the TTL keeps its sandbox. L1: one whose process died
    does not. S1, S3: one whose process was stopped for too long is refused when it wakes, and
    the next generation, which it opens then, is not touched by anything late.
    """
    site = make_site(IDLE_TTL=TTL)
    site.worker()
    site.beat()

    with Sampler(site.root) as sampler:
        long = site.api("hold", silent=["long"], chatty=[])
        dies = site.api("hold", silent=["dies"], chatty=[])
        sleeps = site.api("sleeper", id="sleeps")
        for api in (long, dies, sleeps):
            site.until(lambda: api.said("begun"), "its turn began", 30)  # noqa: B023 - awaited here
        _stop_outside_a_transaction(site, sleeps, "sleeps")
        died = dies.program.kill()
        site.until(lambda: site.gone("sleeps"), "the stopped one's session ended")
        sleeps.program.signal(signal.SIGCONT)
        site.until(lambda: sleeps.said("again"), "it opened the next generation", 15)
        site.until(lambda: site.gone("dies"), "the dead one's sandbox is gone")
        begun = long.said("begun")[0]["at"]
        site.until(lambda: time.time() > begun + 10 * TTL, "ten TTLs passed", 60)
        ended = time.time()
        for api in (long, sleeps):
            api.tell("end")
            site.until(lambda: api.said("ended"), "its turn ended", 15)  # noqa: B023 - awaited here
        site.wait_until_gone()

    assert long.said("lost") == []
    assert sampler.absences(site.name("long"), begun, ended) == []
    assert sampler.last_seen({site.name("dies")}) - died < site.bound
    (refused,) = sleeps.said("refused")
    assert refused["type"] == "SessionEnded"
    (opened,) = sleeps.said("open")
    assert opened["generation"] == 2
    assert opened["reset_reason"] == "idle"
    (again,) = sleeps.said("again")
    assert again["fresh"]
    assert sampler.absences(site.name("sleeps", 2), again["at"], ended) == []
    site.assert_nothing_left()


def _stop_outside_a_transaction(site: Site, api: Api, session_id: str) -> None:
    """
    A process that is stopped while it writes holds its locks: on SQLite the whole database's,
    until it is continued, and on PostgreSQL its row's for 20 s. This test is about turns.
    """
    while True:
        api.program.signal(signal.SIGSTOP)
        if not site.is_locked(session_id):
            return
        api.program.signal(signal.SIGCONT)
