"""Provider `kubernetes` against a cluster in memory: the contract, faults, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with the client, without types

from core.errors import (
    AuthFailed,
    Busy,
    ForeignConflict,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SettingsError,
    Unavailable,
    Unsupported,
)
from core.providers import kubernetes_calls, kubernetes_cluster
from core.providers.base import Capability, ProviderState, SandboxInfo, SandboxRef, Spec
from core.providers.kubernetes import KINDS, KubernetesProvider
from tests.apis import Api, Fault, Reply
from tests.forks import in_child
from tests.providers.contract import ProviderContract, eventually, soon
from tests.providers.fake_kubelet import POOL, cluster
from tests.providers.fake_kubernetes import TOKEN, FakeKubernetes, written

ROOT = Path(__file__).parents[2]
LABELS = {"sandkeeper-installation": "abcd1234", "sandkeeper-schema": "1"}
SPEC = Spec(image="python:3.13-slim", command=("sleep", "infinity"))
CLAIM = Spec(options={"warm_pool": POOL})
PLURALS = {"pod": "pods", "sandbox": "sandboxes", "claim": "sandboxclaims"}
SPECS = {"pod": SPEC, "sandbox": SPEC, "claim": CLAIM}


@pytest.fixture
def fake() -> FakeKubernetes:
    """A cluster, with the warm pool `pool`."""
    return cluster()


@pytest.fixture
def environ(api: Api, tmp_path: Path) -> dict[str, str]:
    """What a handle of it is made from."""
    return environment(api.url, tmp_path)


@pytest.fixture(params=["pod", "sandbox", "claim"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind."""
    found: str = request.param
    return found


@pytest.fixture
def provider(environ: dict[str, str]) -> KubernetesProvider:
    """A handle for Pods."""
    return KubernetesProvider.from_env(environ)


def environment(url: str, folder: Path, *, token: str = TOKEN, **settings: str) -> dict[str, str]:
    """Settings, and the configuration file that they name."""
    user = {"name": "u", "user": {"token": token}}
    context = {"name": "c", "context": {"cluster": "k", "user": "u"}}
    file = folder / f"config-{token}"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "k", "cluster": {"server": url}}],
                "contexts": [context],
                "users": [user],
            }
        )
    )
    wanted = {f"SANDKEEPER_KUBERNETES_{name}": value for name, value in settings.items()}
    return {"KUBECONFIG": str(file), **wanted}


def of_kind(environ: dict[str, str], kind: str, **settings: str) -> KubernetesProvider:
    """A handle for this kind."""
    wanted = {f"SANDKEEPER_KUBERNETES_{name}": value for name, value in settings.items()}
    return KubernetesProvider.from_env({**environ, "SANDKEEPER_KUBERNETES_KIND": kind, **wanted})


def make(
    provider: KubernetesProvider,
    spec: Spec = SPEC,
    name: str = "sk-one",
    ttl: float | None = None,
) -> SandboxInfo:
    """A sandbox."""
    return provider.create(name, LABELS, spec, ttl=ttl, deadline=soon())


def get(provider: KubernetesProvider, ref: SandboxRef) -> SandboxInfo | None:
    """Look it up."""
    return provider.get(ref, deadline=soon())


class _Contract(ProviderContract):
    provider_path = "kubernetes"
    short: ClassVar[float] = 3.0  # dates of the API are of whole seconds
    kind: ClassVar[str]

    @pytest.fixture
    def environ(self, api: Api, fake: FakeKubernetes, tmp_path: Path) -> dict[str, str]:
        """A cluster in which nothing happens at once."""
        fake.starts_after = fake.kills_after = 0.05
        return environment(api.url, tmp_path, KIND=self.kind)


class TestContract(_Contract):
    """Pods keep the contract."""

    kind: ClassVar[str] = "pod"
    spec: ClassVar[Spec] = SPEC


class TestContractOfSandboxes(_Contract):
    """Sandboxes of agent-sandbox keep it, and have a TTL."""

    kind: ClassVar[str] = "sandbox"
    spec: ClassVar[Spec] = SPEC


class TestContractOfClaims(_Contract):
    """So do claims."""

    kind: ClassVar[str] = "claim"
    spec: ClassVar[Spec] = CLAIM


@pytest.mark.enable_socket
@pytest.mark.skipif(
    "SANDKEEPER_TEST_KUBECONFIG" not in os.environ,
    reason="SANDKEEPER_TEST_KUBECONFIG names no cluster to make sandboxes in",
)
class TestContractOnACluster(ProviderContract):
    """A real one keeps it: the kind and the namespace are those of the environment."""

    provider_path = "kubernetes"
    short: ClassVar[float] = 20.0
    patience: ClassVar[float] = 180.0
    spec: ClassVar[Spec] = Spec(image="busybox:1.36", command=("sleep", "1000000"))

    @pytest.fixture
    def environ(self) -> dict[str, str]:
        """As it was given."""
        prefix = "SANDKEEPER_KUBERNETES_"
        given = {key: value for key, value in os.environ.items() if key.startswith(prefix)}
        return {"KUBECONFIG": os.environ["SANDKEEPER_TEST_KUBECONFIG"], **given}


# What is made


