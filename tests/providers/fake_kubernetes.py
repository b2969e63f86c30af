"""
A cluster in memory, as far as provider `kubernetes` meets it: its API server.

Made from what a real apiextensions-apiserver answered (the four 409s, preconditions, finalizers,
422 of labels and names), and from the sources of Kubernetes and agent-sandbox for the rest. What
its controllers and nodes do is in fake_kubelet.py.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.apis import Call, Reply

Thing = dict[str, Any]
Key = tuple[str, str, str]  # plural, namespace, name

TOKEN = "a-token"  # noqa: S105 - of no real cluster
ROUTES = {
    "/api/v1": {"pods": "Pod"},
    "/apis/agents.x-k8s.io/v1beta1": {"sandboxes": "Sandbox"},
    "/apis/extensions.agents.x-k8s.io/v1beta1": {"sandboxclaims": "SandboxClaim"},
}
PATH = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)/namespaces/([^/]+)(?:/([^/]+)(?:/([^/]+))?)?")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
FOREGROUND = "foregroundDeletion"
VERBS = {"GET": "get", "POST": "create", "DELETE": "delete", "PATCH": "patch"}
LIMITS = ("cpu", "memory", "ephemeral-storage")


class Refused(Exception):
    """The answer to a request that is not carried out."""

    def __init__(
        self, code: int, reason: str, message: str, kind: str = "", name: str = "", **headers: str
    ) -> None:
        super().__init__(message)
        self.reply = Reply(
            code,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": reason,
                "details": {"kind": kind, "name": name},
                "code": code,
            },
            headers,
        )


@dataclass
class FakeKubernetes:
    """
    Its state; a test moves it. `carry_out` is what controllers and nodes do before every call, and
    `starting` what becomes of a new object.
    """

    carry_out: Callable[[FakeKubernetes], None]
    things: dict[Key, Thing] = field(default_factory=dict)
    namespaces: dict[str, str] = field(
        default_factory=lambda: {name: secrets.token_hex(8) for name in ("kube-system", "default")}
    )
    token: str = TOKEN
    forbidden: set[tuple[str, str]] = field(default_factory=set)  # (verb, plural) that RBAC denies
    used: set[tuple[str, str]] = field(default_factory=set)  # those that were asked for
    terminating: set[str] = field(default_factory=set)  # namespaces
    quota: int | None = None  # objects of a kind
    admission: str = ""  # why admission refuses what is to be made
    contended: int = 0  # creates that lose a race for the quota, changes that lose one
    has_agents: bool = True  # whether agent-sandbox is installed
    images: dict[str, tuple[str, str]] = field(default_factory=dict)  # why they cannot be pulled
    starts_after: float = 0.0  # seconds until a Pod runs
    kills_after: float = 0.0  # seconds until a node has killed one
    forced: int = 0  # deletions without a grace, which wait for no node
    _version: int = 0
    _pages: dict[str, list[Thing]] = field(default_factory=dict)

    def __call__(self, call: Call) -> Reply:
        """One request."""
        self.carry_out(self)
        try:
            return self._answer(call)
        except Refused as refused:
            return refused.reply

    def version(self) -> str:
        """The next one."""
        self._version += 1
        return str(self._version)

    def compact(self) -> None:
        """Forget what earlier listings saw: their next pages are not to be had."""
        self._pages.clear()

    def put(self, plural: str, kind: str, wanted: Thing, namespace: str = "default") -> Thing:
        """Keep a new object, whoever made it."""
        metadata = wanted["metadata"]
        thing = {**wanted, "kind": kind, "status": wanted.get("status", {})}
        thing["metadata"] = {
            **metadata,
            "namespace": namespace,
            "uid": secrets.token_hex(16),
            "resourceVersion": self.version(),
            "creationTimestamp": written(time.time()),
        }
        self.things[plural, namespace, metadata["name"]] = thing
        return thing

    def of(self, plural: str, name: str) -> Thing:
        """One that is there."""
        return self.things[plural, "default", name]

    def end(self, key: Key, *, foreground: bool = False, grace: float = 30) -> None:
        """Begin to delete it: it is there for as long as something holds it."""
        metadata = self.things[key]["metadata"]
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = written(time.time() + grace)
            metadata["resourceVersion"] = self.version()
            self.things[key]["killed_at"] = time.time() + (self.kills_after if grace else 0)
        if foreground:
            metadata["finalizers"] = [*metadata.get("finalizers", ()), FOREGROUND]

    def _answer(self, call: Call) -> Reply:
        if call.headers.get("authorization") != f"Bearer {self.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        found = PATH.fullmatch(call.path)
        if found is None:
            return Reply(404, b"404 page not found\n", {"Content-Type": "text/plain"})
        root, namespace, plural, name = found.groups()
        if plural is None:
            return self._namespace(namespace)
        kinds = ROUTES.get(root, {}) if self.has_agents or root == "/api/v1" else {}
        if plural not in kinds:  # no such resource: this is not "no such object"
            return Reply(404, b"404 page not found\n", {"Content-Type": "text/plain"})
        verb = VERBS[call.method] if name or call.method == "POST" else "list"
        self._authorize(verb, plural, namespace)
        key = (plural, namespace, name or "")
        verbs: dict[str, Callable[[Call, Key], Reply]] = {
            "get": self._get,
            "list": self._list,
            "create": self._create,
            "delete": self._delete,
            "patch": self._patch,
        }
        return verbs[verb](call, key)

    def _authorize(self, verb: str, plural: str, namespace: str) -> None:
        self.used.add((verb, plural))
        if (verb, plural) in self.forbidden:
            raise Refused(
                403,
                "Forbidden",
                f'{plural} is forbidden: User "u" cannot {verb} resource "{plural}" in API group '
                f'"" in the namespace "{namespace}"',
                plural,
            )

    def _namespace(self, name: str) -> Reply:
        self._authorize("get", "namespaces", name)
        if name not in self.namespaces:
            raise not_found("namespaces", name)
        uid = self.namespaces[name]
        return Reply(200, {"kind": "Namespace", "metadata": {"name": name, "uid": uid}})

    def _find(self, key: Key) -> Thing:
        if key not in self.things:
            raise not_found(key[0], key[2])
        return self.things[key]

    def _get(self, call: Call, key: Key) -> Reply:
        return Reply(200, shown(self._find(key)))

    def _create(self, call: Call, key: Key) -> Reply:
        plural, namespace, _ = key
        wanted: Thing = call.body
        name = wanted["metadata"]["name"]
        if namespace not in self.namespaces:
            raise not_found("namespaces", namespace)
        validate(plural, wanted)
        self._admit(plural, namespace, name)
        if (plural, namespace, name) in self.things:
            there = self.things[plural, namespace, name]["metadata"]
            going = "object is being deleted: " if "deletionTimestamp" in there else ""
            words = f'{going}{plural} "{name}" already exists'
            raise Refused(409, "AlreadyExists", words, plural, name)
        made = self.put(plural, wanted["kind"], wanted, namespace)
        self.carry_out(self)
        return Reply(201, shown(made))

    def _admit(self, plural: str, namespace: str, name: str) -> None:
        denied = f'{plural} "{name}" is forbidden: '
        there = [key for key in self.things if key[:2] == (plural, namespace)]
        if namespace in self.terminating:
            words = f"unable to create new content in namespace {namespace} because it is being "
            raise Refused(403, "Forbidden", f"{denied}{words}terminated", plural, name)
        if self.admission:
            raise Refused(403, "Forbidden", denied + self.admission, plural, name)
        if self.quota is not None and len(there) >= self.quota:
            words = f"exceeded quota: q, requested: {plural}=1, used: {plural}={len(there)}"
            raise Refused(403, "Forbidden", denied + words, plural, name)
        if self.contended:
            self.contended -= 1
            raise modified("resourcequotas", "q")

    def _delete(self, call: Call, key: Key) -> Reply:
        metadata = self._find(key)["metadata"]
        options = call.body or {}
        uid = (options.get("preconditions") or {}).get("uid", metadata["uid"])
        if uid != metadata["uid"]:
            words = (
                f'Operation cannot be fulfilled on {key[0]} "{key[2]}": the UID in the precondition'
                f" ({uid}) does not match the UID in record ({metadata['uid']}). The object might "
                "have been deleted and then recreated"
            )
            raise Refused(409, "Conflict", words, key[0], key[2])
        grace = options.get("gracePeriodSeconds", 30) if key[0] == "pods" else 0
        self.forced += key[0] == "pods" and grace == 0
        self.end(key, foreground=options.get("propagationPolicy") == "Foreground", grace=grace)
        thing = self.things[key]
        self.carry_out(self)
        return Reply(200, shown(thing))

    def _list(self, call: Call, key: Key) -> Reply:
        if "continue" in call.query:
            left = self._next(call.query["continue"])
        else:
            wanted = selector(call.query.get("labelSelector", ""))
            left = [
                shown(thing)
                for (plural, namespace, _), thing in sorted(self.things.items())
                if (plural, namespace) == key[:2]
                and wanted.items() <= (thing["metadata"].get("labels") or {}).items()
            ]
        limit = int(call.query.get("limit", 0)) or len(left)
        metadata = {"resourceVersion": str(self._version), "continue": ""}
        if left[limit:]:
            metadata["continue"] = secrets.token_hex(8)
            self._pages[metadata["continue"]] = left[limit:]
        return Reply(200, {"kind": "List", "metadata": metadata, "items": left[:limit] or None})

    def _next(self, token: str) -> list[Thing]:
        if not re.fullmatch(r"[0-9a-f]{16}", token):
            words = f"continue key is not valid: {token}"
            raise Refused(400, "BadRequest", words)
        if token not in self._pages:
            words = "The provided continue parameter is too old to display a consistent list result"
            raise Refused(410, "Expired", words)
        return self._pages[token]

    def _patch(self, call: Call, key: Key) -> Reply:
        if call.headers.get("content-type") != "application/merge-patch+json":
            raise Refused(415, "UnsupportedMediaType", "the body of the request was in no format")
        thing = self._find(key)
        changed: Thing = merged(thing, call.body)
        if self.contended:
            self.contended -= 1
            thing["metadata"]["resourceVersion"] = self.version()
        if changed["metadata"]["resourceVersion"] != thing["metadata"]["resourceVersion"]:
            raise modified(key[0], key[2])
        validate(key[0], changed)
        changed["metadata"]["resourceVersion"] = self.version()
        self.things[key] = changed
        return Reply(200, shown(changed))


def written(seconds: float) -> str:
    """A date, as the API writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(text: str) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def shown(thing: Thing) -> Thing:
    """Without what only the fake knows; a copy, for a page is of its moment."""
    copy: Thing = json.loads(json.dumps(thing))
    copy.pop("killed_at", None)
    return copy


