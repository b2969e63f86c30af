"""
The sweep of jupyterhub-idle-culler, its own code, at a hub that answers at no cost. It runs in the
environment of `./run peers`, with nothing of ours but this file.

    python culler.py LIVE IDLE SWEEPS      prints the seconds of each sweep and how many it culled
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import jupyterhub_idle_culler as culler

URL = "http://hub/hub/api"
PAGE = 200  # users; a hub gives no more at a time
TIMEOUT = 600  # seconds, the culler's default
VERSION = json.dumps({"version": "5.3.0"}).encode()


class Hub:
    """Stands in for the HTTP client: the pages are written before anybody asks for them."""

    def __init__(self, live: int, idle: int) -> None:
        now = datetime.now(UTC)
        users = [_user(number, now, idle=number < idle) for number in range(live)]
        self.deleted = 0
        self._pages = {
            start: _page(users[start : start + PAGE], start + PAGE, live)
            for start in range(0, live, PAGE)
        }

    def __call__(self) -> Hub:
        """Make a client."""
        return self

    def configure(self, *_: object, **__: object) -> None:
        """There is nothing to configure."""

    async def fetch(self, request: Any) -> SimpleNamespace:
        """Answer at once."""
        if request.method == "DELETE":
            self.deleted += 1
            return SimpleNamespace(code=204, body=b"")
        if "/users" not in request.url:
            return SimpleNamespace(code=200, body=VERSION)
        _, _, offset = request.url.partition("offset=")
        return SimpleNamespace(code=200, body=self._pages[int(offset or 0)])


def _page(users: list[dict[str, Any]], following: int, live: int) -> bytes:
    url = f"{URL}/users?limit={PAGE}&state=ready&offset={following}"
    after = {"offset": following, "limit": PAGE, "url": url} if following < live else None
    pagination = {"offset": following - PAGE, "limit": PAGE, "total": live, "next": after}
    return json.dumps({"items": users, "_pagination": pagination}).encode()


def _user(number: int, now: datetime, *, idle: bool) -> dict[str, Any]:
    """As JupyterHub describes a user with one server that is ready."""
    name = f"user-{number}"
    active_at = (now - timedelta(seconds=2 * TIMEOUT if idle else 5)).isoformat()
    server: dict[str, Any] = {
        "name": "",
        "full_name": f"{name}/",
        "last_activity": active_at,
        "started": (now - timedelta(days=1)).isoformat(),
        "pending": None,
        "ready": True,
        "stopped": False,
        "url": f"/user/{name}/",
        "user_options": {},
        "progress_url": f"/hub/api/users/{name}/server/progress",
        "state": {},
    }
    return {
        "kind": "user",
        "name": name,
        "admin": False,
        "roles": ["user"],
        "groups": [],
        "created": (now - timedelta(days=9)).isoformat(),
        "last_activity": active_at,
        "pending": None,
        "server": f"/user/{name}/",
        "servers": {"": server},
    }


def main(live: int, idle: int, sweeps: int) -> None:
    """Sweep so many times, with the defaults of the culler's own command."""
    hub = Hub(live, idle)
    culler.AsyncHTTPClient = hub
    logger = logging.getLogger("culler")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logger.setLevel(logging.INFO)
    took = []
    for _ in range(sweeps):
        began = time.perf_counter()
        asyncio.run(culler.cull_idle(URL, "token", TIMEOUT, logger, api_page_size=PAGE))
        took.append(time.perf_counter() - began)
    print(json.dumps({"seconds": took, "culled": hub.deleted}))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
