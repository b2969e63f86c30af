"""examples/typescript: its types are the API's, it compiles, and its turns live as turns do."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from core.lifecycle import Keeper
from core.web import create_app
from core.wiring import System
from tests.acceptance.examples import TYPESCRIPT, install, missing_node, npm
from tests.web.servers import Server, serving, until

pytestmark = pytest.mark.timeout(600)  # the first of them installs

PROGRAM = """
import { Sandkeeper } from "./dist/sandkeeper.js";
const [url, what] = process.argv.slice(2);
const keeper = new Sandkeeper(url);
const say = (line) => console.log(JSON.stringify(line));
const told = () => new Promise((resolve) => process.stdin.once("data", resolve));
const works = {
  async ends() { await told(); return "done"; },
  async throws() { await told(); throw new Error("ours"); },
  async ignores() { await new Promise(() => setInterval(() => {}, 1000)); },
};
try {
  await keeper.open("conv");
  say({ done: await keeper.withTurn("conv", async (turn) => {
    turn.signal.addEventListener("abort", () => say({ aborted: String(turn.signal.reason) }));
    say({ begun: turn.turn_id });
    return await works[what]();
  }) });
} catch (error) {
  say({ error: String(error), type: error.type ?? null });
}
process.exit(0);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with what it needs, compiled."""
    if missing := missing_node():
        pytest.skip(missing)
    copy = install(tmp_path_factory.mktemp("typescript"))
    npm(copy, "run", "build")
    (copy / "program.js").write_text(PROGRAM)
    return copy


class Node:
    """The program above, and what it said."""

    def __init__(self, folder: Path, url: str, what: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            ["node", "program.js", url, what],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def said(self, what: str) -> Any:
        """The first line about this; None while there is none."""
        return next((line[what] for line in list(self.lines) if what in line), None)

    def wait_until_said(self, what: str) -> Any:
        """What it says about this, sooner or later."""
        until(lambda: self.said(what) is not None or self.process.poll() is not None, self.explain)
        if self.said(what) is None:
            self._reader.join()
        assert self.said(what) is not None, self.explain()
        return self.said(what)

    def tell(self) -> None:
        """Let the work go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def explain(self) -> object:
        """What there is to see."""
        return self.lines, self.process.poll()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))


