"""What a run has shown, for people and as one line of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from tests.chaos.judge import Findings
from tests.chaos.play import Plan

SHOWN = 10  # violations of one kind
BAR = 40  # characters of the longest bar


def as_table(plan: Plan, findings: Findings) -> str:
    """Plain lines, widest facts first."""
    return "\n".join(_lines(plan, findings))


def as_json(plan: Plan, findings: Findings) -> str:
    """The same in one line."""
    return json.dumps(
        {
            "verdict": findings.verdict,
            "stack": plan.stack,
            "seconds": plan.seconds,
            "seed": plan.seed,
            "control": plan.control.name if plan.control else None,
            "violations": _kinds(findings),
            "too_little": list(findings.too_little),
            "faults": dict(sorted(findings.faults.items())),
            "inside": dict(sorted(findings.inside.items())),
            "counts": dict(findings.counts),
            "lateness": findings.histogram(),
        }
    )


def _kinds(findings: Findings) -> dict[str, int]:
    return dict(Counter(f"{v.promise} {v.kind}" for v in findings.violations))


def _lines(plan: Plan, findings: Findings) -> Iterator[str]:
    yield ""
    yield from _block("faults fired", findings.faults)
    yield from _block("kills and stops, and where they hit", findings.inside)
    yield from _block("what happened", findings.counts)
    yield from _histogram(findings)
    yield from _violations(findings)
    for little in findings.too_little:
        yield f"too little was tried: {little}"
    control = f", control {plan.control.name}" if plan.control else ""
    yield f"{findings.verdict}  {plan.seconds:g} s on {plan.stack}, seed {plan.seed}{control}"


def _block(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield title
    for name, count in sorted(counts.items()):
        yield f"  {name:40} {count:7}"
    yield ""


def _histogram(findings: Findings) -> Iterator[str]:
    yield "teardowns, by seconds after the last reason to live"
    histogram = findings.histogram()
    most = max([1, *histogram.values()])
    for name, count in histogram.items():
        yield f"  {name:>6} {count:7} {'#' * round(BAR * count / most)}"
    yield ""


def _violations(findings: Findings) -> Iterator[str]:
    for kind, count in _kinds(findings).items():
        yield f"{kind}: {count}"
        these = [v for v in findings.violations if f"{v.promise} {v.kind}" == kind]
        yield from (f"  {violation}" for violation in these[:SHOWN])
