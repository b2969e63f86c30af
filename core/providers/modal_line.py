"""A connection to Modal, on an event loop of its own: what its calls live on, and end with."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from grpclib import Status
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.encoding.base import StatusDetailsCodecBase
from modal_proto import api_pb2

FALLS_BACK_AFTER = 3.0  # seconds for an address that does not answer, while there is another
SLACK = 1.0  # seconds after its deadline in which a call on the loop's thread comes to its end
# As Modal's own client has it: without pings, a connection that a firewall forgot is never missed.
PINGS = {
    "_keepalive_time": 30.0,
    "_keepalive_timeout": 10.0,
    "_keepalive_permit_without_calls": True,
    "_http2_min_sent_ping_interval_without_data": 15.0,
}
Result = TypeVar("Result")
Method = Callable[[Channel], Callable[..., Coroutine[Any, Any, Result]]]


class NeverSent(Exception):
    """Nothing has left this machine: the call cannot have had an effect."""


class Line:
    """An event loop on a thread of its own, and the connections that live there."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._channels: dict[str, Channel] = {}
        self._pid = os.getpid()
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(started)), name="sandkeeper-modal", daemon=True
        )
        self._thread.start()
        self.loop, self._ends = started.result()

    async def _live(self, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        ends = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), ends))
        await ends.wait()
        for channel in self._channels.values():
            channel.close()

    def close(self) -> None:
        """Hang up; in a forked child, nothing: the sockets are its parent's."""
        if os.getpid() != self._pid or self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self._ends.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=SLACK)

    async def call(
        self,
        method: Method[Result],
        request: Message,
        headers: Mapping[str, str],
        seconds: float,
    ) -> Result:
        """Ask, in so many seconds, the time to connect included."""
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(until):
                channel = await self._channel()
        except OSError as error:  # a timeout and all of TLS are such
            raise NeverSent from error
        async with asyncio.timeout_at(until):
            left = until - asyncio.get_running_loop().time()
            return await method(channel)(request, timeout=left, metadata=headers)

    async def _channel(self) -> Channel:
        *others, last = self._addresses
        for address in others:
            try:
                async with asyncio.timeout(FALLS_BACK_AFTER):
                    return await self._connected(address)
            except OSError:
                continue
        return await self._connected(last)

    async def _connected(self, address: str) -> Channel:
        if address not in self._channels:
            self._channels[address] = _channel_to(address)
        await self._channels[address].__connect__()  # returns at once where it is
        return self._channels[address]


class _Details(StatusDetailsCodecBase):
    """How long to wait, and whatever else comes with an error."""

    def encode(self, status: Status, message: str | None, details: Any) -> NoReturn:
        raise NotImplementedError

    def decode(self, status: Status, message: str | None, data: bytes) -> api_pb2.RPCStatus | None:
        found = api_pb2.RPCStatus()
        try:
            found.ParseFromString(data)
        except DecodeError:
            return None
        return found


def _channel_to(address: str) -> Channel:
    url = urlsplit(address)
    secure = url.scheme == "https"
    return Channel(
        url.hostname,
        url.port or (443 if secure else 80),
        ssl=secure or None,
        config=Configuration(**PINGS),  # type: ignore[arg-type]  # of several types
        status_details_codec=_Details(),
    )
