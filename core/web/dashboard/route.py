"""What every page has in common: its headers, its cookies, and a page for each refusal."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from ...errors import SandkeeperError
from ..problems import INVALID, UNAUTHORIZED, Kind, Problem, kind_of
from .door import SEED
from .render import page

logger = logging.getLogger("sandkeeper")

HEADERS: Final = {
    # Nothing from elsewhere, nothing inline: text that somebody else wrote can do nothing here.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route whose answers, refusals included, are for people."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            request.state.fresh_seed = secrets.token_urlsafe(24)
            try:
                response = await handler(request)
            except (SandkeeperError, Problem, RequestValidationError) as error:
                response = _refusal(request, error)
            except Exception as error:
                logger.exception("DashboardFailed path=%s", request.url.path)
                response = _refusal(request, error)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            if SEED not in request.cookies:
                keep(request, response, SEED, request.state.fresh_seed)
            return response

        return answered


def new_router() -> APIRouter:
    """Routes of pages: they are no part of the API's description."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def base(request: Request) -> str:
    """Where the dashboard is mounted: what every link begins with."""
    return str(request.scope.get("root_path", ""))


def keep(request: Request, response: Response, name: str, value: str) -> None:
    """Have the browser keep this until it is closed, and send it to nobody else."""
    # A proxy that speaks TLS says so. Whoever lies about it takes a cookie from himself.
    said = request.headers.get("x-forwarded-proto", "")
    response.set_cookie(
        name,
        value,
        path=base(request) or "/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or said == "https",
    )


def _refusal(request: Request, error: Exception) -> Response:
    kind, words = _words(error)
    here = request.url.path.removeprefix(base(request)) or "/"
    where = f"{base(request)}/login?next={quote(f'{here}?{request.url.query}'.rstrip('?'))}"
    if kind is UNAUTHORIZED and "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": where})
    if kind is UNAUTHORIZED and request.method == "GET" and not here.startswith("/live"):
        return RedirectResponse(where, 303)
    return page(request, "refusal.html", status=kind.status, title=kind.title, words=words)


def _words(error: Exception) -> tuple[Kind, str]:
    if isinstance(error, Problem):
        return error.kind, error.detail
    if isinstance(error, RequestValidationError):
        said = [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()]
        return INVALID, "; ".join(said)
    kind = kind_of(error)
    shown = isinstance(error, SandkeeperError) and not kind.secret
    return kind, str(error) if shown else "The server's log says more."
