"""The sweep's time against the sessions that live, as an SVG that reads in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from .figures import Figure, amount

TARGET = Path(__file__).resolve().parents[1] / "docs" / "sweep.svg"
OURS = "Sandkeeper"

Line = Sequence[tuple[float, float]]
"""Live sessions and seconds, in the order of sessions."""

WIDTH, HEIGHT = 860, 500
LEFT, RIGHT, TOP, BOTTOM = 84, 200, 78, 62
APART = 40  # pixels between two labels of two lines each
# The inks of the lines, ours first, on light paper and on dark.
LIGHT = ("#0b62d6", "#b3430f", "#6d3fc0", "#1a7f37")
DARK = ("#58a6ff", "#ff9a62", "#b795ff", "#56d364")
STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
text { font-size: 13px } .title { font-size: 17px; font-weight: 600 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
.line.ours { stroke-width: 3.5 } .label.ours { font-weight: 600 }
"""


def lines(figures: Iterable[Figure]) -> dict[str, Line]:
    """Ours first, then each peer: of the figures that say how many lived."""
    found: dict[str, dict[float, float]] = {OURS: {}}
    for figure in figures:
        if figure.live is not None:
            found[OURS][figure.live] = figure.ours
            if figure.peer is not None:
                found.setdefault(figure.peer_is, {})[figure.live] = figure.peer
    return {name: sorted(points.items()) for name, points in found.items() if points}


def svg(drawn: Mapping[str, Line], note: str) -> str:
    """The picture; `note` says where the figures are from. ValueError when there is no line."""
    if not drawn:
        raise ValueError("nothing was measured that can be drawn: run bench peers")
    every = [point for line in drawn.values() for point in line]
    frame = _Frame([live for live, _ in every], [seconds for _, seconds in every])
    body = [*_grid(frame), *_curves(frame, drawn), *_labels(frame, drawn)]
    title = "One sweep that finds nothing due"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}, by live sessions</title>",
            f"<style>{STYLE}{_inks('#ffffff', '#e4e7eb', '#57606a', '#1f2328', LIGHT)}",
            "@media (prefers-color-scheme: dark) {",
            f"{_inks('#0d1117', '#2a313a', '#9aa4af', '#e6edf3', DARK)} }}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
            f'<text class="title" x="{LEFT}" y="32">{title}</text>',
            f'<text class="note" x="{LEFT}" y="54">{escape(note)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _inks(paper: str, grid: str, faint: str, strong: str, inks: Sequence[str]) -> str:
    rules = [f".paper {{ fill: {paper} }} .grid {{ stroke: {grid} }}"]
    rules += [f".axis, .note {{ fill: {faint} }} .title {{ fill: {strong} }}"]
    for number, ink in enumerate(inks):
        rules += [f".line.s{number} {{ stroke: {ink} }}"]
        rules += [f".point.s{number}, .label.s{number} {{ fill: {ink} }}"]
    return "\n".join(rules)


class _Frame:
    """Where a point is on the paper: both axes by powers of ten, whole decades."""

    def __init__(self, live: Sequence[float], seconds: Sequence[float]) -> None:
        self.across = _decades(live)
        self.up = _decades(seconds)

    def x(self, live: float) -> float:
        first, last = self.across
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(live) - first) / (last - first)

    def y(self, seconds: float) -> float:
        first, last = self.up
        share = (math.log10(seconds) - first) / (last - first)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _decades(values: Sequence[float]) -> tuple[int, int]:
    first = math.floor(math.log10(min(values)))
    return first, max(first + 1, math.ceil(math.log10(max(values))))


def _grid(frame: _Frame) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for power in range(frame.up[0], frame.up[1] + 1):
        y = frame.y(10.0**power)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text("axis", LEFT - 10, y + 4, _moment(power), anchor="end")
    for power in range(frame.across[0], frame.across[1] + 1):
        x = frame.x(10.0**power)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield _text("axis", x, bottom + 20, f"{10**power:,}", anchor="middle")
    yield _text("axis", (LEFT + right) / 2, bottom + 44, "live sessions", anchor="middle")
    middle = (TOP + bottom) / 2
    yield (
        f'<text class="axis" x="18" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 18 {middle:.1f})">time of one sweep</text>'
    )


def _curves(frame: _Frame, drawn: Mapping[str, Line]) -> Iterator[str]:
    for number, (name, line) in enumerate(drawn.items()):
        kind = _kind(number, name)
        places = [(frame.x(live), frame.y(seconds)) for live, seconds in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline class="line {kind}" points="{path}"/>'
        for x, y in places:
            yield f'<circle class="point {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _labels(frame: _Frame, drawn: Mapping[str, Line]) -> Iterator[str]:
    """
    At the last point of each line: beside it where the paper ends, from the top and none upon
    another; above it where other lines go on.
    """
    lowest = -math.inf
    for name, line in sorted(drawn.items(), key=lambda item: -item[1][-1][1]):
        live, seconds = line[-1]
        x, y = frame.x(live), frame.y(seconds)
        kind = f"label {_kind(list(drawn).index(name), name)}"
        if x < WIDTH - RIGHT - 1:
            yield _text(kind, x, y - 28, name, anchor="end")
            yield _text(kind, x, y - 12, amount(seconds, "s"), anchor="end")
            continue
        lowest = max(y, lowest + APART)
        yield _text(kind, x + 12, lowest - 3, name, anchor="start")
        yield _text(kind, x + 12, lowest + 13, amount(seconds, "s"), anchor="start")


def _kind(number: int, name: str) -> str:
    return f"s{number % len(LIGHT)}" + (" ours" if name == OURS else "")


def _moment(power: int) -> str:
    return f"{amount(10.0**power, 's').replace('.00', '').replace('.0', '')}"


def _text(kind: str, x: float, y: float, words: str, *, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'