@pytest.fixture
def node(folder: Path) -> Iterator[Callable[..., Node]]:
    """Start programs; none is left after the test."""
    started: list[Node] = []

    def start(url: str, what: str) -> Node:
        started.append(Node(folder, url, what))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def server(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """`sandkeeper serve`, with quick heartbeats."""
    environ = {
        "SANDKEEPER_DATABASE_URL": sqlite_url,
        "SANDKEEPER_BROKER_URL": f"sandkeeper+filesystem:///{tmp_path}/broker",
        "SANDKEEPER_PROVIDER": "tests.fakes:FakeCloud",
        "SANDKEEPER_HEARTBEAT": "0.2",
    }
    with serving(tmp_path, environ) as start:
        yield start()


@pytest.fixture
def look(sqlite_url: str) -> Iterator[Keeper]:
    """The same database, seen from here."""
    environ = {
        "SANDKEEPER_DATABASE_URL": sqlite_url,
        "SANDKEEPER_PROVIDER": "tests.fakes:FakeCloud",
    }
    system = System.from_env(environ)
    yield system.keeper()
    system.close()


def outcomes(look: Keeper) -> list[str | None]:
    """Of all turns, by their rows."""
    with look.store.database.engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT outcome FROM turns").scalars())


def test_its_types_are_those_of_the_api(folder: Path, keeper: Keeper) -> None:
    """api.d.ts is what openapi-typescript makes of /openapi.json."""
    described = folder / "openapi.json"
    described.write_text(json.dumps(create_app(keeper).openapi()))
    npm(folder, "exec", "--", "openapi-typescript", str(described), "--output", "made.d.ts")

    made = (folder / "made.d.ts").read_text()
    assert made == (TYPESCRIPT / "api.d.ts").read_text(), "start ./run up, then `npm run types`"


def test_its_lock_names_no_registry() -> None:
    """Whoever installs takes their own registry, and each file is known by its hash."""
    lock = json.loads((TYPESCRIPT / "package-lock.json").read_text())
    parts = {name: part for name, part in lock["packages"].items() if name}

    assert parts
    assert all("resolved" not in part and part["integrity"] for part in parts.values())


def test_a_turn_is_three_calls(server: Server, node: Any, look: Keeper) -> None:
    """Begin, heartbeats while the work is silent, end."""
    program = node(server.url, "ends")
    program.wait_until_said("begun")
    first = look.get("conv").last_activity_at
    until(lambda: look.get("conv").last_activity_at > first, server.said)
    assert outcomes(look) == [None]

    program.tell()

    assert program.wait_until_said("done") == "done"
    assert outcomes(look) == ["completed"]


def test_work_that_throws_is_a_turn_that_failed(server: Server, node: Any, look: Keeper) -> None:
    """And its own error is what the caller gets."""
    program = node(server.url, "throws")
    program.wait_until_said("begun")
    program.tell()

    assert program.wait_until_said("error") == "Error: ours"
    assert outcomes(look) == ["failed"]


def test_a_heartbeat_that_is_answered_410_aborts_the_work(
    server: Server, node: Any, look: Keeper
) -> None:
    """The signal says so, and the caller is told, even where the work takes no notice."""
    program = node(server.url, "ignores")
    program.wait_until_said("begun")

    look.end("conv", reason="user left")

    assert "user left" in program.wait_until_said("aborted")
    assert "user left" in program.wait_until_said("error")
    assert program.said("type") == "urn:sandkeeper:problem:session-ended"


def test_a_killed_program_beats_no_more(server: Server, node: Any, look: Keeper) -> None:
    """L1: kill -9 in a turn; its row stays open, and shows no activity from then on."""
    program = node(server.url, "ignores")
    program.wait_until_said("begun")
    first = look.get("conv").last_activity_at
    until(lambda: look.get("conv").last_activity_at > first, server.said)

    program.kill()

    last = look.get("conv").last_activity_at
    with look.turn("conv"):  # the database's clock is past it
        assert look.get("conv").last_activity_at > last
    assert outcomes(look).count(None) == 1


class Scripted(BaseHTTPRequestHandler):
    """A server that answers heartbeats with what the test wants."""

    heartbeats: list[int | None]
    seen: list[float]
    every: float
    ceiling: float

    def do_POST(self) -> None:
        """Open, or begin a turn."""
        begun = {
            "turn_id": "t",
            "heartbeat_every": self.every,
            "started_at": "2020-01-01T00:00:00Z",  # its clock is its own
            "hard_until": f"2020-01-01T00:00:{self.ceiling:09.6f}Z",
        }
        self._answer(201, begun)

    def do_PUT(self) -> None:
        """A heartbeat."""
        self.seen.append(time.monotonic())
        status = self.heartbeats.pop(0) if self.heartbeats else 200
        if status is None:
            self.close_connection = True  # no answer at all
            return
        self._answer(status, {"type": f"http-{status}", "detail": f"answered {status}"})

    def do_DELETE(self) -> None:
        """The end of the turn."""
        self._answer(204)

    def _answer(self, status: int, body: object = None) -> None:
        sent = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def scripted(
    *heartbeats: int | None, every: float = 0.4, ceiling: float = 50
) -> Iterator[tuple[str, list[float]]]:
    """Its address, and when it heard a heartbeat."""
    seen: list[float] = []
    script = {"heartbeats": [*heartbeats], "seen": seen, "every": every, "ceiling": ceiling}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Script", (Scripted,), script)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


def test_what_is_no_refusal_is_tried_again_sooner(node: Any) -> None:
    """5xx, and no answer at all: the turn goes on, and the next heartbeat comes in a quarter."""
    with scripted(503, None, 500, every=2) as (url, seen):
        program = node(url, "ends")
        program.wait_until_said("begun")
        until(lambda: len(seen) >= 5, program.explain)
        program.tell()

        assert program.wait_until_said("done") == "done"
        assert program.said("aborted") is None
        pauses = [after - before for before, after in pairwise(seen)]
        assert min(pauses[:3]) < 1.9  # a busy machine makes them longer, and none shorter
        assert pauses[3] > 1.9


def test_404_is_a_refusal_too(node: Any) -> None:
    """A turn that nobody knows is not held."""
    with scripted(404) as (url, _):
        program = node(url, "ignores")

        assert "answered 404" in program.wait_until_said("aborted")


def test_the_ceiling_is_kept_by_its_own_clock(node: Any) -> None:
    """Whatever the server's clock says, and however well the heartbeats are answered."""
    with scripted(ceiling=1.5) as (url, seen):
        program = node(url, "ignores")

        assert "hard ceiling" in program.wait_until_said("aborted")
        assert program.wait_until_said("error")
        assert 1 <= len(seen) <= 4
