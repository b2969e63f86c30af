"""Provider `docker` against a real engine: the contract, crashes, and what an image may not do."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import docker
import pytest
import requests
from docker.errors import APIError, NotFound

from core.errors import (
    Busy,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    SettingsError,
    Unavailable,
)
from core.providers.base import Capability, ProviderState, SandboxRef, Spec
from core.providers.docker import DockerProvider
from tests.engines import IMAGE, DockerEngine
from tests.providers.contract import ProviderContract, eventually, soon

ROOT = Path(__file__).parents[2]
LABELS = {"sandkeeper-installation": "abcd1234", "sandkeeper-schema": "1"}
# docker-py leaves the socket of a client that could not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning",
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
)
SPEC = Spec(image=IMAGE, command=("sleep", "1000000"))


@pytest.fixture
def provider(dockerd: DockerEngine) -> DockerProvider:
    """A handle of it."""
    return DockerProvider.from_env(dockerd.environ)


@pytest.fixture
def leased(dockerd: DockerEngine) -> DockerProvider:
    """One whose containers end by themselves."""
    return DockerProvider.from_env({**dockerd.environ, "SANDKEEPER_DOCKER_SELF_LEASE": "true"})


@pytest.fixture
def left_sockets() -> Iterator[None]:
    """Let docker-py's be collected here, where the warnings of it are expected."""
    yield
    gc.collect()


def its_id(ref: SandboxRef) -> str:
    """As the engine wants it."""
    assert ref.external_id is not None
    return ref.external_id


def make(
    provider: DockerProvider,
    name: str = "sk-one",
    spec: Spec = SPEC,
    ttl: float | None = None,
) -> SandboxRef:
    """A sandbox."""
    return provider.create(name, LABELS, spec, ttl=ttl, deadline=soon()).ref


class TestContract(ProviderContract):
    """It keeps the contract."""

    provider_path = "core.providers.docker:DockerProvider"
    spec: ClassVar[Spec] = SPEC

    @pytest.fixture
    def environ(self, dockerd: DockerEngine) -> dict[str, str]:
        """The tests' own engine."""
        return dockerd.environ


class TestContractOfLeases(ProviderContract):
    """It keeps the contract with a lease too, which is a TTL."""

    provider_path = "core.providers.docker:DockerProvider"
    spec: ClassVar[Spec] = SPEC
    short: ClassVar[float] = 5.0

    @pytest.fixture
    def environ(self, dockerd: DockerEngine) -> dict[str, str]:
        """The tests' own engine, with leases."""
        return {**dockerd.environ, "SANDKEEPER_DOCKER_SELF_LEASE": "1"}


# What is made


def test_a_sandbox_is_fenced_in(provider: DockerProvider, docker_client: docker.APIClient) -> None:
    """The defaults: bounded, without a network, without rights, its root read-only."""
    ref = make(provider)

    limits = docker_client.inspect_container(its_id(ref))["HostConfig"]
    assert limits["NanoCpus"] == 1_000_000_000
    assert limits["Memory"] == limits["MemorySwap"] == 1 << 30
    assert limits["PidsLimit"] == 512
    assert limits["NetworkMode"] == "none"
    assert limits["ReadonlyRootfs"] is True
    assert limits["CapDrop"] == ["ALL"]
    assert limits["SecurityOpt"] == ["no-new-privileges"]


