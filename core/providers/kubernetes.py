"""
Provider `kubernetes`: a sandbox is one object of a cluster, in one namespace.

That an object was deleted is not that its processes have ended. So nothing is deleted by force,
and what controllers own goes before its owner: an object that is not there any more is gone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from ..errors import (
    Busy,
    ForeignConflict,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    SettingsError,
    Unavailable,
)
from .base import Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec
from .kubernetes_agents import Claim, Sandbox
from .kubernetes_calls import Calls
from .kubernetes_cluster import PREFIX, Cluster
from .kubernetes_errors import Status, failed, fields, has_conflict, is_not_there, refused
from .kubernetes_kinds import Kind, PlainPod
from .kubernetes_objects import Found, is_named, labels_of, metadata, part
from .reading import moment_if_any, our_labels

SETTINGS = ("CONTEXT", "KIND", "NAMESPACE", "WAIT")
LOOK_EVERY = (0.1, 2.0)  # seconds while a sandbox starts: first, and at most
ATTEMPTS = 5  # its controller writes to an object while we do
QUOTA = "exceeded quota"
KINDS: Mapping[str, type[PlainPod | Sandbox | Claim]] = {
    "pod": PlainPod,
    "sandbox": Sandbox,
    "claim": Claim,
}


class KubernetesProvider:
    """
    Objects of one kind in one namespace. `wait` is for how many seconds a create waits for its
    sandbox to run; one that takes longer is returned as pending.
    """

    name = "kubernetes"

    def __init__(self, cluster: Cluster, kind: Kind, *, kind_name: str, wait: float) -> None:
        self._cluster = cluster
        self._calls = Calls(cluster, kind)
        self._kind = kind
        self._kind_name = kind_name
        self._wait = wait
        self.capabilities = frozenset({Capability.LIST, Capability.IDEMPOTENT_CREATE}) | (
            {Capability.TTL} if kind.has_ttl else set()
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From KUBECONFIG, else ~/.kube/config, else the Pod that this process is in; and from
        SANDKEEPER_KUBERNETES_KIND (pod, sandbox or claim), _NAMESPACE, _CONTEXT and _WAIT (in
        seconds). Raises SettingsError; connects to nothing.
        """
        known = [f"{PREFIX}{setting}" for setting in SETTINGS]
        for variable in environ:
            if variable.startswith(PREFIX) and variable not in known:
                raise SettingsError(f"{variable} is not a setting: known are {', '.join(known)}")
        kind = environ.get(f"{PREFIX}KIND") or "pod"
        if kind not in KINDS:
            raise SettingsError(f"{PREFIX}KIND={kind!r}: use {', '.join(KINDS)}")
        return cls(Cluster(environ), KINDS[kind](), kind_name=kind, wait=_wait(environ))

    def scope(self) -> str:
        """
        `kubernetes:`, the kind, the cluster and the namespace. A cluster is known by the id of its
        namespace kube-system; to an account that may not read that, by its address and the
        authority that vouches for it.
        """
        answer = self._calls.kube_system(time.monotonic() + 10)
        if answer.status == 403 and Status.of(answer).reason == "Forbidden":
            cluster = f"address-{self._cluster.fingerprint()}"
        elif answer.is_success:
            cluster = str(metadata(fields(answer)).get("uid") or "")
        else:
            raise failed(answer)
        if not cluster:
            raise Unavailable(f"the API at {self._cluster.host} says no id of the cluster")
        return f"kubernetes:{self._kind_name}:{cluster}/{self._cluster.namespace}"

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        """
        Create it and wait for it to run. One of this name and these labels is adopted as it is,
        also when it FAILED, and with the expiry that it has. A `ttl` counts for the kinds that
        have one; it is rounded up to a whole second.
        """
        until = None if ttl is None or not self._kind.has_ttl else _from_now(ttl)
        body = self._kind.body(name, labels, spec, until)
        answer = self._calls.create(name, body, deadline)
        if answer.is_success:
            found: Found | None = answer.fields()
        elif has_conflict(answer, "AlreadyExists"):
            found = self._calls.look(name, deadline)
        else:
            raise refused(answer, self._kind.plural, name)
        found = self._ours(found, name, labels)
        return self._info(self._started(found, name, labels, deadline))

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """Look one up by its name; with an id, only the one that has it."""
        found = self._calls.meant(ref, deadline)
        return None if found is None else self._info(found)

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """
        Delete it, if it has the id that is known of it. It is there, STOPPING, until its node has
        said that its processes are dead; what a finalizer holds stays as long as that does.
        """
        answer = self._calls.delete(ref, deadline)
        if answer.is_success or is_not_there(answer, self._kind.plural, ref.name):
            return
        if has_conflict(answer, "Conflict") and self._calls.meant(ref, deadline) is None:
            return  # the name is another's: the one that was meant is gone
        raise failed(answer)

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """One page of those with all of these labels. Raises Unavailable when a cursor expired."""
        answer = self._calls.page(labels, cursor, deadline)
        if answer.status == 410:  # what is left of the pages would be of another moment
            raise Unavailable(f"{failed(answer)}: the listing has to begin again")
        if not answer.is_success:
            raise failed(answer)
        return self._page(fields(answer), labels)

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """
        Let it live `ttl` seconds from now, rounded up to a whole second. Raises Unsupported for a
        Pod, Unavailable when it is not there, has ended, or its time is over.
        """
        for _ in range(ATTEMPTS):
            granted = self._extended(ref, ttl, deadline)
            if granted is not None:
                return granted
        raise Busy(f"sandbox {ref.name} changes all the time: nothing was extended")

    def _extended(self, ref: SandboxRef, ttl: float, deadline: float) -> datetime | None:
        """Until when; None when somebody else changed it at the same moment."""
        spec = self._kind.expiry(_from_now(ttl))
        found = _alive(self._calls.meant(ref, deadline), ref, self._kind)
        # With its version nothing is promised of an object that was changed, or deleted, since.
        version = {"resourceVersion": metadata(found).get("resourceVersion")}
        changes = {"metadata": version, "spec": spec}
        answer = self._calls.change(ref.name, changes, deadline)
        if has_conflict(answer, "Conflict"):
            return None
        if is_not_there(answer, self._kind.plural, ref.name):
            raise Unavailable(f"sandbox {ref.name} is not there: nothing was extended")
        if not answer.is_success:
            raise failed(answer)
        changed = answer.fields()
        granted = self._kind.expires_at(changed)
        if granted is None or self._kind.state(changed) is ProviderState.STOPPING:
            raise Unavailable(f"sandbox {ref.name} is ending: nothing was extended")
        return granted

    def _ours(self, found: Found | None, name: str, labels: Mapping[str, str]) -> Found:
        if found is None:
            raise Busy(f"sandbox {name} was there and is gone: its name is free now")
        if not is_named(found, name):
            raise OutcomeUnknown(f"cannot create {name}: the answer is of something else")
        if our_labels(labels_of(found)) != labels:
            raise ForeignConflict(f"{name} exists with other labels: it is left alone")
        if self._kind.state(found) is ProviderState.STOPPING:
            raise Busy(f"sandbox {name} is being deleted: its name is free before long")
        return found

    def _started(
        self, found: Found, name: str, labels: Mapping[str, str], deadline: float
    ) -> Found:
        """What became of it when it runs or has failed, or when it has been waited for enough."""
        pause, longest = LOOK_EVERY
        until = min(deadline, time.monotonic() + self._wait)
        while True:
            if why := self._kind.hopeless(found):
                raise InvalidSpec(f"sandbox {name} can never run: {why}")
            starting = self._kind.state(found) is ProviderState.PENDING
            if not starting or time.monotonic() + pause >= until:
                return _in_quota(found, name) if starting else found
            time.sleep(pause)
            pause = min(longest, pause * 1.5)
            try:
                found = self._ours(self._calls.look(name, until), name, labels)
            except ProviderError as error:
                if not error.retryable or isinstance(error, Busy):
                    raise
                return found  # it was made: a look that failed takes nothing back

    def _info(self, found: Found) -> SandboxInfo:
        known = metadata(found)
        return SandboxInfo(
            ref=SandboxRef(name=str(known["name"]), external_id=str(known["uid"])),
            state=self._kind.state(found),
            labels=labels_of(found),
            created_at=moment_if_any(known.get("creationTimestamp")),
            expires_at=self._kind.expires_at(found),
        )

    def _page(self, found: Mapping[str, Any], labels: Mapping[str, str]) -> Page:
        items = found.get("items", 0)
        if items is None:  # the API has no empty lists: this is one
            items = []
        if not isinstance(items, list):
            raise Unavailable(f"cannot list sandboxes at {self._cluster.host}: this is no list")
        ours = [item for item in items if self._is_wanted(item, labels)]
        return Page(
            items=tuple(map(self._info, ours)), cursor=metadata(found).get("continue") or None
        )

    def _is_wanted(self, item: object, labels: Mapping[str, str]) -> bool:
        if not isinstance(item, dict) or not self._kind.is_one(item):
            return False
        named = metadata(item).get("name") and metadata(item).get("uid")
        return bool(named) and labels.items() <= labels_of(item).items()


