"""
The servers of examples/, as real processes that are called over real sockets. All of them have the
same two calls: a stream, and the end of a conversation.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.acceptance.processes import Program
from tests.acceptance.site import ROOT, Site

TYPESCRIPT = ROOT / "examples" / "typescript"
LISTENS = re.compile(r"http://127\.0\.0\.1:(\d+)")
INSTALLED_WITHIN = 400.0  # seconds; by a registry that may be slow
STARTED_WITHIN = 60.0  # seconds; a busy machine imports slowly


@dataclass(frozen=True)
class Server:
    """One of them, and where it listens. With `holder` dead, its turns have nobody."""

    site: Site
    holder: Program
    port: int

    def stream(self, conversation: str, seconds: float) -> Stream:
        """Ask for a stream of so long; the caller reads it."""
        return Stream(self.port, f"/conversations/{conversation}/stream?seconds={seconds}")

    def leave(self, conversation: str) -> int:
        """End the conversation; the status of the answer."""
        with Stream(self.port, f"/conversations/{conversation}", method="DELETE") as answer:
            answer.read_all()
            return answer.status


class Stream:
    """A call over a socket of its own: it can be read in parts, and dropped in the middle."""

    def __init__(self, port: int, path: str, *, method: str = "POST") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), STARTED_WITHIN)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        self._socket.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
        self.received = b""

    @property
    def status(self) -> int:
        """Of the answer, once it has begun."""
        return int(self.received.split(b" ", 2)[1])

    @property
    def is_whole(self) -> bool:
        """Whether it came to its end by the rules of HTTP, and was not broken off."""
        head, _, body = self.received.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            return body.endswith(b"0\r\n\r\n")
        return self._closed_well

    _closed_well = False

    def read_until(self, said: bytes) -> None:
        """Read on until this was received."""
        while said not in self.received:
            part = self._socket.recv(65_536)
            assert part, self.received
            self.received += part

    def read_all(self) -> None:
        """Read until the server has closed the connection."""
        try:
            while part := self._socket.recv(65_536):
                self.received += part
        except ConnectionError:
            return
        self._closed_well = True

    def drop(self) -> None:
        """Go away in the middle."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def fastapi(site: Site, _: Path) -> Server:
    """uvicorn, on asyncio."""
    return _started(site, "fastapi", _uvicorn("examples.fastapi_app:app"))


def flask(site: Site, _: Path) -> Server:
    """Flask's own server, with a thread for each request: WSGI."""
    command = [sys.executable, "-m", "flask", "--app", "examples.flask_app", "run", "--port", "0"]
    return _started(site, "flask", command)


def django(site: Site, _: Path) -> Server:
    """uvicorn, on asyncio."""
    return _started(site, "django", _uvicorn("examples.django_app:application"))


def typescript(site: Site, built: Path) -> Server:
    """Node, which calls the HTTP API of a `sandkeeper serve`."""
    api = site.start("serve", [sys.executable, "-m", "tasks.cli", "serve", "--port", "0"])
    url = f"http://127.0.0.1:{_port(site, api)}"
    return _started(site, "node", ["node", str(built / "server.js")], SANDKEEPER_URL=url, PORT="0")


EXAMPLES: Mapping[str, Callable[[Site, Path], Server]] = {
    "fastapi": fastapi,
    "flask": flask,
    "django": django,
    "typescript": typescript,
}


def _uvicorn(app: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, "--port", "0"]


def _started(site: Site, name: str, command: list[str], **environ: str) -> Server:
    program = site.start(name, command, **environ)
    return Server(site, program, _port(site, program))


def _port(site: Site, program: Program) -> int:
    found = site.until(
        lambda: LISTENS.search(program.log.read_text(errors="replace")),
        f"{program.name} listens",
        STARTED_WITHIN,
    )
    return int(found[1])


def missing_node() -> str | None:
    """What of Node is not here, in words."""
    absent = [name for name in ("node", "npm") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not on PATH" if absent else None


def install(folder: Path) -> Path:
    """A copy of examples/typescript, and what it needs by its lock; raises CalledProcessError."""
    copy = folder / "typescript"
    shutil.copytree(TYPESCRIPT, copy, ignore=shutil.ignore_patterns("node_modules", "dist"))
    npm(copy, "ci", "--ignore-scripts", "--no-progress", "--prefer-offline")
    return copy


def npm(folder: Path, *arguments: str) -> str:
    """What a command of npm printed; raises CalledProcessError."""
    done = subprocess.run(
        ["npm", *arguments],
        cwd=folder,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALLED_WITHIN,
    )
    return done.stdout
