"""The Helm chart, rendered by Helm itself and held against what Kubernetes takes."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with a client, without types

from tasks.cli import main
from tasks.serve import PORT

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "sandkeeper"
KUBERNETES = "1.30"
TMP = "/tmp"  # noqa: S108 - a volume of each Pod
NEEDED = {
    "image": {"repository": "registry.example/sandkeeper", "tag": "1"},
    "secret": {"name": "urls"},
}
PROGRAM = f"""
import json, sys
import helm_python as helm, kubernetes_validate, yaml

folder, values = sys.argv[1], json.loads(sys.argv[2])
chart = helm.Chart.load(folder)
try:
    chart.validate_schema(values)
except helm.HelmValuesError as error:
    sys.exit(str(error))
found = helm.lint(folder, values, strict=True)
assert not found["errors"], found
rendered = chart.render(values, name="sandkeeper", namespace="keeper")
objects = {{}}
for path, text in rendered.items():
    if path.endswith(".txt"):
        continue
    objects[path.rpartition("/")[2]] = there = [each for each in yaml.safe_load_all(text) if each]
    for each in there:
        kubernetes_validate.validate(each, "{KUBERNETES}", strict=True)
print(json.dumps(objects))
"""

Render = Callable[..., dict[str, list[dict[str, Any]]]]


@pytest.fixture
def render(vendors: Path) -> Render:
    """The chart's objects by template. Kubernetes knows each, and each of its fields."""

    def call(**values: object) -> dict[str, list[dict[str, Any]]]:
        done = helm(vendors, {**NEEDED, **values})
        assert done.returncode == 0, done.stderr
        objects: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
        return objects

    return call


def helm(vendors: Path, values: Mapping[str, object]) -> subprocess.CompletedProcess[str]:
    """What Helm makes of these values."""
    return subprocess.run(
        [vendors, "-c", PROGRAM, CHART, json.dumps(values)],
        capture_output=True,
        text=True,
        check=False,
    )


def pods(objects: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The Pods that the chart makes, by the name of their one container."""
    made = [each for there in objects.values() for each in there]
    specs = [
        each["spec"]["template"]["spec"] for each in made if "template" in each.get("spec", {})
    ]
    return {spec["containers"][0]["name"]: spec for spec in specs}


def of_kind(objects: Mapping[str, list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    """The objects of one kind."""
    return [each for there in objects.values() for each in there if each["kind"] == kind]


def test_the_chart_is_of_this_version() -> None:
    """One number for all."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert chart["version"] == chart["appVersion"] == project["version"]


def test_every_process_is_there_and_confined(render: Render) -> None:
    """
    What docker-compose.yml runs, by the same commands, as nobody and on a root that is read-only.
    A variable that Kubernetes makes of a Service would be a setting that there is not.
    """
    made = pods(render())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    assert set(made) == {"api", "sweeper", "teardown", "beat", "migrate"}
    for name, spec in made.items():
        (container,) = spec["containers"]
        assert container["args"] == compose[name]["command"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        assert container["resources"]["limits"]["memory"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [TMP]
    assert made["api"]["containers"][0]["args"][1] in main.commands


def test_the_user_is_the_one_of_the_image(render: Render) -> None:
    """By number, or an orchestrator could not see that it is not root."""
    (user,) = [
        line.split()[1]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("USER ")
    ]

    for spec in pods(render()).values():
        context = spec["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


def test_secrets_are_references(render: Render) -> None:
    """The chart has no Secret, and no URL in it."""
    objects = render()

    assert of_kind(objects, "Secret") == []
    for name, spec in pods(objects).items():
        environ = {entry["name"]: entry for entry in spec["containers"][0]["env"]}
        secret = {"SANDKEEPER_DATABASE_URL": "database-url", "SANDKEEPER_BROKER_URL": "broker-url"}
        if name == "api":
            secret["SANDKEEPER_API_TOKENS"] = "api-tokens"
        for variable, key in secret.items():
            reference = {"name": "urls", "key": key}
            assert environ[variable]["valueFrom"]["secretKeyRef"] == reference
        assert {entry["name"] for entry in environ.values() if "valueFrom" in entry} == set(secret)


def test_the_schema_comes_before_the_pods(render: Render) -> None:
    """The order of docs/upgrades.md; and an old Pod goes only when a new one is there."""
    objects = render()
    (job,) = of_kind(objects, "Job")

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # What a hook runs as has to be there before the chart's own account is.
    assert pods(objects)["migrate"]["serviceAccountName"] == "default"
    for each in of_kind(objects, "Deployment"):
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_servers_are_asked_for_what_only_they_can_lack(render: Render) -> None:
    """A broker or a sweep that is away must not take servers from callers who beat: S1."""
    (container,) = pods(render())["api"]["containers"]

    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_what_is_two_is_never_both_gone(render: Render) -> None:
    """A node that is emptied takes one at a time; one alone could not be taken at all."""
    budgets = of_kind(render(), "PodDisruptionBudget")
    alone = of_kind(render(api={"replicas": 1}), "PodDisruptionBudget")

    assert {each["spec"]["maxUnavailable"] for each in budgets} == {1}
    parts = [each["spec"]["selector"]["matchLabels"] for each in budgets]
    assert {part["app.kubernetes.io/component"] for part in parts} == {"api", "teardown", "beat"}
    assert len(alone) == len(budgets) - 1


@pytest.mark.parametrize(
    ("kind", "group"),
    [("pod", ""), ("sandbox", "agents.x-k8s.io"), ("claim", "extensions.agents.x-k8s.io")],
)
def test_rights_are_those_of_the_documented_role(render: Render, kind: str, group: str) -> None:
    """Of docs/kubernetes-rbac.yaml, and only those of the kind that is used."""
    documented = list(yaml.safe_load_all((ROOT / "docs" / "kubernetes-rbac.yaml").read_text()))
    rules = {each["kind"]: each["rules"] for each in documented if "rules" in each}
    objects = render(rbac={"kind": kind})
    (role,), (cluster_role,) = of_kind(objects, "Role"), of_kind(objects, "ClusterRole")

    assert role["rules"] == [rule for rule in rules["Role"] if rule["apiGroups"] == [group]]
    assert role["metadata"]["namespace"] == "sandboxes"
    assert cluster_role["rules"] == rules["ClusterRole"]
    for binding in (*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")):
        (subject,) = binding["subjects"]
        (account,) = of_kind(objects, "ServiceAccount")
        assert (subject["name"], subject["namespace"]) == (account["metadata"]["name"], "keeper")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image": {}}, "/image/repository"),
        ({"secret": {}}, "/secret/name"),
        ({"image": {"repository": "r", "tag": "1", "digest": "latest"}}, "/image/digest"),
        ({"settings": {"IDLE_TTL": 1000000}}, "/settings/IDLE_TTL"),  # Helm would say 1e+06
        ({"settings": {"DATABASE_URL": "postgresql://"}}, "DATABASE_URL"),
        ({"teardwon": {"replicas": 3}}, "teardwon"),
        ({"rbac": {"kind": "pods"}}, "/rbac/kind"),
    ],
)
def test_a_wrong_value_is_named(vendors: Path, wrong: dict[str, object], named: str) -> None:
    """Before anything is changed in the cluster."""
    done = helm(vendors, {**NEEDED, **wrong})

    assert done.returncode == 1
    assert named in done.stderr
