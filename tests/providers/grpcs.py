"""
A gRPC API of a test's own, on loopback, and faults on the way: what `tests/apis.py` is for REST.

A vendor's fake inherits it and has a method for each call: `SandboxListV2` is `sandbox_list_v2`.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import message_factory  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from grpclib.server import Server, Stream

NO_MESSAGE = b"\xff\xff\xff"


@dataclass(frozen=True)
class Fault:
    """
    What befalls a call: it is answered with `status`, `words` and `details`, or with what is no
    message (`garbage`), or the connection is `cut`: before the call had its effect, or `after`. A
    `delay` of so many seconds comes first, whether its client waits or not; alone, it is all.
    """

    status: Status | None = None
    words: str = ""
    details: Any = None
    garbage: bool = False
    cut: bool = False
    after: bool = False
    delay: float = 0.0

    def __str__(self) -> str:
        return self.status.name if self.status else "cut" if self.cut else "garbage"


class Grpc:
    """
    Calls of the service that `service` describes; grpclib answers UNIMPLEMENTED to those that have
    no method. `calls` are the names of what came in, in its order; `instead` answers for a method.
    """

    service: Any
    streaming: frozenset[str] = frozenset()  # the calls with a stream of answers

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[str] = []
        self.instead: dict[str, Callable[[Any], Any]] = {}
        self._faults: list[tuple[str, Fault]] = []
        self._transports: set[Any] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def admit(self, call: str, headers: dict[str, Any]) -> None:
        """Raise GRPCError for whoever may not."""

    def details(self, status: Status, words: str, details: Any) -> bytes:
        """What comes with an error, as the vendor wraps it."""
        raise NotImplementedError

    def strike(self, call: str, fault: Fault, *, times: int = 1) -> None:
        """Let it befall the next calls of this name."""
        self._faults += [(call, fault)] * times

    def count(self, call: str) -> int:
        """How many calls of this name came in."""
        return self.calls.count(call)

    def hang_up(self) -> None:
        """End every connection."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._hang_up)

    def _hang_up(self) -> None:
        for transport in self._transports:
            transport.abort()
        self._transports.clear()

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"/{self.service.full_name}/{method.name}": Handler(
                self._serves(method.name),
                Cardinality.UNARY_STREAM
                if method.name in self.streaming
                else Cardinality.UNARY_UNARY,
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
            )
            for method in self.service.methods
            if hasattr(self, _snake(method.name))
        }

    def _serves(self, call: str) -> Any:
        async def serve(stream: Stream[Any, Any]) -> None:
            transport = stream._stream._transport  # grpclib has no way to hang up
            self._transports.add(transport)
            self.calls.append(call)
            fault = self._befalls(call)
            request = await stream.recv_message()
            self.admit(call, dict(stream.metadata or {}))
            # Its client's patience does not decide how far it gets.
            answers = await asyncio.shield(asyncio.ensure_future(self._done(call, request, fault)))
            if fault.cut:
                transport.abort()
                return
            for answer in answers:
                await stream.send_message(answer)

        return serve

    async def _done(self, call: str, request: Any, fault: Fault) -> list[Any]:
        await asyncio.sleep(fault.delay)
        answers: list[Any] = []
        struck = fault.cut or fault.garbage or fault.status is not None
        if fault.after or not struck:
            found = self.instead.get(call, getattr(self, _snake(call)))(request)
            found = await found if asyncio.iscoroutine(found) else found
            answers = found if isinstance(found, list) else [found]
        if fault.status is not None:
            raise GRPCError(fault.status, fault.words, fault.details)
        return [NO_MESSAGE] if fault.garbage else answers

    def _befalls(self, call: str) -> Fault:
        for index, (struck, fault) in enumerate(self._faults):
            if struck == call:
                del self._faults[index]
                return fault
        return Fault()

    async def serve(self, started: Future[tuple[asyncio.Event, int]]) -> None:
        """Until the event is set; it is used by this loop alone."""
        server = Server([self], codec=_Codec(), status_details_codec=_Details(self))
        await server.start("127.0.0.1", 0)
        self._loop, ends = asyncio.get_running_loop(), asyncio.Event()
        (listening,) = server._server.sockets  # type: ignore[union-attr]  # for its port
        started.set_result((ends, listening.getsockname()[1]))
        await ends.wait()
        server.close()
        self._hang_up()
        await server.wait_closed()

    def stop(self, ends: asyncio.Event) -> None:
        """Let `serve` come to its end."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(ends.set)


Served = TypeVar("Served", bound=Grpc)


@contextmanager
def serving(fake: Served) -> Iterator[Served]:
    """Serve it for as long as the block lasts, on a thread of its own."""
    started: Future[tuple[asyncio.Event, int]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(fake.serve(started)), daemon=True)
    thread.start()
    ends, port = started.result(timeout=60)
    fake.url = f"http://127.0.0.1:{port}"
    try:
        yield fake
    finally:
        fake.stop(ends)
        thread.join(timeout=60)


class _Codec(ProtoCodec):
    """Bytes are answered as they are."""

    def encode(self, message: Any, message_type: Any) -> bytes:
        return message if isinstance(message, bytes) else super().encode(message, message_type)


class _Details(StatusDetailsCodecBase):
    def __init__(self, fake: Grpc) -> None:
        self._fake = fake

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        return self._fake.details(status, message or "", details)

    def decode(self, status: Status, message: str | None, data: bytes) -> None:
        """A server decodes none."""


def _snake(call: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", call).lower()
