"""
Provider `docker`: a sandbox is one container of a Docker engine, or of one that speaks its API.

Engines that are compatible answer with other status codes where it matters: Podman says 500 where
Docker says 409. So no status is believed alone; after every error the container itself is looked
at, and decides.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self

import docker
from docker.errors import APIError, NotFound

from ..errors import Busy, ForeignConflict, InvalidSpec, SettingsError, Unavailable
from . import docker_lease as lease
from .base import Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec
from .docker_engine import Engine
from .docker_options import DockerOptions, check
from .reading import moment, our_labels

PREFIX = "SANDKEEPER_DOCKER_"
SETTLES_WITHIN = 2.0  # seconds between a name that is taken and a container that can be seen
LEAVES_WITHIN = 10.0  # seconds that an engine takes to kill a container, or gives up
LOOK_EVERY = 0.05
CANNOT_RUN = {126, 127}  # exit codes of a command that is no program, or is not there
STATES = {
    "created": ProviderState.PENDING,
    "running": ProviderState.RUNNING,
    "restarting": ProviderState.RUNNING,
    "paused": ProviderState.PAUSED,
    "removing": ProviderState.STOPPING,
    "stopping": ProviderState.STOPPING,  # Podman
    "exited": ProviderState.FAILED,  # it still owns its name and its disk
    "stopped": ProviderState.FAILED,  # Podman
    "dead": ProviderState.FAILED,  # a removal that failed half-way
}


class DockerProvider:
    """
    Containers of one engine. With `self_lease` they end by themselves when nobody extends them:
    their image needs a POSIX shell, `date`, `cat`, `mv`, `rm` and `sleep` then.
    """

    name = "docker"

    def __init__(self, engine: Engine, *, self_lease: bool = False) -> None:
        self._engine = engine
        self._self_lease = self_lease
        self.capabilities = frozenset({Capability.LIST, Capability.IDEMPOTENT_CREATE}) | (
            {Capability.TTL} if self_lease else set()
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From Docker's own DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, and from
        SANDKEEPER_DOCKER_SELF_LEASE (true or false). Raises SettingsError; connects to nothing.
        """
        for variable in environ:
            if variable.startswith(PREFIX) and variable != f"{PREFIX}SELF_LEASE":
                raise SettingsError(f"{variable} is not a setting: known is {PREFIX}SELF_LEASE")
        wish = environ.get(f"{PREFIX}SELF_LEASE", "false").lower()
        if wish not in {"true", "false", "1", "0"}:
            raise SettingsError(f"{PREFIX}SELF_LEASE={wish!r}: give true or false")
        return cls(Engine(environ), self_lease=wish in {"true", "1"})

    def scope(self) -> str:
        """
        `docker:` and the id that the engine gave itself. Podman makes one up for each answer: it
        is known by its host and the folder of its containers.
        """
        with self._engine.calls("ask for its id", time.monotonic() + 10) as client:
            info = client.info()
            podman = _is_podman(client)
        if podman:
            return f"podman:{info['Name']}:{info['DockerRootDir']}"
        return f"docker:{info['ID']}"

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
        Create and start it, which are two calls: one of this name and these labels that was
        created and never started is started, any other is adopted as it is, also when it FAILED.
        A `ttl` counts with a self-lease only.
        """
        options = check(spec, labels)
        with self._engine.calls(f"create {name}", deadline) as client:
            try:
                config = self._config(client, labels, spec, options, ttl)
                client.create_container_from_config(config, name)  # type: ignore[no-untyped-call]
            except APIError as error:
                settles = 0.0 if error.status_code in {400, 404} else SETTLES_WITHIN
                found = _there_after_all(client, name, min(deadline, time.monotonic() + settles))
                if found is None:
                    raise self._refused(error, spec, name) from error
            else:
                found = _inspected(client, name)
            found = self._started(client, _ours(found, name, labels), name)
            return self._info(client, found)

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """Look one up by its id, or by its name while that is not known."""
        with self._engine.calls(f"look at {ref.name}", deadline) as client:
            found = _meant(client, ref)
            return None if found is None else self._info(client, found)

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """
        Kill its processes and remove it, with the volumes that it made. What another call is
        removing at this moment is accepted.
        """
        with self._engine.calls(f"destroy {ref.name}", deadline) as client:
            found = _meant(client, ref)
            if found is None:
                return
            try:
                client.remove_container(found["Id"], v=True, force=True)
            except NotFound:
                return
            except APIError:
                until = min(deadline, time.monotonic() + LEAVES_WITHIN)
                if not _leaves(client, found["Id"], until):
                    raise

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """All containers with all of these labels, stopped and paused ones too, on one page."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        with self._engine.calls("list sandboxes", deadline) as client:
            found = client.containers(all=True, filters={"label": wanted})
        return Page(items=tuple(_listed(item) for item in found))

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """Let it live `ttl` seconds from now. Raises Unavailable when it does not run."""
        with self._engine.calls(f"extend {ref.name}", deadline) as client:
            found = _meant(client, ref)
            if found is None or _state(found) is not ProviderState.RUNNING:
                raise Unavailable(f"sandbox {ref.name} does not run: nothing was extended")
            until = _run(client, found["Id"], lease.extend(ttl))
        if until is None:
            raise Unavailable(f"sandbox {ref.name} was made without a lease: nothing was extended")
        return until

    def _config(
        self,
        client: docker.APIClient,
        labels: Mapping[str, str],
        spec: Spec,
        options: DockerOptions,
        ttl: float | None,
    ) -> dict[str, Any]:
        owned = options.user is not None and not _is_podman(client)
        limits = options.host_config(owned=owned)
        entrypoint: list[str] | None = None
        command, marks = list(spec.command), dict(labels)
        if self._self_lease and ttl is not None:
            image = client.inspect_image(spec.image)["Config"]  # type: ignore[no-untyped-call]
            said = [*(image.get("Entrypoint") or ()), *(spec.command or image.get("Cmd") or ())]
            entrypoint, command = lease.supervised(said, ttl), []
            marks[lease.LABEL] = "1"
            limits["tmpfs"] = {**limits["tmpfs"], lease.FOLDER: lease.TMPFS}
            limits["auto_remove"] = True
        return dict(
            client.create_container_config(
                spec.image or "",
                command,
                entrypoint=entrypoint,
                environment=dict(spec.env),
                labels=marks,
                user=options.user,
                working_dir=options.workdir,
                host_config=client.create_host_config(**limits),
            )
        )

    def _started(
        self, client: docker.APIClient, found: Mapping[str, Any], name: str
    ) -> Mapping[str, Any]:
        """Its creator may have died before the start, or be about to start it: once is enough."""
        if found["State"]["Status"] != "created":
            return found
        try:
            client.start(found["Id"])
        except APIError:
            again = _inspected(client, found["Id"])
            if again is None:
                raise
            if again["State"].get("ExitCode") in CANNOT_RUN:
                said = again["State"].get("Error") or "it is not there, or no program"
                raise InvalidSpec(f"the command of sandbox {name} cannot be run: {said}") from None
            if _state(again) is not ProviderState.RUNNING:
                raise
        again = _inspected(client, found["Id"])
        if again is None:
            raise Unavailable(f"sandbox {name} was gone before it had started; try again")
        return again

    def _refused(self, error: APIError, spec: Spec, name: str) -> Exception:
        """Nothing of this name is there: the engine said no."""
        said = error.explanation or error
        if error.status_code == 404:
            return InvalidSpec(f"image {spec.image!r}: {said}; pull it on the engine's host first")
        if error.status_code == 400:
            return InvalidSpec(f"sandbox {name} cannot be made: {said}")
        return self._engine.named(error, f"create {name}")

    def _info(self, client: docker.APIClient, found: Mapping[str, Any]) -> SandboxInfo:
        labels = found["Config"].get("Labels") or {}
        expires = None
        if lease.LABEL in labels and _state(found) is ProviderState.RUNNING:
            expires = _run(client, found["Id"], lease.look())
        return SandboxInfo(
            ref=SandboxRef(name=found["Name"].removeprefix("/"), external_id=found["Id"]),
            state=_state(found),
            labels=labels,
            created_at=moment(found["Created"]),
            expires_at=expires,
        )


