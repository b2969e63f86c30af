"""Turns that last as long as a response: in any framework, whatever becomes of the response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from core.aio import AsyncKeeper
from core.errors import InvalidArgument, SessionEnded, SettingsError
from core.lifecycle import Keeper
from core.store import Store
from core.web import TurnMiddleware, create_app, hold
from core.web.client import AsyncClient
from tests.factories import policy
from tests.fakes import FrozenClock
from tests.web.exchanges import SOON, Exchange, Told

Turns = AsyncKeeper | AsyncClient
SPECS = (
    "2.3",
    "2.4",
)  # Starlette listens for the client in one, and waits for OSError in the other


@pytest.fixture
def store(engine: Engine, clock: FrozenClock) -> Store:
    """One whose heartbeats are many."""
    return Store(engine, policy=policy(heartbeat=0.05), clock=clock)


@pytest.fixture(params=["in-process", "http"])
def turns(request: pytest.FixtureRequest, keeper: Keeper) -> Callable[[], Turns]:
    """Who begins the turns: a Lifecycle of this process, or a server's client."""
    keeper.open("conv")

    def make() -> Turns:
        if request.param == "in-process":
            return AsyncKeeper(keeper)
        transport = httpx2.ASGITransport(create_app(keeper), client=("127.0.0.1", 50000))
        return AsyncClient("http://localhost", transport=transport, trust_env=False)

    return make


@pytest.fixture
def outcomes(engine: Engine) -> Callable[[], list[str | None]]:
    """The outcomes of all turns, by their rows; None is one that is open."""

    def look() -> list[str | None]:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT outcome FROM turns ORDER BY id")
            return list(found.scalars())

    return look


class Work:
    """What a handler streams: a word, and then whatever the test wants."""

    def __init__(self) -> None:
        self.goes_on, self.stopped = Told(), Told()
        self.error: Exception | None = None

    async def words(self) -> AsyncIterator[str]:
        """One word, and after a silence the last one."""
        try:
            yield "first "
            await self.goes_on.soon()
            if self.error is not None:
                raise self.error
            yield "last"
        finally:
            self.stopped.set()


async def untouched(request: Request, call_next: Callable[[Request], Any]) -> Any:
    """What a middleware of Starlette's base class runs the handler by: a task of its own."""
    return await call_next(request)


def starlette(turns: Turns, work: Work) -> ASGIApp:
    """Begun by the handler."""

    async def stream(request: Request) -> Response:
        await hold(request, turns.turn("conv"))
        return StreamingResponse(work.words())

    app = Starlette(routes=[Route("/stream", stream, methods=["POST"])])
    app.add_middleware(TurnMiddleware)
    return app


def fastapi(turns: Turns, work: Work) -> ASGIApp:
    """Begun by a dependency."""

    async def held(request: Request) -> Any:
        return await hold(request, turns.turn("conv"))

    app = FastAPI()
    app.add_middleware(TurnMiddleware)

    @app.post("/stream", dependencies=[Depends(held)])
    async def stream() -> StreamingResponse:
        return StreamingResponse(work.words())

    return app


def left_early(turns: Turns, work: Work) -> ASGIApp:
    """Begun by a dependency that FastAPI leaves before the first part, as some versions do all."""

    async def held(request: Request) -> AsyncIterator[Any]:
        yield await hold(request, turns.turn("conv"))

    app = FastAPI()
    app.add_middleware(TurnMiddleware)

    @app.post("/stream", dependencies=[Depends(held, scope="function")])
    async def stream() -> StreamingResponse:
        return StreamingResponse(work.words())

    return app


def next_to_the_app(turns: Turns, work: Work) -> ASGIApp:
    """Within a middleware that runs all of this in a task of its own."""
    app = fastapi(turns, work)
    assert isinstance(app, FastAPI)
    app.add_middleware(BaseHTTPMiddleware, dispatch=untouched)
    return app


def around(turns: Turns, work: Work) -> ASGIApp:
    """The other way round."""
    app = fastapi(turns, work)
    assert isinstance(app, FastAPI)
    (first,) = app.user_middleware
    app.user_middleware.clear()
    app.add_middleware(BaseHTTPMiddleware, dispatch=untouched)
    app.user_middleware.insert(0, first)
    return app


