"""What provider `daytona` makes of a spec: safe unless somebody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..errors import InvalidSpec
from .base import Spec
from .options import Listed, Options

Text = Annotated[str, Field(min_length=1, max_length=512)]
Texts = Annotated[tuple[Text, ...], Listed]
Minutes = Annotated[int, Field(ge=0, le=5_256_000)]  # ten years
OF_AN_IMAGE = ("cpu", "memory", "disk", "gpu")  # a snapshot has its own, and refuses others


class DaytonaOptions(Options):
    """The `options` of a spec, named as in Daytona's Python SDK. Sizes are in GiB."""

    snapshot: Text | None = None  # by name or id; without one and without an image, Daytona's own
    target: Text | None = None  # the region; DAYTONA_TARGET, or the organisation's
    user: Text | None = None  # who runs it; Daytona's default is `daytona`
    cpu: Annotated[int, Field(gt=0, le=1024)] | None = None
    memory: Annotated[int, Field(gt=0, le=65_536)] | None = None
    disk: Annotated[int, Field(gt=0, le=1_048_576)] | None = None
    gpu: Annotated[int, Field(gt=0, le=64)] | None = None
    # None: everything is blocked, unless one of the lists says what is not.
    network_block_all: bool | None = None
    network_allow_list: Texts = ()  # CIDR blocks
    domain_allow_list: Texts = ()
    public: bool = False  # whether anybody may see what it serves
    # Idle time is ours to judge: Daytona sees only its own calls, and would stop a long turn.
    auto_stop_interval: Minutes = 0
    auto_archive_interval: Minutes | None = None
    # -1 never, 0 as soon as it stops: nothing is deleted that we were not asked to delete.
    auto_delete_interval: Annotated[int, Field(ge=-1, le=5_256_000)] = -1

    def network(self) -> dict[str, Any]:
        """What it may reach. Daytona takes lists as text with commas."""
        lists = {
            "networkAllowList": ",".join(self.network_allow_list),
            "domainAllowList": ",".join(self.domain_allow_list),
        }
        allowed = {name: text for name, text in lists.items() if text}
        blocked = not allowed if self.network_block_all is None else self.network_block_all
        return {"networkBlockAll": blocked, **allowed}


def request(
    name: str,
    labels: Mapping[str, str],
    spec: Spec,
    *,
    target: str | None,
    ttl_minutes: int | None,
) -> dict[str, Any]:
    """
    The body of the create: the same at every retry. Raises InvalidSpec that names what is wrong
    with the spec; nothing was sent.
    """
    options = DaytonaOptions.of(spec)
    _check(spec, options)
    wanted = {
        "name": name,
        "labels": dict(labels),
        "env": dict(spec.env),
        "snapshot": options.snapshot,
        "buildInfo": None if spec.image is None else _built(spec.image),
        "target": options.target or target,
        "user": options.user,
        "public": options.public,
        "autoStopInterval": options.auto_stop_interval,
        "autoArchiveInterval": options.auto_archive_interval,
        "autoDeleteInterval": options.auto_delete_interval,
        "ttlMinutes": ttl_minutes,
        **{size: getattr(options, size) for size in OF_AN_IMAGE},
        **options.network(),
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _built(image: str) -> dict[str, str]:
    return {"dockerfileContent": f"FROM {image}\n"}


def _check(spec: Spec, options: DaytonaOptions) -> None:
    if spec.command:
        raise InvalidSpec(
            f"command {list(spec.command)!r}: Daytona takes none; make it the entrypoint of a "
            "snapshot, or run it in the sandbox through Daytona's SDK"
        )
    if spec.image is not None and (not spec.image or any(map(str.isspace, spec.image))):
        raise InvalidSpec(f"image {spec.image!r}: give a name such as python:3.13-slim")
    if spec.image is not None and options.snapshot is not None:
        raise InvalidSpec(f"options.snapshot {options.snapshot!r}: give it, or `image`, not both")
    if options.network_block_all and (options.network_allow_list or options.domain_allow_list):
        raise InvalidSpec(
            "options.network_block_all True: with it nothing is allowed, and a list says what is; "
            "leave one of them out"
        )
    for size in OF_AN_IMAGE:
        if spec.image is None and (value := getattr(options, size)) is not None:
            raise InvalidSpec(
                f"options.{size} {value!r}: a snapshot has its own; give `image`, or another "
                "snapshot"
            )
