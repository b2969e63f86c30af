"""The benches run, and say what they measured: on grounds too small to say how much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from bench import (
    churn,
    dashboard,
    embedded,
    peers,
    plot,
    processes,
    reconcile,
    sweep,
    touch,
    turnover,
    web,
)
from bench.__main__ import BENCHES, main
from bench.figures import Figure, amount, show
from bench.ground import Ground
from tests.conftest import unavailable
from tests.services import Service, ServiceMissing
from tests.web.dashboard.chromium import found

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(postgresql_url: str) -> Iterator[Ground]:
    """A database for them."""
    ground = Ground(postgresql_url)
    yield ground
    ground.close()


@pytest.fixture(scope="session")
def peers_python() -> None:
    """The environment of the peers is there."""
    if not peers.CULLER_PYTHON.exists():
        unavailable(ServiceMissing("./run peers installs what this needs"))


def test_a_touch_is_measured_beside_a_plain_update(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each figure that has a target in the design is there, and was measured."""
    monkeypatch.setattr(touch, "TOUCHED", 50)
    monkeypatch.setattr(touch, "TIMES", 20)

    figures = list(touch.run(here, 1000))

    assert all(figure.ours > 0 for figure in figures)
    targets = {figure.what for figure in figures if figure.meets is not None}
    assert {"touch, CPU of the server", "touch, write-ahead log"} <= targets
    assert "begin and end of a turn" in targets


