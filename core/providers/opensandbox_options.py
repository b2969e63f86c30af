"""What provider `opensandbox` asks its server for: the body of a create, from a spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..errors import InvalidSpec
from .base import Spec
from .options import Listed, Options, check_text

SHORTEST = 60  # seconds of the shortest TTL that a create may ask for; a renewal may ask for less
IDLE = ("tail", "-f", "/dev/null")  # what the vendor's SDK runs when it is told nothing
Text = Annotated[str, Field(min_length=1, max_length=253)]


class OpenSandboxOptions(Options):
    """The `options` of a spec. What else fences a sandbox in, the server's configuration says."""

    cpus: Annotated[float, Field(ge=0.01, le=1024, strict=False)] = 1.0
    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")] = "1Gi"
    # Names that it may reach, and nothing else; None for whatever the server's network allows.
    egress: Annotated[tuple[Text, ...] | None, Listed] = None
    snapshot: Text | None = None  # instead of an image
    pool: Text | None = None  # of pods that were started before, on Kubernetes


def body_of(spec: Spec, labels: Mapping[str, str], ttl: float | None) -> dict[str, Any]:
    """The JSON to create it by, the same for the same arguments. Raises InvalidSpec."""
    options = OpenSandboxOptions.of(spec)
    _check(spec, options)
    body: dict[str, Any] = {"metadata": dict(labels)}
    if ttl is not None:
        body["timeout"] = max(SHORTEST, math.ceil(ttl))
    if spec.env:
        body["env"] = dict(spec.env)
    if spec.image:
        body["image"] = {"uri": spec.image}
    if options.snapshot:
        body["snapshotId"] = options.snapshot
    if options.pool:
        body["extensions"] = {"poolRef": options.pool}
    else:
        body["resourceLimits"] = {"cpu": f"{options.cpus:g}", "memory": options.memory}
    if spec.command or not options.pool:
        body["entrypoint"] = list(spec.command or IDLE)
    if options.egress is not None:
        allowed = [{"action": "allow", "target": name} for name in options.egress]
        body["networkPolicy"] = {"defaultAction": "deny", "egress": allowed}
    return body


def _check(spec: Spec, options: OpenSandboxOptions) -> None:
    if options.snapshot and options.pool:
        raise InvalidSpec(f"options.snapshot {options.snapshot!r}: not with options.pool")
    if options.snapshot and spec.image:
        raise InvalidSpec(f"image {spec.image!r}: not with options.snapshot, which has its own")
    if not (spec.image or options.snapshot or options.pool):
        raise InvalidSpec("image: provider `opensandbox` needs one, such as python:3.13-slim")
    check_text(spec)
