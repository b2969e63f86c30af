"""
The cloud, a process of its own: `python -m tests.chaos.cloud <port> <journal> <seed>`.

Its journal is its truth: every change is a line first and then done, and a cloud that was killed
with -9 reads it and goes on, with what it had promised to do later still to be done.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.chaos.faults import CALM, Chances, Fault, draw
from tests.chaos.journal import Journal, Line, read

TICK = 0.05  # seconds between two looks at what falls due
PAGE = 8  # sandboxes on one page of a list: small, so that there are several
LOOKS_BACK = (1.0, 12.0)  # seconds; how old a stale list is
STUCK_FOR = 5.0  # seconds; longer than any deadline of a teardown
LANDS_AFTER = (0.3, 8.0)  # seconds; when a late effect happens
NO_ANSWER = 0  # in place of a status


@dataclass
class Box:
    """One sandbox. Moments are of time.monotonic(); `wall` is of time.time()."""

    id: str
    name: str
    labels: dict[str, str]
    born: float
    wall: float
    planted: str | None = None
    expires: float | None = None
    died: float | None = None

    def lives(self, at: float) -> bool:
        """Whether it was there at this moment."""
        return self.born <= at and (self.died is None or self.died > at)


@dataclass(frozen=True)
class Answer:
    """What a caller gets. NO_ANSWER as status closes the connection instead."""

    status: int
    body: object = None
    retry_after: float | None = None
    cut: bool = False  # the connection ends in the middle of the body


GONE = Answer(404)
ACCEPTED = Answer(202)
SILENCE = Answer(NO_ANSWER)
REFUSALS: Mapping[Fault | None, Answer] = {
    Fault.UNAVAILABLE: Answer(503),
    Fault.PAGE_FAILS: Answer(503),
    Fault.FORBIDDEN: Answer(403),
    Fault.QUOTA: Answer(402),
    Fault.BUSY: Answer(409),
    Fault.IGNORED: ACCEPTED,
}


class Cloud:
    """The sandboxes, what is still to happen to them, and what goes wrong. Thread-safe."""

    def __init__(self, journal: Path, seed: str) -> None:
        self._chances: Chances = CALM
        self._boxes: dict[str, Box] = {}
        self._alive: dict[str, Box] = {}
        self._later: dict[int, Line] = {}
        self._lock = threading.RLock()
        lives = 1
        for line in read(journal):
            self._apply(line)
            lives += line["what"] == "started"
        self._chance = random.Random(f"{seed}/{lives}")
        self._calls = itertools.count()
        self._under_way = 0
        self._life = lives
        self._journal = Journal(journal)
        self._do("started", life=lives)

    # What callers want

    def serve(self, operation: str, asked: dict[str, Any], pid: int) -> Answer:
        """One call: what is wanted, through what goes wrong."""
        call = f"{self._life}.{next(self._calls)}"
        kind = "page" if operation == "list" and asked.get("cursor") else operation
        with self._lock:
            fault = draw(self._chances, kind, self._chance)
            self._under_way += 1
            self._do("asked", call=call, op=operation, name=asked.get("name"), pid=pid, fault=fault)
        answer = self._faulty(operation, asked, fault)
        with self._lock:
            self._under_way -= 1
            name, status = asked.get("name"), answer.status
            self._do("answered", call=call, op=operation, name=name, status=status)
        return answer

    def _faulty(self, operation: str, asked: dict[str, Any], fault: Fault | None) -> Answer:
        """The answer; the effect is now, later or never."""
        if fault in REFUSALS:
            return REFUSALS[fault]
        if fault is Fault.LIMITED:
            return Answer(429, retry_after=round(self._between(0.2, 1.5), 1))
        if fault in {Fault.LATE, Fault.ACCEPTED}:
            self._postpone(operation, asked)
            return SILENCE if fault is Fault.LATE else ACCEPTED
        if fault is Fault.STALE:
            return self._list(asked, time.monotonic() - self._between(*LOOKS_BACK))
        if fault is Fault.SQUATTED:
            self.plant(asked["name"], {"team": "of somebody else"}, "foreign")
        if fault in {Fault.SLOW, Fault.STUCK}:
            time.sleep(self._between(0.3, 2.0) if fault is Fault.SLOW else STUCK_FOR)
        answer = self._effect(operation, asked)
        if fault is Fault.LOST_ANSWER:
            return SILENCE
        return replace(answer, cut=True) if fault is Fault.TRUNCATED else answer

    def _between(self, low: float, high: float) -> float:
        with self._lock:
            return self._chance.uniform(low, high)

    def _effect(self, operation: str, asked: dict[str, Any]) -> Answer:
        with self._lock:
            match operation:
                case "create":
                    return self._create(asked)
                case "get":
                    box = self._find(asked)
                    return GONE if box is None else Answer(200, _seen(box))
                case "destroy":
                    return self._destroy(asked)
                case "list":
                    return self._list(asked, time.monotonic())
                case "extend":
                    return self._extend(asked)
        return Answer(400)

    def _create(self, asked: dict[str, Any]) -> Answer:
        box = self._find({"name": asked["name"]})
        if box is None:
            self._bear(asked["name"], asked["labels"], ttl=asked["ttl"])
            box = self._find({"name": asked["name"]})
            assert box is not None
        elif box.labels != asked["labels"]:
            return Answer(412)
        return Answer(200, _seen(box))

    def _destroy(self, asked: dict[str, Any]) -> Answer:
        box = self._find(asked)
        if box is None:
            return GONE
        self._do("died", id=box.id, name=box.name, why="destroyed", planted=box.planted)
        return ACCEPTED

    def _extend(self, asked: dict[str, Any]) -> Answer:
        box = self._find(asked)
        if box is None:
            return GONE
        expires = time.monotonic() + asked["ttl"]
        self._do("extended", id=box.id, expires=expires, planted=box.planted)
        return Answer(200, _seen(box))

    def _list(self, asked: dict[str, Any], moment: float) -> Answer:
        after, _, of = (asked.get("cursor") or "").partition("@")
        moment = float(of) if of else moment  # every page is of the same moment
        wanted = asked["labels"].items()
        with self._lock:
            rest = [
                box
                for box in self._boxes.values()
                if box.id > after and box.lives(moment) and wanted <= box.labels.items()
            ]
        page = sorted(rest, key=lambda box: box.id)[:PAGE]
        more = f"{page[-1].id}@{moment}" if len(rest) > len(page) else None
        return Answer(200, {"items": [_seen(box) for box in page], "cursor": more})

    def _find(self, asked: dict[str, Any]) -> Box | None:
        external_id = asked.get("external_id")
        for box in self._alive.values():
            if box.name == asked["name"] and external_id in (None, box.id):
                return box
        return None

    # What happens by itself, or behind everybody's back

    def tick(self) -> None:
        """Do what has fallen due: late effects, and sandboxes whose own time is over."""
        now = time.monotonic()
        with self._lock:
            for number, line in list(self._later.items()):
                if line["due"] <= now:
                    self._effect(line["op"], line["wanted"])  # again after a crash: harmless
                    self._do("landed", number=number, op=line["op"])
            for box in list(self._alive.values()):
                if box.expires is not None and box.expires <= now:
                    self._do("died", id=box.id, name=box.name, why="expired", planted=box.planted)

    def go_wrong(self, chances: Chances) -> None:
        """From now on this likely, also in the next life."""
        self._do("chances", chances=chances)

    def plant(self, name: str, labels: dict[str, str], kind: str) -> None:
        """A sandbox that nobody of ours asked for."""
        with self._lock:
            self._bear(name, labels, planted=kind)

    def vanish(self, labels: dict[str, str]) -> str | None:
        """One sandbox with these labels is gone, and nobody was told. Returns its name."""
        with self._lock:
            there = [
                box
                for box in self._alive.values()
                if box.planted is None and labels.items() <= box.labels.items()
            ]
            if not there:
                return None
            box = self._chance.choice(there)
            self._do("died", id=box.id, name=box.name, why="vanished", planted=None)
            return box.name

    def busy(self) -> int:
        """How many calls are under way, or are still to have their effect."""
        with self._lock:
            return len(self._later) + self._under_way

    def boxes(self) -> list[dict[str, Any]]:
        """What lives."""
        with self._lock:
            return [_seen(box) for box in self._alive.values()]

    def _bear(
        self,
        name: str,
        labels: dict[str, str],
        *,
        ttl: float | None = None,
        planted: str | None = None,
    ) -> None:
        self._do(
            "born",
            id=f"box-{len(self._boxes):06}",
            name=name,
            labels=labels,
            wall=time.time(),
            expires=None if ttl is None else time.monotonic() + ttl,
            planted=planted,
        )

    def _postpone(self, operation: str, asked: dict[str, Any]) -> None:
        due = time.monotonic() + self._between(*LANDS_AFTER)
        with self._lock:
            number = max(self._later, default=0) + 1
            self._do("postponed", number=number, due=due, op=operation, wanted=asked)

    # The journal is the truth

    def _do(self, what: str, **facts: Any) -> None:
        with self._lock:
            self._apply(self._journal.write(what, **facts))

    def _apply(self, line: Line) -> None:
        match line["what"]:
            case "born":
                self._alive[line["id"]] = self._boxes[line["id"]] = Box(
                    id=line["id"],
                    name=line["name"],
                    labels=line["labels"],
                    born=line["at"],
                    wall=line["wall"],
                    planted=line["planted"],
                    expires=line["expires"],
                )
            case "died":
                self._alive.pop(line["id"]).died = line["at"]
            case "extended":
                self._boxes[line["id"]].expires = line["expires"]
            case "postponed":
                self._later[line["number"]] = line
            case "landed":
                del self._later[line["number"]]
            case "chances":
                self._chances = line["chances"]


def _seen(box: Box) -> dict[str, Any]:
    """What the cloud tells of a sandbox."""
    left = None if box.expires is None else box.expires - time.monotonic()
    return {
        "id": box.id,
        "name": box.name,
        "labels": box.labels,
        "planted": box.planted,
        "created": box.wall,
        "expires": None if left is None else time.time() + left,
    }


class Handler(BaseHTTPRequestHandler):
    """POST /<operation> for providers, POST /control/<what> for whoever runs the test."""

    cloud: Cloud

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = self.path.removeprefix("/")
        if operation.startswith("control/"):
            self._answer(Answer(200, self._control(operation.removeprefix("control/"), asked)))
        else:
            self._answer(self.cloud.serve(operation, asked, int(self.headers["X-Pid"])))

    def _control(self, what: str, asked: dict[str, Any]) -> object:
        match what:
            case "chances":
                self.cloud.go_wrong(asked)
            case "plant":
                self.cloud.plant(asked["name"], asked["labels"], asked["kind"])
            case "vanish":
                return self.cloud.vanish(asked)
            case "boxes":
                return self.cloud.boxes()
            case "busy":
                return self.cloud.busy()
        return None

    def _answer(self, answer: Answer) -> None:
        self.close_connection = True
        if answer.status == NO_ANSWER:
            return
        body = json.dumps(answer.body).encode()
        with contextlib.suppress(OSError):  # a caller that gave up
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            if answer.retry_after is not None:
                self.send_header("Retry-After", str(answer.retry_after))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer.cut else body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """The journal says it."""


class Server(ThreadingHTTPServer):
    """Takes its port again at once after it was killed."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers are killed in the middle of their calls: that is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main(port: int, journal: Path, seed: str) -> None:
    """Serve until killed."""
    Handler.cloud = cloud = Cloud(journal, seed)
    with Server(("127.0.0.1", port), Handler) as server:
        server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
        while True:
            cloud.tick()
            time.sleep(TICK)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