def test_a_pod_is_fenced_in(provider: KubernetesProvider, fake: FakeKubernetes) -> None:
    """
    The defaults: bounded, without rights or a token, its root read-only, never restarted. They pass
    Pod Security `restricted`, which the manifest's namespace enforces.
    """
    make(provider)

    spec = fake.of("pods", "sk-one")["spec"]
    (container,) = spec["containers"]
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert all(set(volume) == {"name", "emptyDir"} for volume in spec["volumes"])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": []},
    }
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert set(container["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "activeDeadlineSeconds"} & set(spec)


@pytest.mark.parametrize(
    ("options", "where", "value"),
    [
        ({"cpus": 0.5}, "containers.0.resources.limits.cpu", "500m"),
        ({"memory": "64Mi"}, "containers.0.resources.limits.memory", "64Mi"),
        ({"storage": "1Gi"}, "containers.0.resources.limits.ephemeral-storage", "1Gi"),
        ({"storage": "1Gi"}, "volumes.0.emptyDir.sizeLimit", "1Gi"),
        ({"read_only": False}, "containers.0.securityContext.readOnlyRootFilesystem", False),
        ({"workdir": "/w"}, "containers.0.volumeMounts.0.mountPath", "/w"),
        ({"user": 0}, "securityContext.runAsNonRoot", False),
        ({"user": None}, "securityContext", {"seccompProfile": {"type": "RuntimeDefault"}}),
        ({"new_privileges": True}, "containers.0.securityContext.allowPrivilegeEscalation", True),
        ({"capabilities": ["CHOWN"]}, "containers.0.securityContext.capabilities.add", ["CHOWN"]),
        ({"runtime_class": "gvisor"}, "runtimeClassName", "gvisor"),
        ({"service_account": "sa"}, "serviceAccountName", "sa"),
        ({"service_account_token": True}, "automountServiceAccountToken", True),
        ({"node_selector": {"pool": "s"}}, "nodeSelector", {"pool": "s"}),
        ({"image_pull_policy": "Always"}, "containers.0.imagePullPolicy", "Always"),
        ({"image_pull_secrets": ["s"]}, "imagePullSecrets", [{"name": "s"}]),
        ({"lifetime": 60}, "activeDeadlineSeconds", 60),
    ],
)
def test_an_option_is_what_it_says(
    provider: KubernetesProvider,
    fake: FakeKubernetes,
    options: dict[str, Any],
    where: str,
    value: object,
) -> None:
    """Each one, as the cluster has it."""
    make(provider, replace(SPEC, options=options))

    found: Any = fake.of("pods", "sk-one")["spec"]
    for step in where.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    assert found == value


def test_words_arrive_as_they_are(environ: dict[str, str], fake: FakeKubernetes) -> None:
    """Kubernetes would put a variable's value for `$(NAME)` in commands and in variables."""
    spec = replace(SPEC, command=("echo", "$(HOME) $$ $x"), env={"B": "$(A)", "A": "1"})

    make(of_kind(environ, "pod"), spec)

    (container,) = fake.of("pods", "sk-one")["spec"]["containers"]
    assert container["args"] == ["echo", "$$(HOME) $$$$ $$x"]
    assert container["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "$$(A)"}]
    assert "command" not in container  # the image's entrypoint stays


@pytest.mark.parametrize("kind", ["sandbox", "claim"])
def test_the_pod_of_a_sandbox_is_no_sandbox(
    environ: dict[str, str], kind: str, fake: FakeKubernetes
) -> None:
    """It has labels of its owner, for policies; who lists Pods does not take it for one of ours."""
    labels = {**LABELS, "sandkeeper-key": "a" * 26}
    of_kind(environ, kind).create("sk-one", labels, SPECS[kind], ttl=None, deadline=soon())

    pods = [thing for (plural, _, _), thing in fake.things.items() if plural == "pods"]
    page = of_kind(environ, "pod").list(LABELS, cursor=None, deadline=soon())
    assert len(pods) == 1
    assert page.items == ()
    if kind == "sandbox":
        assert pods[0]["metadata"]["labels"] == LABELS


def test_a_create_waits_until_it_runs(environ: dict[str, str], fake: FakeKubernetes) -> None:
    """As long as it was told to; who takes longer is pending, and no error."""
    fake.starts_after = 0.3
    patient = make(of_kind(environ, "pod"), name="sk-one")
    fake.starts_after = 3600
    hasty = make(of_kind(environ, "pod", WAIT="0.3"), name="sk-two")
    at_once = make(of_kind(environ, "pod", WAIT="0"), name="sk-three")

    assert patient.state is ProviderState.RUNNING
    assert hasty.state is at_once.state is ProviderState.PENDING


def test_a_look_that_fails_while_it_starts_takes_nothing_back(
    provider: KubernetesProvider, fake: FakeKubernetes, api: Api
) -> None:
    """It was made: its create succeeds."""
    fake.starts_after = 3600
    api.strike("GET", "/pods/sk-one", Fault(Reply(503)))

    assert make(provider).state is ProviderState.PENDING


# What is refused


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("pod", Spec(), "image"),
        ("pod", replace(SPEC, options={"memory": "much"}), r"options\.memory 'much'"),
        ("pod", replace(SPEC, options={"cpus": 0}), r"options\.cpus 0"),
        ("pod", replace(SPEC, options={"user": "node"}), r"options\.user 'node'"),
        ("pod", replace(SPEC, options={"workdir": "here"}), r"options\.workdir 'here'"),
        ("pod", replace(SPEC, options={"lifetime": 0}), r"options\.lifetime 0"),
        ("pod", replace(SPEC, options={"cpu": 1}), r"options\.cpu 1.*known are cpus, memory"),
        ("pod", replace(SPEC, options={"warm_pool": "p"}), r"options\.warm_pool"),
        ("pod", replace(SPEC, env={"A=B": "c"}), "A=B"),
        ("pod", replace(SPEC, env={"A": "\0"}), "NUL"),
        ("pod", replace(SPEC, env={"\t": "c"}), r"env: \\t|is invalid"),
        ("sandbox", Spec(), "image"),
        ("sandbox", replace(SPEC, options={"memory": 1}), r"options\.memory 1"),
        ("claim", Spec(), r"options\.warm_pool.*required"),
        ("claim", replace(CLAIM, image="a:1"), "image 'a:1'"),
        ("claim", replace(CLAIM, command=("a",)), "command"),
        ("claim", replace(CLAIM, options={"cpus": 1}), r"options\.(warm_pool|cpus)"),
        ("claim", replace(CLAIM, options={"warm_pool": "none"}), "WarmPoolNotFound"),
    ],
)
def test_what_can_never_be_made_is_refused(
    environ: dict[str, str], kind: str, spec: Spec, words: str
) -> None:
    """With the field and the value."""
    with pytest.raises(InvalidSpec, match=words):
        make(of_kind(environ, kind), spec)


@pytest.mark.parametrize(
    ("reason", "message", "state", "error"),
    [
        ("ErrImagePull", "no:1: not found", ProviderState.FAILED, InvalidSpec),
        ("ImagePullBackOff", "pull access denied", ProviderState.FAILED, InvalidSpec),
        ("InvalidImageName", "couldn't parse", ProviderState.FAILED, InvalidSpec),
        ("CreateContainerConfigError", "runAsNonRoot", ProviderState.FAILED, InvalidSpec),
        ("StartError", "exec: no such file", ProviderState.FAILED, InvalidSpec),
        ("ErrImagePull", "registry: 503 try later", ProviderState.PENDING, None),
        ("ContainerCreating", "", ProviderState.PENDING, None),
    ],
)
def test_an_image_that_cannot_run_is_told_from_one_that_takes_time(
    environ: dict[str, str],
    fake: FakeKubernetes,
    *,
    reason: str,
    message: str,
    state: ProviderState,
    error: type[ProviderError] | None,
) -> None:
    """The cluster's own words say why; it still has its name, and is listed."""
    fake.images["no:1"] = (reason, message)
    provider = of_kind(environ, "pod", WAIT="0.3")
    spec = replace(SPEC, image="no:1")

    if error is None:
        make(provider, spec)
    else:
        with pytest.raises(error, match=f"can never run: {reason}: {message}"):
            make(provider, spec)
    (item,) = provider.list(LABELS, cursor=None, deadline=soon()).items

    assert item.state is state


@pytest.mark.parametrize(
    ("label", "value"), [("a", "b" * 64), ("a", "b_"), ("a b", "c"), ("a", "é"), ("a", "")]
)
def test_a_label_that_does_not_fit_is_refused(
    provider: KubernetesProvider, api: Api, label: str, value: str
) -> None:
    """Before anything was sent: cut short it would find another's sandboxes."""
    with pytest.raises(InvalidSpec, match="1 to 63"):
        provider.create("sk-one", {label: value}, SPEC, ttl=None, deadline=soon())

    assert api.calls == []


@pytest.mark.parametrize(
    ("move", "error", "words"),
    [
        (lambda fake: setattr(fake, "quota", 0), QuotaExceeded, "exceeded quota"),
        (
            lambda fake: setattr(fake, "admission", 'violates PodSecurity "restricted:latest"'),
            InvalidSpec,
            "PodSecurity",
        ),
        (
            lambda fake: setattr(fake, "admission", 'RuntimeClass "x" not found'),
            InvalidSpec,
            "RuntimeClass",
        ),
        (lambda fake: fake.forbidden.add(("create", "pods")), AuthFailed, "cannot create"),
        (lambda fake: fake.terminating.add("default"), Unavailable, "being terminated"),
        (lambda fake: fake.namespaces.pop("default"), Unavailable, "make the namespace first"),
        (lambda fake: setattr(fake, "contended", 1), Busy, "resourcequotas"),
        (lambda fake: setattr(fake, "token", "other"), AuthFailed, "Unauthorized"),
    ],
    ids=["quota", "security", "runtime", "rbac", "terminating", "namespace", "race", "login"],
)
def test_a_refusal_has_its_error(
    provider: KubernetesProvider,
    fake: FakeKubernetes,
    move: Callable[[FakeKubernetes], object],
    error: type[ProviderError],
    words: str,
) -> None:
    """One status means many things; the machine's reason and its words tell them apart."""
    move(fake)

    with pytest.raises(error, match=words):
        make(provider)

    assert fake.things == {}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"KUBECONFIG": "/none/config"}, "KUBECONFIG=/none/config"),
        ({"HOME": "/none"}, "set KUBECONFIG"),
        ({"HOME": "/none", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "KUBERNETES_SERVICE_HOST"),
        ({"SANDKEEPER_KUBERNETES_CONTEXT": "no-such"}, "CONTEXT=no-such"),
        ({"SANDKEEPER_KUBERNETES_KIND": "vm"}, "KIND='vm': use pod, sandbox, claim"),
        ({"SANDKEEPER_KUBERNETES_WAIT": "long"}, "WAIT='long'"),
        ({"SANDKEEPER_KUBERNETES_WAIT": "-1"}, "WAIT='-1'"),
        ({"SANDKEEPER_KUBERNETES_SPACE": "x"}, "SPACE is not a setting"),
    ],
)
def test_settings_that_are_wrong_are_refused(
    tmp_path: Path, environ: dict[str, str], words: str
) -> None:
    """Before anything is connected."""
    given = environment("http://127.0.0.1:1", tmp_path) if "HOME" not in environ else {}

    with pytest.raises(SettingsError, match=words):
        KubernetesProvider.from_env({**given, **environ})