def merged(old: Any, new: Any) -> Any:
    """RFC 7396."""
    if not isinstance(new, dict):
        return new
    kept = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        kept[key] = merged(kept.get(key), value)
    return {key: value for key, value in kept.items() if value is not None}


def selector(text: str) -> dict[str, str]:
    """The labels that it asks for."""
    wanted = dict(part.partition("=")[::2] for part in text.split(",") if part)
    if not all(LABEL.fullmatch(value) for value in wanted.values()):
        raise Refused(400, "BadRequest", f"unable to parse requirement: {text}")
    return wanted


def not_found(plural: str, name: str) -> Refused:
    """There is no such object."""
    return Refused(404, "NotFound", f'{plural} "{name}" not found', plural, name)


def modified(plural: str, name: str) -> Refused:
    """Somebody else was faster."""
    words = (
        f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified; please '
        "apply your changes to the latest version and try again"
    )
    return Refused(409, "Conflict", words, plural, name)


def validate(plural: str, thing: Thing) -> None:
    """Raises Refused for what no cluster keeps."""
    name, labels = thing["metadata"]["name"], thing["metadata"].get("labels") or {}
    spec = thing["spec"]
    wrong = [f"metadata.labels: {value}" for value in labels.values() if not LABEL.fullmatch(value)]
    if not NAME.fullmatch(name):
        wrong.append(f"metadata.name: {name}")
    wrong += {"pods": _pod, "sandboxes": _sandbox, "sandboxclaims": _claim}[plural](spec)
    if wrong:
        words = f'{thing["kind"]} "{name}" is invalid: {wrong[0]}'
        raise Refused(422, "Invalid", words, plural, name)