BASED = (next_to_the_app, around)  # they make a good end of any
WAYS = (starlette, fastapi, left_early, next_to_the_app, around)


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def framework(request: pytest.FixtureRequest) -> Callable[[Turns, Work], ASGIApp]:
    """Each way to get there."""
    found: Callable[[Turns, Work], ASGIApp] = request.param
    return found


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A loop of its own, as a server has one."""
    asyncio.run(main())


@asynccontextmanager
async def streaming(
    framework: Callable[[Turns, Work], ASGIApp], turns: Callable[[], Turns], spec: str = "2.3"
) -> AsyncIterator[tuple[Exchange, Work]]:
    """A response in the middle of its stream."""
    work = Work()
    found = turns()
    try:
        exchange = Exchange(framework(found, work), "/stream", spec=spec)
        await exchange.until("first")
        yield exchange, work
    finally:
        if isinstance(found, AsyncClient):
            await found.close()


@pytest.mark.parametrize("spec", SPECS)
def test_a_turn_lasts_as_long_as_the_stream(
    framework: Any, turns: Any, outcomes: Any, spec: str
) -> None:
    """Open in the middle, ended when the client has it all; in every framework and version."""

    async def main() -> None:
        async with streaming(framework, turns, spec) as (exchange, work):
            assert outcomes() == [None]
            work.goes_on.set()
            await exchange.until("last")
            assert await exchange.end() is None
            assert exchange.is_whole
            assert outcomes() == ["completed"]

    run(main)


@pytest.mark.parametrize("spec", SPECS)
def test_a_client_that_goes_away_ends_the_turn_at_once(
    framework: Any, turns: Any, outcomes: Any, spec: str
) -> None:
    """However silent the work is just then: it is stopped, and the turn has failed."""

    async def main() -> None:
        async with streaming(framework, turns, spec) as (exchange, work):
            exchange.leave()
            error = await exchange.end()
            assert error is None or (framework in BASED and isinstance(error, OSError))
            await work.stopped.soon()
            assert outcomes() == ["failed"]

    run(main)


@pytest.mark.parametrize("spec", SPECS)
def test_a_stream_that_fails_is_a_turn_that_failed(
    framework: Any, turns: Any, outcomes: Any, spec: str
) -> None:
    """And its exception goes on to the server, which breaks the response off."""

    async def main() -> None:
        async with streaming(framework, turns, spec) as (exchange, work):
            work.error = ZeroDivisionError("ours")
            work.goes_on.set()
            assert isinstance(await exchange.end(), ZeroDivisionError)
            assert exchange.is_whole == (framework in BASED)
            assert outcomes() == ["completed" if framework is around else "failed"]

    run(main)


@pytest.mark.parametrize("spec", SPECS)
def test_a_lost_turn_stops_the_stream(
    framework: Any, turns: Any, keeper: Keeper, spec: str
) -> None:
    """S1: with the next heartbeat, in the middle of a silence; nobody takes it for a whole one."""

    async def main() -> None:
        async with streaming(framework, turns, spec) as (exchange, work):
            await asyncio.to_thread(keeper.end, "conv", reason="user left")
            await work.stopped.soon()
            error = await exchange.end()
            assert isinstance(error, SessionEnded)
            assert error.reason == "user left"
            assert exchange.is_whole == (framework is next_to_the_app)

    run(main)


def test_a_turn_that_is_lost_at_the_last_moment_is_no_whole_response(
    turns: Any, keeper: Keeper
) -> None:
    """S1: the turn ends before the last part is sent, which is not sent when it cannot."""

    async def main() -> None:
        async with streaming(starlette, turns) as (exchange, work):
            keeper._beater.forget()  # no heartbeat of this process says so earlier
            await asyncio.to_thread(keeper.end, "conv")
            work.goes_on.set()
            assert isinstance(await exchange.end(), SessionEnded)
            assert not exchange.is_whole

    run(main)


def handled(turns: Turns, handler: Callable[[Request], Any]) -> ASGIApp:
    """An app of one handler, which holds a turn."""

    async def begun(request: Request) -> Any:
        await hold(request, turns.turn("conv"))
        return await handler(request)

    app = Starlette(routes=[Route("/stream", begun, methods=["POST"])])
    app.add_middleware(TurnMiddleware)
    return app


def test_a_turn_that_is_lost_before_the_answer_is_answered_410(turns: Any, keeper: Keeper) -> None:
    """As the HTTP API answers it, and the task of the server is left well."""
    waits = Told()

    async def handler(_: Request) -> Response:
        waits.set()
        await asyncio.sleep(SOON)
        raise AssertionError("it goes on")

    async def main() -> None:
        exchange = Exchange(handled(turns(), handler), "/stream")
        await waits.soon()
        await asyncio.to_thread(keeper.end, "conv", reason="user left")
        assert await exchange.end() is None
        assert exchange.status == 410
        assert '"session_id": "conv"' in exchange.text
        assert exchange.is_whole

    run(main)


@pytest.mark.parametrize(("status", "outcome"), [(200, "completed"), (404, "failed")])
def test_the_outcome_is_that_of_the_answer(
    turns: Any, outcomes: Any, status: int, outcome: str
) -> None:
    """A refusal is no completed work. A body can be read after the turn has begun."""

    async def handler(request: Request) -> Response:
        return PlainTextResponse(await request.body(), status)

    async def main() -> None:
        body = b"0123456789" * 100
        exchange = Exchange(handled(turns(), handler), "/stream", body=body)
        assert await exchange.end() is None
        assert exchange.text == body.decode()
        assert outcomes() == [outcome]

    run(main)


def test_a_client_may_go_when_it_has_everything(turns: Any, outcomes: Any) -> None:
    """What runs after the response is not stopped, and is no part of the turn."""
    released, ran = Told(), Told()

    async def after() -> None:
        await released.soon()
        ran.set()

    async def handler(_: Request) -> Response:
        return PlainTextResponse("all", background=BackgroundTask(after))

    async def main() -> None:
        exchange = Exchange(handled(turns(), handler), "/stream")
        await exchange.until("all")
        exchange.leave()
        assert outcomes() == ["completed"]
        released.set()
        assert await exchange.end() is None
        assert ran.is_set()

    run(main)


def test_an_app_that_keeps_quiet_of_its_client_has_not_completed(turns: Any, outcomes: Any) -> None:
    """As Django does: it catches what stops it, and returns. There was no last part."""

    async def main() -> None:
        found = turns()

        async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
            await hold(Request(scope), found.turn("conv"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(SOON)

        exchange = Exchange(TurnMiddleware(quiet), "/stream")
        await exchange.until("first")
        exchange.leave()
        assert await exchange.end() is None
        assert outcomes() == ["failed"]

    run(main)


def test_an_app_that_catches_what_stops_it_makes_no_good_end(turns: Any, keeper: Keeper) -> None:
    """S1: nothing more of a lost turn is sent, whoever tries."""

    async def main() -> None:
        found = turns()

        async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
            await hold(Request(scope), found.turn("conv"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(SOON)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        exchange = Exchange(TurnMiddleware(stubborn), "/stream")
        await exchange.until("first")
        await asyncio.to_thread(keeper.end, "conv")
        assert isinstance(await exchange.end(), SessionEnded)
        assert not exchange.is_whole

    run(main)


def test_a_server_that_stops_is_not_held_up(turns: Any, outcomes: Any) -> None:
    """Its cancellation goes on, and the turn has ended."""

    async def main() -> None:
        async with streaming(starlette, turns) as (exchange, work):
            exchange.task.cancel()
            assert isinstance(await exchange.end(), asyncio.CancelledError)
            await work.stopped.soon()
            assert outcomes() == ["failed"]

    run(main)


def test_a_socket_holds_its_turn_until_it_closes(turns: Any, outcomes: Any) -> None:
    """What comes in is the handler's, and the turn ends when it returns."""

    async def main() -> None:
        found = turns()

        async def talk(socket: WebSocket) -> None:
            await hold(socket, found.turn("conv"))
            await socket.accept()
            assert await socket.receive_text() == "hello"
            assert outcomes() == [None]

        inbox: list[dict[str, Any]] = [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": "hello"},
        ]

        async def receive() -> dict[str, Any]:
            return inbox.pop(0)

        async def send(_: Any) -> None:
            pass

        app = Starlette(routes=[WebSocketRoute("/talk", talk)])
        app.add_middleware(TurnMiddleware)
        scope = {"type": "websocket", "path": "/talk", "headers": [], "query_string": b""}
        await app(scope, receive, send)
        assert outcomes() == ["completed"]

    run(main)