@pytest.mark.parametrize("text", ["", "{", "[]", "contexts: []", "current-context: a"])
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    """With the variable that named it."""
    file = tmp_path / "config"
    file.write_text(text)

    with pytest.raises(SettingsError, match=f"KUBECONFIG={file}"):
        KubernetesProvider.from_env({"KUBECONFIG": str(file)})


# Lost and odd answers


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_create_that_was_cut_is_adopted(
    provider: KubernetesProvider, fake: FakeKubernetes, api: Api, *, after: bool
) -> None:
    """Whether it had its effect is not known: the next one makes it the one."""
    api.strike("POST", "/pods", Fault(cut=True, after=after))

    with pytest.raises(OutcomeUnknown, match="cannot create sk-one at"):
        make(provider)
    made = make(provider)

    assert len(fake.things) == 1
    assert made.ref.external_id == fake.of("pods", "sk-one")["metadata"]["uid"]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(201, b"<html>"),
        Reply(200, b""),
        Reply(200, []),
        Reply(201, {"metadata": {"name": "other", "uid": "1"}}),
        Reply(201, {"metadata": {"name": "sk-one"}}),
        Reply(500, {"kind": "Status", "reason": "InternalError", "message": "etcdserver: timeout"}),
        Reply(504),
    ],
    ids=["html", "empty", "list", "other", "no-id", "500", "504"],
)
def test_a_create_that_was_answered_oddly_is_adopted(
    provider: KubernetesProvider, fake: FakeKubernetes, api: Api, reply: Reply
) -> None:
    """It may have been kept: nothing is concluded, and the next one finds it."""
    api.strike("POST", "/pods", Fault(reply, after=True))

    with pytest.raises(OutcomeUnknown):
        make(provider)
    made = make(provider)

    assert made.ref.external_id == fake.of("pods", "sk-one")["metadata"]["uid"]