def test_a_sweep_is_measured_and_does_what_is_measured(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bench asserts what it counts: rows that were not moved would make it fast."""
    for name, value in {"FEW": 100, "MANY": 1_000, "DUE": (10,), "COMPARED": 20}.items():
        monkeypatch.setattr(sweep, name, value)
    monkeypatch.setattr(sweep, "SWEEPS", 3)

    figures = list(sweep.run(here))

    assert all(figure.ours > 0 for figure in figures)
    assert [figure for figure in figures if figure.peer_is == "the bare SQL of it"]


def test_heartbeats_over_http_are_measured_beside_a_bare_route(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are real servers, and every call was answered 200."""
    for name, value in {"TURNS": 16, "SECONDS": 1.0, "ROUNDS": 1}.items():
        monkeypatch.setattr(web, name, value)

    figures = list(web.run(here))

    assert len(figures) == 3
    assert all(figure.ours > 0 and figure.peer for figure in figures)


@pytest.mark.skipif(found() is None, reason="no Chromium here")
def test_the_dashboard_is_measured_as_a_browser_has_it(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page at each size, the second beside the first; the one with a limit has it."""
    small(monkeypatch, dashboard, ROUNDS=1, AGED=())

    figures = list(dashboard.run(here, (90, 180)))

    assert len(figures) == 2 * 2 * len(dashboard.PAGES)
    assert all(figure.ours > 0 for figure in figures)
    assert [(figure.what, figure.target) for figure in figures if figure.target] == [
        ("Fleet of 90, painted", "≤ 1")
    ]
    assert all((figure.peer is not None) == (figure.live == 180) for figure in figures)


def small(monkeypatch: pytest.MonkeyPatch, bench: ModuleType, **sizes: object) -> None:
    """Let a bench be done in seconds."""
    for name, size in sizes.items():
        monkeypatch.setattr(bench, name, size)


@pytest.mark.usefixtures("peers_python")
def test_peers_are_measured_at_the_same_number_of_sessions(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has a figure beside ours, and the one with a target has it."""
    small(monkeypatch, peers, LIVE=(90, 900), CULLED=900, SWEEPS=2, ROUNDS=1, LOOKS=3)
    small(monkeypatch, peers, PUSHED=20, CLAIMED=20, TIMERS=20)
    small(monkeypatch, processes, STILL=0.5)

    figures = list(peers.run(here))

    at_900 = [figure for figure in figures if figure.live == 900]
    assert {figure.peer_is for figure in at_900} == {
        "SELECT every row, ORM",
        "ZRANGEBYSCORE, Redis",
        peers.CULLER,
    }
    assert [figure.peer_is for figure in at_900 if figure.target] == [peers.CULLER]
    assert sum("ETA" in figure.peer_is for figure in figures) == 5
    assert all(figure.peer for figure in figures if figure.peer_is)


@pytest.mark.usefixtures("peers_python")
def test_the_culler_is_its_own_code_and_looks_at_every_server() -> None:
    """A hub that it could not read would make it fast: those that are idle are culled, each."""
    said = peers.culler_swept(450, idle=201, sweeps=2)

    assert said["culled"] == 2 * 201
    assert len(said["seconds"]) == 2


def test_a_peer_that_is_not_installed_is_left_out_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured all the same."""
    monkeypatch.setattr(peers, "CULLER_PYTHON", tmp_path / "python")

    assert peers.culled(100) is None
    assert "`./run peers` installs it" in capsys.readouterr().err


def test_churn_is_measured(here: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole lives, purged as they go: each table has its size and its dead rows."""
    small(monkeypatch, churn, MINUTES=0.05, RETENTION=0.5, SWEEP_EVERY=0.2, SWEEPS=3, LIVES=300)
    small(monkeypatch, turnover, BATCH=100, VACUUM_EVERY=200)

    figures = list(churn.run(here))

    assert figures[0].ours > 0
    assert [figure.target for figure in figures if figure.target] == ["≤ 1.5"] * 4 + ["≤ 2"] * 2


def test_a_whole_round_of_reconcile_is_measured(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as many passes as there are pages of rows, and every row is looked for once."""
    small(monkeypatch, reconcile, ROWS=1_100)

    figures = list(reconcile.run(here))

    assert figures[0].what.startswith("1,001 listed")
    assert [figure.target for figure in figures if figure.target] == ["≤ 10", "≤ 200"]
    assert all(figure.ours > 0 for figure in figures)


def test_a_reconcile_that_explains_less_than_is_listed_is_no_measurement(here: Ground) -> None:
    """Rows that are not there would make it fast."""
    reconcile.prepare(here, 300)

    with pytest.raises(AssertionError):
        reconcile.whole_round(here.url, 400)


def test_the_embedded_system_is_measured(here: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every session that is torn down in it is gone in the database."""
    small(monkeypatch, embedded, FEW=50, MANY=200, TOUCHES=20, ROUNDS=1, SWEEPS=2, TEARDOWNS=40)

    figures = list(embedded.run(here))

    assert len(figures) == 4
    assert all(figure.ours > 0 for figure in figures)


MEMORY = """
from bench import due, memory, processes
from bench.ground import ground

memory.COUNT, memory.WARM, memory.BATCH, memory.TURNS = 60, 20, 10, 3
processes.STILL = 0.5
with ground() as here:
    for figure in memory.run(here):
        print(figure.line())
    assert not due.closing(here)
"""


@pytest.mark.timeout(300)  # many processes, one after another
def test_the_memory_of_each_process_is_measured(rabbitmq_service: Service) -> None:
    """Of API, sweep, beat and worker; those with a target have it."""
    # In a process of its own: this one has read the settings of Celery for other tests.
    environ = {name: value for name, value in os.environ.items() if "SANDKEEPER_" not in name}
    environ["BROKER_URL"] = rabbitmq_service.url
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY],
        check=False,  # shown with what it said
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [figure["at_most"] for figure in figures if figure["at_most"]] == [50, 10]
    assert figures[-1]["what"] == "worker, from 20 to 60 teardowns"
    beside = [figure for figure in figures if figure["peer"] is not None]
    assert len(beside) == 3
    assert all(figure["ours"] > 20 for figure in beside)


def measured(live: int, ours: float, peer: float, peer_is: str) -> Figure:
    """A figure that a picture shows."""
    return Figure(bench="b", what="w", ours=ours, peer=peer, peer_is=peer_is, unit="s", live=live)


def test_a_picture_has_a_line_for_each_and_its_name_beside_it() -> None:
    """Both axes by powers of ten: ten times as much is as far away everywhere."""
    figures = [
        measured(1_000, 0.01, 0.1, "theirs"),
        measured(10_000, 0.01, 1.0, "theirs"),
        measured(100_000, 0.01, 10.0, "theirs"),
        Figure(bench="b", what="of no picture", ours=1.0, unit="s"),
    ]

    drawn = plot.lines(figures)
    root = ET.fromstring(plot.svg(drawn, "a <machine>"))  # noqa: S314 - our own

    assert list(drawn) == [plot.OURS, "theirs"]
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Sandkeeper", "10.0 ms", "theirs", "10.0 s", "a <machine>"} <= {*texts}
    assert {"live sessions", "1,000", "100,000", "1 s"} <= {*texts}
    ours, theirs = (
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
    )
    assert len({y for _, y in ours}) == 1
    assert theirs[0][1] - theirs[1][1] == pytest.approx(theirs[1][1] - theirs[2][1])
    assert theirs[1][0] - theirs[0][0] == pytest.approx(theirs[2][0] - theirs[1][0])


def test_a_picture_of_nothing_is_refused() -> None:
    """An empty frame would look like a result."""
    with pytest.raises(ValueError, match="run bench peers"):
        plot.svg({}, "")


def test_only_the_peers_have_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured."""
    with pytest.raises(SystemExit):
        main(["touch", "--plot"])

    assert "name it too" in capsys.readouterr().err


def test_a_server_that_is_missing_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured before it is shown."""

    def run(_: Ground) -> Iterator[Figure]:
        yield Figure(bench="b", what="w", ours=1.0, unit="s")
        raise ServiceMissing("no broker at 127.0.0.1")

    monkeypatch.setitem(BENCHES, "touch", run)

    assert main(["touch", "--json"]) == 0

    said = capsys.readouterr()
    assert json.loads(said.out)["what"] == "w"
    assert "no broker at 127.0.0.1" in said.err


def test_work_that_fails_in_a_process_of_its_own_is_no_figure() -> None:
    """Nor is a process that cannot be asked."""
    assert processes.alone(processes.resident) > 5
    with pytest.raises(subprocess.CalledProcessError):
        processes.alone(processes.resident, 2**22 + 1)


def test_a_figure_is_judged_by_its_ratio() -> None:
    """At most, at least, or just to be seen."""
    fast = Figure(bench="b", what="w", ours=1.0, peer=2.0, unit="s", at_most=0.5)
    slow = Figure(bench="b", what="w", ours=1.0, peer=2.0, unit="/s", at_least=0.8)
    seen = Figure(bench="b", what="w", ours=3.0, unit="B")

    assert [figure.meets for figure in (fast, slow, seen)] == [True, False, None]
    assert json.loads(slow.line())["value"] == 0.5
    console = Console(record=True, width=120)
    show([fast, slow, seen], console)
    shown = console.export_text()
    assert "≤ 0.5" in shown
    assert "≥ 0.8" in shown


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.0000123, "s", "12.3 µs"),
        (0.25, "s", "250 ms"),
        (31.415, "s", "31.4 s"),
        (31415.9, "/s", "31,416 /s"),
        (187, "B", "187 B"),
    ],
)
def test_an_amount_has_three_digits_that_count(value: float, unit: str, words: str) -> None:
    """People compare figures by eye."""
    assert amount(value, unit) == words


def test_an_unknown_bench_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured."""
    with pytest.raises(SystemExit):
        main(["tuch"])

    said = capsys.readouterr().err
    assert "'tuch'" in said
    assert all(name in said for name in BENCHES)
