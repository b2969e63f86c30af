"""
The judge, who sees journals and rows only, after everything is over.

The rules, with all the mercy that there is:

- A turn is trusted from the return of its begin until its holder asked to end it, was told that it
  is lost, reached the ceiling that begin named, or was killed. A sandbox that the cloud destroyed
  on somebody's call while a turn on it was trusted is a turn harmed (S1), unless a caller had asked
  for this session's end (the ledger names that very request), or the session had reached its max
  age. So is one that an extension of ours left less time than it had. What expired otherwise is
  counted and shown, and what the run made vanish harms nobody.
- A holder that was stopped, or that got no processor (its own pulse shows it), for an idle TTL or
  more since its last acknowledged heartbeat is not alive by the contract: its trust is suspended
  once TTL + confirm have passed since that heartbeat, and comes back when a heartbeat that it asked
  for more than a confirm interval after it woke was acknowledged.
- An outage of the database, a cut, a lost answer and a step of the clock excuse no harm to a turn
  whose holder is awake: one that is stopped when the database comes back, and stays so for the
  time between two looks, cannot tell itself from one that died.
- Acknowledged activity (open, touch, begin and end of a turn) keeps a sandbox for TTL + confirm
  from when the call was made, an acknowledged extension for as long as it says. Dates are the
  database's: a step of its clock, and nothing else, excuses an end that came too early by ours.
- The ledger is compared with the cloud's own journal, count by count.

A verdict is UNKNOWN when nothing was violated and too little was tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tests.chaos import judge_ledger, judge_sandboxes, judge_turns, measures
from tests.chaos.case import Case
from tests.chaos.evidence import Evidence
from tests.chaos.violation import Violation

RULES = (*judge_turns.RULES, *judge_sandboxes.RULES, *judge_ledger.RULES)
BUCKETS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)  # seconds


class Verdict(StrEnum):
    """What a run has shown."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    UNKNOWN = "UNKNOWN"  # nothing was violated, and too little was tried


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How much has to be tried before an innocent run says anything."""

    turns: int = 1
    silent: int = 1  # turns that outlived TTL + confirm
    teardowns: int = 1
    classes: int = 10  # of faults, each fired `times` or more
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The judgement, and what it is made from."""

    verdict: Verdict
    violations: Sequence[Violation]
    too_little: Sequence[str]
    faults: Mapping[str, int]
    inside: Mapping[str, int]  # kills that found their victim in the middle of something
    counts: Mapping[str, int]
    lateness: Sequence[float] = field(repr=False)

    def histogram(self) -> dict[str, int]:
        """Teardowns by how many seconds after the last reason to live they took effect."""
        names = [f"<{limit:g}" for limit in BUCKETS] + [f">={BUCKETS[-1]:g}"]
        found = Counter(_bucket(late) for late in self.lateness)
        return {name: found[number] for number, name in enumerate(names)}


def _bucket(late: float) -> int:
    return next((n for n, limit in enumerate(BUCKETS) if late < limit), len(BUCKETS))


def judge(evidence: Evidence, expected: Expected) -> Findings:
    """Everything that can be said of a run."""
    case = Case(evidence)
    violations = [violation for rule in RULES for violation in rule(case)]
    counts = measures.counts(case)
    faults = measures.faults(case)
    little = list(_too_little(counts, faults, expected))
    innocent = Verdict.UNKNOWN if little else Verdict.HOLDS
    return Findings(
        verdict=Verdict.VIOLATED if violations else innocent,
        violations=violations,
        too_little=little,
        faults=faults,
        inside=measures.inside(case),
        counts=counts,
        lateness=list(measures.lateness(case).values()),
    )


def _too_little(
    counts: Mapping[str, int], faults: Mapping[str, int], expected: Expected
) -> Iterator[str]:
    for name in ("turns", "silent", "teardowns"):
        if counts[name] < getattr(expected, name):
            yield f"{counts[name]} {name} of {getattr(expected, name)}"
    often = sum(1 for count in faults.values() if count >= expected.times)
    if often < expected.classes:
        yield f"{often} kinds of fault {expected.times} times or more, of {expected.classes}"
