"""The ASGI app: the API, the dashboard, errors and the description, on somebody's keeper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from ..access import configured
from ..aio import AsyncKeeper
from ..lifecycle import Keeper
from ..prices import Prices
from . import dashboard, health, operations, policies, problems, savings, sessions, turns
from .dashboard.app import methods as of_pages
from .description import describe
from .desk import Desk
from .gate import methods
from .limits import BodyLimit, RequestIds

TITLE = "Sandkeeper"
VERSION = "1"


def create_app(
    keeper: Keeper | AsyncKeeper,
    *,
    api_tokens: str | None = None,
    broker: Callable[[], None] | None = None,
    prices: Prices | None = None,
) -> FastAPI:
    """
    The HTTP API and the dashboard on a Lifecycle: serve it, or mount it under an app of your own.
    It needs no lifespan, and closes nothing: the keeper is yours. `api_tokens` is read as the
    setting API_TOKENS; `broker` raises when the broker cannot be reached, for /readyz; `prices` is
    the setting PRICES, for savings in money.
    """
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
    )
    desk = app.state.desk = Desk(
        keeper, tokens=configured(api_tokens), broker=broker, prices=prices
    )
    for part in (sessions, turns, operations, policies, savings, health):
        app.include_router(part.router)
    dashboard.install(app, desk)
    problems.install(app, lambda path: methods(path) or of_pages(path))
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestIds)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation does
    return app
