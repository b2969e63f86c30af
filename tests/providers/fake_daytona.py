"""
Daytona as its server and its SDK have it, in memory: what it answers, and how it misleads.

Made from the server's source (v0.190.0), the API's description (v0.205.1) and the SDK (0.226.1). In
one thing it is stricter: a field or a parameter that nobody knows is refused, not ignored.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from tests.apis import Call, Reply

KEY, TOKEN = "dtn_secret", "header.payload.signature"
OURS, OTHERS = "org-ours", "org-others"
OTHERS_KEY = "dtn_others"
SNAPSHOT = "daytona-small"
CREATE = {
    **dict.fromkeys(("name", "snapshot", "user", "target", "networkAllowList"), str),
    **dict.fromkeys(("domainAllowList", "linkedSandbox", "outboundProxyUrl"), str),
    **dict.fromkeys(("env", "labels", "buildInfo"), dict),
    **dict.fromkeys(("public", "networkBlockAll", "spot"), bool),
    **dict.fromkeys(("cpu", "memory", "disk", "gpu", "ttlMinutes", "autoStopInterval"), int),
    **dict.fromkeys(("autoPauseInterval", "autoArchiveInterval", "autoDeleteInterval"), int),
    **dict.fromkeys(("volumes", "secrets"), list),
}
SEARCH = {"cursor", "limit", "id", "name", "labels", "includeErroredDeleted", "sort", "order"}
BROKEN = {"error", "build_failed"}
LOGIN = dict.fromkeys(
    ("accessKey", "secret", "sessionToken", "storageUrl", "bucket", "region"), "a"
)
NOT_LISTED = {"env", "kvm"}


class Refused(Exception):
    """What is answered instead."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Box:
    """One sandbox, as the database has it. Times are seconds since 1970."""

    id: str
    organization: str
    name: str
    labels: Mapping[str, Any]
    created: float
    wanted: Mapping[str, Any] = field(default_factory=dict)
    state: str = "started"
    desired: str = "started"
    pending: bool = False
    expires: float | None = None
    deleted: float | None = None  # when somebody asked for it
    forks: int = 0

    @property
    def is_hidden(self) -> bool:
        """What failed and was deleted since is not found any more."""
        return self.state in BROKEN and self.desired == "destroyed"