@pytest.mark.parametrize(
    ("options", "where", "value"),
    [
        ({"cpus": 0.5}, "NanoCpus", 500_000_000),
        ({"memory": "64m"}, "Memory", 64 << 20),
        ({"pids": 7}, "PidsLimit", 7),
        ({"network": "host"}, "NetworkMode", "host"),
        ({"read_only": False}, "ReadonlyRootfs", False),
        ({"new_privileges": True}, "SecurityOpt", None),
        ({"capabilities": ["CHOWN"]}, "CapAdd", ["CHOWN"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_is_what_it_says(
    provider: DockerProvider,
    docker_client: docker.APIClient,
    options: dict[str, Any],
    where: str,
    value: object,
) -> None:
    """Each one, as the engine has it."""
    ref = make(provider, spec=replace(SPEC, options=options))

    found = docker_client.inspect_container(its_id(ref))["HostConfig"][where]
    assert found in (value, value or [])


def test_its_folder_can_be_written_and_its_root_cannot(
    provider: DockerProvider, docker_client: docker.APIClient
) -> None:
    """What an agent works in, as a user who is nobody."""
    command = ("sh", "-c", "touch /workspace/a && ! touch /b && echo well; sleep 1000000")
    spec = replace(SPEC, command=command, options={"user": "65534"})
    ref = make(provider, spec=spec)

    eventually(lambda: b"well" in docker_client.logs(its_id(ref)))


def test_env_is_given(provider: DockerProvider, docker_client: docker.APIClient) -> None:
    """As it is, spaces and all."""
    spec = replace(SPEC, command=("sh", "-c", "env; sleep 1000000"), env={"GREETING": "a = b"})
    ref = make(provider, spec=spec)

    eventually(lambda: b"GREETING=a = b\n" in docker_client.logs(its_id(ref)))


# What is refused


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(), "image"),
        (Spec(image="no-such-image:1"), "no-such-image:1"),
        (replace(SPEC, command=("no-such-program",)), "no-such-program"),
        (replace(SPEC, command=("/tmp",)), "cannot be run"),  # noqa: S108 - in the container
        (replace(SPEC, options={"memory": "much"}), "options.memory 'much'"),
        (replace(SPEC, options={"cpus": -1}), "options.cpus -1"),
        (replace(SPEC, options={"workdir": "here"}), "options.workdir 'here'"),
        (replace(SPEC, options={"cpu": 1}), "options.cpu 1"),
        (replace(SPEC, options={"user": "node"}), "options.user 'node'"),
        (replace(SPEC, options={"runtime": "no-such-runtime"}), "no-such-runtime"),
        (replace(SPEC, env={"A=B": "c"}), "A=B"),
        (replace(SPEC, env={"A": "\0"}), "NUL"),
    ],
)
def test_what_can_never_be_made_is_refused(
    provider: DockerProvider, docker_client: docker.APIClient, spec: Spec, words: str
) -> None:
    """With the field, the value, and nothing that runs."""
    with pytest.raises(InvalidSpec, match=words.replace(".", r"\.")):
        make(provider, spec=spec)

    assert docker_client.containers() == []


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"DOCKER_HOST": "gopher://somewhere"}, "DOCKER_HOST=gopher://somewhere"),
        ({"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/none"}, "DOCKER_CERT_PATH"),
        ({"SANDKEEPER_DOCKER_SELF_LEASE": "perhaps"}, "SELF_LEASE='perhaps'"),
        ({"SANDKEEPER_DOCKER_LEASE": "1"}, "SANDKEEPER_DOCKER_LEASE is not a setting"),
    ],
    ids=["host", "tls", "value", "name"],
)
def test_settings_that_are_wrong_are_refused(environ: dict[str, str], words: str) -> None:
    """Before anything is connected."""
    with pytest.raises(SettingsError, match=words):
        DockerProvider.from_env(environ)


