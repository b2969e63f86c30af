"""
What a sandbox can be in a cluster: what each kind has to know, and the plain Pod.

A kind knows its bodies, its states and its calls; nothing here decides what an answer means.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from kubernetes import client

from ..errors import InvalidSpec, Unsupported
from .base import ProviderState, Spec
from .kubernetes_objects import Found, is_going, metadata, part
from .kubernetes_options import PodOptions, check

RAW = {"_preload_content": False}  # answers are read by us: tolerantly, and within the deadline

PHASES = {
    "Pending": ProviderState.PENDING,
    "Running": ProviderState.RUNNING,
    "Succeeded": ProviderState.FAILED,  # it still owns its name
    "Failed": ProviderState.FAILED,
}
# Why a container waits for what will never come.
NEVER = {"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
PULLING = {"ErrImagePull", "ImagePullBackOff"}
# A registry that is down makes a Pod wait too: only these words are of an image that is not there.
NO_SUCH_IMAGE = ("not found", "manifest unknown", "does not exist", "denied", "unauthorized")
CANNOT_RUN = {"StartError", "ContainerCannotRun"}


class Kind(Protocol):
    """One kind of object that is a sandbox."""

    plural: str
    has_ttl: bool
    propagation: str  # whether what it owns goes before it, or after

    def body(
        self, name: str, labels: Mapping[str, str], spec: Spec, until: datetime | None
    ) -> dict[str, Any]:
        """What to create. Raises InvalidSpec."""
        ...

    def is_one(self, found: Found) -> bool:
        """Whether an object of this kind is a sandbox, and no part of one."""
        ...

    def state(self, found: Found) -> ProviderState:
        """What the cluster says of it."""
        ...

    def hopeless(self, found: Found) -> str:
        """Why it can never run, in the cluster's words; empty when it can."""
        ...

    def expires_at(self, found: Found) -> datetime | None:
        """When the cluster removes it by itself."""
        ...

    def expiry(self, until: datetime) -> dict[str, Any]:
        """What in its spec makes the cluster remove it then. Raises Unsupported without a TTL."""
        ...

    def create(self, api: client.ApiClient, namespace: str, body: dict[str, Any]) -> object: ...

    def read(self, api: client.ApiClient, namespace: str, name: str) -> object: ...

    def delete(
        self, api: client.ApiClient, namespace: str, name: str, options: client.V1DeleteOptions
    ) -> object: ...

    def page(self, api: client.ApiClient, namespace: str, **query: Any) -> object: ...

    def patch(
        self, api: client.ApiClient, namespace: str, name: str, changes: dict[str, Any]
    ) -> object: ...


class PlainPod:
    """
    A Pod. It has no TTL: `activeDeadlineSeconds` can be lowered and never raised again, counts
    from when a node took the Pod, and leaves a failed Pod that keeps its name.
    """

    plural = "pods"
    has_ttl = False
    propagation = "Background"  # it owns nothing

    def body(
        self, name: str, labels: Mapping[str, str], spec: Spec, until: datetime | None
    ) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": dict(labels)},
            "spec": pod_of(spec, labels),
        }

    def is_one(self, found: Found) -> bool:
        owners = metadata(found).get("ownerReferences") or ()
        return not any(owner.get("controller") for owner in owners)

    def state(self, found: Found) -> ProviderState:
        if is_going(found):
            return ProviderState.STOPPING
        phase = part(found, "status").get("phase")
        state = PHASES.get(str(phase), ProviderState.UNKNOWN)
        hopeless = state is ProviderState.PENDING and self.hopeless(found)
        return ProviderState.FAILED if hopeless else state

    def hopeless(self, found: Found) -> str:
        for container in part(found, "status").get("containerStatuses") or ():
            now = container.get("state") or {}
            waiting, ended = now.get("waiting") or {}, now.get("terminated") or {}
            reason = str(waiting.get("reason") or ended.get("reason") or "")
            message = str(waiting.get("message") or ended.get("message") or "")
            pulls = reason in PULLING and any(word in message.lower() for word in NO_SUCH_IMAGE)
            if pulls or reason in NEVER | CANNOT_RUN:
                return f"{reason}: {message}"
        return ""

    def expires_at(self, found: Found) -> datetime | None:
        return None

    def expiry(self, until: datetime) -> dict[str, Any]:
        raise Unsupported(f"{self.plural} have no TTL that can be moved")

    def create(self, api: client.ApiClient, namespace: str, body: dict[str, Any]) -> object:
        call: Any = client.CoreV1Api(api).create_namespaced_pod
        return call(namespace, body, **RAW)

    def read(self, api: client.ApiClient, namespace: str, name: str) -> object:
        call: Any = client.CoreV1Api(api).read_namespaced_pod
        return call(name, namespace, **RAW)

    def delete(
        self, api: client.ApiClient, namespace: str, name: str, options: client.V1DeleteOptions
    ) -> object:
        call: Any = client.CoreV1Api(api).delete_namespaced_pod
        return call(name, namespace, body=options, **RAW)

    def page(self, api: client.ApiClient, namespace: str, **query: Any) -> object:
        call: Any = client.CoreV1Api(api).list_namespaced_pod
        return call(namespace, **query, **RAW)

    def patch(
        self, api: client.ApiClient, namespace: str, name: str, changes: dict[str, Any]
    ) -> object:
        call: Any = client.CoreV1Api(api).patch_namespaced_pod
        return call(name, namespace, changes, **RAW)


def pod_of(spec: Spec, labels: Mapping[str, str]) -> dict[str, Any]:
    """The PodSpec of a spec. Raises InvalidSpec."""
    if not spec.image:
        raise InvalidSpec("image: provider `kubernetes` needs one, such as python:3.13-slim")
    check(spec, labels)
    return PodOptions.of(spec).pod(spec)