def test_without_the_middleware_no_turn_begins(turns: Any, outcomes: Any) -> None:
    """Nobody would end it. And what is asked for twice is refused, too."""

    async def main() -> None:
        async def bare(request: Request) -> Response:
            with pytest.raises(SettingsError, match=r"add_middleware\(TurnMiddleware\)"):
                await hold(request, turns().turn("conv"))
            return PlainTextResponse("refused")

        async def twice(request: Request) -> Response:
            with pytest.raises(InvalidArgument, match="cancel_on_lost"):
                await hold(request, turns().turn("conv", cancel_on_lost=True))
            return PlainTextResponse("refused")

        app = Starlette(routes=[Route("/bare", bare, methods=["POST"])])
        within = Starlette(routes=[Route("/twice", twice, methods=["POST"])])
        for asked in (Exchange(app, "/bare"), Exchange(TurnMiddleware(within), "/twice")):
            assert await asked.end() is None
            assert asked.text == "refused"
        assert outcomes() == []

    run(main)


def test_why_it_is_no_dependency_with_yield(turns: Any, outcomes: Any) -> None:
    """
    What FastAPI makes of one: of the versions that Sandkeeper takes, all leave it after the last
    part. But a client that goes away looks like the end of a good response to it.
    """

    async def main() -> None:
        found, work = turns(), Work()

        async def held() -> AsyncIterator[Any]:
            async with found.turn("conv") as turn:
                yield turn

        app = FastAPI()

        @app.post("/stream", dependencies=[Depends(held)])
        async def stream() -> StreamingResponse:
            return StreamingResponse(work.words())

        exchange = Exchange(app, "/stream")
        await exchange.until("first")
        assert outcomes() == [None]
        exchange.leave()
        assert await exchange.end() is None
        assert outcomes() == ["completed"]

    run(main)