@pytest.mark.usefixtures("left_sockets")
def test_an_engine_that_is_not_there_is_no_not_found(tmp_path: Path) -> None:
    """Every call says where it looked; none concludes anything."""
    nowhere = DockerProvider.from_env({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    ref = SandboxRef(name="sk-one", external_id="0" * 64)
    calls: list[Callable[[], object]] = [
        nowhere.scope,
        lambda: make(nowhere),
        lambda: nowhere.get(ref, deadline=soon()),
        lambda: nowhere.destroy(ref, deadline=soon()),
        lambda: nowhere.list({}, cursor=None, deadline=soon()),
        lambda: nowhere.extend(ref, ttl=9.0, deadline=soon()),
    ]

    for call in calls:
        with pytest.raises(Unavailable, match=r"none\.sock.*is the engine running"):
            call()


# Crashes


def test_a_container_that_was_never_started_is_started(
    provider: DockerProvider, docker_client: docker.APIClient
) -> None:
    """A crash between create and start: the name is taken, and nothing runs."""
    ref = make(provider)
    docker_client.stop(its_id(ref), timeout=0)
    docker_client.remove_container(its_id(ref), force=True)
    made = docker_client.create_container(IMAGE, ["sleep", "1000000"], name="sk-one", labels=LABELS)

    adopted = provider.create("sk-one", LABELS, SPEC, ttl=None, deadline=soon())

    assert adopted.ref.external_id == made["Id"]
    assert adopted.state is ProviderState.RUNNING


def test_a_container_that_ended_is_shown_and_not_started_again(
    provider: DockerProvider, docker_client: docker.APIClient
) -> None:
    """It still has its name and its disk: FAILED, and listed."""
    ref = make(provider, spec=replace(SPEC, command=("sh", "-c", "exit 3")))
    eventually(lambda: docker_client.containers() == [])

    found = provider.get(ref, deadline=soon())
    again = provider.create("sk-one", LABELS, SPEC, ttl=None, deadline=soon())
    page = provider.list(LABELS, cursor=None, deadline=soon())

    assert found is not None
    assert found.state is again.state is ProviderState.FAILED
    assert [item.ref for item in page.items] == [ref]


def test_a_paused_one_is_listed_and_can_be_destroyed(
    provider: DockerProvider, docker_client: docker.APIClient
) -> None:
    """F23: what is frozen occupies and bills."""
    ref = make(provider)
    docker_client.pause(its_id(ref))

    (item,) = provider.list(LABELS, cursor=None, deadline=soon()).items
    provider.destroy(ref, deadline=soon())

    assert item.state is ProviderState.PAUSED
    assert provider.get(ref, deadline=soon()) is None


def test_one_that_another_call_is_still_killing_is_being_removed(
    provider: DockerProvider, docker_client: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker refuses the second removal, and shows a container that runs until it is killed."""
    ref = make(provider)
    remove, refused = docker_client.remove_container, requests.Response()
    refused.status_code = 409

    def refuse(*_: object, **__: object) -> None:
        threading.Timer(0.5, remove, [its_id(ref)], {"force": True}).start()
        raise APIError("conflict", refused, "removal is already in progress")

    monkeypatch.setattr(docker.APIClient, "remove_container", refuse)
    provider.destroy(ref, deadline=soon())

    eventually(lambda: provider.get(ref, deadline=soon()) is None)


def test_one_that_the_engine_cannot_remove_is_not_taken_for_removed(
    provider: DockerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, and it goes on running: the worker has to come again."""
    ref = make(provider)
    refused = requests.Response()
    refused.status_code = 409

    def refuse(*_: object, **__: object) -> None:
        raise APIError("conflict", refused, "it is held by somebody")

    with monkeypatch.context() as patch:
        patch.setattr(docker.APIClient, "remove_container", refuse)
        patch.setattr("core.providers.docker.LEAVES_WITHIN", 1.0)
        with pytest.raises(Busy, match="held by somebody"):
            provider.destroy(ref, deadline=soon())


def test_the_volumes_that_an_image_makes_go_with_it(
    provider: DockerProvider, docker_client: docker.APIClient
) -> None:
    """F19: an anonymous volume outlives its container, unless somebody asks."""
    docker_client.create_volume("somebody-elses")
    config = docker_client.create_container_config(
        IMAGE, ["sleep", "9"], volumes=["/data"], labels=LABELS
    )
    docker_client.create_container_from_config(config, "sk-one")  # type: ignore[no-untyped-call]
    ref = make(provider)
    during = docker_client.volumes()["Volumes"]

    provider.destroy(ref, deadline=soon())

    left = [volume["Name"] for volume in docker_client.volumes()["Volumes"]]
    docker_client.remove_volume("somebody-elses")
    assert len(during) == 2
    assert left == ["somebody-elses"]


@pytest.mark.usefixtures("left_sockets")
def test_an_engine_that_was_killed_is_asked_again(
    dockerd: DockerEngine, provider: DockerProvider, docker_client: docker.APIClient
) -> None:
    """kill -9 of dockerd: "cannot connect" is not "gone", before and after the destroy."""
    ref = make(provider)
    scope = provider.scope()
    dockerd.kill()
    with pytest.raises(ProviderError) as refused:
        provider.destroy(ref, deadline=soon())
    with pytest.raises(ProviderError):
        provider.get(ref, deadline=soon())

    dockerd.start()

    assert isinstance(refused.value, Unavailable | OutcomeUnknown)
    assert provider.scope() == scope
    provider.destroy(ref, deadline=soon())
    assert provider.get(ref, deadline=soon()) is None
    with pytest.raises(NotFound):
        docker_client.inspect_container(its_id(ref))


# Leases


def test_without_a_lease_it_claims_no_ttl(
    provider: DockerProvider, leased: DockerProvider, docker_client: docker.APIClient
) -> None:
    """And an extension says that there is none."""
    ref = make(provider)

    with pytest.raises(Unavailable, match="without a lease"):
        leased.extend(ref, ttl=9.0, deadline=soon())
    assert Capability.TTL not in provider.capabilities
    assert Capability.TTL in leased.capabilities


def test_a_lease_runs_the_image_s_own_command(
    leased: DockerProvider, docker_client: docker.APIClient
) -> None:
    """Without a command in the spec, what the image would run."""
    ref = leased.create("sk-one", LABELS, Spec(image=IMAGE), ttl=60.0, deadline=soon()).ref

    eventually(lambda: b"of the image" in docker_client.logs(its_id(ref)))


def test_a_container_that_is_about_to_end_promises_nothing(
    leased: DockerProvider, docker_client: docker.APIClient
) -> None:
    """It looks at its date for the last time: whoever moves it now may have come too late."""
    ref = make(leased, ttl=600.0)
    over = docker_client.exec_create(its_id(ref), ["touch", "/run/sandkeeper/over"], user="0")
    docker_client.exec_start(over["Id"])

    with pytest.raises(Unavailable, match="nothing was extended"):
        leased.extend(ref, ttl=9.0, deadline=soon())


def test_a_command_that_ends_takes_its_container_along(leased: DockerProvider) -> None:
    """Nothing is left of it that anybody would have to remove."""
    spec = replace(SPEC, command=("sh", "-c", "exit 0"))
    ref = leased.create("sk-one", LABELS, spec, ttl=600.0, deadline=soon()).ref

    eventually(lambda: leased.get(ref, deadline=soon()) is None)


# What is loaded


def test_the_sdk_is_imported_with_the_provider_and_not_before() -> None:
    """Nobody pays for an engine that they do not use."""
    script = (
        "import sys, core.wiring; before = 'docker' in sys.modules; "
        "from core.providers.registry import load_provider; load_provider('docker', {}); "
        "print(before, 'docker' in sys.modules)"
    )

    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert run.stdout.split() == ["False", "True"], run.stderr
