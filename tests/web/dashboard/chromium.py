"""A real browser, headless: the Chromium of this machine, and a server with a crowd for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from playwright.sync_api import Browser, Page, sync_playwright

from tests.crowd import fill
from tests.web.servers import Server, serving

NAMES = ("chromium", "chromium-browser", "google-chrome")

# Some of the crowd of tests/crowd.py as an operator would meet them.
LIFE = (
    "UPDATE sessions SET tenant = CASE WHEN hashtext(id) % 3 = 0 THEN 'acme' ELSE 'umbra' END",
    'UPDATE sessions SET metadata = \'{"user": "ada", "plan": "team"}\' WHERE id = \'conv-17\'',
    "INSERT INTO turns SELECT 'past-' || n, 'conv-17', 1, 'api-7f/worker-' || n % 3, "
    "now() - interval '1 minute' * (60 - n * 4), now() + interval '1 hour', "
    "now() - interval '1 minute' * (60 - n * 4 - 1 - n % 3), 'completed' "
    "FROM generate_series(1, 12) AS n",
    "UPDATE turns SET started_at = now() - interval '6 minutes' WHERE session_id = 'conv-17' "
    "AND ended_at IS NULL",
    "UPDATE sessions SET opened_at = now() - interval '1 hour', last_activity_at = now() - "
    "interval '9 seconds', turn_count = 13 WHERE id = 'conv-17'",
    "INSERT INTO events (at, kind, session_id, generation, actor, detail) VALUES "
    "(now() - interval '60 minutes', 'session_opened', 'conv-17', 1, 'api-7f:4711', '{}'), "
    "(now() - interval '59 minutes', 'sandbox_running', 'conv-17', 1, 'api-7f:4711', "
    '\'{"external_id": "box-17"}\'), '
    "(now() - interval '21 minutes', 'session_noticed', 'conv-17', 1, 'sweep', '{}'), "
    "(now() - interval '18 minutes', 'session_extended', 'conv-17', 1, 'token ops, dashboard', "
    '\'{"reason": "user is at lunch"}\')',
    "UPDATE sandboxes SET quarantined_at = now() - interval '2 hours', attempts = 9, last_error = "
    "'AuthFailed: 401 Unauthorized' WHERE session_id IN ('conv-100', 'conv-200', 'conv-300')",
    "UPDATE installation SET swept_at = now() - interval '12 seconds'",
)


def found() -> str | None:
    """Where the browser is, None when there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browsing(path: str) -> Iterator[Browser]:
    """One browser for as long as the block lasts."""
    with sync_playwright() as playwright:
        # Without its own sandbox: as root it would not start, and it opens our pages alone.
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@contextmanager
def crowded(url: str, folder: Path, sessions: int, **more: str) -> Iterator[Server]:
    """A server on a PostgreSQL database that gets so many sessions."""
    fill(url, sessions)
    environ = {
        "SANDKEEPER_DATABASE_URL": url,
        "SANDKEEPER_BROKER_URL": f"sandkeeper+filesystem:///{folder}/broker",
        "SANDKEEPER_PROVIDER": "tests.fakes:FakeCloud",
        **more,
    }
    with serving(folder, environ) as start:
        server = start()
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in LIFE:
                connection.execute(statement)
        yield server


class Watched:
    """A page whose complaints are kept: errors of scripts, and what the policy forbade."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(base_url=url, **options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on(
            "console",
            lambda said: (
                self.complaints.append(said.text) if said.type in {"error", "warning"} else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
