"""Puts the dashboard into the app of the API: its routes, its files, and what its viewers share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from ..desk import Desk
from . import audit, bulk, fleet, live, login, operations, quarantine, savings, session, sessions
from .shared import Shared

STATIC: Final = Path(__file__).parents[1] / "static"
PARTS: Final = (
    fleet,
    sessions,
    bulk,
    session,
    quarantine,
    operations,
    savings,
    audit,
    live,
    login,
)


def install(app: FastAPI, desk: Desk) -> None:
    """Serve the dashboard at `/` of this app, wherever that is mounted."""
    app.state.dashboard = Shared(desk.keeper.store, desk.page)
    for part in PARTS:
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def methods(path: str) -> list[str]:
    """The methods that a page has: what a refusal of another one has to name."""
    found = {
        method
        for part in PARTS
        for route in part.router.routes
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route.path), path)
        for method in route.methods or ()
    }
    return sorted(found)
