"""What provider `modal` makes of a spec: safe unless somebody says otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from modal_proto import api_pb2
from pydantic import Field, model_validator

from ..errors import InvalidSpec
from .base import Spec
from .modal_pages import tags_of
from .options import Listed, Options, check_text

LONGEST = 24 * 60 * 60  # seconds that Modal lets a sandbox live; it can never be extended
LONGEST_COMMAND = 1 << 16  # characters
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Seconds = Annotated[int, Field(ge=1, le=LONGEST)]
Cores = Annotated[float, Field(ge=0.1, le=1024, strict=False)]
Mebibytes = Annotated[int, Field(ge=64, le=1 << 20)]
Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Listed]


class ModalOptions(Options):
    """The `options` of a spec. What runs in a sandbox is taken to be hostile."""

    cpus: Cores = 1.0  # physical cores at most; without a limit Modal lets it have the host's
    cpus_reserved: Cores = 0.125
    memory: Mebibytes = 1024  # at most
    memory_reserved: Mebibytes = 128
    network: Literal["none", "open"] = "none"
    cidrs: Texts = ()  # with `network` none: only these can be reached
    domains: Texts = ()  # likewise
    workdir: Annotated[str, Field(pattern="^/")] | None = None
    regions: Texts = ()
    lifetime: Seconds = LONGEST
    idle_timeout: Seconds | None = None  # Modal's own idea of idle: nothing executed, no traffic

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cpus_reserved > self.cpus or self.memory_reserved > self.memory:
            raise ValueError("more is reserved than it may have at most")
        if self.network == "open" and (self.cidrs or self.domains):
            raise ValueError("cidrs and domains are for network 'none'")
        return self

    def request(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        app_id: str,
        image_id: str,
        ttl: float | None,
    ) -> api_pb2.SandboxCreateV2Request:
        """What Modal is asked for: always the same for the same arguments."""
        env = [api_pb2.SecretSource(env=api_pb2.StringMap(contents=spec.env))]
        return api_pb2.SandboxCreateV2Request(
            app_id=app_id,
            definition=self._definition(name, spec, image_id, ttl),
            secret_sources=env if spec.env else [],
            tags=tags_of(labels),
        )

    def _definition(
        self, name: str, spec: Spec, image_id: str, ttl: float | None
    ) -> api_pb2.Sandbox:
        lifetime = self.lifetime if ttl is None else min(self.lifetime, max(1, math.ceil(ttl)))
        return api_pb2.Sandbox(
            name=name,
            image_id=image_id,
            entrypoint_args=spec.command,
            resources=api_pb2.Resources(
                milli_cpu=round(1000 * self.cpus_reserved),
                milli_cpu_max=round(1000 * self.cpus),
                memory_mb=self.memory_reserved,
                memory_mb_max=self.memory,
            ),
            network_access=self._network(),
            timeout_secs=lifetime,
            idle_timeout_secs=self.idle_timeout,
            workdir=self.workdir,
            scheduler_placement=(
                api_pb2.SchedulerPlacement(regions=self.regions) if self.regions else None
            ),
        )

    def _network(self) -> api_pb2.NetworkAccess:
        kind = api_pb2.NetworkAccess.NetworkAccessType
        if self.cidrs or self.domains:
            return api_pb2.NetworkAccess(
                network_access_type=kind.ALLOWLIST,
                allowed_cidrs=self.cidrs,
                allowed_domains=self.domains,
            )
        return api_pb2.NetworkAccess(
            network_access_type=kind.OPEN if self.network == "open" else kind.BLOCKED
        )


def check(spec: Spec, labels: Mapping[str, str]) -> ModalOptions:
    """Raises InvalidSpec that names what is wrong with it; nothing was sent."""
    if not spec.image or any(character.isspace() for character in spec.image):
        raise InvalidSpec(
            f"image {spec.image!r}: provider `modal` needs one of a registry, such as "
            "python:3.13-slim"
        )
    check_text(spec, labels)
    if sum(map(len, spec.command)) > LONGEST_COMMAND:
        raise InvalidSpec(f"command: it is longer than {LONGEST_COMMAND} characters")
    for key in spec.env:
        if not VARIABLE.fullmatch(key):
            raise InvalidSpec(f"env {key!r}: use letters, digits and underscores")
    return ModalOptions.of(spec)
