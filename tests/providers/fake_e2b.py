"""
A stand-in for E2B's control plane, as its SDK (2.63.0) and its server's source have it.

Behaves as the original where it may hurt: an id is cut at its hyphen, a listing leaves out what is
being snapshotted, a paused sandbox shows a date of the past as its end, and times have nanoseconds.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from tests.apis import Call, Reply

API_KEY = "e2b_0123456789abcdef0123456789abcdef01234567"
KNOWN = {
    "templateID": str,
    "timeout": int,
    "autoPause": bool,
    "autoPauseMemory": bool,
    "autoResume": dict,
    "allow_internet_access": bool,
    "network": dict,
    "metadata": dict,
    "envVars": dict,
    "mcp": dict,
    "iam": dict,
    "volumeMounts": list,
}
NETWORK = {"allowPublicTraffic", "allowOut", "denyOut"}
KEY = re.compile(r"[a-z0-9-]{1,255}")


@dataclass
class Box:
    """One sandbox. Times are seconds since 1970."""

    id: str
    body: dict[str, Any]
    started_at: float
    end_at: float
    ready_at: float  # from then on it is listed, and its key has an answer
    state: str = "running"  # running, paused; snapshotting is shown as running

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.body.get("metadata") or {})


@dataclass
class Refused(Exception):
    """An error as the server words it."""

    status: int
    message: str
    code: str = ""

    def reply(self) -> Reply:
        body = {"code": self.status, "message": self.message}
        return Reply(self.status, body | ({"error_code": self.code} if self.code else {}))


@dataclass
class FakeE2B:
    """One team. The fields are what a test may turn."""

    hours: int = 24  # that the plan lets a sandbox live
    concurrent: int = 100
    largest_page: int = 100
    pauses_by_default: bool = False  # the project's default for who does not say
    templates: set[str] = field(default_factory=lambda: {"base", "mine"})
    boxes: dict[str, Box] = field(default_factory=dict)
    shown: list[str] | None = None  # ids that a stale listing has; None for a fresh one
    fails_to_kill: bool = False  # the node does not answer; the record is dropped all the same
    forgets_filter: bool = False
    start: float = 0.0  # seconds that a create takes for those who send it once more meanwhile
    _keys: dict[str, tuple[bytes, Reply]] = field(default_factory=dict)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def __call__(self, call: Call) -> Reply:
        try:
            self._expire()
            return self._routed(call)
        except Refused as refused:
            return refused.reply()

    # What a test does behind its back

    def make(self, metadata: dict[str, str] | None = None, **more: Any) -> Box:
        """A sandbox that somebody made in another way."""
        body = {"templateID": "base", "metadata": metadata or {}, **more}
        return self._add(body, 300)

    def fork(self, box: Box) -> Box:
        """As POST /sandboxes/{id}/fork: the metadata is that of the first."""
        return self._add(box.body, 300)

    # What it answers

    def _routed(self, call: Call) -> Reply:
        if call.headers.get("x-api-key") != API_KEY:
            raise Refused(401, "Invalid API key, please visit https://e2b.dev/docs/api-key")
        if call.path == "/v2/sandboxes":
            if call.method == "GET":
                return self._list(call)
            if call.method == "POST":
                return self._create(call)
        found = re.fullmatch(r"(?:/v2)?/sandboxes/([^/]+)(?:/(\w+))?", call.path)
        verbs: dict[tuple[str, str | None], Callable[[str, Call], Reply]] = {
            ("GET", None): self._get,
            ("DELETE", None): self._kill,
            ("POST", "timeout"): self._timeout,
            ("POST", "pause"): self._pause,
            ("POST", "connect"): self._connect,
        }
        if found is None or (call.method, found[2]) not in verbs:
            raise Refused(404, "no matching operation was found")
        return verbs[call.method, found[2]](_short(found[1]), call)

    def _create(self, call: Call) -> Reply:
        key = call.headers.get("idempotency-key")
        if key is not None and not KEY.fullmatch(key):
            raise Refused(400, "Invalid idempotency key")
        if key is not None and key in self._keys:
            content, reply = self._keys[key]
            if content != call.content:
                raise Refused(409, "The key was used before", "idempotency_request_mismatch")
            if any(box.ready_at > self.now() for box in self.boxes.values()):
                raise Refused(409, "The first is under way", "idempotency_in_progress")
            return reply
        body = _valid(call)
        if body["templateID"] not in self.templates:
            raise Refused(404, f"template '{body['templateID']}' not found")
        seconds = body.get("timeout", 300)
        if seconds <= 0:
            raise Refused(400, "Timeout must be greater than 0")
        if seconds > self.hours * 3600:
            raise Refused(400, f"Timeout cannot be greater than {self.hours} hours")
        if sum(box.state == "running" for box in self.boxes.values()) >= self.concurrent:
            raise Refused(
                429,
                "you have reached the maximum number of concurrent E2B sandboxes "
                f"({self.concurrent}). If you need more, please visit ...",
            )
        box = self._add(body, seconds)
        reply = Reply(201, _made(box))
        if key is not None:
            self._keys[key] = (call.content, reply)
        return reply

    def _list(self, call: Call) -> Reply:
        limit = int(call.query.get("limit", 100))
        if not 1 <= limit <= 100:
            raise Refused(400, "limit: number must be at most 100")
        states = call.query.get("state", "running,paused").split(",")
        if {*states} - {"running", "paused"}:
            raise Refused(400, "state: value is not one of the allowed values")
        rising = call.query.get("order", "desc") == "asc"
        after = _cursor(call.query.get("nextToken"), rising=rising)
        wanted = {} if self.forgets_filter else _filters(call.query.get("metadata"))
        found = [
            box
            for box in self._visible()
            if box.state in states and wanted.items() <= box.metadata.items()
        ]
        found.sort(key=_place, reverse=not rising)
        if after is not None:
            found = [
                box for box in found if (_place(box) > after if rising else _place(box) < after)
            ]
        size = min(limit, self.largest_page)
        headers = {}
        if len(found) > size:
            headers["X-Next-Token"] = _token(found[size - 1], rising=rising)
        return Reply(200, [_listed(box) for box in found[:size]], headers)

    def _visible(self) -> list[Box]:
        ready = [box for box in self.boxes.values() if box.ready_at <= self.now()]
        if self.shown is None:
            return [box for box in ready if box.state != "snapshotting"]
        return [box for box in ready if box.id in self.shown]

    def _get(self, box_id: str, call: Call) -> Reply:
        return Reply(200, _detailed(self._box(box_id)))

    def _kill(self, box_id: str, call: Call) -> Reply:
        box = self._box(box_id)
        del self.boxes[box.id]
        if self.fails_to_kill:
            raise Refused(500, "Error killing sandbox: sandbox operation failed")
        return Reply(204)

    def _timeout(self, box_id: str, call: Call) -> Reply:
        box = self._box(box_id)
        if box.state != "running":
            raise Refused(409, f'Sandbox "{box.id}" is in {box.state} state')
        last = box.started_at + self.hours * 3600
        if self.now() > last:
            raise Refused(400, "Max instance length exceeded")
        box.end_at = min(last, self.now() + max(0, call.body["timeout"]))
        return Reply(204)

    def _pause(self, box_id: str, call: Call) -> Reply:
        box = self._box(box_id)
        if box.state == "paused":
            raise Refused(409, f"Error pausing sandbox - sandbox '{box.id}' is already paused")
        box.state, box.end_at = "paused", self.now()
        return Reply(204)

    def _connect(self, box_id: str, call: Call) -> Reply:
        box = self._box(box_id)
        if box.state == "paused":
            box.state, box.started_at = "running", self.now()
            box.end_at = self.now() + call.body.get("timeout", 300)
        return Reply(201, _made(box))

    def _box(self, box_id: str) -> Box:
        box = self.boxes.get(box_id)
        if box is None:
            raise Refused(404, f"Sandbox \"{box_id}\" doesn't exist or you don't have access to it")
        return box

    def _add(self, body: dict[str, Any], seconds: int) -> Box:
        box_id = f"i{next(self._count):019}"
        now = self.now()
        box = Box(box_id, body, now, now + seconds, now + self.start)
        self.boxes[box_id] = box
        return box

    def _expire(self) -> None:
        for box in list(self.boxes.values()):
            if box.state == "running" and box.end_at <= self.now():
                if box.body.get("autoPause", self.pauses_by_default):
                    box.state = "paused"
                else:
                    del self.boxes[box.id]

    def now(self) -> float:
        """By its own clock."""
        return time.time()


def _short(box_id: str) -> str:
    parts = box_id.split("-")
    if len(parts) > 2 or not re.fullmatch("[a-z0-9]+", parts[0]):
        raise Refused(400, "Invalid sandbox ID")
    return parts[0]


def _valid(call: Call) -> dict[str, Any]:
    try:
        body = call.body
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("templateID"), str):
        raise Refused(400, "Error when parsing request: templateID is required")
    for name, value in body.items():
        kind = KNOWN.get(name)
        if kind is None or not isinstance(value, kind):
            raise Refused(400, f"Error when parsing request: {name}")
    network = body.get("network") or {}
    if {*network} - NETWORK:
        raise Refused(400, "Error when parsing request: network")
    domains = [host for host in network.get("allowOut", ()) if re.search("[a-z]", host)]
    if domains and "0.0.0.0/0" not in network.get("denyOut", ()):
        raise Refused(400, "When specifying allowed domains in allow out, you must include ...")
    for name in ("metadata", "envVars"):
        if not all(isinstance(value, str) for value in body.get(name, {}).values()):
            raise Refused(400, f"Error when parsing request: {name}")
    return dict(body)


def _filters(text: str | None) -> dict[str, str]:
    """Unescaped as a whole, and then once more in its parts."""
    if text is None:
        return {}
    pairs = [part.split("=") for part in unquote_plus(text).split("&")]
    if any(len(pair) != 2 for pair in pairs):
        raise Refused(400, "Error parsing metadata")
    return {unquote_plus(key): unquote_plus(value) for key, value in pairs}


def _place(box: Box) -> tuple[float, str]:
    return box.started_at, box.id


def _token(box: Box, *, rising: bool) -> str:
    place = json.dumps([*_place(box), rising])
    return base64.urlsafe_b64encode(place.encode()).decode()


def _cursor(token: str | None, *, rising: bool) -> tuple[float, str] | None:
    if not token:
        return None
    try:
        started_at, box_id, was_rising = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, binascii.Error) as error:
        raise Refused(400, "Invalid next token") from error
    if was_rising is not rising:
        raise Refused(400, "Invalid next token")
    return started_at, box_id


def _moment(seconds: float) -> str:
    """As Go writes it: nanoseconds, no zeros at the end."""
    whole = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{int(seconds % 1 * 1e9):09}".rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"


def _made(box: Box) -> dict[str, Any]:
    return {
        "templateID": box.body["templateID"],
        "sandboxID": box.id,
        "clientID": "6532622b",
        "envdVersion": "0.2.4",
        "envdAccessToken": "secret",
    }


def _listed(box: Box) -> dict[str, Any]:
    found = _made(box) | {
        "startedAt": _moment(box.started_at),
        "endAt": _moment(box.end_at),
        "cpuCount": 2,
        "memoryMB": 512,
        "diskSizeMB": 1024,
        "state": "running" if box.state == "snapshotting" else box.state,
        "volumeMounts": [],
    }
    del found["envdAccessToken"]
    return found | ({"metadata": box.metadata} if "metadata" in box.body else {})


def _detailed(box: Box) -> dict[str, Any]:
    pauses = box.body.get("autoPause", False)
    return _listed(box) | {
        "envdAccessToken": "secret",
        "lifecycle": {"autoResume": False, "onTimeout": "pause" if pauses else "kill"},
    }
