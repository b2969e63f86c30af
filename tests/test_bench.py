"""The benches run, and say what they measured: on grounds too small to say how much."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from rich.console import Console

from bench import sweep, touch
from bench.__main__ import BENCHES, main
from bench.figures import Figure, amount, show
from bench.ground import Ground


@pytest.fixture
def here(postgresql_url: str) -> Iterator[Ground]:
    """A database for them."""
    ground = Ground(postgresql_url)
    yield ground
    ground.close()


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
