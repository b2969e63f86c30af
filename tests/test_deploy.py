"""What watches an installation: alerts, dashboard and compose file say what is really there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with a client, without types

from core.web.metrics import METRICS, PREFIX
from tasks.cli import main
from tasks.serve import PORT

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
COMPOSE = ROOT / "docker-compose.yml"
SUFFIXES = {"gauge": [""], "counter": [""], "histogram": ["_bucket", "_sum", "_count"]}
SAID = {PREFIX + metric.name + end: metric for metric in METRICS for end in SUFFIXES[metric.type]}


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana reads it."""
    board: dict[str, Any] = json.loads((GRAFANA / "sandkeeper.json").read_text())
    return board


def queries() -> Iterator[str]:
    """Every expression of the dashboard."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def services() -> dict[str, Any]:
    """Those of the compose file."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def run(*command: str | Path) -> None:
    """Run a tool that says what is wrong by its exit code."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def promtool() -> str:
    """Prometheus' own tool. It is a package of a distribution, and may be missing."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not here: Debian has it in its package prometheus")
    return found


def test_alerts_ring_when_they_should_and_only_then(promtool: str) -> None:
    """By Prometheus' own evaluation of made-up series."""
    run(promtool, "test", "rules", PROMETHEUS / "tests.yml")


def test_each_alert_is_tested_both_ways() -> None:
    """One test lets it ring, another one keeps it silent."""
    rang: set[str] = set()
    silent: set[str] = set()
    for test in yaml.safe_load((PROMETHEUS / "tests.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            (rang if case["exp_alerts"] else silent).add(case["alertname"])

    names = {alert["alert"] for alert in alerts()}

    assert rang == silent == names


def test_prometheus_takes_the_example(promtool: str) -> None:
    """Grammar and names of its fields; the token's file is the user's to make."""
    run(promtool, "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """In a sentence, and in a section of the runbook."""
    notes = alert["annotations"]
    page, anchor = notes["runbook_url"].split("#")
    headings = re.findall(r"^#+ (\w+)$", RUNBOOK, re.MULTILINE)

    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert (page, anchor) == ("docs/runbook.md", alert["alert"].lower())
    assert alert["alert"] in headings


@pytest.mark.parametrize("expression", [*queries(), *(alert["expr"] for alert in alerts())])
def test_what_is_asked_for_is_there(expression: str) -> None:
    """Every metric, and every label that it is asked for; and never a sum over servers."""
    names = set(re.findall(rf"\b{PREFIX}\w+", expression))
    labels = set(re.findall(r"[{,]\s*(\w+)=", expression))
    for by in re.findall(r"\bby \(([^)]*)\)", expression):
        labels |= {name.strip() for name in by.split(",")}
    known = {SAID[name].label for name in names if name in SAID} | {"le"}

    assert names
    assert names <= SAID.keys()
    assert labels <= known
    assert "sum" not in re.findall(r"\b(\w+) ?\(", expression)


def test_every_query_of_the_dashboard_can_be_asked(promtool: str, tmp_path: Path) -> None:
    """By Prometheus' own grammar: as rules, with the interval that Grafana puts in."""
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    run(promtool, "check", "rules", file)


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Ids are there once, panels lie beside each other, and the data source is a variable."""
    board = dashboard()
    panels = board["panels"]
    (variable,) = board["templating"]["list"]
    source = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}

    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    assert {"uid", "title", "schemaVersion", "time", "refresh"} <= board.keys()
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert panel["type"] in {"stat", "timeseries"}
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(part["datasource"] == source for part in (panel, *panel["targets"]))
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_the_compose_file_starts_commands_that_there_are() -> None:
    """The API is our own server, asked for its health at the port that it listens on."""
    api = services()["api"]
    found = [
        service["command"][1]
        for service in services().values()
        if service.get("command", [""])[0] == "sandkeeper"
    ]

    assert set(found) <= main.commands.keys()
    assert api["command"][:2] == ["sandkeeper", "serve"]
    assert api["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert f"http://127.0.0.1:{PORT}/healthz" in api["healthcheck"]["test"][-1]
    compile(api["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_the_compose_file_mounts_what_is_there() -> None:
    """And publishes nothing to other machines."""
    ours = services()
    mounts = [
        mount.split(":")[0]
        for service in ours.values()
        for mount in service.get("volumes", [])
        if mount.startswith("./")
    ]
    ports = [port for service in ours.values() for port in service.get("ports", [])]

    assert len(mounts) == 3
    assert all((ROOT / mount).exists() for mount in mounts)
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_our_containers_are_confined() -> None:
    """Nothing of theirs is written but /tmp and their volume, and they gain no rights."""
    ours = [each for each in services().values() if each.get("build")]

    assert len(ours) == 5
    for service in ours:
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]  # noqa: S108 - in the container
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "user"} & service.keys()


def test_the_image_is_nobodys() -> None:
    """
    It runs as a number that is not root's, who owns the folder that compose has a volume for, and
    nothing after that is done as root. What it copies is there, and is installed by hashes.
    """
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    user = steps[-1][1].split(":")
    copied = [step[1].split()[0] for step in steps if step[0] == "COPY"]
    (install,) = [step[1] for step in steps if "pip install" in step[1]]
    volume = services()["api"]["volumes"][0].split(":")[1]

    assert steps[-1][0] == "USER"
    assert all(part.isdigit() and int(part) >= 1000 for part in user)
    assert all((ROOT / name).exists() for name in copied)
    assert "--require-hashes" in install
    assert f"install -d -o {user[0]} -g {user[1]} -m 700 {volume}" in " ".join(
        step[1] for step in steps
    )


def test_compose_takes_the_file() -> None:
    """By its own word, with all profiles."""
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("docker-compose is not here: Debian has it in its package docker-compose")

    run(
        compose,
        "--file",
        COMPOSE,
        "--profile",
        "observability",
        "--profile",
        "redis",
        "config",
        "--quiet",
    )


def test_the_token_of_prometheus_is_never_committed() -> None:
    """It stands beside files that are."""
    secret = yaml.safe_load(COMPOSE.read_text())["secrets"]["sandkeeper_token"]["file"]

    assert f"/{secret.removeprefix('./')}" in (ROOT / ".gitignore").read_text().splitlines()
