"""A server without a socket: one request to an ASGI app, and what it got and what it was told."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message

SOON = 30.0


class Exchange:
    """One POST. `spec` is the version of ASGI that the server says it has."""

    def __init__(self, app: ASGIApp, path: str, *, spec: str = "2.3", body: bytes = b"") -> None:
        self.sent: list[Message] = []
        self.reading = 0  # of receive(), at once
        self._heard = asyncio.Event()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._is_gone = False
        middle = len(body) // 2
        for part, more in ((body[:middle], True), (body[middle:], False)):
            self._inbox.put_nowait({"type": "http.request", "body": part, "more_body": more})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": spec},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))
        self.task.add_done_callback(lambda _: self._heard.set())

    @property
    def text(self) -> str:
        """The body so far."""
        return b"".join(part.get("body", b"") for part in self.sent).decode()

    @property
    def status(self) -> int:
        """What the response began with; 0 when it has not."""
        return next((m["status"] for m in self.sent if m["type"] == "http.response.start"), 0)

    @property
    def is_whole(self) -> bool:
        """Whether the last part was sent."""
        return any(
            part["type"] == "http.response.body" and not part.get("more_body") for part in self.sent
        )

    def leave(self) -> None:
        """The client goes away."""
        self._is_gone = True
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def until(self, said: str) -> None:
        """Wait until the body has this."""
        async with asyncio.timeout(SOON):
            while said not in self.text:
                assert not self.task.done(), (self.text, self.task)
                self._heard.clear()
                await self._heard.wait()

    async def end(self) -> BaseException | None:
        """What the app raised."""
        done, _ = await asyncio.wait([self.task], timeout=SOON)
        assert done, "the request goes on"
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()

    async def _receive(self) -> Message:
        # A server whose messages are a queue gives each of them to one reader.
        self.reading += 1
        assert self.reading == 1, "two read at once"
        try:
            message = await self._inbox.get()
        finally:
            self.reading -= 1
        if message["type"] == "http.disconnect":
            self._inbox.put_nowait(message)
        return message

    async def _send(self, message: Message) -> None:
        await asyncio.sleep(0)
        if self._is_gone:
            raise OSError("the client is gone")
        self.sent.append(message)
        self._heard.set()


class Told(asyncio.Event):
    """An event that is waited for, but not for ever."""

    async def soon(self) -> Any:
        """Wait for it."""
        return await asyncio.wait_for(self.wait(), SOON)
