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
- An outage of the database, a cut, a lost answer and a step of the clock excuse no harm to a turn.
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
from functools import cached_property
from itertools import groupby
from typing import Any

from core.model import EndReason, SandboxState, SessionStatus
from tests.chaos.evidence import (
    Box,
    Evidence,
    Key,
    Pause,
    Trust,
    boxes,
    clock_steps,
    pauses,
    to_monotonic,
    trusts,
)
from tests.chaos.journal import Line

WALL_SLACK = 0.25  # seconds; where a date of the database is compared with a moment of ours
BUCKETS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)  # seconds


class Verdict(StrEnum):
    """What a run has shown."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    UNKNOWN = "UNKNOWN"  # nothing was violated, and too little was tried


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One promise that was broken once."""

    promise: str  # S1, S2, S3, S4, L1, L2, L3, H1
    kind: str
    about: str
    at: float | None = None

    def __str__(self) -> str:
        when = "" if self.at is None else f" at {self.at:.3f}"
        return f"{self.promise} {self.kind}: {self.about}{when}"


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
    violations = list(case.violations())
    counts = case.counts()
    faults = case.faults()
    little = list(_too_little(counts, faults, expected))
    innocent = Verdict.UNKNOWN if little else Verdict.HOLDS
    return Findings(
        verdict=Verdict.VIOLATED if violations else innocent,
        violations=violations,
        too_little=little,
        faults=faults,
        inside=case.inside(),
        counts=counts,
        lateness=list(case.lateness().values()),
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


class Case:
    """The evidence, sorted for the questions that are asked of it."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.timings = evidence.timings

    def violations(self) -> Iterator[Violation]:
        """All of them."""
        yield from self._turns_harmed()
        yield from self._dead_at_begin()
        yield from self._ended_too_early()
        yield from self._extensions_broken()
        yield from self._foreign_touched()
        yield from self._more_than_one_gone()
        yield from self._destroyed_out_of_turn()
        yield from self._lost_but_there()
        yield from self._left_behind()
        yield from self._not_final()
        yield from self._too_late()
        yield from self._rows_lost()
        yield from self._gone_without_proof()
        yield from self._ledger_disagrees()
        yield from self._untyped_errors()

    # What was found

    @cached_property
    def boxes(self) -> list[Box]:
        return boxes(self.evidence.cloud)

    @cached_property
    def trusts(self) -> list[Trust]:
        return trusts(self.evidence)

    @cached_property
    def pauses(self) -> Mapping[str, Sequence[Pause]]:
        return pauses(self.evidence)

    @cached_property
    def names(self) -> Mapping[str, Key]:
        return self.evidence.names()

    @cached_property
    def kills(self) -> list[tuple[Box, float]]:
        """Sandboxes that were destroyed by a call, and when."""
        return [(b, b.died) for b in self.boxes if b.why == "destroyed" and b.died is not None]

    @cached_property
    def ids(self) -> Mapping[Key, str | None]:
        """The cloud's id of each generation's sandbox, None where it was never recorded."""
        return {
            (row["session_id"], row["generation"]): row["external_id"]
            for row in self.evidence.sandboxes
        }

    def _key(self, box: Box) -> Key | None:
        """
        Whose sandbox it is. None for one that no row explains: also for a second one of the same
        name, which a create that landed late has made.
        """
        key = self.names.get(box.name)
        return key if key is not None and self.ids[key] in {None, box.id} else None

    @cached_property
    def reasons(self) -> Mapping[Key, str]:
        """Why each generation ended, by the ledger."""
        return {
            (event["session_id"], event["generation"]): event["detail"]["reason"]
            for event in self.evidence.events
            if event["kind"] == "session_ended"
        }

    @cached_property
    def requests(self) -> Mapping[str, float]:
        """Every reason that a caller gave to end(), and since when."""
        return {
            line["reason"]: line["at"]
            for line in self.evidence.all_clients()
            if line["what"] == "end_asked"
        }

    @cached_property
    def by_key(self) -> Mapping[Key, Sequence[Line]]:
        """What was acknowledged to callers about each generation."""
        found: dict[Key, list[Line]] = {}
        turns = {trust.turn: trust.key for trust in self.trusts}
        for line in self.evidence.all_clients():
            if line["what"] in {"open", "touch", "begun", "extend"}:
                if line["generation"] is not None:
                    found.setdefault((line["id"], line["generation"]), []).append(line)
            elif line["what"] == "ended" and line["turn"] in turns:
                found.setdefault(turns[line["turn"]], []).append(line)
        return found

    @cached_property
    def steps(self) -> Sequence[float]:
        faults = (line["kind"] for line in self.evidence.director if line["what"] == "fault")
        return clock_steps(self.evidence) if any(f.startswith("clock") for f in faults) else ()

    @cached_property
    def healed(self) -> float:
        moments = [line["at"] for line in self.evidence.director if line["what"] == "healed"]
        return float(moments[0]) if moments else float("inf")

    def _stepped(self, since: float, until: float) -> bool:
        return any(since <= step <= until for step in self.steps)

    def _asked_for(self, key: Key, moment: float) -> bool:
        """Whether a caller had asked for exactly this end."""
        return self.requests.get(self.reasons.get(key, ""), float("inf")) <= moment

    # S1

    def _turns_harmed(self) -> Iterator[Violation]:
        for box, trust in self.deaths_in_turns:
            if box.why == "destroyed" or box.shortened:
                about = f"{box.name} of {trust.key}, turn {trust.turn} of {trust.client}, "
                about += f"{box.why}, ended for {self.reasons.get(trust.key)}"
                yield Violation(promise="S1", kind="turn harmed", about=about, at=box.died)

    @cached_property
    def deaths_in_turns(self) -> list[tuple[Box, Trust]]:
        """Sandboxes that were destroyed or that expired, each with a turn that relied on it."""
        held: dict[str, list[Trust]] = {}
        for trust in self.trusts:
            held.setdefault(trust.external_id, []).append(trust)
        return [
            (box, trust)
            for box in self.boxes
            for trust in held.get(box.id, ())
            if box.died is not None and box.why != "vanished" and self._harmed(trust, box.died)
        ]

    def _harmed(self, trust: Trust, moment: float) -> bool:
        if not trust.begun <= moment < trust.until:
            return False
        excused = self._asked_for(trust.key, moment) or self._too_old(trust.key, moment)
        return not excused and not self._suspended(trust, moment)

    def _suspended(self, trust: Trust, moment: float) -> bool:
        """Whether its holder was kept from living for so long that it does not count as alive."""
        confirm = self.timings["CONFIRM_INTERVAL"]
        for pause in self.pauses.get(trust.client, ()):
            if pause.since > moment:
                break
            proof = trust.last_proof(pause.since)
            asleep = sum(p.within(proof, moment) for p in self.pauses[trust.client])
            awake_again = any(
                asked >= pause.until + confirm and at <= moment for asked, at in trust.beats
            )
            if (
                asleep >= self.timings["IDLE_TTL"]
                and moment >= proof + self.timings.silence
                and not awake_again
            ):
                return True
        return False

    def _too_old(self, key: Key, moment: float) -> bool:
        """Whether it ended for its max age, and that had come by our clock or by a stepped one."""
        if self.reasons.get(key) != EndReason.MAX_AGE:
            return False
        for line in self.by_key.get(key, ()):
            if line["what"] == "open" and line["max_age"] is not None:
                old = line["asked"] + line["max_age"] <= moment
                return old or self._stepped(line["asked"], moment)
        return True  # a caller whose open was never acknowledged had asked for a max age

    def _dead_at_begin(self) -> Iterator[Violation]:
        died = {box.id: moment for box, moment in self.kills}
        for trust in self.trusts:
            if died.get(trust.external_id, float("inf")) < trust.asked:
                about = f"{trust.key}, turn {trust.turn} began on {trust.external_id}"
                yield Violation(promise="S1", kind="dead sandbox handed out", about=about)

    def _ended_too_early(self) -> Iterator[Violation]:
        for box, moment in self.kills:
            key = self._key(box)
            if key is None or self.reasons.get(key) != EndReason.IDLE:
                continue
            for line in self.by_key.get(key, ()):
                if line["what"] == "extend":  # keeps by a date of its own, and is no activity
                    continue
                early = line["asked"] + self.timings.silence - moment
                if early > 0.01 and not self._stepped(line["asked"], moment):
                    about = f"{box.name} of {key}: {line['what']}, then {early:.2f} s too early"
                    yield Violation(promise="S1", kind="activity ignored", about=about, at=moment)

    def _extensions_broken(self) -> Iterator[Violation]:
        for box in self.boxes:
            key, moment = self._key(box), box.died
            if key is None or moment is None or box.why == "vanished":
                continue
            if self._asked_for(key, moment) or self._too_old(key, moment):
                continue
            for line in self.by_key.get(key, ()):
                if line["what"] != "extend" or self._stepped(line["asked"], moment):
                    continue
                early = line["asked"] + line["seconds"] - moment
                if early > 0.01:
                    about = f"{box.name} of {key}, {early:.2f} s before its date"
                    yield Violation(promise="S1", kind="extension broken", about=about, at=moment)

    # S2, S3, S4

    def _foreign_touched(self) -> Iterator[Violation]:
        for line in self.evidence.cloud:
            if line.get("planted") != "foreign" or line["what"] == "born":
                continue
            if line["what"] == "extended" or line.get("why") == "destroyed":
                yield Violation(
                    promise="S2", kind="foreign touched", about=line["id"], at=line["at"]
                )

    def _more_than_one_gone(self) -> Iterator[Violation]:
        gone = Counter(
            (event["session_id"], event["generation"])
            for event in self.evidence.events
            if event["kind"] == "sandbox_gone"
        )
        for key, count in gone.items():
            if count > 1:
                yield Violation(promise="S3", kind="gone twice", about=f"{key}, {count} events")

    def _destroyed_out_of_turn(self) -> Iterator[Violation]:
        """A teardown of one generation takes effect after that generation's own end."""
        ended = {
            (event["session_id"], event["generation"]): to_monotonic(self.evidence, event["at"])
            for event in self.evidence.events
            if event["kind"] == "session_ended"
        }
        for box, moment in self.kills:
            key = self._key(box)
            if key is None:
                continue
            if key not in ended:
                yield Violation(promise="S3", kind="never ended", about=f"{box.name} of {key}")
            elif not self.steps and moment < ended[key] - WALL_SLACK:
                about = f"{box.name} of {key}"
                yield Violation(promise="S3", kind="before its end", about=about, at=moment)

    def _lost_but_there(self) -> Iterator[Violation]:
        """Lost is said of what the provider no longer has; this one it still had."""
        for box, moment in self.kills:
            key = self._key(box)
            if key is not None and self.ids[key] and self.reasons.get(key) == EndReason.LOST:
                about = f"{box.name} of {key}"
                yield Violation(promise="S4", kind="lost but there", about=about, at=moment)

    # L1 to L4

    def _left_behind(self) -> Iterator[Violation]:
        for box in self.boxes:
            if box.died is None and box.planted != "foreign":
                of = self.names.get(box.name, "no row")
                about = f"{box.id} {box.name} of {of}, {box.planted or 'created'}"
                yield Violation(promise="L1", kind="left behind", about=about, at=box.born)

    def _not_final(self) -> Iterator[Violation]:
        for row in self.evidence.sandboxes:
            if row["state"] != SandboxState.GONE:
                about = f"{row['session_id']} generation {row['generation']} is {row['state']}"
                yield Violation(promise="L2", kind="row not final", about=about)
        for row in self.evidence.sessions:
            if row["status"] != SessionStatus.ENDED:
                about = f"session {row['id']} is {row['status']}"
                yield Violation(promise="L2", kind="row not final", about=about)

    def _too_late(self) -> Iterator[Violation]:
        for box in self.boxes:
            if box.died is None or box.planted == "foreign":
                continue
            late = box.died - max(self.healed, box.born) - self.timings.bound
            if late > 0:
                about = f"{box.name}, {late:.1f} s after the bound"
                yield Violation(promise="L1", kind="too late", about=about, at=box.died)

    # Rows and the ledger

    def _rows_lost(self) -> Iterator[Violation]:
        names = {key: name for name, key in self.names.items()}
        for line in self.evidence.all_clients():
            if line["what"] == "open":
                key = (line["id"], line["generation"])
                if names.get(key) != line["name"]:
                    about = f"{key} was opened as {line['name']}, its row says {names.get(key)}"
                    yield Violation(promise="H1", kind="row lost", about=about, at=line["at"])

    def _gone_without_proof(self) -> Iterator[Violation]:
        """L3: gone is written after the provider itself said that it is not there."""
        absent = {
            line["name"]
            for line in self.evidence.cloud
            if line["what"] == "answered" and line["op"] == "get" and line["status"] == 404
        }
        # Under a name that somebody else has taken, ours is as absent as can be.
        absent |= {box.name for box in self.boxes if box.planted == "foreign"}
        own = {row["external_id"]: row for row in self.evidence.sandboxes if row["external_id"]}
        lives = {
            (own[box.id]["session_id"], own[box.id]["generation"]): box
            for box in self.boxes
            if box.id in own
        }
        names = {key: name for name, key in self.names.items()}
        for event in self.evidence.events:
            if event["kind"] != "sandbox_gone":
                continue
            key = (event["session_id"], event["generation"])
            about = f"{names.get(key)} of {key}"
            if names.get(key) not in absent:
                yield Violation(promise="L3", kind="gone unconfirmed", about=about)
            elif key in lives and not self.steps:
                moment = to_monotonic(self.evidence, event["at"])
                if _lived_through(lives[key], moment):
                    yield Violation(promise="L3", kind="gone but there", about=about, at=moment)

    def _ledger_disagrees(self) -> Iterator[Violation]:
        events = Counter(
            (event["kind"], event["session_id"], event["generation"])
            for event in self.evidence.events
        )
        for row in self.evidence.sandboxes:
            key = (row["session_id"], row["generation"])
            opened = events["session_opened", *key] + events["session_reopened", *key]
            ended = events["session_ended", *key]
            gone = events["sandbox_gone", *key]
            is_gone = row["state"] == SandboxState.GONE
            if opened != 1 or ended > 1 or (is_gone and ended != 1) or (gone == 1) != is_gone:
                about = f"{key} is {row['state']}: opened {opened}, ended {ended}, gone {gone}"
                yield Violation(promise="H1", kind="ledger disagrees", about=about)
        extensions = Counter(
            (line["id"], line["generation"])
            for line in self.evidence.all_clients()
            if line["what"] == "extend"
        )
        for key, count in extensions.items():
            if events["session_extended", *key] < count:
                about = f"{key}: {count} extensions, {events['session_extended', *key]} recorded"
                yield Violation(promise="H1", kind="ledger disagrees", about=about)

    def _untyped_errors(self) -> Iterator[Violation]:
        for line in self.evidence.all_clients():
            if line["what"] == "crashed":
                yield Violation(promise="H1", kind="untyped error", about=line["error"])

    # How much was tried

    def faults(self) -> dict[str, int]:
        """How often each kind was fired, those of the cloud as operation:fault."""
        fired: Counter[str] = Counter()
        for line in self.evidence.cloud:
            if line["what"] == "asked" and line["fault"] is not None:
                fired[f"{line['op']}:{line['fault']}"] += 1
        for line in self.evidence.director:
            if line["what"] == "fault":
                fired[line["kind"]] += 1
            elif line["what"] == "commits_cut":
                fired["commit_answer_lost"] += line["count"]
        return dict(+fired)

    def inside(self) -> dict[str, int]:
        """Kills and stops whose victim held a turn, or was in the middle of a call."""
        found: Counter[str] = Counter()
        calls = _calls(self.evidence.cloud)
        for line in self.evidence.director:
            if line["what"] not in {"killed", "stopped"}:
                continue
            role = line["name"].rstrip("0123456789-")
            held = any(
                t.client == line["name"] and t.begun <= line["at"] <= t.until for t in self.trusts
            )
            called = any(
                since <= line["at"] <= until for since, until in calls.get(line["pid"], ())
            )
            found[f"{role} {line['what']}"] += 1
            found[f"{role} {line['what']} in a turn"] += held
            found[f"{role} {line['what']} in a call"] += called
        return {name: count for name, count in found.items() if count}

    def counts(self) -> dict[str, int]:
        """What happened besides."""
        lines = Counter(line["what"] for line in self.evidence.all_clients())
        silence = self.timings.silence
        silent = (t for t in self.trusts if t.until - t.begun > silence)
        reasons = Counter(
            "asked" if reason in self.requests else reason for reason in self.reasons.values()
        )
        return {
            "sessions": len(self.evidence.sessions),
            "sandboxes": len(self.boxes),
            "turns": len(self.trusts),
            "silent": sum(1 for _ in silent),
            "told": lines["lost"],
            "extensions": lines["extend"],
            "refusals": lines["refused"],
            "starved": lines["starved"],
            "teardowns": len(self.kills),
            **{f"ended: {reason}": count for reason, count in sorted(reasons.items())},
            "held": sum(event["kind"] == "destruction_held" for event in self.evidence.events),
            "planted": sum(1 for box in self.boxes if box.planted),
            "vanished": sum(1 for box in self.boxes if box.why == "vanished"),
            "expired": sum(1 for box in self.boxes if box.why == "expired"),
            "expired in a turn": sum(1 for box, _ in self.deaths_in_turns if box.why == "expired"),
        }

    def lateness(self) -> dict[str, float]:
        """Seconds from the last reason to live to the teardown's effect, by sandbox."""
        found: dict[str, float] = {}
        last_trust: dict[Key, float] = {}
        for trust in self.trusts:
            last_trust[trust.key] = max(last_trust.get(trust.key, 0.0), min(trust.until, 1e12))
        for box, moment in self.kills:
            key = self._key(box)
            if key is None:
                continue
            lines = self.by_key.get(key, ())
            lived = [box.born, *(_keeps_until(line, self.timings["IDLE_TTL"]) for line in lines)]
            if last_trust.get(key, moment) < moment:
                lived.append(last_trust[key] + self.timings["IDLE_TTL"])
            over = max(lived)
            asked = self.requests.get(self.reasons.get(key, ""))
            found[box.id] = max(0.0, moment - (over if asked is None else min(asked, moment)))
        return found


def _keeps_until(line: Line, ttl: float) -> float:
    seconds: Any = line["seconds"] if line["what"] == "extend" else ttl
    return float(line["asked"] + seconds)


def _lived_through(box: Box, moment: float) -> bool:
    """Clearly before and after this moment."""
    died = float("inf") if box.died is None else box.died
    return box.born < moment - WALL_SLACK and died > moment + WALL_SLACK


def _calls(cloud: Sequence[Line]) -> dict[int, list[tuple[float, float]]]:
    """From when to when each process waited for the cloud; what was never answered had no end."""
    answered = {line["call"]: line["at"] for line in cloud if line["what"] == "answered"}
    found: dict[int, list[tuple[float, float]]] = {}
    asked = sorted(
        (line["pid"], line["at"], answered.get(line["call"], line["at"] + 10.0))
        for line in cloud
        if line["what"] == "asked"
    )
    for pid, spans in groupby(asked, key=lambda call: call[0]):
        found[pid] = [(since, until) for _, since, until in spans]
    return found