def _wait(environ: Mapping[str, str]) -> float:
    said = environ.get(f"{PREFIX}WAIT") or "60"
    try:
        wait = float(said)
    except ValueError:
        wait = -1
    if not 0 <= wait < math.inf:
        raise SettingsError(f"{PREFIX}WAIT={said!r}: give seconds, 0 for not at all")
    return wait


def _from_now(ttl: float) -> datetime:
    return datetime.fromtimestamp(math.ceil(time.time() + ttl), UTC)


def _alive(found: Found | None, ref: SandboxRef, kind: Kind) -> Found:
    if found is None:
        raise Unavailable(f"sandbox {ref.name} is not there: nothing was extended")
    state, until = kind.state(found), kind.expires_at(found)
    if state in {ProviderState.FAILED, ProviderState.STOPPING}:
        raise Unavailable(f"sandbox {ref.name} is {state}: nothing was extended")
    # Its controller may have decided already, and deletes without another look.
    if until is not None and until <= datetime.now(UTC):
        raise Unavailable(f"sandbox {ref.name} was to end at {until}: nothing was extended")
    return found


def _in_quota(found: Found, name: str) -> Found:
    """A Sandbox whose Pod the quota has no room for waits, and says so."""
    for condition in part(found, "status").get("conditions") or ():
        if QUOTA in str(condition.get("message")):
            raise QuotaExceeded(f"sandbox {name} does not start: {condition['message']}")
    return found
