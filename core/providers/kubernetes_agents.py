"""
The kinds of agent-sandbox (kubernetes-sigs): Sandbox, and SandboxClaim for one out of a warm pool.

Their controller carries out the TTL: the time is absolute, can be moved, and means deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kubernetes import client

from ..errors import InvalidSpec
from .base import ProviderState, Spec
from .kubernetes_kinds import RAW, pod_of
from .kubernetes_objects import Found, condition_of, is_going, part
from .kubernetes_options import ClaimOptions, check, environment
from .reading import moment_if_any

KEY = "sandkeeper-key"
EXPIRED = {"SandboxExpired", "ClaimExpired"}
ENDED = {"PodSucceeded", "PodFailed"}
IMPOSSIBLE = {
    "EnvVarsInjectionRejected",
    "InvalidMetadata",
    "TemplateNotFound",
    "VolumeClaimTemplatesError",
    "WarmPoolNotFound",
}


class _Custom:
    """What the two have in common."""

    group: str
    plural: str
    version = "v1beta1"
    has_ttl = True
    propagation = "Foreground"  # or it would be gone while the Pod that it owns still runs

    def is_one(self, found: Found) -> bool:
        return True

    def state(self, found: Found) -> ProviderState:
        if is_going(found):
            return ProviderState.STOPPING
        ready = condition_of(found, "Ready")
        reason = str(ready.get("reason"))
        if reason in EXPIRED:
            return ProviderState.STOPPING
        if part(found, "spec").get("operatingMode") == "Suspended":
            return ProviderState.PAUSED
        over = condition_of(found, "Finished").get("status") == "True"
        if over or reason in ENDED | IMPOSSIBLE:
            return ProviderState.FAILED
        return ProviderState.RUNNING if ready.get("status") == "True" else ProviderState.PENDING

    def hopeless(self, found: Found) -> str:
        ready = condition_of(found, "Ready")
        reason = str(ready.get("reason"))
        return f"{reason}: {ready.get('message')}" if reason in IMPOSSIBLE else ""

    def create(self, api: client.ApiClient, namespace: str, body: dict[str, Any]) -> object:
        call: Any = client.CustomObjectsApi(api).create_namespaced_custom_object
        return call(*self._where(namespace), body, **RAW)

    def read(self, api: client.ApiClient, namespace: str, name: str) -> object:
        call: Any = client.CustomObjectsApi(api).get_namespaced_custom_object
        return call(*self._where(namespace), name, **RAW)

    def delete(
        self, api: client.ApiClient, namespace: str, name: str, options: client.V1DeleteOptions
    ) -> object:
        call: Any = client.CustomObjectsApi(api).delete_namespaced_custom_object
        return call(*self._where(namespace), name, body=options, **RAW)

    def page(self, api: client.ApiClient, namespace: str, **query: Any) -> object:
        call: Any = client.CustomObjectsApi(api).list_namespaced_custom_object
        return call(*self._where(namespace), **query, **RAW)

    def patch(
        self, api: client.ApiClient, namespace: str, name: str, changes: dict[str, Any]
    ) -> object:
        call: Any = client.CustomObjectsApi(api).patch_namespaced_custom_object
        return call(*self._where(namespace), name, changes, **RAW)

    def _where(self, namespace: str) -> tuple[str, str, str, str]:
        return self.group, self.version, namespace, self.plural

    def _made(self, kind: str, name: str, labels: Mapping[str, str], spec: Found) -> dict[str, Any]:
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": kind,
            "metadata": {"name": name, "labels": dict(labels)},
            "spec": spec,
        }


class Sandbox(_Custom):
    """A Sandbox: a Pod that its controller keeps, and removes when its time is over."""

    group = "agents.x-k8s.io"
    plural = "sandboxes"

    def body(
        self, name: str, labels: Mapping[str, str], spec: Spec, until: datetime | None
    ) -> dict[str, Any]:
        template = {"metadata": {"labels": _inherited(labels)}, "spec": pod_of(spec, labels)}
        times = {} if until is None else self.expiry(until)
        return self._made("Sandbox", name, labels, {"podTemplate": template, **times})

    def expires_at(self, found: Found) -> datetime | None:
        return moment_if_any(part(found, "spec").get("shutdownTime"))

    def expiry(self, until: datetime) -> dict[str, Any]:
        # The policy's default would keep the object, and its name, when the time is over.
        return {"shutdownTime": _written(until), "shutdownPolicy": "Delete"}


class Claim(_Custom):
    """A SandboxClaim: a Sandbox out of a warm pool, ready at once; its template says what runs."""

    group = "extensions.agents.x-k8s.io"
    plural = "sandboxclaims"

    def body(
        self, name: str, labels: Mapping[str, str], spec: Spec, until: datetime | None
    ) -> dict[str, Any]:
        check(spec, labels)
        for field, value in (("image", spec.image), ("command", spec.command)):
            if value:
                raise InvalidSpec(f"{field} {value!r}: the template of the claim's pool has it")
        wanted: dict[str, Any] = {
            "warmPoolRef": {"name": ClaimOptions.of(spec).warm_pool},
            "additionalPodMetadata": {"labels": _inherited(labels)},
            **({} if until is None else self.expiry(until)),
        }
        if spec.env:  # it cannot be given to a sandbox that runs: such a claim starts a cold one
            wanted["env"] = environment(spec)
        return self._made("SandboxClaim", name, labels, wanted)

    def expires_at(self, found: Found) -> datetime | None:
        return moment_if_any((part(found, "spec").get("lifecycle") or {}).get("shutdownTime"))

    def expiry(self, until: datetime) -> dict[str, Any]:
        # DeleteForeground: until its Sandbox and its Pod are gone, so is the claim not.
        times = {"shutdownTime": _written(until), "shutdownPolicy": "DeleteForeground"}
        return {"lifecycle": times}


def _written(until: datetime) -> str:
    return until.strftime("%Y-%m-%dT%H:%M:%SZ")  # the API has no parts of a second


def _inherited(labels: Mapping[str, str]) -> dict[str, str]:
    # Without its key a Pod is nobody's sandbox: who lists Pods must not take it for one of ours.
    return {key: value for key, value in labels.items() if key != KEY}
