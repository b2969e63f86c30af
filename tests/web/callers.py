"""Callers of the HTTP API, in this process and without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from secrets import randbits
from typing import Any, Final

import httpx2

from core.access import Grant, Scope, digest, minted
from core.lifecycle import Keeper
from core.store.tokens import Tokens
from core.web import create_app

PROBLEM: Final = "urn:sandkeeper:problem:"


class Api:
    """One server. Every answer of 400 and more is checked to be a problem."""

    def __init__(self, keeper: Keeper, **options: Any) -> None:
        self.keeper = keeper
        self.app = create_app(keeper, **options)

    def call(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """One call."""
        return asyncio.run(self.send(method, path, **request))

    def at_once(self, *calls: Coroutine[Any, Any, httpx2.Response]) -> list[httpx2.Response]:
        """Several, side by side."""

        async def gather() -> list[httpx2.Response]:
            return list(await asyncio.gather(*calls))

        return asyncio.run(gather())

    async def send(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        client: str = "127.0.0.1",
        app: Any = None,
        headers: dict[str, str] | None = None,
        **request: Any,
    ) -> httpx2.Response:
        """One call, to be awaited."""
        transport = httpx2.ASGITransport(
            app=app or self.app, client=(client, 50000), raise_app_exceptions=False
        )
        sent = {} if token is None else {"Authorization": f"Bearer {token}"}
        # Without a look at the environment, which costs more than the call.
        options: dict[str, Any] = {"base_url": "http://localhost", "trust_env": False}
        async with httpx2.AsyncClient(transport=transport, **options) as caller:
            answer = await caller.request(
                method, path, headers={**sent, **(headers or {})}, **request
            )
        if answer.status_code >= 400 and not path.startswith("/readyz"):
            assert answer.headers["Content-Type"] == "application/problem+json", answer.text
            assert answer.json()["status"] == answer.status_code
            assert answer.json()["type"].startswith(PROBLEM)
        return answer


class Desk:
    """Makes tokens in the database, as `sandkeeper tokens create` does."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def token(self, *scopes: Scope, tenant: str | None = None, seconds: float | None = None) -> str:
        """A token, as its holder sends it."""
        token_id, secret = minted(randbits)
        grant = Grant(id=token_id, scopes=frozenset(scopes), tenant=tenant)
        self.tokens.create(grant, digest(secret), name="a test", seconds=seconds, actor="tests")
        return f"sk_{token_id}_{secret}"


def problem(answer: httpx2.Response) -> str:
    """The type of a problem, without what all have in common."""
    return str(answer.json()["type"]).removeprefix(PROBLEM)
