"""Provider `opensandbox` against the vendor's own server, on a real engine, and its own SDK."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.errors import AuthFailed, InvalidSpec, Unavailable
from core.model import sandbox_labels
from core.providers.base import ProviderState, SandboxInfo, SandboxRef, Spec
from core.providers.opensandbox import OpenSandboxProvider
from core.providers.rest import Rest
from tests import services
from tests.conftest import unavailable
from tests.engines import IMAGE, DockerEngine
from tests.providers.contract import ProviderContract, eventually, soon
from tests.services import Service, ServiceMissing

KEY = "a-key"
EXECD = "sandkeeper-test-execd:latest"
# What it puts into each sandbox before it starts it; the second runs the sandbox's command.
PROGRAMS = {"execd": b"#!/bin/sh\nsleep 1000000\n", "bootstrap.sh": b'#!/bin/sh\nexec "$@"\n'}
SPEC = Spec(image=IMAGE, command=("sleep", "1000000"), options={"memory": "64Mi", "cpus": 0.5})
KEYS = ("a" * 26, "b" * 26)
NAME, OTHER = (f"sk-abcd1234-{key}" for key in KEYS)
LABELS = {
    f"sk-abcd1234-{key}": sandbox_labels("abcd1234", key, "a-session", 1, datetime.now(UTC))
    for key in KEYS
}
OURS = {"sandkeeper-installation": "abcd1234"}

pytestmark = pytest.mark.timeout(300)  # the first test waits for the server to start


@pytest.fixture(scope="session")
def opensandbox_server(own_dockerd: DockerEngine, vendors: Path) -> Iterator[Service]:
    """One for all tests."""
    own_dockerd.load(EXECD, files=PROGRAMS)
    try:
        with services.opensandbox(vendors.parent, own_dockerd.host, EXECD, KEY) as service:
            yield service
    except ServiceMissing as error:
        unavailable(error)


@pytest.fixture
def environ(opensandbox_server: Service, dockerd: DockerEngine) -> dict[str, str]:
    """What finds it. Whatever sandboxes a test has made are removed after it."""
    return {"OPEN_SANDBOX_DOMAIN": opensandbox_server.url, "OPEN_SANDBOX_API_KEY": KEY}


@pytest.fixture
def provider(environ: dict[str, str]) -> OpenSandboxProvider:
    """A handle of it."""
    return OpenSandboxProvider.from_env(environ)


def make(provider: OpenSandboxProvider, name: str = NAME, spec: Spec = SPEC) -> SandboxInfo:
    """A sandbox."""
    return provider.create(name, LABELS[name], spec, ttl=600.0, deadline=soon())


def sdk(vendors: Path, environ: dict[str, str], script: str) -> Any:
    """What a script prints that uses the vendor's SDK, with a manager `m`; as JSON."""
    begin = (
        "import json\n"
        "from datetime import timedelta\n"
        "from opensandbox import SandboxManagerSync, SandboxSync\n"
        "from opensandbox.config import ConnectionConfigSync\n"
        "from opensandbox.models.sandboxes import SandboxFilter, SandboxImageSpec\n"
        "config = ConnectionConfigSync(disable_metrics=True)\n"
        "m = SandboxManagerSync.create(config)\n"
    )
    run = subprocess.run(
        [str(vendors), "-c", begin + script],
        env={**environ, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


class TestContract(ProviderContract):
    """It keeps the contract."""

    provider_path = "opensandbox"
    spec: ClassVar[Spec] = SPEC
    several: ClassVar[int] = 2


def test_one_that_is_paused_is_there_and_ends_by_its_ttl(
    provider: OpenSandboxProvider, opensandbox_server: Service
) -> None:
    """It is found, listed, extended, and destroyed by the server in time."""
    ref = make(provider).ref
    headers = {"OPEN-SANDBOX-API-KEY": KEY}
    rest = Rest(opensandbox_server.url, headers=headers, setting="A_URL")
    path = f"/v1/sandboxes/{ref.external_id}/pause"
    assert rest.call("POST", path, doing="pause it", deadline=soon()).status == 202

    found = provider.get(ref, deadline=soon())
    (item,) = provider.list(OURS, cursor=None, deadline=soon()).items
    granted = provider.extend(ref, ttl=2.0, deadline=soon())

    assert found is not None
    assert found.state is item.state is ProviderState.PAUSED
    assert granted is not None
    eventually(lambda: provider.get(ref, deadline=soon()) is None)


def test_what_ended_by_itself_is_shown_and_not_started_again(
    provider: OpenSandboxProvider,
) -> None:
    """Well or not: it has its id and its disk until somebody removes it."""
    for name, code in ((NAME, 0), (OTHER, 3)):
        spec = Spec(image=IMAGE, command=("sh", "-c", f"exit {code}"))
        ref = make(provider, name, spec).ref

        def ended(ref: SandboxRef = ref) -> bool:
            found = provider.get(ref, deadline=soon())
            return found is not None and found.state is ProviderState.FAILED

        eventually(ended)
        assert make(provider, name).ref == ref


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(image=IMAGE, options={"egress": []}), "networkPolicy is not supported"),
        (Spec(image=IMAGE, options={"pool": "p"}), "poolRef is not supported"),
        (Spec(options={"snapshot": "no-such"}), "Snapshot no-such not found"),
    ],
    ids=["egress", "pool", "snapshot"],
)
def test_what_the_server_refuses_is_refused(
    provider: OpenSandboxProvider, spec: Spec, words: str
) -> None:
    """In its own words, and nothing is there."""
    with pytest.raises(InvalidSpec, match=words):
        make(provider, spec=spec)

    assert provider.list(OURS, cursor=None, deadline=soon()).items == ()


