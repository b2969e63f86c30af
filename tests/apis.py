"""
A REST API of a test's own, on loopback: a handler that keeps its state, and faults on the way.

A vendor's fake is a function from `Call` to `Reply` over its own dictionaries. What happens to a
call before and after that function, a fault decides: so every fake loses answers in the same ways.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Call:
    """A request as it came in. `query` has the last value of each name."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in small letters
    content: bytes

    @property
    def body(self) -> Any:
        """Its JSON; None when it has none."""
        return json.loads(self.content) if self.content else None


@dataclass(frozen=True)
class Reply:
    """What is answered: `body` as JSON, bytes as they are, None as nothing."""

    status: int
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Fault:
    """
    What befalls a call: `reply` is answered instead, or the connection is `cut`, before the call
    had its effect or `after`. A `delay` of so many seconds comes first; alone, it is all.
    """

    reply: Reply | None = None
    cut: bool = False
    after: bool = False
    delay: float = 0.0


Handler = Callable[[Call], Reply]


class Api:
    """One that is being served; `calls` is what came in, in its order."""

    def __init__(self, handler: Handler) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self._handler = handler
        self._faults: list[tuple[str, str, Fault]] = []
        self._lock = threading.Lock()

    def strike(self, method: str, path: str, fault: Fault, *, times: int = 1) -> None:
        """Let it befall the next calls of this method whose path contains `path`."""
        with self._lock:
            self._faults += [(method, path, fault)] * times

    def count(self, method: str, path: str = "") -> int:
        """How many calls of this method had this in their path."""
        return sum(call.method == method and path in call.path for call in self.calls)

    def answer(self, call: Call) -> Reply | None:
        """The answer to one call; None cuts the connection."""
        with self._lock:
            self.calls.append(call)
            fault = self._befalls(call)
        time.sleep(fault.delay)
        took_effect = fault.after or not (fault.cut or fault.reply)
        with self._lock:
            done = self._handler(call) if took_effect else None
        return None if fault.cut else fault.reply or done

    def _befalls(self, call: Call) -> Fault:
        for index, (method, path, fault) in enumerate(self._faults):
            if method == call.method and path in call.path:
                del self._faults[index]
                return fault
        return Fault()


@contextmanager
def serving(handler: Handler) -> Iterator[Api]:
    """Serve it for as long as the block lasts. The handler is called by one thread at a time."""
    api = Api(handler)
    server = _Server(("127.0.0.1", 0), _handler_of(api))
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # thirty clients connect at once


def _handler_of(api: Api) -> type[BaseHTTPRequestHandler]:
    class Conversation(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            with suppress(ConnectionError):  # the client went away
                super().handle_one_request()

        def _serve(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            reply = api.answer(
                Call(
                    self.command,
                    url.path,
                    dict(parse_qsl(url.query, keep_blank_values=True)),
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(length),
                )
            )
            if reply is None:
                self.close_connection = True
                return
            self.send_response_only(reply.status)
            date = {"Date": self.date_time_string()}  # a fake may have a clock of its own
            for name, value in {**date, **JSON, **reply.headers}.items():
                self.send_header(name, value)
            if reply.status != 204:
                self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's
            """Say nothing: `calls` has it all."""

    return Conversation
