"""How much was tried in a run, and how late teardowns were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tests.chaos.case import Case
from tests.chaos.evidence import Key
from tests.chaos.journal import Line


def faults(case: Case) -> dict[str, int]:
    """How often each kind was fired, those of the cloud as operation:fault."""
    fired: Counter[str] = Counter()
    for line in case.evidence.cloud:
        if line["what"] == "asked" and line["fault"] is not None:
            fired[f"{line['op']}:{line['fault']}"] += 1
    for line in case.evidence.director:
        if line["what"] == "fault":
            fired[line["kind"]] += 1
        elif line["what"] == "commits_cut":
            fired["commit_answer_lost"] += line["count"]
    return dict(+fired)


def inside(case: Case) -> dict[str, int]:
    """Kills and stops whose victim held a turn, or was in the middle of a call."""
    found: Counter[str] = Counter()
    calls = _calls(case.evidence.cloud)
    for line in case.evidence.director:
        if line["what"] not in {"killed", "stopped"}:
            continue
        role = line["name"].rstrip("0123456789-")
        held = any(
            t.client == line["name"] and t.begun <= line["at"] <= t.until for t in case.trusts
        )
        called = any(since <= line["at"] <= until for since, until in calls.get(line["pid"], ()))
        found[f"{role} {line['what']}"] += 1
        found[f"{role} {line['what']} in a turn"] += held
        found[f"{role} {line['what']} in a call"] += called
    return {name: count for name, count in found.items() if count}


def counts(case: Case) -> dict[str, int]:
    """What happened besides."""
    lines = Counter(line["what"] for line in case.evidence.all_clients())
    silence = case.timings.silence
    silent = (t for t in case.trusts if t.until - t.begun > silence)
    reasons = Counter(
        "asked" if reason in case.requests else reason for reason in case.reasons.values()
    )
    return {
        "sessions": len(case.evidence.sessions),
        "sandboxes": len(case.boxes),
        "turns": len(case.trusts),
        "silent": sum(1 for _ in silent),
        "told": lines["lost"],
        "extensions": lines["extend"],
        "refusals": lines["refused"],
        "starved": lines["starved"],
        "teardowns": len(case.kills),
        **{f"ended: {reason}": count for reason, count in sorted(reasons.items())},
        "held": sum(event["kind"] == "destruction_held" for event in case.evidence.events),
        "planted": sum(1 for box in case.boxes if box.planted),
        "vanished": sum(1 for box in case.boxes if box.why == "vanished"),
        "expired": sum(1 for box in case.boxes if box.why == "expired"),
        "expired in a turn": sum(1 for box, _ in case.deaths_in_turns if box.why == "expired"),
    }


def lateness(case: Case) -> dict[str, float]:
    """Seconds from the last reason to live to the teardown's effect, by sandbox."""
    found: dict[str, float] = {}
    last_trust: dict[Key, float] = {}
    for trust in case.trusts:
        last_trust[trust.key] = max(last_trust.get(trust.key, 0.0), min(trust.until, 1e12))
    for box, moment in case.kills:
        key = case.key(box)
        if key is None:
            continue
        lines = case.by_key.get(key, ())
        lived = [box.born, *(_keeps_until(line, case.timings["IDLE_TTL"]) for line in lines)]
        if last_trust.get(key, moment) < moment:
            lived.append(last_trust[key] + case.timings["IDLE_TTL"])
        over = max(lived)
        asked = case.requests.get(case.reasons.get(key, ""))
        found[box.id] = max(0.0, moment - (over if asked is None else min(asked, moment)))
    return found


def _keeps_until(line: Line, ttl: float) -> float:
    seconds: Any = line["seconds"] if line["what"] == "extend" else ttl
    return float(line["asked"] + seconds)


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
