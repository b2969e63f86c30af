"""What provider `docker` makes of a spec: safe unless somebody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..errors import InvalidSpec
from .base import Spec
from .options import Listed, Options, check_text

Size = Annotated[str, Field(pattern=r"^[1-9][0-9]*[bkmg]?$")]
Path = Annotated[str, Field(pattern=r"^/[^:]*$", max_length=4096)]
LinuxCapability = Annotated[str, Field(pattern="^[A-Z_]+$")]


class DockerOptions(Options):
    """The `options` of a spec. What runs in a sandbox is taken to be hostile."""

    cpus: Annotated[float, Field(gt=0, le=1024, strict=False)] = 1.0
    memory: Size = "1g"  # swap included
    pids: Annotated[int, Field(gt=0, le=1_000_000)] = 512
    network: Annotated[str, Field(min_length=1)] = "none"
    read_only: bool = True  # the root; `workdir` and /tmp can be written
    workdir: Path = "/workspace"
    # By number, as uid or uid:gid: `workdir` is made theirs. None for the image's.
    user: Annotated[str, Field(pattern=r"^[0-9]+(:[0-9]+)?$")] | None = None
    capabilities: Annotated[tuple[LinuxCapability, ...], Listed] = ()  # kept; all else is dropped
    new_privileges: bool = False
    runtime: str | None = None  # runsc, kata; None for the engine's

    def host_config(self, *, owned: bool) -> dict[str, Any]:
        """
        The limits, as docker-py's create_host_config takes them. `owned` makes `workdir` the
        user's: where the engine makes the folder first, what is mounted on it gets its mode, and
        nobody but its owner could write. Podman knows no owners, and keeps the mode.
        """
        scratch = workdir = "rw,exec,nosuid,nodev,mode=1777"
        if self.user is not None and owned:
            uid, _, gid = self.user.partition(":")
            workdir += f",uid={uid},gid={gid or 0}"
        return {
            "nano_cpus": round(self.cpus * 1e9),
            "mem_limit": self.memory,
            "memswap_limit": self.memory,
            "pids_limit": self.pids,
            "network_mode": self.network,
            "read_only": self.read_only,
            "tmpfs": {"/tmp": scratch, self.workdir: workdir},  # noqa: S108 - the container's own
            "cap_drop": ["ALL"],
            "cap_add": list(self.capabilities),
            "security_opt": [] if self.new_privileges else ["no-new-privileges"],
            "runtime": self.runtime,
        }


def check(spec: Spec, labels: Mapping[str, str]) -> DockerOptions:
    """Raises InvalidSpec that names what is wrong with it; nothing was sent."""
    if not spec.image:
        raise InvalidSpec("image: provider `docker` needs one, such as python:3.13-slim")
    check_text(spec, labels)
    return DockerOptions.of(spec)