def calls(provider: KubernetesProvider, ref: SandboxRef) -> dict[str, Callable[[], object]]:
    """Every call that meets the cluster, by its method there."""
    return {
        "GET": lambda: provider.get(ref, deadline=soon()),
        "LIST": lambda: provider.list(LABELS, cursor=None, deadline=soon()),
        "DELETE": lambda: provider.destroy(ref, deadline=soon()),
        "PATCH": lambda: provider.extend(ref, ttl=60.0, deadline=soon()),
    }


@pytest.mark.parametrize("call", ["GET", "LIST", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(401), AuthFailed),
        (Reply(403), AuthFailed),
        (Reply(404, b"404 page not found\n"), Unavailable),
        (Reply(404, {"kind": "Status", "reason": "NotFound", "details": {}}), Unavailable),
        (Reply(404, b"<html>no such site"), Unavailable),
        (Reply(429, headers={"Retry-After": "7"}), RateLimited),
        (Reply(500), Unavailable),
        (Reply(503), Unavailable),
        (Reply(302, headers={"Location": "/"}), Unavailable),
    ],
    ids=["401", "403", "no-route", "no-name", "no-site", "429", "500", "503", "302"],
)
def test_an_error_concludes_nothing(
    environ: dict[str, str], api: Api, call: str, reply: Reply, error: type[ProviderError]
) -> None:
    """No error is "not there", is "accepted", or is an empty listing; none is retried by us."""
    provider = of_kind(environ, "sandbox")
    ref = make(provider).ref
    method = "GET" if call == "LIST" else call
    before = api.count(method)
    api.strike(method, "/sandboxes", Fault(reply))

    with pytest.raises(error) as caught:
        calls(provider, ref)[call]()

    assert api.count(method) == before + 1
    assert getattr(caught.value, "retry_after", 7) == 7
    found = get(provider, ref)
    assert found is not None
    assert found.state is ProviderState.RUNNING


