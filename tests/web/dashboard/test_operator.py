"""
Somebody new on call, who has read nothing: from "1 overdue" on the first page to why, to what puts
it right, and to seeing it gone. The whole system runs, and its provider is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from tests.web.dashboard.chromium import Watched, browsing, found
from tests.web.servers import Server

LONG = 90_000  # milliseconds for what takes several sweeps on a busy machine
TIMINGS = {
    "SWEEP_INTERVAL": "1",
    "CONFIRM_INTERVAL": "1",
    "LATE_AFTER": "10",
    "CLAIM_TTL": "3",
    "RETRY_BASE": "0.5",
    "RETRY_MAX": "1",
    "QUARANTINE_AFTER": "1000",
}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """One Chromium. Installing one takes root: it may be missing."""
    path = found()
    if path is None:
        pytest.skip("no Chromium here: install Debian's package chromium")
    with browsing(path) as browser:
        yield browser


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """While this file is there, nobody gets through to the provider."""
    path = tmp_path / "away"
    path.touch()
    return path


@pytest.fixture
def system(browser: Browser, tmp_path: Path, away: Path) -> Iterator[Server]:
    """`sandkeeper up`: server, worker and beat; not started where there is no browser."""
    environ = {
        "SANDKEEPER_DATABASE_URL": f"sqlite:///{tmp_path}/up.sqlite",
        "SANDKEEPER_BROKER_URL": f"sandkeeper+filesystem:///{tmp_path}/broker",
        "SANDKEEPER_PROVIDER": "tests.acceptance.providers:AwayForNow",
        "SANDKEEPER_LOCAL_ROOT": str(tmp_path / "sandboxes"),
        "ACCEPTANCE_FAULTS": str(away.parent),
        **{f"SANDKEEPER_{name}": value for name, value in TIMINGS.items()},
    }
    server = Server(tmp_path / "up.log", environ, command="up")
    yield server
    server.stop()


def test_from_overdue_to_the_cause_to_its_end(browser: Browser, system: Server, away: Path) -> None:
    """By what the pages say and link to, without an address typed."""
    with closing(httpx2.Client(base_url=system.url, trust_env=False)) as client:
        for name in ("conv-41", "conv-42"):
            assert client.post("/v1/sessions", json={"id": name}).status_code == 201
        assert client.delete("/v1/sessions/conv-42").is_success
    seen = Watched(browser, system.url)
    page = seen.page
    page.goto("/")

    overdue = page.get_by_role("heading", name="1 overdue")
    expect(overdue).to_be_visible(timeout=LONG)
    expect(page.get_by_text("The teardown of conv-42 at local was tried")).to_be_visible()
    expect(page.get_by_text("do not get through to the provider")).to_be_visible()
    page.get_by_role("link", name="Look at it").click()

    expect(page.get_by_role("heading", name="conv-42")).to_be_visible()
    expect(page.get_by_text("its teardown failed and is tried again")).to_be_visible()
    answer = page.locator(".finding", has_text="Its provider's last answer")
    expect(answer).to_contain_text("Unavailable: 503 from the proxy 192.0.2.9")
    expect(answer).to_contain_text("the proxy in the workers' environment")
    attempts = page.locator("li", has_text="teardown failed").filter(has_text="192.0.2.9")
    expect(attempts.nth(1)).to_be_visible()

    away.unlink()  # what the page said to look at is put right

    expect(page.locator(".pill.gone").first).to_be_visible(timeout=LONG)
    expect(answer).to_have_count(0)
    page.get_by_role("link", name="Fleet").click()
    expect(page.locator("#tile-overdue .value")).to_have_text("0", timeout=LONG)
    expect(overdue).to_have_count(0)
    expect(page.locator("#tile-running .value")).to_have_text("1")
    seen.context.close()
    assert seen.complaints == []
