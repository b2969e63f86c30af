"""The objects of one kind in one namespace, as calls. What an answer means, its caller decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubernetes import client

from ..errors import Unavailable
from .base import SandboxRef
from .kubernetes_cluster import Cluster
from .kubernetes_errors import failed, fields, is_not_there
from .kubernetes_kinds import RAW, Kind
from .kubernetes_objects import is_named, metadata
from .kubernetes_options import GRACE
from .rest import Answer

PAGE = 500  # objects, as for kubectl


class Calls:
    """Deadlines are of the monotonic clock. Only a look says that something is not there."""

    def __init__(self, cluster: Cluster, kind: Kind) -> None:
        self.kind = kind
        self._cluster = cluster
        self._namespace = cluster.namespace

    def kube_system(self, deadline: float) -> Answer:
        """The namespace that is as old as its cluster."""

        def send(api: client.ApiClient) -> object:
            call: Any = client.CoreV1Api(api).read_namespace
            return call("kube-system", **RAW)

        return self._cluster.call("ask for the id of the cluster", deadline, send)

    def create(self, name: str, body: dict[str, Any], deadline: float) -> Answer:
        """Make it."""
        return self._cluster.call(
            f"create {name}", deadline, lambda api: self.kind.create(api, self._namespace, body)
        )

    def look(self, name: str, deadline: float) -> dict[str, Any] | None:
        """The object of this name; None only when the API said that there is none."""
        answer = self._cluster.call(
            f"look at {name}", deadline, lambda api: self.kind.read(api, self._namespace, name)
        )
        if is_not_there(answer, self.kind.plural, name):
            return None
        if answer.status == 404:
            raise Unavailable(f"{failed(answer)}; does the cluster have {self.kind.plural}?")
        if not answer.is_success:
            raise failed(answer)
        found = fields(answer)
        if not is_named(found, name):
            raise Unavailable(f"cannot look at {name}: the answer is of something else")
        return found

    def meant(self, ref: SandboxRef, deadline: float) -> dict[str, Any] | None:
        """The object of this name, and of this id where one is known."""
        found = self.look(ref.name, deadline)
        if found is None or ref.external_id not in {None, metadata(found)["uid"]}:
            return None
        return found

    def delete(self, ref: SandboxRef, deadline: float) -> Answer:
        """Begin to delete it; the API refuses when its id is another than the one that is known."""
        uid = ref.external_id
        options = client.V1DeleteOptions(
            grace_period_seconds=GRACE,
            propagation_policy=self.kind.propagation,
            preconditions=client.V1Preconditions(uid=uid) if uid else None,
        )
        return self._cluster.call(
            f"destroy {ref.name}",
            deadline,
            lambda api: self.kind.delete(api, self._namespace, ref.name, options),
        )

    def page(self, labels: Mapping[str, str], cursor: str | None, deadline: float) -> Answer:
        """One page of those with these labels."""
        query: dict[str, Any] = {"limit": PAGE}
        if labels:
            query["label_selector"] = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
        if cursor is not None:
            query["_continue"] = cursor
        return self._cluster.call(
            "list sandboxes",
            deadline,
            lambda api: self.kind.page(api, self._namespace, **query),
        )

    def change(self, name: str, changes: dict[str, Any], deadline: float) -> Answer:
        """Lay these changes over it (RFC 7396)."""
        return self._cluster.call(
            f"extend {name}",
            deadline,
            lambda api: self.kind.patch(api, self._namespace, name, changes),
        )
