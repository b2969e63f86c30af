"""What provider `kubernetes` makes of a spec: safe unless somebody says otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import InvalidSpec
from .base import Spec
from .options import Listed, Options, check_text

GRACE = 1  # seconds between SIGTERM and SIGKILL; 0 would be no wait for the node at all
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
Path = Annotated[str, Field(pattern=r"^/[^:]*$", max_length=4096)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
LinuxCapability = Annotated[str, Field(pattern="^[A-Z_]+$")]


class ClaimOptions(Options):
    """The `options` of a claim: its pool's template has all the rest."""

    warm_pool: Name


class PodOptions(Options):
    """
    The `options` of a Pod, also of one in a Sandbox. What runs there is taken to be hostile: as
    they are, they pass the Pod Security Standard `restricted`.
    """

    cpus: Annotated[float, Field(ge=0.001, le=1024, strict=False)] = 1.0
    memory: Quantity = "1Gi"
    storage: Quantity = "2Gi"  # its disk: what it writes, and its logs
    read_only: bool = True  # the root; `workdir` and /tmp can be written
    workdir: Path = "/workspace"
    user: Id | None = 1000  # by number, and the group of the same number; None for the image's
    capabilities: Annotated[tuple[LinuxCapability, ...], Listed] = ()  # kept; all else is dropped
    new_privileges: bool = False
    runtime_class: Name | None = None  # gvisor, kata; None for the cluster's
    service_account: Name | None = None  # None for the namespace's `default`
    service_account_token: bool = False  # whether it may speak to the cluster as that account
    node_selector: dict[str, str] = Field(default_factory=dict)
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[tuple[Name, ...], Listed] = ()
    # Seconds after its start at which it ends, whatever happens. It can never be moved later, so
    # it is no TTL; its object stays, as failed.
    lifetime: Annotated[int, Field(gt=0, le=2**31 - 1)] | None = None

    def pod(self, spec: Spec) -> dict[str, Any]:
        """The PodSpec."""
        scratch = {"emptyDir": {"sizeLimit": self.storage}}
        folders = dict.fromkeys((self.workdir, "/tmp"))  # noqa: S108 - the container's own
        mounts = [{"name": f"scratch-{i}", "mountPath": path} for i, path in enumerate(folders)]
        wanted: dict[str, Any] = {
            "containers": [self._container(spec, mounts)],
            "volumes": [{"name": mount["name"], **scratch} for mount in mounts],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE,
            "automountServiceAccountToken": self.service_account_token,
            "enableServiceLinks": False,  # or it would be told of every service of the namespace
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "runtimeClassName": self.runtime_class,
            "serviceAccountName": self.service_account,
            "nodeSelector": dict(self.node_selector) or None,
            "imagePullSecrets": [{"name": name} for name in self.image_pull_secrets] or None,
            "activeDeadlineSeconds": self.lifetime,
        }
        if self.user is not None:
            wanted["securityContext"] |= {
                "runAsUser": self.user,
                "runAsGroup": self.user,
                "fsGroup": self.user,
                "runAsNonRoot": self.user != 0,
            }
        return {key: value for key, value in wanted.items() if value is not None}

    def _container(self, spec: Spec, mounts: list[dict[str, str]]) -> dict[str, Any]:
        limits = {
            "cpu": f"{round(self.cpus * 1000)}m",
            "memory": self.memory,
            "ephemeral-storage": self.storage,
        }
        wanted: dict[str, Any] = {
            "name": "sandbox",
            "image": spec.image,
            "imagePullPolicy": self.image_pull_policy,
            # As with Docker, the image's entrypoint stays.
            "args": [verbatim(word) for word in spec.command] or None,
            "env": environment(spec) or None,
            "workingDir": self.workdir,
            "volumeMounts": mounts,
            "resources": {"limits": limits, "requests": limits},
            "securityContext": {
                "allowPrivilegeEscalation": self.new_privileges,
                "privileged": False,
                "readOnlyRootFilesystem": self.read_only,
                "capabilities": {"drop": ["ALL"], "add": list(self.capabilities)},
            },
        }
        return {key: value for key, value in wanted.items() if value is not None}


def verbatim(text: str) -> str:
    """A word as it is: Kubernetes would put a variable's value for `$(NAME)`, and `$` for `$$`."""
    return text.replace("$", "$$")


def environment(spec: Spec) -> list[dict[str, str]]:
    """The variables of a container, in the order of their names: the same bytes at every create."""
    return [{"name": name, "value": verbatim(spec.env[name])} for name in sorted(spec.env)]


def check(spec: Spec, labels: Mapping[str, str]) -> None:
    """Raises InvalidSpec that names what no cluster takes; nothing was sent."""
    check_text(spec)
    for key, value in labels.items():
        # A listing can only ask for labels, so no annotation could stand in for one.
        if not (LABEL.fullmatch(key) and LABEL.fullmatch(value)):
            raise InvalidSpec(
                f"label {key}={value}: Kubernetes takes 1 to 63 of A-Z a-z 0-9 . _ -, with a "
                "letter or digit first and last"
            )
