"""`./run screenshots`: what the dashboard looks like, into docs/screenshots."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from core.engines import make_engine
from core.migrations import upgrade
from tests import services
from tests.services import Databases
from tests.web.dashboard.chromium import Watched, browsing, crowded, found

FOLDER = Path(__file__).parents[3] / "docs" / "screenshots"
SESSIONS = 2_000
PAGES = {"fleet": "/", "sessions": "/sessions?prefix=conv-1", "session": "/sessions/conv-17"}
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}


def migrate(url: str) -> None:
    """Bring an empty database to the schema of this version."""
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()


def main() -> int:
    """Write them all; 1 when something was complained of, 2 without a browser."""
    path = found()
    if path is None:
        print("no Chromium here: install Debian's package chromium", file=sys.stderr)  # noqa: T201 - for a person
        return 2
    complaints: list[str] = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        databases = Databases(stack.enter_context(services.postgresql()).url, migrate)
        stack.callback(databases.close)
        url = stack.enter_context(databases.fresh())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(crowded(url, folder, SESSIONS))
        browser = stack.enter_context(browsing(path))
        for look, options in LOOKS.items():
            seen = Watched(browser, server.url, **options)
            for name, address in PAGES.items():
                seen.page.goto(address)
                seen.page.wait_for_selector("#live-state[data-kind=good]")
                seen.page.screenshot(path=FOLDER / f"{name}-{look}.png")
            complaints += seen.complaints
    print("\n".join(complaints or [f"written to {FOLDER}"]))  # noqa: T201 - likewise
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