class FakeDaytona:
    """
    One installation. Its fields are switches, for tests to turn; `ahead` is how far its clock is in
    front of ours, `lag` how far its index is behind, all in seconds.
    """

    def __init__(self, *, page: int = 200, lag: float = 0.0) -> None:
        self.boxes: dict[str, Box] = {}
        self.page, self.lag, self.ahead = page, lag, 0.0
        self.minute = 60.0  # seconds of a minute of a TTL
        self.longest: int | None = None  # minutes that a region lets one live
        self.destroys_within = 0.05
        self.fails_to_destroy = False
        self.fails_to_start = False
        self.room: int | None = None  # sandboxes that the organisation may have
        self.is_failing = False  # its database is down, which its guards call "not found"
        self.keeps_misses = 0.0  # seconds that a look by name which found nothing is repeated
        self.has_store = True  # for uploads
        self._misses: dict[str, float] = {}
        self._history: dict[str, list[tuple[float, Box]]] = {}

    def __call__(self, call: Call) -> Reply:
        """Answer one call."""
        if not call.path.startswith("/api/"):
            return Reply(200, b"<!doctype html>", {"Content-Type": "text/html"})  # its dashboard
        self._settle()
        try:
            return Reply(200, self._answer(call, _organization(call)))
        except Refused as refused:
            return Reply(refused.status, _problem(call, refused))

    def one(self, name: str) -> Box:
        """The sandbox that was made with this name, whatever it is called by now."""
        self._settle()
        (found,) = (
            box for box in self.boxes.values() if box.name == name or f"_{name}_" in box.name
        )
        return found

    def put(self, name: str, **changes: Any) -> Box:
        """One that is there, or is made like this by somebody else."""
        for box in self.boxes.values():
            if box.name == name:
                return self._change(box, **changes)
        fresh = Box(str(uuid4()), OURS, name, {}, self._now())
        return self._change(fresh, **changes)

    def _now(self) -> float:
        return time.time() + self.ahead

    def _change(self, box: Box, *, at: float | None = None, **changes: Any) -> Box:
        changed = replace(box, **changes)
        self.boxes[box.id] = changed
        moment = self._now() if at is None else at
        self._history.setdefault(box.id, []).append((moment, changed))
        return changed

    def _settle(self) -> None:
        """Do what became due while nobody asked."""
        for box in list(self.boxes.values()):
            if box.expires is not None and box.expires <= self._now() and box.deleted is None:
                self._delete(box, at=box.expires)
            self._go_on(box.id, 0.5, "destroying")
            self._go_on(box.id, 1.0, "error" if self.fails_to_destroy else "destroyed")

    def _go_on(self, which: str, part: float, state: str) -> None:
        """A delete takes a while, and comes by these states."""
        box = self.boxes[which]
        if box.deleted is None or box.state in {state, "destroyed"} or box.is_hidden:
            return
        if (due := box.deleted + part * self.destroys_within) <= self._now():
            self._change(box, at=due, state=state, pending=False)

    def _delete(self, box: Box, *, at: float) -> Box:
        renamed = f"DESTROYED_{box.name}_{int(at * 1000)}"
        return self._change(box, at=at, name=renamed, desired="destroyed", pending=True, deleted=at)

    def _answer(self, call: Call, organization: str) -> Any:
        parts = [unquote(part) for part in call.path.removeprefix("/api/").split("/")]
        match call.method, *parts:
            case "GET", "object-storage", "push-access":
                if not self.has_store:
                    raise Refused(503, "Object storage is not configured")
                return {"organizationId": organization, **LOGIN}
            case "POST", "sandbox":
                return _dto(self._create(call.body, organization))
            case "GET", "sandbox":
                return self._search(call.query, organization)
            case "GET", "sandbox", which:
                return _dto(self._find(which, organization))
            case "DELETE", "sandbox", which:
                return _dto(self._destroy(self._find(which, organization)))
            case "POST", "sandbox", which, "ttl", minutes:
                return _dto(self._set_ttl(self._find(which, organization), minutes))
        raise Refused(404, f"Cannot {call.method} {call.path}")

    def _create(self, body: Any, organization: str) -> Box:
        _validate(body)
        if body.get("target") not in {None, "us", "eu"}:
            raise Refused(404, "Region not found")
        image = body.get("buildInfo", {}).get("dockerfileContent")
        if image is None:
            _check_snapshot(body)
        used = [box for box in self.boxes.values() if box.desired != "destroyed"]
        if self.room is not None and len(used) >= self.room:  # before names are looked at
            raise Refused(400, f"Total CPU limit exceeded. Maximum allowed: {self.room}.\nUpgrade")
        name = body.get("name") or str(uuid4())
        if any(box.name == name and box.organization == organization for box in used):
            raise Refused(409, f"Sandbox with name {name} already exists")
        box = Box(str(uuid4()), organization, name, body.get("labels", {}), self._now(), body)
        box = self._change(box, expires=self._expiry(body.get("ttlMinutes", 0)))
        if self.fails_to_start:
            self._change(box, state="error")
            raise Refused(400, "Sandbox failed to start: no such runtime")
        if image is not None:
            return self._change(box, state="pending_build", pending=True)
        return box

    def _expiry(self, minutes: int) -> float | None:
        granted = min((each for each in (minutes, self.longest) if each), default=None)
        return None if granted is None else self._now() + granted * self.minute

    def _find(self, which: str, organization: str) -> Box:
        until = self._misses.get(which, 0.0)
        found = None
        if not self.is_failing and self._now() >= until:
            found = self._there(which, organization)
        if found is None:
            if self._now() >= until:
                self._misses[which] = self._now() + self.keeps_misses
            raise Refused(404, f"Sandbox with ID or name {which} not found")
        return found

    def _there(self, which: str, organization: str) -> Box | None:
        for is_it in (_has_id, _has_name):
            for box in self.boxes.values():
                if is_it(box, which) and box.organization == organization:
                    seen = box.state != "destroyed" and not box.is_hidden
                    return box if seen else None
        return None

    def _destroy(self, box: Box) -> Box:
        if box.pending and box.state != "pending_build":
            raise Refused(409, "Sandbox state change in progress")
        if box.forks:
            raise Refused(400, "Cannot delete sandbox which has active fork children.")
        return self._delete(box, at=self._now())

    def _set_ttl(self, box: Box, minutes: str) -> Box:
        if not minutes.isdecimal():
            raise Refused(400, "TTL must be a non-negative integer")
        return self._change(box, expires=self._expiry(int(minutes)))

    def _search(self, query: Mapping[str, str], organization: str) -> dict[str, Any]:
        if unknown := query.keys() - SEARCH:
            raise Refused(400, f"{unknown} is not known")
        limit = query.get("limit", "100")
        if not (limit.isdecimal() and 1 <= int(limit) <= 200):
            raise Refused(400, "limit must not be greater than 200")
        items = sorted(filter(_wanted(query, organization), self._indexed()), key=_place)
        if query.get("sort") != "createdAt" or query.get("order") != "asc":
            items.reverse()  # its default: what was used last comes first
        elif cursor := query.get("cursor"):
            after = json.loads(base64.b64decode(cursor))
            items = [box for box in items if _place(box) > after]
        size = min(int(limit), self.page)
        shown, more = items[:size], len(items) > size
        cursor = base64.b64encode(json.dumps(_place(shown[-1])).encode()).decode() if more else None
        return {"items": [_item(box) for box in shown], "nextCursor": cursor}

    def _indexed(self) -> list[Box]:
        """What the index knows: everything as it was a while ago."""
        seen = self._now() - self.lag
        known = ([box for at, box in told if at <= seen] for told in self._history.values())
        return [boxes[-1] for boxes in known if boxes]


