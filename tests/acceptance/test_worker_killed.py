from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.processes import Program
from tests.acceptance.providers import FailsOften
from tests.acceptance.site import Site

PROVIDERS = "tests.acceptance.providers"


class Hanging:
    """Starts workers whose first destroy of each sandbox hangs, and knows who hangs."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.faults = site.folder / "faults"
        self.faults.mkdir()

    def worker(self, provider: str, **options: Any) -> Program:
        return self.site.worker(
            SANDKEEPER_PROVIDER=f"{PROVIDERS}:{provider}",
            ACCEPTANCE_FAULTS=str(self.faults),
            **options,
        )

    def wait_until_somebody_hangs(self, session_id: str) -> int:
        """The pid of the process that claimed the teardown and is in the middle of it."""
        name = self.site.name(session_id)
        asked = Path(self.faults, name)

        def inside() -> int | None:
            row = self.site.sandbox(session_id)
            assert row is not None
            if row.claimed_by is None or not asked.exists():
                return None
            return int((asked.read_text().split() or ["0"])[0])

        return self.site.until(inside, f"{session_id} is claimed and its teardown hangs")


def test_a_teardown_is_finished_whoever_is_killed_in_the_middle(
    make_site: Callable[..., Site],
) -> None:
    """
    L1, S3: kill -9 of a prefork child, of a worker's parent and of a threads worker, before and
    after the provider did its part. Another worker takes the claim over, once; one event says so.
    """
    site = make_site(IDLE_TTL=60.0, CLAIM_TTL=3.0)
    site.beat()
    ids = ["child", "parent", "threads"]
    for of in ids:
        site.keeper.open(of)
    hanging = Hanging(site)

    prefork = hanging.worker("HangsOnce", pool="prefork", concurrency=2)
    site.keeper.end("child")
    child = hanging.wait_until_somebody_hangs("child")
    assert child != prefork.pid
    os.kill(child, signal.SIGKILL)
    site.until(lambda: site.gone("child"), "the parent's other child finished it", 20)

    site.keeper.end("parent")
    hanging.wait_until_somebody_hangs("parent")
    prefork.kill()
    threads = hanging.worker("HangsOnceAfterwards")
    site.until(lambda: site.gone("parent"), "a new worker finished it", 20)

    site.keeper.end("threads")
    assert hanging.wait_until_somebody_hangs("threads") == threads.pid
    site.until(lambda: site.name("threads") not in site.alive(), "its process is dead", 10)
    threads.kill()
    hanging.worker("HangsOnceAfterwards")
    site.until(lambda: site.gone("threads"), "a new worker finished it", 20)

    for of in ids:
        row = site.sandbox(of)
        assert row is not None
        assert row.claim_token >= 2
        assert row.attempts == row.claim_token
    site.assert_nothing_left()


@pytest.mark.parametrize("stack", ["sqlite+folder", "postgresql+rabbitmq"], indirect=True)
def test_a_provider_that_fails_is_asked_until_the_sandbox_is_gone(
    make_site: Callable[..., Site],
) -> None:
    """
    L3: every kind of failure is retried, rate limits cost no attempt, quarantine is visible and
    goes on, and the row is gone only once the provider confirmed it.
    """
    site = make_site(IDLE_TTL=60.0, QUARANTINE_AFTER=4)
    site.beat()
    hanging = Hanging(site)
    hanging.worker("FailsOften")
    # One, and no others: when several fail alike, it is the provider, and they are not to blame.
    ids = ["conv"]
    for of in ids:
        site.keeper.open(of)

    for of in ids:
        site.keeper.end(of)
    site.wait_until_gone(within=60)

    for of in ids:
        row = site.sandbox(of)
        assert row is not None
        assert row.attempts == FailsOften.counted() + 1
        assert row.claim_token == len(FailsOften.FAULTS) + 1
        assert row.quarantined_at is not None
        asked = Path(hanging.faults, site.name(of)).read_text().split()
        assert len(asked) == len(FailsOften.FAULTS) + 1
        failed = site.recorded("teardown_failed")[of, 1]
        quarantined = site.recorded("teardown_quarantined")[of, 1]
        assert failed + quarantined == len(FailsOften.FAULTS)
        assert quarantined == 2
    site.assert_nothing_left()