def _is_podman(client: docker.APIClient) -> bool:
    parts = client.version().get("Components") or ()
    return any("podman" in str(part.get("Name", "")).lower() for part in parts)


def _inspected(client: docker.APIClient, which: str) -> Mapping[str, Any] | None:
    try:
        return _look(client, which)
    except NotFound:
        return None
    except APIError:
        with suppress(NotFound):  # Podman says 500 for one that went away while it looked
            return _look(client, which)
        return None


def _look(client: docker.APIClient, which: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = client.inspect_container(which)
    return found


def _there_after_all(client: docker.APIClient, name: str, until: float) -> Mapping[str, Any] | None:
    """
    Who has the name, whatever the engine's error was. A name is taken before its container can be
    looked at: another create of it may be under way.
    """
    while (found := _inspected(client, name)) is None and time.monotonic() < until:
        time.sleep(LOOK_EVERY)
    return found


def _leaves(client: docker.APIClient, which: str, until: float) -> bool:
    """
    Whether another call is removing it. Docker says "already in progress" from that call's first
    moment, but shows "removing" only when its processes are dead: until then it "runs".
    """
    while (found := _inspected(client, which)) is not None:
        if _state(found) is ProviderState.STOPPING:
            return True
        if time.monotonic() + LOOK_EVERY >= until:
            return False
        time.sleep(LOOK_EVERY)
    return True


def _meant(client: docker.APIClient, ref: SandboxRef) -> Mapping[str, Any] | None:
    """This name, and this id if it is known: an engine also takes the beginning of an id."""
    found = _inspected(client, ref.external_id or ref.name)
    if found is None or found["Name"].removeprefix("/") != ref.name:
        return None
    return found if ref.external_id in {None, found["Id"]} else None


def _ours(
    found: Mapping[str, Any] | None, name: str, labels: Mapping[str, str]
) -> Mapping[str, Any]:
    if found is None:
        raise Unavailable(f"sandbox {name} was gone as soon as it was made; try again")
    has = found["Config"].get("Labels") or {}
    if our_labels(has) != labels:
        raise ForeignConflict(f"container {name} exists with other labels: it is left alone")
    if _state(found) is ProviderState.STOPPING:
        raise Busy(f"container {name} is being removed: its name is free before long")
    return found


def _state(found: Mapping[str, Any]) -> ProviderState:
    return STATES.get(found["State"]["Status"], ProviderState.UNKNOWN)


def _listed(item: Mapping[str, Any]) -> SandboxInfo:
    names = item.get("Names") or [item["Id"]]
    return SandboxInfo(
        ref=SandboxRef(name=names[0].removeprefix("/"), external_id=item["Id"]),
        state=STATES.get(item["State"], ProviderState.UNKNOWN),
        labels=item.get("Labels") or {},
        created_at=datetime.fromtimestamp(item["Created"], UTC),
    )


def _run(client: docker.APIClient, which: str, command: list[str]) -> datetime | None:
    """Run one of the lease's commands in it; None when it has no lease, or has just ended."""
    try:
        made = client.exec_create(which, command, user="0", stderr=False)
        said = client.exec_start(made["Id"])
    except APIError:
        return None
    return datetime.fromtimestamp(int(said), UTC) if said.strip().isdigit() else None