def _organization(call: Call) -> str:
    """Whose credentials they are."""
    said = call.headers.get("authorization", "")
    if said == f"Bearer {TOKEN}":
        if call.headers.get("x-daytona-organization-id") != OURS:
            raise Refused(403, "Invalid authentication context")
        return OURS
    keys = {f"Bearer {KEY}": OURS, f"Bearer {OTHERS_KEY}": OTHERS}
    if said not in keys:
        raise Refused(401, "Unauthorized")
    return keys[said]


def _problem(call: Call, refused: Refused) -> dict[str, Any]:
    return {
        "path": call.path,
        "timestamp": _moment(time.time()),
        "statusCode": refused.status,
        "error": HTTPStatus(refused.status).phrase,
        "message": refused.message,
    }


def _validate(body: Any) -> None:
    if not isinstance(body, dict):
        raise Refused(400, "Unexpected token in JSON")
    for key, value in body.items():
        if key not in CREATE:
            raise Refused(400, f"property {key} should not exist")
        # SDKs send null for what they do not set.
        if value is not None and type(value) is not CREATE[key]:
            raise Refused(400, f"{key} must be a {CREATE[key].__name__}")
    for item in filter(None, (body.get("networkAllowList") or "").split(",")):
        try:
            ipaddress.ip_network(item, strict=False)
        except ValueError:
            raise Refused(400, f"Invalid network allow list: {item}") from None
    for name in [key for key in body if body[key] is None]:
        del body[name]


def _check_snapshot(body: Mapping[str, Any]) -> None:
    if any(body.get(size) for size in ("cpu", "memory", "disk", "gpu")):
        raise Refused(400, "Cannot specify Sandbox resources when using a snapshot")
    snapshot = body.get("snapshot", SNAPSHOT)
    if snapshot == "daytona-young":
        raise Refused(400, f"Snapshot {snapshot} is pulling")
    if snapshot != SNAPSHOT:
        raise Refused(
            400, f"Snapshot {snapshot} not found. Did you add it through the Daytona Dashboard?"
        )


def _has_id(box: Box, which: str) -> bool:
    return box.id == which


def _has_name(box: Box, which: str) -> bool:
    return box.name == which


def _wanted(query: Mapping[str, str], organization: str) -> Callable[[Box], bool]:
    try:
        labels = json.loads(query.get("labels", "{}"))
    except ValueError:
        raise Refused(400, "Invalid labels JSON format") from None
    everything = query.get("includeErroredDeleted") == "true"

    def wanted(box: Box) -> bool:
        return (
            box.organization == organization
            and box.state != "destroyed"
            and (everything or not box.is_hidden)
            and box.id.lower().startswith(query.get("id", "").lower())
            and box.name.lower().startswith(query.get("name", "").lower())
            and labels.items() <= (box.labels or {}).items()
        )

    return wanted


def _place(box: Box) -> list[Any]:
    return [box.created, box.id]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _dto(box: Box) -> dict[str, Any]:
    shown = {
        "id": box.id,
        "organizationId": box.organization,
        "name": box.name,
        "state": box.state,
        "desiredState": box.desired,
        "labels": box.labels,
        "createdAt": _moment(box.created),
        "updatedAt": _moment(box.created),
        "user": "daytona",
        "env": box.wanted.get("env", {}),
        "public": box.wanted.get("public", False),
        "networkBlockAll": box.wanted.get("networkBlockAll", False),
        "target": box.wanted.get("target", "us"),
        **dict.fromkeys(("cpu", "memory", "disk"), 1),
        "gpu": 0,
        "kvm": False,
        "toolboxProxyUrl": "http://127.0.0.1:1/toolbox",
    }
    return shown if box.expires is None else {**shown, "autoDestroyAt": _moment(box.expires)}


def _item(box: Box) -> dict[str, Any]:
    """As a listing shows it."""
    return {name: value for name, value in _dto(box).items() if name not in NOT_LISTED}