def _pod(spec: Thing) -> list[str]:
    (container,) = spec["containers"]
    wrong = [f"spec.containers[0].resources: {key}" for key in _unlimited(container)]
    if not str(container.get("image", "")).strip():
        wrong.append("spec.containers[0].image: Required value")
    names = [variable["name"] for variable in container.get("env", ())]
    wrong += [f"env: {name}" for name in names if not re.fullmatch(r"[ -<>-~]+", name)]
    return wrong


def _unlimited(container: Thing) -> list[str]:
    limits = container["resources"]["limits"]
    return [key for key in LIMITS if not re.fullmatch(r"[0-9]+(m|[KMGT]i?)?", limits[key])]


def _sandbox(spec: Thing) -> list[str]:
    known = {"podTemplate", "shutdownTime", "shutdownPolicy", "operatingMode", "service"}
    wrong = [f"unknown field spec.{key}" for key in set(spec) - known]
    wrong += [] if spec.get("shutdownPolicy") in {"Delete", "Retain", None} else ["shutdownPolicy"]
    return wrong + _pod(spec["podTemplate"]["spec"])


def _claim(spec: Thing) -> list[str]:
    known = {"warmPoolRef", "lifecycle", "additionalPodMetadata", "env"}
    wrong = [f"unknown field spec.{key}" for key in set(spec) - known]
    policy = spec.get("lifecycle", {}).get("shutdownPolicy")
    allowed = {"Delete", "DeleteForeground", "Retain", None}
    return wrong + ([] if policy in allowed else ["spec.lifecycle.shutdownPolicy"])
