"""
A TCP proxy that breaks connections on command. It stands in front of a database or a broker, so
that all processes of a run lose it, and find it again, at the same moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

CHUNK = 65536
LINGER_NONE = struct.pack("ii", 1, 0)  # close by reset: nothing that is buffered is delivered
PROTOCOL_3 = 196608  # PostgreSQL: the start-up message, after which messages have a type
COMMIT = b"COMMIT"

Address = tuple[str, int] | str
"""host and port, or the path of a Unix socket."""


class Commits:
    """Reads what a PostgreSQL client sends, and says whether a COMMIT was in it."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False

    def seen(self, sent: bytes) -> bool:
        """Whether a message that these bytes complete is a COMMIT."""
        self._buffer += sent
        found = False
        while (message := self._next()) is not None:
            found = found or self._is_commit(message)
        return found

    def _next(self) -> bytes | None:
        """A whole message with its type; without one while the connection is being started."""
        head = 1 if self._started else 0
        if len(self._buffer) < head + 4:
            return None
        (length,) = struct.unpack_from("!i", self._buffer, head)
        if length < 4 or len(self._buffer) < head + length:
            return None
        message, self._buffer = self._buffer[: head + length], self._buffer[head + length :]
        if not self._started:
            self._started = struct.unpack_from("!i", message, 4) == (PROTOCOL_3,)
        return message

    @staticmethod
    def _is_commit(message: bytes) -> bool:
        if message[:1] == b"Q":
            return message[5:].upper().startswith(COMMIT)
        if message[:1] == b"P":  # its name, a zero, the query
            return message[5:].partition(b"\0")[2].upper().startswith(COMMIT)
        return False


@dataclass(eq=False)
class Pair:
    """One client's connection, and ours on its behalf."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    commits: Commits = field(default_factory=Commits)
    doomed: bool = False  # its COMMIT was forwarded: the answer never arrives

    def reset(self) -> None:
        for writer in (self.client, self.server):
            _reset(writer)


class Proxy:
    """
    Runs in a thread of its own; every method may be called from any thread. `port` stays the same
    for as long as it lives, whatever happens to what is behind it.
    """

    def __init__(self, upstream: Address) -> None:
        self.upstream = upstream
        self.port = 0
        self.commits_cut = 0  # how many answers to a COMMIT were lost
        self._server: asyncio.Server
        self._pairs: set[Pair] = set()
        self._refusing = False
        self._delay = 0.0
        self._armed = 0
        self._open = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._open.set()
        self.port = self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What can be done to it

    def cut(self) -> int:
        """Reset every connection that is open; returns how many there were."""

        async def cut() -> int:
            pairs = list(self._pairs)
            for pair in pairs:
                pair.reset()
            return len(pairs)

        return self._run(cut())

    def refuse(self) -> int:
        """Cut, and reset every connection that is made from now on, until `heal`."""
        self._soon(lambda: setattr(self, "_refusing", True))
        return self.cut()

    def hold(self) -> None:
        """Let no byte through, in either direction, until `heal`. None of them is lost."""
        self._soon(self._open.clear)

    def delay(self, seconds: float) -> None:
        """Let every chunk of bytes wait for so long, until `heal`."""
        self._soon(lambda: setattr(self, "_delay", seconds))

    def cut_commits(self, count: int) -> None:
        """Cut the next so many connections right after a COMMIT of theirs was forwarded."""
        self._soon(lambda: setattr(self, "_armed", self._armed + count))

    def heal(self) -> None:
        """Be a proxy."""

        def heal() -> None:
            self._refusing, self._delay, self._armed = False, 0.0, 0
            self._open.set()

        self._soon(heal)

    # How it works

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> int:
        self._server.close()
        self._open.set()
        for pair in list(self._pairs):
            pair.reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5.0)
        return 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        try:
            from_server, to_server = await self._connect()
        except OSError:
            _reset(writer)
            return
        pair = Pair(client=writer, server=to_server)
        self._pairs.add(pair)
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(
                    self._upwards(reader, pair), self._downwards(from_server, pair)
                )
        finally:
            self._pairs.discard(pair)
            pair.reset()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, str):
            return await asyncio.open_unix_connection(self.upstream)
        return await asyncio.open_connection(*self.upstream)

    async def _upwards(self, reader: asyncio.StreamReader, pair: Pair) -> None:
        async def forward(sent: bytes) -> None:
            if pair.commits.seen(sent) and self._armed > 0:
                self._armed -= 1
                pair.doomed = True
            pair.server.write(sent)
            await pair.server.drain()

        await self._pump(reader, pair.server, forward)

    async def _downwards(self, reader: asyncio.StreamReader, pair: Pair) -> None:
        async def forward(sent: bytes) -> None:
            if pair.doomed:  # the server answered: it is committed
                self.commits_cut += 1
                raise ConnectionResetError
            pair.client.write(sent)
            await pair.client.drain()

        await self._pump(reader, pair.client, forward)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        forward: Callable[[bytes], Coroutine[Any, Any, None]],
    ) -> None:
        with contextlib.suppress(OSError):
            while sent := await reader.read(CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._open.wait()
                await forward(sent)
            if writer.can_write_eof():
                writer.write_eof()
            return
        _reset(writer)
        raise ConnectionResetError

    def _run(self, coroutine: Coroutine[Any, Any, int]) -> int:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _soon(self, act: Callable[[], object]) -> None:
        """Done when this returns."""

        async def soon() -> int:
            act()
            return 0

        self._run(soon())


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0 and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
    writer.transport.abort()
