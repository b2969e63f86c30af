"""What harms somebody who is at work: S1."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import EndReason
from tests.chaos.case import Case
from tests.chaos.violation import Violation


def _turns_harmed(case: Case) -> Iterator[Violation]:
    for box, trust in case.deaths_in_turns:
        if box.why == "destroyed" or box.shortened:
            about = f"{box.name} of {trust.key}, turn {trust.turn} of {trust.client}, "
            about += f"{box.why}, ended for {case.reasons.get(trust.key)}"
            yield Violation(promise="S1", kind="turn harmed", about=about, at=box.died)


def _dead_at_begin(case: Case) -> Iterator[Violation]:
    died = {box.id: moment for box, moment in case.kills}
    for trust in case.trusts:
        if died.get(trust.external_id, float("inf")) < trust.asked:
            about = f"{trust.key}, turn {trust.turn} began on {trust.external_id}"
            yield Violation(promise="S1", kind="dead sandbox handed out", about=about)


def _ended_too_early(case: Case) -> Iterator[Violation]:
    for box, moment in case.kills:
        key = case.key(box)
        if key is None or case.reasons.get(key) != EndReason.IDLE:
            continue
        for line in case.by_key.get(key, ()):
            if line["what"] == "extend":  # keeps by a date of its own, and is no activity
                continue
            early = line["asked"] + case.timings.silence - moment
            if early > 0.01 and not case.stepped(line["asked"], moment):
                about = f"{box.name} of {key}: {line['what']}, then {early:.2f} s too early"
                yield Violation(promise="S1", kind="activity ignored", about=about, at=moment)


def _extensions_broken(case: Case) -> Iterator[Violation]:
    for box in case.boxes:
        key, moment = case.key(box), box.died
        if key is None or moment is None or box.why == "vanished":
            continue
        if case.asked_for(key, moment) or case.too_old(key, moment):
            continue
        for line in case.by_key.get(key, ()):
            if line["what"] != "extend" or case.stepped(line["asked"], moment):
                continue
            if box.why == "expired" and line["asked"] >= moment:
                continue  # all of us were away for too long: there was nothing left to keep
            early = line["asked"] + line["seconds"] - moment
            if early > 0.01:
                about = f"{box.name} of {key}, {early:.2f} s before its date"
                yield Violation(promise="S1", kind="extension broken", about=about, at=moment)


RULES = (_turns_harmed, _dead_at_begin, _ended_too_early, _extensions_broken)
