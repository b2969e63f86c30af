"""The way in and the way out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from ..desk import Desk
from ..gate import grant_of
from ..problems import Problem
from .door import TOKEN, form_of, form_token, looking
from .render import page
from .route import base, keep, new_router

router = new_router()


@router.get("/login")
async def login(request: Request, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:  # noqa: A002 - its name in the address
    """Ask for a token, and say why the one that was there is not enough."""
    try:
        await looking(request)
    except Problem as problem:
        said = problem.detail if TOKEN in request.cookies else _first(problem)
        response = _ask(request, next, said)
        response.delete_cookie(TOKEN, path=base(request) or "/")
        return response
    return RedirectResponse(base(request) + _local(next), 303)


@router.post("/login")
async def enter(request: Request) -> Response:
    """Keep the token, if it is one."""
    form = await form_of(request)
    desk: Desk = request.app.state.desk
    token, wanted = form.one("token"), form.one("next")
    try:
        await grant_of(desk, token)
    except Problem as problem:
        said = problem.detail if token.startswith("sk_") else "a token looks like sk_<id>_<secret>"
        return _ask(request, wanted, said, status=401)
    response = RedirectResponse(base(request) + _local(wanted), 303)
    keep(request, response, TOKEN, token)
    return response


@router.post("/logout")
async def leave(request: Request) -> Response:
    """Forget the token in this browser."""
    await form_of(request)
    response = RedirectResponse(f"{base(request)}/login", 303)
    response.delete_cookie(TOKEN, path=base(request) or "/")
    return response


def _ask(request: Request, wanted: str, said: str, *, status: int = 200) -> Response:
    facts: dict[str, Any] = {"next": _local(wanted), "said": said}
    facts["form_token"] = form_token(request)
    return page(request, "login.html", status=status, **facts)


def _first(problem: Problem) -> str:
    """To who has shown no token yet nothing has gone wrong, but where there is none at all."""
    return problem.detail if "tokens create" in problem.detail else ""


def _local(address: str) -> str:
    """A page of ours, whatever somebody wrote into a link to the login."""
    fine = address.startswith("/") and not address.startswith(("//", "/\\", "/login"))
    return address if fine and address.isprintable() else "/"