def test_an_image_that_cannot_be_pulled_makes_nothing(provider: OpenSandboxProvider) -> None:
    """Refused where a registry says so; to be tried again where none answers."""
    with pytest.raises((InvalidSpec, Unavailable), match="no-such-image"):
        make(provider, spec=Spec(image="127.0.0.1:1/no-such-image:1"))

    assert provider.get(SandboxRef(name=NAME), deadline=soon()) is None


def test_wrong_credentials_never_mean_gone(
    provider: OpenSandboxProvider, environ: dict[str, str]
) -> None:
    """The server says 401, with a key and without."""
    ref = make(provider).ref

    for key in ("wrong", ""):
        wrong = OpenSandboxProvider.from_env({**environ, "OPEN_SANDBOX_API_KEY": key})
        with pytest.raises(AuthFailed, match="OPEN_SANDBOX_API_KEY"):
            wrong.get(ref, deadline=soon())
        with pytest.raises(AuthFailed):
            wrong.destroy(ref, deadline=soon())
    assert provider.get(ref, deadline=soon()) is not None


def test_the_vendors_sdk_and_we_see_the_same(
    provider: OpenSandboxProvider, environ: dict[str, str], vendors: Path
) -> None:
    """The SDK lists what we made, and kills it; it makes one that we adopt, and one we ignore."""
    ours = make(provider)
    script = f"""
found = m.list_sandbox_infos(SandboxFilter(metadata={LABELS[NAME]!r})).sandbox_infos
for one in found:
    m.kill_sandbox(one.id)

def make(labels):
    made = SandboxSync.create(
        {IMAGE!r}, entrypoint=["sleep", "1000000"], metadata=labels, timeout=timedelta(minutes=9),
        resource={{"cpu": "0.5"}}, connection_config=config, skip_health_check=True)
    return made.id

print(json.dumps([[one.id for one in found], make({LABELS[OTHER]!r}), make({{"a": "b"}})]))
"""

    killed, adoptable, stranger = sdk(vendors, environ, script)

    assert killed == [ours.ref.external_id]
    assert provider.get(ours.ref, deadline=soon()) is None
    assert make(provider, OTHER).ref.external_id == adoptable
    (item,) = provider.list(OURS, cursor=None, deadline=soon()).items
    assert item.ref.external_id == adoptable
    (other,) = provider.list({"a": "b"}, cursor=None, deadline=soon()).items
    assert other.ref.external_id == stranger
