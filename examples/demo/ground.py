"""Where the demo's sandboxes are: processes of this host, or containers of a Docker engine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from core.errors import InvalidSpec, SettingsError
from core.providers.base import SandboxProvider
from core.providers.local import LocalProvider

IMAGE = "busybox"


class Ground(Protocol):
    """What the stage needs to know of it."""

    provider: SandboxProvider
    settings: Mapping[str, str]  # without their prefix

    def processes(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Every live process of a sandbox, by the sandbox's name, whatever the provider says."""
        ...


class Local:
    """Process groups, whose records are in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.provider: SandboxProvider = LocalProvider(folder / "sandboxes")
        self.settings: Mapping[str, str] = {
            "PROVIDER": "local",
            "LOCAL_ROOT": f"{folder}/sandboxes",
            "SPEC": json.dumps({"command": ["sleep", "600"]}),
        }

    def processes(self, names: Sequence[str]) -> dict[str, list[int]]:
        """From /proc alone."""
        found: dict[str, list[int]] = {}
        mark, place = b"SANDKEEPER_SANDBOX=", os.fsencode(self._folder)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                marks = [v.removeprefix(mark) for v in variables if v.startswith(mark)]
                if marks and any(place in variable for variable in variables):
                    found.setdefault(marks[0].decode(), []).append(int(entry.name))
        return found


class Containers:
    """
    Containers of the engine that Docker's own variables name. Raises SettingsError without
    docker-py, ProviderError without an engine, and InvalidSpec when it has not got the image.
    """

    def __init__(self, image: str) -> None:
        try:
            import docker  # noqa: PLC0415 - an extra: the demo without it needs none
            from docker.errors import APIError, ImageNotFound  # noqa: PLC0415

            from core.providers.docker import DockerProvider  # noqa: PLC0415
        except ImportError as error:
            wanted = "pip install 'sandkeeper[docker]'"
            raise SettingsError(f"{error}: install it by `{wanted}`") from error
        self.provider: SandboxProvider = DockerProvider.from_env(os.environ)
        self.provider.scope()  # an engine that cannot be reached is told here, in its own words
        self._refused = APIError
        self._client = docker.APIClient(
            version="auto", **docker.utils.kwargs_from_env(environment=dict(os.environ))
        )
        try:
            self._client.inspect_image(image)  # type: ignore[no-untyped-call]
        except ImageNotFound as error:
            raise InvalidSpec(
                f"the engine has no image {image}: `docker pull {image}`, or name one by --image"
            ) from error
        spec = {"image": image, "command": ["sleep", "600"]}
        self.settings: Mapping[str, str] = {"PROVIDER": "docker", "SPEC": json.dumps(spec)}

    def processes(self, names: Sequence[str]) -> dict[str, list[int]]:
        """From the engine's process table, which has the host's numbers."""
        found: dict[str, list[int]] = {}
        for name in names:
            with suppress(self._refused):  # it does not run
                table = self._client.top(name)
                column = table["Titles"].index("PID")
                rows = table["Processes"] or ()  # none when it has just ended
                found[name] = [int(row[column]) for row in rows]
        return found
