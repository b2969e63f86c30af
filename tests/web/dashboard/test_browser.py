"""The dashboard in a real browser, with a hundred thousand sessions on PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, expect

from tests.services import Databases
from tests.web.dashboard.chromium import Watched, browsing, crowded, found
from tests.web.servers import Server

SESSIONS = 100_000
SECRET = "s" * 40
TOKENS = f"sk_ops_{SECRET}:operate sk_see_{SECRET}:read"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this file. Installing one takes root: it may be missing."""
    path = found()
    if path is None:
        pytest.skip("no Chromium here: install Debian's package chromium")
    with browsing(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def database(browser: Browser, postgresql_databases: Databases) -> Iterator[str]:
    """A database for the crowd, not made where there is no browser."""
    with postgresql_databases.fresh() as url:
        yield url


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`sandkeeper serve` with a token for each of the two scopes."""
    folder = tmp_path_factory.mktemp("crowd")
    with crowded(database, folder, SESSIONS, SANDKEEPER_API_TOKENS=TOKENS) as server:
        yield server
    shutil.rmtree(folder, ignore_errors=True)


def entered(browser: Browser, server: Server, who: str, **options: object) -> Watched:
    """Somebody who has logged in, and sees the first page."""
    seen = Watched(browser, server.url, **options)
    seen.page.goto("/")
    seen.page.get_by_label("Token").fill(f"sk_{who}_{SECRET}")
    seen.page.keyboard.press("Enter")
    expect(seen.page.get_by_role("heading", name="Fleet")).to_be_visible()
    return seen


@pytest.fixture
def seen(browser: Browser, server: Server) -> Iterator[Watched]:
    """Somebody who may act. Nothing was complained of while he looked."""
    seen = entered(browser, server, "ops")
    yield seen
    seen.context.close()
    assert seen.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_is_whole(browser: Browser, server: Server, scheme: str, width: int) -> None:
    """Nothing sticks out of a narrow screen, charts are drawn, and the browser has no complaint."""
    size = {"width": width, "height": 844}
    seen = entered(browser, server, "ops", color_scheme=scheme, viewport=size)
    expect(seen.page.locator(".chart canvas")).to_have_count(2)
    for path in ("/", "/sessions", "/sessions/conv-17", "/quarantine", "/orphans", "/sweeps"):
        seen.page.goto(path)
        wide = seen.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide"
    for path in ("/providers", "/audit"):
        seen.page.goto(path)
    seen.page.goto("/sessions")
    beyond = "one => one.scrollWidth - one.clientWidth"
    assert seen.page.locator(".scroll").evaluate(beyond) <= 0, "its last column is cut off"
    seen.context.close()
    assert seen.complaints == []


def test_a_filter_is_in_the_address(seen: Watched) -> None:
    """So that it can be sent to somebody; its chip takes it away."""
    seen.page.goto("/sessions")
    seen.page.get_by_label("Id begins with").fill("conv-4242")
    seen.page.get_by_role("button", name="Filter").click()

    expect(seen.page.locator("a.row")).to_have_count(10)  # conv-4242 and conv-42421 to 42429
    assert "prefix=conv-4242" in seen.page.url
    seen.page.get_by_label("Remove the filter: id begins with conv-4242").click()
    expect(seen.page.locator("a.row")).to_have_count(50)


def test_all_that_match_are_ended_after_a_preview(seen: Watched, database: str) -> None:
    """How many and which, a reason, and then what became of each."""
    page = seen.page
    page.goto("/sessions?prefix=conv-777")
    page.get_by_label("all that match").check()
    expect(page.locator("#picked")).to_have_text("all that match are picked")
    page.get_by_role("button", name="End…", exact=True).click()

    expect(page.get_by_role("heading", name="End 100 sessions?")).to_be_visible()
    expect(page.get_by_text("100 match the filter.")).to_be_visible()
    page.get_by_role("button", name="End 100").click()  # refused by the browser: no reason
    expect(page.get_by_role("heading", name="End 100 sessions?")).to_be_visible()
    page.get_by_label("Reason").fill("runaway batch")
    page.get_by_role("button", name="End 100").click()
    expect(page.get_by_role("heading", name="100 of 100 done")).to_be_visible()

    with psycopg.connect(database) as connection:
        ended = connection.execute(
            "SELECT count(*) FROM events WHERE kind = 'session_ended' AND actor = "
            "'token ops, dashboard' AND detail->>'reason' = 'runaway batch'"
        ).fetchone()
    assert ended == (100,)


def test_a_page_lives_without_a_reload(seen: Watched, database: str) -> None:
    """What another process did is shown, and the page was never loaded again."""
    page = seen.page
    page.goto("/sessions/conv-23")
    expect(page.locator("#live-state")).to_have_text("live")
    page.evaluate("window.untouched = true")

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO events (at, kind, session_id, generation, actor, detail) VALUES "
            "(now(), 'session_noticed', 'conv-23', 1, 'another process', '{}')"
        )

    expect(page.get_by_text("another process")).to_be_visible(timeout=15_000)
    assert page.evaluate("window.untouched") is True


def test_what_is_ticked_is_not_taken_away(seen: Watched, database: str) -> None:
    """A list that is being picked from stands still while the fleet moves."""
    page = seen.page
    page.goto("/sessions")
    expect(page.locator("#live-state")).to_have_text("live")
    page.locator("input[name=pick]").first.check()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO events (at, kind, actor, detail) "
            "VALUES (now(), 'circuit_closed', 'another process', '{}')"
        )
    page.wait_for_timeout(5_000)

    assert page.locator("input[name=pick]:checked").count() == 1
    assert [url for url in asked if url.endswith("/sessions")] == []


def test_the_keyboard_is_enough(seen: Watched) -> None:
    """From Fleet to a session and its end, with a focus that is seen at each step."""
    page = seen.page
    keys = page.keyboard
    keys.press("?")
    expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()
    keys.press("Escape")
    keys.press("g")
    keys.press("s")
    expect(page.get_by_role("heading", name="Sessions")).to_be_visible()
    keys.press("/")
    keys.type("conv-5151")
    keys.press("Enter")
    expect(page.locator("a.row").first).to_be_visible()
    keys.press("j")
    focus = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(focus) == "solid"
    keys.press("x")
    expect(page.locator("#picked")).to_have_text("1 picked")
    keys.press("x")
    expect(page.locator("#picked")).to_have_text("nothing is picked")
    keys.press("k")
    keys.press("j")
    page.locator("a.row").first.focus()
    keys.press("Enter")
    expect(page.get_by_role("heading", name="conv-5151")).to_be_visible()
    for _ in range(40):  # Tab alone leads to the field
        if page.evaluate("document.activeElement.id") == "why-end":
            break
        keys.press("Tab")
        assert page.evaluate(focus) == "solid"
    keys.type("by keyboard")
    keys.press("Enter")
    expect(page.locator(".pill.ended")).to_be_visible()


def test_who_may_read_is_offered_nothing_else(browser: Browser, server: Server) -> None:
    """And whoever logs out sees nothing any more."""
    seen = entered(browser, server, "see")
    page = seen.page
    expect(page.get_by_text("read only")).to_be_visible()
    for path in ("/sessions", "/sessions/conv-29", "/quarantine", "/sweeps"):
        page.goto(path)
        names = [text.strip() for text in page.get_by_role("button").all_inner_texts()]
        assert set(names) <= {"Log out", "?", "Filter"}, (path, names)

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    page.goto("/sessions")
    expect(page.get_by_label("Token")).to_be_visible()
    seen.context.close()
    assert seen.complaints == []


def test_a_wrong_token_is_told_so(browser: Browser, server: Server) -> None:
    """And is not kept."""
    seen = Watched(browser, server.url)
    seen.page.goto("/")
    seen.page.get_by_label("Token").fill(f"sk_nobody_{SECRET}")
    seen.page.get_by_role("button", name="Log in").click()

    expect(seen.page.get_by_role("alert")).to_contain_text("nobody knows this token")
    assert "sandkeeper_token" not in {one["name"] for one in seen.context.cookies()}
    seen.context.close()


def test_a_server_stops_though_somebody_looks(
    browser: Browser, database: str, server: Server, tmp_path: Path
) -> None:
    """Its streams come to their end at once, not with the last of thirty seconds."""
    from tests.web.servers import serving

    environ = {
        "SANDKEEPER_DATABASE_URL": database,
        "SANDKEEPER_BROKER_URL": f"sandkeeper+filesystem:///{tmp_path}/broker",
        "SANDKEEPER_PROVIDER": "tests.fakes:FakeCloud",
        "SANDKEEPER_API_TOKENS": TOKENS,
    }
    with serving(tmp_path, environ) as start:
        other = start()
        seen = entered(browser, other, "ops")
        expect(seen.page.locator("#live-state")).to_have_text("live")

        code = other.stop()

        assert code == 0
        assert "timeout graceful shutdown exceeded" not in other.said()
        seen.context.close()