@pytest.mark.parametrize("call", ["GET", "LIST"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"items": {}}', b"<html>"])
def test_a_look_that_cannot_be_read_is_no_not_found(
    provider: KubernetesProvider, api: Api, call: str, content: bytes
) -> None:
    """And no empty listing."""
    ref = make(provider).ref
    api.strike("GET", "/pods", Fault(Reply(200, content)))

    with pytest.raises(Unavailable):
        calls(provider, ref)[call]()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_destroy_that_was_cut_is_repeated(
    provider: KubernetesProvider, api: Api, *, after: bool
) -> None:
    """Its outcome is not known; the next one succeeds."""
    ref = make(provider).ref
    api.strike("DELETE", "/pods", Fault(cut=True, after=after))

    with pytest.raises(OutcomeUnknown):
        provider.destroy(ref, deadline=soon())
    provider.destroy(ref, deadline=soon())

    assert get(provider, ref) is None


def test_a_cluster_that_is_not_there_is_no_not_found(tmp_path: Path) -> None:
    """Every call says where it looked; none concludes anything."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        nowhere = KubernetesProvider.from_env(environment(url, tmp_path, KIND="sandbox"))
        asked = calls(nowhere, SandboxRef(name="sk-one", external_id="0"))
        for call in (nowhere.scope, lambda: make(nowhere), *asked.values()):
            with pytest.raises(Unavailable, match=url):
                call()


def test_a_cluster_without_the_kind_is_no_not_found(
    environ: dict[str, str], fake: FakeKubernetes
) -> None:
    """Its 404 is of the path: the sandboxes of a cluster that was upgraded wrongly may all live."""
    provider = of_kind(environ, "sandbox")
    ref = make(provider).ref
    fake.has_agents = False

    for call in (lambda: make(provider), *calls(provider, ref).values()):
        with pytest.raises(Unavailable):
            call()


def test_a_login_that_is_wrong_is_told(api: Api, tmp_path: Path) -> None:
    """By every call, scope too."""
    given = environment(api.url, tmp_path, token="wrong", KIND="sandbox")  # noqa: S106
    stranger = KubernetesProvider.from_env(given)
    asked = calls(stranger, SandboxRef(name="sk-one"))

    for call in (stranger.scope, lambda: make(stranger), *asked.values()):
        with pytest.raises(AuthFailed):
            call()


def test_a_token_that_was_rotated_is_read_again(
    environ: dict[str, str], fake: FakeKubernetes
) -> None:
    """After a refusal, from the same file: a worker lives longer than a token."""
    provider = of_kind(environ, "pod")
    ref = make(provider).ref
    file = Path(environ["KUBECONFIG"])
    fake.token = "another"  # noqa: S105

    file.write_text(file.read_text().replace(TOKEN, "another"))
    with pytest.raises(AuthFailed):
        get(provider, ref)

    assert get(provider, ref) is not None


def test_a_login_that_cannot_be_renewed_is_no_not_found(
    provider: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks for a token before each call: whatever comes of that, nothing was sent."""
    ref = make(provider).ref
    client = provider._cluster._client
    assert client is not None

    def fail(_: object) -> None:
        raise RuntimeError("the login program is not there")

    monkeypatch.setattr(client.configuration, "refresh_api_key_hook", fail)
    with pytest.raises(Unavailable, match="the login program is not there"):
        provider.destroy(ref, deadline=soon())

    assert get(provider, ref) is not None


def test_in_a_pod_the_cluster_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the files and variables that every Pod has; its namespace is the default."""
    for name in ("token", "ca.crt", "namespace"):
        (tmp_path / name).write_text("sandboxes\n")
    service = "kubernetes.config.incluster_config.SERVICE"
    monkeypatch.setattr(f"{service}_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(f"{service}_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kubernetes_cluster, "NAMESPACE_FILE", tmp_path / "namespace")
    address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}

    provider = KubernetesProvider.from_env({"HOME": str(tmp_path), **address})

    assert provider._cluster.namespace == "sandboxes"
    with pytest.raises(Unavailable, match=r"https://127\.0\.0\.1:1/api/v1/namespaces/kube-system"):
        provider.scope()


@pytest.mark.parametrize("call", ["GET", "LIST", "DELETE", "PATCH", "POST"])
def test_a_server_that_is_slow_is_left_at_the_deadline(
    environ: dict[str, str], api: Api, call: str
) -> None:
    """A call ends in time, and says whether it can have had an effect."""
    provider = of_kind(environ, "sandbox")
    ref = make(provider).ref
    method = "GET" if call == "LIST" else call
    api.strike(method, "/sandboxes", Fault(delay=5.0))
    began = time.monotonic()
    deadline = began + 0.5
    asked: dict[str, Callable[[], object]] = {
        "GET": lambda: provider.get(ref, deadline=deadline),
        "LIST": lambda: provider.list(LABELS, cursor=None, deadline=deadline),
        "DELETE": lambda: provider.destroy(ref, deadline=deadline),
        "PATCH": lambda: provider.extend(ref, ttl=60.0, deadline=deadline),
        "POST": lambda: provider.create("sk-two", LABELS, SPEC, ttl=None, deadline=deadline),
    }

    with pytest.raises(Unavailable if method == "GET" else OutcomeUnknown):
        asked[call]()

    assert time.monotonic() - began < 4


def test_a_server_that_drips_is_left_at_the_deadline(tmp_path: Path) -> None:
    """The client's own timeout is for each read: it would wait for this one for ever."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(target=_drip, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        provider = KubernetesProvider.from_env(environment(url, tmp_path))
        began = time.monotonic()

        with pytest.raises(Unavailable):
            provider.get(SandboxRef(name="sk-one"), deadline=began + 0.5)

    assert time.monotonic() - began < 4


def _drip(server: socket.socket) -> None:
    connection, _ = server.accept()
    with closing(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in itertools.takewhile(lambda i: i < 100, itertools.count()):
            try:
                connection.sendall(b" ")
            except OSError:
                return
            time.sleep(0.1)


def test_an_answer_without_end_is_left(
    provider: KubernetesProvider, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no listing of ours needs is not read into memory."""
    monkeypatch.setattr("core.providers.kubernetes_cluster.LARGEST", 10_000)
    api.strike("GET", "/pods", Fault(Reply(200, b" " * 100_000)))

    with pytest.raises(Unavailable, match="longer than"):
        provider.list(LABELS, cursor=None, deadline=soon())


def test_a_forked_child_connects_for_itself(provider: KubernetesProvider) -> None:
    """Two processes on one connection would read the answers to each other's calls."""
    ref = make(provider).ref
    parent = provider._cluster._client

    assert parent is not None
    assert in_child(lambda: provider._cluster._client is None and get(provider, ref) is not None)
    assert provider._cluster._client is parent
    assert get(provider, ref) is not None


@pytest.mark.parametrize("call", ["destroy", "scope"])
def test_certificates_that_were_removed_are_written_again(tmp_path: Path, call: str) -> None:
    """The client's temporary files go when any process that was forked since comes to its end."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        environ = environment(f"https://127.0.0.1:{server.getsockname()[1]}", tmp_path)
        file = Path(environ["KUBECONFIG"])
        config = json.loads(file.read_text())
        config["clusters"][0]["cluster"]["certificate-authority-data"] = "eA=="
        file.write_text(json.dumps(config))
        provider = KubernetesProvider.from_env(environ)
        before = provider._cluster.fingerprint()
        client = provider._cluster._client
        assert client is not None
        assert client.configuration.ssl_ca_cert is not None

        fails: dict[str, Callable[[], object]] = {
            "destroy": lambda: provider.destroy(SandboxRef(name="sk-one"), deadline=soon()),
            "scope": provider._cluster.fingerprint,
        }

        Path(client.configuration.ssl_ca_cert).unlink()
        with pytest.raises(Unavailable, match="No such file"):  # nothing was sent
            fails[call]()

        assert provider._cluster.fingerprint() == before


# Whose it is


def test_a_name_that_is_another_s_is_left_alone(
    environ: dict[str, str], kind: str, fake: FakeKubernetes
) -> None:
    """Other labels of ours, or none."""
    provider = of_kind(environ, kind)
    make(provider, SPECS[kind])
    before = json.dumps(fake.of(PLURALS[kind], "sk-one"))

    for labels in ({**LABELS, "sandkeeper-schema": "2"}, {**LABELS, "sandkeeper-key": "a"}):
        with pytest.raises(ForeignConflict):
            provider.create("sk-one", labels, SPECS[kind], ttl=None, deadline=soon())

    assert json.dumps(fake.of(PLURALS[kind], "sk-one")) == before


def test_labels_of_others_do_not_matter(provider: KubernetesProvider, fake: FakeKubernetes) -> None:
    """Whoever else labels our Pods may."""
    made = make(provider)
    fake.of("pods", "sk-one")["metadata"]["labels"]["mesh"] = "x"

    again = make(provider)
    (item,) = provider.list(LABELS, cursor=None, deadline=soon()).items

    assert again.ref == item.ref == made.ref


def test_a_newer_one_of_the_name_is_not_deleted(
    environ: dict[str, str], kind: str, fake: FakeKubernetes
) -> None:
    """The id goes along with the deletion: between a look and a deletion it could be another's."""
    provider = of_kind(environ, kind)
    first = make(provider, SPECS[kind]).ref
    provider.destroy(first, deadline=soon())
    eventually(lambda: get(provider, first) is None)
    second = make(provider, SPECS[kind]).ref

    provider.destroy(first, deadline=soon())

    assert first.name == second.name
    assert get(provider, first) is None
    found = get(provider, second)
    assert found is not None
    assert found.state is ProviderState.RUNNING


def test_a_conflict_that_is_not_of_the_id_is_busy(provider: KubernetesProvider, api: Api) -> None:
    """It is still there: nobody takes that for success."""
    ref = make(provider).ref
    body = {"kind": "Status", "reason": "Conflict", "message": "the object has been modified"}
    api.strike("DELETE", "/pods", Fault(Reply(409, body)))

    with pytest.raises(Busy):
        provider.destroy(ref, deadline=soon())


# Deletion


def test_nothing_is_deleted_by_force(
    environ: dict[str, str], kind: str, fake: FakeKubernetes
) -> None:
    """Gone is what a node has killed, the Pods of owners too: until then it is stopping."""
    fake.kills_after = 1.0
    provider = of_kind(environ, kind)
    ref = make(provider, SPECS[kind]).ref

    provider.destroy(ref, deadline=soon())
    provider.destroy(ref, deadline=soon())
    during = get(provider, ref)
    (listed,) = provider.list(LABELS, cursor=None, deadline=soon()).items

    assert during is not None
    assert during.state is listed.state is ProviderState.STOPPING
    with pytest.raises(Busy, match="being deleted"):
        make(provider, SPECS[kind])
    eventually(lambda: get(provider, ref) is None)
    assert fake.things == {}
    assert fake.forced == 0


def test_what_a_finalizer_holds_is_not_gone(
    environ: dict[str, str], kind: str, fake: FakeKubernetes
) -> None:
    """It stays, stopping, for as long as the finalizer does."""
    provider = of_kind(environ, kind)
    ref = make(provider, SPECS[kind]).ref
    metadata = fake.of(PLURALS[kind], "sk-one")["metadata"]
    metadata["finalizers"] = ["example.org/hold"]

    for _ in range(3):
        provider.destroy(ref, deadline=soon())
    held = get(provider, ref)
    metadata["finalizers"].remove("example.org/hold")

    assert held is not None
    assert held.state is ProviderState.STOPPING
    eventually(lambda: get(provider, ref) is None)


def test_a_pod_that_ended_keeps_its_name(environ: dict[str, str], fake: FakeKubernetes) -> None:
    """It has failed, is listed, and is adopted as it is."""
    provider = of_kind(environ, "pod")
    ref = make(provider, replace(SPEC, options={"lifetime": 1})).ref
    fake.of("pods", "sk-one")["status"]["startTime"] = written(time.time() - 60)

    again = make(provider)
    (item,) = provider.list(LABELS, cursor=None, deadline=soon()).items

    assert again.ref == item.ref == ref
    assert again.state is item.state is ProviderState.FAILED


@pytest.mark.parametrize(
    ("kind", "found", "state"),
    [
        ("pod", {"status": {"phase": "Unknown"}}, ProviderState.UNKNOWN),
        ("pod", {"status": {"phase": "Succeeded"}}, ProviderState.FAILED),
        ("pod", {"status": None}, ProviderState.UNKNOWN),
        ("pod", {"status": {"phase": "Pending"}}, ProviderState.PENDING),
        ("sandbox", {"status": {}}, ProviderState.PENDING),
        ("sandbox", {"spec": {"operatingMode": "Suspended"}}, ProviderState.PAUSED),
        ("sandbox", {"ready": ("True", "DependenciesReady")}, ProviderState.RUNNING),
        ("sandbox", {"ready": ("False", "DependenciesNotReady")}, ProviderState.PENDING),
        ("sandbox", {"ready": ("False", "SandboxExpired")}, ProviderState.STOPPING),
        ("sandbox", {"ready": ("False", "PodFailed")}, ProviderState.FAILED),
        ("claim", {"ready": ("False", "ClaimExpired")}, ProviderState.STOPPING),
        ("claim", {"ready": ("False", "TemplateNotFound")}, ProviderState.FAILED),
    ],
)
def test_a_state_is_what_the_cluster_says(
    kind: str, found: dict[str, Any], state: ProviderState
) -> None:
    """Each as it is; what is being deleted is stopping, whatever else it says."""
    if ready := found.pop("ready", None):
        found["status"] = {
            "conditions": [{"type": "Ready", "status": ready[0], "reason": ready[1]}]
        }
    going = {**found, "metadata": {"deletionTimestamp": written(0)}}

    assert KINDS[kind]().state(found) is state
    assert KINDS[kind]().state(going) is ProviderState.STOPPING


def test_a_suspended_one_is_listed(environ: dict[str, str], fake: FakeKubernetes) -> None:
    """F23: it has no Pod, and still its volumes, its name and its TTL."""
    provider = of_kind(environ, "sandbox")
    ref = make(provider).ref
    fake.of("sandboxes", "sk-one")["spec"]["operatingMode"] = "Suspended"

    (item,) = provider.list(LABELS, cursor=None, deadline=soon()).items

    assert (item.ref, item.state) == (ref, ProviderState.PAUSED)


def test_a_sandbox_without_room_for_its_pod_says_so(
    environ: dict[str, str], fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quota refuses its controller, not us."""
    words = 'pods "sk-one" is forbidden: exceeded quota: q'
    ready = {"type": "Ready", "status": "False", "reason": "ReconcilerError", "message": words}

    def fail(there: FakeKubernetes) -> None:
        for thing in there.things.values():
            thing["status"] = {"conditions": [ready]}

    monkeypatch.setattr(fake, "carry_out", fail)

    with pytest.raises(QuotaExceeded, match="exceeded quota"):
        make(of_kind(environ, "sandbox", WAIT="0"))


# Listing


def test_all_pages_are_listed(
    provider: KubernetesProvider, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    """Each once, by pages of the size that was asked for."""
    monkeypatch.setattr(kubernetes_calls, "PAGE", 2)
    names = [make(provider, name=f"sk-{index}").ref.name for index in range(5)]
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = provider.list(LABELS, cursor=cursor, deadline=soon())
        found += [item.ref.name for item in page.items]
        cursor, pages = page.cursor, pages + 1

    assert found == names
    assert pages == 3
    assert {call.query["limit"] for call in api.calls if "limit" in call.query} == {"2"}


def test_a_page_that_is_not_to_be_had_is_an_error(
    provider: KubernetesProvider,
    fake: FakeKubernetes,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a listing is none: a cursor that expired, one that is no cursor, a server that fails."""
    monkeypatch.setattr(kubernetes_calls, "PAGE", 1)
    make(provider, name="sk-one")
    make(provider, name="sk-two")
    cursor = provider.list(LABELS, cursor=None, deadline=soon()).cursor

    api.strike("GET", "/pods", Fault(Reply(503)))
    for error in ("HTTP 503", "has to begin again"):
        with pytest.raises(Unavailable, match=error):
            provider.list(LABELS, cursor=cursor, deadline=soon())
        fake.compact()
    with pytest.raises(Unavailable):
        provider.list(LABELS, cursor="no-cursor", deadline=soon())


def test_only_what_has_the_labels_is_listed(
    provider: KubernetesProvider, fake: FakeKubernetes, api: Api
) -> None:
    """The server is asked for them, and not believed: odd items are passed over, never fatal."""
    ref = make(provider).ref
    good = fake.of("pods", "sk-one")
    odd = [
        None,
        {},
        {"metadata": {"name": "a", "uid": "1", "labels": None}},
        {"metadata": {"name": "b", "uid": "2", "labels": {**LABELS, "sandkeeper-schema": 1}}},
        {"metadata": {"name": "c", "uid": "3", "labels": {"sandkeeper-schema": "1"}}},
        {"metadata": {"labels": LABELS}},
    ]
    api.strike("GET", "/pods", Fault(Reply(200, {"items": [*odd, good], "metadata": {}})))

    page = provider.list(LABELS, cursor=None, deadline=soon())

    assert [item.ref for item in page.items] == [ref]
    asked = api.calls[-1].query["labelSelector"]
    assert asked == "sandkeeper-installation=abcd1234,sandkeeper-schema=1"


# TTL


def test_pods_claim_no_ttl(
    environ: dict[str, str], provider: KubernetesProvider, fake: FakeKubernetes
) -> None:
    """What can only be lowered is no TTL: none is set that would end a live session."""
    made = make(provider, ttl=60.0)

    assert Capability.TTL not in provider.capabilities
    assert made.expires_at is None
    assert "activeDeadlineSeconds" not in fake.of("pods", "sk-one")["spec"]
    with pytest.raises(Unsupported):
        provider.extend(made.ref, ttl=60.0, deadline=soon())
    assert Capability.TTL in of_kind(environ, "sandbox").capabilities


@pytest.mark.parametrize(("kind", "policy"), [("sandbox", "Delete"), ("claim", "DeleteForeground")])
def test_expiry_means_deleted(
    environ: dict[str, str], fake: FakeKubernetes, kind: str, policy: str
) -> None:
    """The policy's default would keep the object; also one that had no TTL before."""
    provider = of_kind(environ, kind)
    made = make(provider, SPECS[kind])
    without = dict(fake.of(PLURALS[kind], "sk-one")["spec"])

    provider.extend(made.ref, ttl=60.0, deadline=soon())

    spec = fake.of(PLURALS[kind], "sk-one")["spec"]
    assert made.expires_at is None
    assert not {"lifecycle", "shutdownTime"} & set(without)
    assert spec.get("lifecycle", spec)["shutdownPolicy"] == policy


@pytest.mark.parametrize("kind", ["sandbox", "claim"])
def test_the_expiry_is_what_was_granted(environ: dict[str, str], kind: str) -> None:
    """Whole seconds, never less than was asked for; an adopted one keeps what it has."""
    provider = of_kind(environ, kind)
    until = datetime.now(UTC) + timedelta(seconds=100)

    made = make(provider, SPECS[kind], ttl=100.0)
    again = make(provider, SPECS[kind], ttl=9000.0)
    granted = provider.extend(made.ref, ttl=1000.0, deadline=soon())

    assert made.expires_at is not None
    assert timedelta(0) <= made.expires_at - until < timedelta(seconds=30)
    assert again.expires_at == made.expires_at
    found = get(provider, made.ref)
    assert found is not None
    assert found.expires_at == granted
    assert granted is not None
    assert granted - made.expires_at >= timedelta(seconds=890)


def test_one_whose_time_is_over_is_not_adopted(
    environ: dict[str, str], fake: FakeKubernetes
) -> None:
    """It is about to be deleted: who got it would lose it at once."""
    provider = of_kind(environ, "sandbox")
    make(provider, ttl=100.0)
    spec = fake.of("sandboxes", "sk-one")["spec"]
    spec |= {"shutdownTime": written(time.time() - 5), "shutdownPolicy": "Retain"}

    with pytest.raises(Busy, match="being deleted"):
        make(provider, ttl=100.0)


@pytest.mark.parametrize("kind", ["sandbox", "claim"])
def test_one_that_changes_meanwhile_is_extended_all_the_same(
    environ: dict[str, str], fake: FakeKubernetes, kind: str
) -> None:
    """Its controller writes too. Whoever loses every time says that nothing was extended."""
    provider = of_kind(environ, kind)
    ref = make(provider, SPECS[kind], ttl=100.0).ref

    fake.contended = 2
    granted = provider.extend(ref, ttl=1000.0, deadline=soon())
    fake.contended = 99
    with pytest.raises(Busy, match="nothing was extended"):
        provider.extend(ref, ttl=1000.0, deadline=soon())

    assert granted is not None


@pytest.mark.parametrize("fault", ["gone", "other", "going", "over", "failed"])
def test_what_does_not_live_is_not_extended(
    environ: dict[str, str], fake: FakeKubernetes, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost sandbox never looks extended, nor one whose end is decided."""
    provider = of_kind(environ, "sandbox")
    ref = make(provider, ttl=100.0).ref
    thing = fake.of("sandboxes", "sk-one")
    monkeypatch.setattr(fake, "carry_out", lambda _: None)
    if fault == "gone":
        fake.things.clear()
    elif fault == "other":
        ref = replace(ref, external_id="other")
    elif fault == "going":
        thing["metadata"]["deletionTimestamp"] = written(time.time())
    elif fault == "over":
        thing["spec"]["shutdownTime"] = written(time.time() - 5)
    else:
        thing["status"]["conditions"][0]["reason"] = "PodFailed"

    with pytest.raises(Unavailable, match="nothing was extended"):
        provider.extend(ref, ttl=60.0, deadline=soon())


# Where it is


def test_the_scope_is_the_cluster_the_namespace_and_the_kind(
    environ: dict[str, str], fake: FakeKubernetes
) -> None:
    """Another of any of them is another scope: there a not-found means nothing."""
    uid = fake.namespaces["kube-system"]
    scopes = {of_kind(environ, kind).scope() for kind in PLURALS}
    other = of_kind(environ, "pod", NAMESPACE="other").scope()

    assert scopes == {f"kubernetes:{kind}:{uid}/default" for kind in PLURALS}
    assert other == f"kubernetes:pod:{uid}/other"


def test_an_account_that_may_not_ask_knows_the_cluster_by_its_address(
    environ: dict[str, str], fake: FakeKubernetes, api: Api
) -> None:
    """The same at every handle; a failure to ask is no such refusal, and gives no other scope."""
    provider = of_kind(environ, "pod")
    for reply, error in ((Reply(503), Unavailable), (Reply(403, b"a proxy"), AuthFailed)):
        api.strike("GET", "/kube-system", Fault(reply))
        with pytest.raises(error):
            provider.scope()

    fake.forbidden.add(("get", "namespaces"))

    assert provider.scope() == of_kind(environ, "pod").scope()
    assert provider.scope().startswith("kubernetes:pod:address-")


def test_the_context_says_where(api: Api, tmp_path: Path) -> None:
    """Its namespace is the default, and another context may be chosen."""
    environ = environment(api.url, tmp_path)
    file = Path(environ["KUBECONFIG"])
    config = json.loads(file.read_text())
    there = {"cluster": "k", "user": "u", "namespace": "there"}
    config["contexts"].append({"name": "d", "context": there})
    file.write_text(json.dumps(config))

    assert of_kind(environ, "pod").scope().endswith("/default")
    assert of_kind(environ, "pod", CONTEXT="d").scope().endswith("/there")
    assert of_kind(environ, "pod", CONTEXT="d", NAMESPACE="x").scope().endswith("/x")


# What is loaded, and what is shipped


def test_the_manifest_has_the_rights_that_are_used_and_no_other(
    environ: dict[str, str], fake: FakeKubernetes
) -> None:
    """Of all kinds together, in one namespace; and one look at one namespace for the scope."""
    documents = list(yaml.safe_load_all((ROOT / "docs" / "kubernetes-rbac.yaml").read_text()))
    roles = {document["kind"]: document.get("rules") for document in documents}
    granted = {(verb, rule["resources"][0]) for rule in roles["Role"] for verb in rule["verbs"]}

    for kind in PLURALS:
        provider = of_kind(environ, kind)
        ref = make(provider, SPECS[kind], name=f"sk-{kind}").ref
        get(provider, ref)
        provider.list(LABELS, cursor=None, deadline=soon())
        if Capability.TTL in provider.capabilities:
            provider.extend(ref, ttl=60.0, deadline=soon())
        provider.destroy(ref, deadline=soon())
        provider.scope()

    assert fake.used == granted | {("get", "namespaces")}
    assert all(len(rule["resources"]) == 1 for rule in roles["Role"])
    assert roles["ClusterRole"] == [
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "resourceNames": ["kube-system"],
            "verbs": ["get"],
        }
    ]


def test_the_client_is_imported_with_the_provider_and_not_before() -> None:
    """Nobody pays for a cluster that they do not use."""
    script = (
        "import sys, core.wiring; before = 'kubernetes' in sys.modules; "
        "import core.providers.kubernetes; print(before, 'kubernetes' in sys.modules)"
    )

    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert run.stdout.split() == ["False", "True"], run.stderr
