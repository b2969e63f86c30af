"""What nodes and controllers do in the cluster of fake_kubernetes.py, whenever somebody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.providers.fake_kubernetes import (
    FOREGROUND,
    FakeKubernetes,
    Key,
    Thing,
    read,
    written,
)

POOL = "pool"  # the only warm pool there is
TEMPLATE = {"containers": [{"name": "sandbox", "image": "template:1"}]}


def cluster() -> FakeKubernetes:
    """A cluster whose nodes and controllers work."""
    return FakeKubernetes(carry_out)


def carry_out(fake: FakeKubernetes) -> None:
    """Everything that is due by now. Twice: owners follow what they own, and the other way."""
    for _ in range(2):
        for key, thing in list(fake.things.items()):
            if key in fake.things:
                _work(fake, key, thing)


def _work(fake: FakeKubernetes, key: Key, thing: Thing) -> None:
    if "deletionTimestamp" in thing["metadata"]:
        _remove(fake, key, thing)
    elif key[0] == "pods":
        _run(fake, thing)
    else:
        _control(fake, key, thing)


def _remove(fake: FakeKubernetes, key: Key, thing: Thing) -> None:
    """Foreground: what it owns goes first. Background: after it."""
    metadata = thing["metadata"]
    finalizers = metadata.get("finalizers", [])
    owned = list(_owned(fake, metadata["uid"]))
    holds = set(finalizers) - {FOREGROUND}
    if FOREGROUND in finalizers or not holds:
        for child in owned:
            grandchildren = key[0] == "sandboxclaims" and FOREGROUND in finalizers
            fake.end(child, foreground=grandchildren, grace=30)
    if holds or (FOREGROUND in finalizers and owned) or time.time() < thing["killed_at"]:
        return
    del fake.things[key]


def _owned(fake: FakeKubernetes, uid: str) -> Iterator[Key]:
    for key, thing in fake.things.items():
        owners = thing["metadata"].get("ownerReferences", ())
        if any(owner["uid"] == uid for owner in owners):
            yield key


def _run(fake: FakeKubernetes, pod: Thing) -> None:
    status, spec = pod["status"], pod["spec"]
    if "phase" not in status:
        status["phase"] = "Pending"
    image = spec["containers"][0]["image"]
    born = read(pod["metadata"]["creationTimestamp"])
    if image in fake.images:
        reason, message = fake.images[image]
        state = {"waiting": {"reason": reason, "message": message}}
        if reason == "StartError":
            state, status["phase"] = (
                {"terminated": {"reason": reason, "message": message}},
                "Failed",
            )
        status["containerStatuses"] = [{"name": "sandbox", "state": state}]
    elif status["phase"] == "Pending" and time.time() >= born + fake.starts_after:
        status |= {"phase": "Running", "startTime": written(time.time())}
    lifetime = spec.get("activeDeadlineSeconds")
    runs = lifetime and status["phase"] == "Running"
    if runs and time.time() >= read(status["startTime"]) + lifetime:
        status |= {"phase": "Failed", "reason": "DeadlineExceeded"}


def _control(fake: FakeKubernetes, key: Key, thing: Thing) -> None:
    spec = thing["spec"]
    lifecycle = spec if key[0] == "sandboxes" else spec.get("lifecycle", {})
    shutdown = lifecycle.get("shutdownTime")
    if shutdown and time.time() >= read(shutdown):
        _expire(fake, key, thing, lifecycle.get("shutdownPolicy", "Retain"))
    elif key[0] == "sandboxes":
        _mirror(fake, thing, _child(fake, key, thing, "pods", "Pod"))
    elif spec["warmPoolRef"]["name"] == POOL:
        _mirror(fake, thing, _child(fake, key, thing, "sandboxes", "Sandbox"))
    else:
        _ready(fake, thing, "False", "WarmPoolNotFound", f"SandboxWarmPool {spec['warmPoolRef']}")


def _expire(fake: FakeKubernetes, key: Key, thing: Thing, policy: str) -> None:
    _ready(fake, thing, "False", "SandboxExpired" if key[0] == "sandboxes" else "ClaimExpired", "")
    if policy != "Retain":
        fake.end(key, foreground=policy == "DeleteForeground", grace=0)


def _child(fake: FakeKubernetes, key: Key, thing: Thing, plural: str, kind: str) -> Thing:
    uid = thing["metadata"]["uid"]
    for owned in _owned(fake, uid):
        return fake.things[owned]
    template = thing["spec"].get("podTemplate", {"metadata": {}, "spec": TEMPLATE})
    labels = dict(template["metadata"].get("labels") or {})
    spec = template["spec"] if plural == "pods" else {"podTemplate": template}
    metadata = {
        "name": key[2] if plural == "pods" else f"{POOL}-{uid[:5]}",
        "labels": labels,
        "ownerReferences": [{"uid": uid, "controller": True, "blockOwnerDeletion": True}],
    }
    return fake.put(plural, kind, {"metadata": metadata, "spec": spec}, key[1])


def _mirror(fake: FakeKubernetes, thing: Thing, child: Thing) -> None:
    """Ready as what it owns is."""
    phase = child["status"].get("phase")
    ready = [item for item in child["status"].get("conditions", ()) if item["type"] == "Ready"]
    if ready:
        _ready(fake, thing, ready[0]["status"], ready[0]["reason"], ready[0]["message"])
    elif phase == "Running":
        _ready(fake, thing, "True", "DependenciesReady", "Pod is Ready")
    elif phase in {"Succeeded", "Failed"}:
        _ready(fake, thing, "False", f"Pod{phase}", "")
    else:
        _ready(fake, thing, "False", "DependenciesNotReady", f"Pod exists with phase: {phase}")


def _ready(fake: FakeKubernetes, thing: Thing, status: str, reason: str, message: str) -> None:
    conditions = [{"type": "Ready", "status": status, "reason": reason, "message": message}]
    if thing["status"].get("conditions") != conditions:
        thing["status"]["conditions"] = conditions
        thing["metadata"]["resourceVersion"] = fake.version()
