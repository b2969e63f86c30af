"""
Turns that last exactly as long as the response to a request, streamed ones too, in your own ASGI
app: FastAPI, Starlette, Django, any. Frameworks end what a handler has opened at moments of their
own, and differ in them by version; the response itself is over when its last part is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, Protocol, TypeVar

from anyio import CancelScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InvalidArgument, SandkeeperError, SettingsError
from ..turn import Lost
from . import problems

KEY: Final = "sandkeeper.turns"  # where the request's scope has them
GONE: Final[Message] = {"type": "http.disconnect"}
AHEAD: Final = 65_536
WHOLE: Final = frozenset({"http.response.body", "http.response.pathsend"})


class Held(Protocol):
    """What is held: an AsyncTurn of a Lifecycle, or the Holding of an HTTP client."""

    @property
    def lost(self) -> Lost: ...


class Request(Protocol):
    """A request of any framework that gives its ASGI scope."""

    @property
    def scope(self) -> MutableMapping[str, Any]: ...


H = TypeVar("H", bound=Held)


class TurnMiddleware:
    """
    Ends the turns that `hold` began in a request when its response is over: before its last part
    is sent, so that a response which is complete says that the turn held until then. It cancels
    the request as soon as the client has gone, or a turn was lost: a response that has begun is
    broken off then, any other is answered with a problem, 410. The outcome is `failed` after an
    exception, a client that went away, or a status of 400 and more.

    Pure ASGI, and best next to the app: add it before other middlewares. Those that are made from
    Starlette's BaseHTTPMiddleware give every response that was broken off a good end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"} or KEY in scope:
            await self._app(scope, receive, send)
            return
        scope[KEY] = turns = RequestTurns(scope, receive, send)
        await turns.run(self._app)


async def hold(request: Request, turn: AbstractAsyncContextManager[H]) -> H:
    """
    Begin a turn that ends with the response to this request, in a handler or in a dependency
    without `yield`: `await hold(request, keeper.turn("conv-42"))`. `turn` is one of an
    AsyncLifecycle or of an AsyncClient, whose errors it raises, and leaves cancel_on_lost out.
    SettingsError without TurnMiddleware.
    """
    turns: RequestTurns | None = request.scope.get(KEY)
    if turns is None:
        raise SettingsError("nobody would end this turn: call app.add_middleware(TurnMiddleware)")
    return await turns.enter(turn)


class RequestTurns:
    """The turns of one request, and what is known of its client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._inbox = Inbox(receive)
        self._turns = AsyncExitStack()
        self._watch: asyncio.Task[None] | None = None
        self._work: asyncio.Task[Any] | None = None  # where the turn was begun
        self._lost: SandkeeperError | None = None
        self._status = 0  # of the response that has begun
        self._is_over = self._is_cancelled = False

    async def run(self, app: ASGIApp) -> None:
        """The whole request."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        try:
            await app(self._scope, self._inbox.receive, self.send)
            # Without its last part the client went away, and the framework kept that to itself.
            await self._end(failed=self._scope["type"] == "http")
        except BaseException as error:
            await self._end(failed=True)
            # Our own cancellation is taken back; somebody else's, at the same time, goes on.
            if not self._taken_back() or not isinstance(error, asyncio.CancelledError):
                raise
            await self._refuse()
        else:
            if self._taken_back():  # something in the app has caught it
                await self._refuse()
        finally:
            self._is_over = True
            if self._watch is not None:
                self._watch.cancel()

    async def enter(self, turn: AbstractAsyncContextManager[H]) -> H:
        """Begin a turn, and from now on watch for what would end it early."""
        if getattr(turn, "cancel_on_lost", False):
            raise InvalidArgument("cancel_on_lost=True: leave it out, the middleware cancels")
        self._work = asyncio.current_task()
        if self._watch is None and self._scope["type"] == "http":
            self._watch = asyncio.create_task(self._wait_for_the_client_to_go())
        held = await self._turns.enter_async_context(turn)
        # From a thread of heartbeats.
        held.lost.on(lambda error: self._loop.call_soon_threadsafe(self._lose, error))
        return held

    async def send(self, message: Message) -> None:
        """What the app sends. Nothing of a lost turn may look complete."""
        if self._lost is not None:
            raise self._lost
        if message["type"] == "http.response.start":
            self._status = message["status"]
        if message["type"] in WHOLE and not message.get("more_body", False):
            self._is_over = True  # the client may go now
            await self._end(failed=self._is_cancelled or self._status >= 400)
        await self._send(message)

    async def _wait_for_the_client_to_go(self) -> None:
        await self._inbox.gone()
        self._cancel()

    def _lose(self, error: SandkeeperError) -> None:
        if not self._is_over:
            self._lost = error
            self._cancel()

    def _cancel(self) -> None:
        """
        Once: whatever comes second finds it on its way out. Some frameworks have a handler run in a
        task of its own, which the end of the request's would not stop.
        """
        if self._is_over or self._is_cancelled:
            return
        if self._work is None or self._work.done():
            self._work = self._task
        if self._work is not None:
            self._is_cancelled = True
            self._work.cancel()

    def _taken_back(self) -> bool:
        """Whether the request was cancelled, and by us alone."""
        if not self._is_cancelled or self._task is None:
            return False
        if self._work is self._task:
            self._task.uncancel()
        return self._task.cancelling() <= self._cancelling

    async def _refuse(self) -> None:
        """What a client that is still there gets for a turn that was lost."""
        if self._lost is None:
            return
        if self._status or self._scope["type"] != "http":  # what has begun is broken off
            raise self._lost
        answer = problems.answer_to(self._lost)
        await answer(self._scope, self._inbox.receive, self._send)

    async def _end(self, *, failed: bool) -> None:
        """End them all, the last one first; SessionEnded or TurnExpired when one had been lost."""
        turns = self._turns.pop_all()
        with CancelScope(shield=True):  # a cancelled scope would cancel every wait in here anew
            if failed:  # what a turn makes of an exception, and without anybody's words
                await turns.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
            else:
                await turns.aclose()


class Inbox:
    """
    What the server tells the app. Two may wait at once, the app for the body and we for the client
    to go, and servers allow one. At most AHEAD bytes are read that nobody has asked for, so that a
    client which sends much is slowed down as it was.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead: deque[Message] = deque()
        self._one_at_a_time = asyncio.Lock()
        self._taken = asyncio.Event()
        self._is_gone = False

    async def receive(self) -> Message:
        """The next message, for the app."""
        if not self._ahead:
            async with self._one_at_a_time:
                if not self._ahead:
                    self._ahead.append(await self._next())
        self._taken.set()
        return self._ahead.popleft()

    async def gone(self) -> None:
        """Wait until the client has gone."""
        while not self._is_gone:
            async with self._one_at_a_time:
                if not self._is_full:
                    self._ahead.append(await self._next())
                self._taken.clear()
            if self._is_full:
                await self._taken.wait()

    @property
    def _is_full(self) -> bool:
        return sum(len(message.get("body", b"")) for message in self._ahead) >= AHEAD

    async def _next(self) -> Message:
        if self._is_gone:
            return GONE
        message = await self._receive()
        self._is_gone = message["type"] == "http.disconnect"
        return message
