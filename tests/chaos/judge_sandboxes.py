"""What is touched, ended or left that should not be: S2 to S4, L1 and L2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from core.model import EndReason, SandboxState, SessionStatus
from tests.chaos.case import Case
from tests.chaos.evidence import to_monotonic
from tests.chaos.violation import Violation

WALL_SLACK = 0.25  # seconds; where a date of the database is compared with a moment of ours


def _foreign_touched(case: Case) -> Iterator[Violation]:
    for line in case.evidence.cloud:
        if line.get("planted") != "foreign" or line["what"] == "born":
            continue
        if line["what"] == "extended" or line.get("why") == "destroyed":
            yield Violation(promise="S2", kind="foreign touched", about=line["id"], at=line["at"])


def _more_than_one_gone(case: Case) -> Iterator[Violation]:
    gone = Counter(
        (event["session_id"], event["generation"])
        for event in case.evidence.events
        if event["kind"] == "sandbox_gone"
    )
    for key, count in gone.items():
        if count > 1:
            yield Violation(promise="S3", kind="gone twice", about=f"{key}, {count} events")


def _destroyed_out_of_turn(case: Case) -> Iterator[Violation]:
    """A teardown of one generation takes effect after that generation's own end."""
    ended = {
        (event["session_id"], event["generation"]): to_monotonic(case.evidence, event["at"])
        for event in case.evidence.events
        if event["kind"] == "session_ended"
    }
    for box, moment in case.kills:
        key = case.key(box)
        if key is None:
            continue
        if key not in ended:
            yield Violation(promise="S3", kind="never ended", about=f"{box.name} of {key}")
        elif not case.steps and moment < ended[key] - WALL_SLACK:
            about = f"{box.name} of {key}"
            yield Violation(promise="S3", kind="before its end", about=about, at=moment)


def _lost_but_there(case: Case) -> Iterator[Violation]:
    """Lost is said of what the provider no longer has; this one it still had."""
    for box, moment in case.kills:
        key = case.key(box)
        if key is not None and case.ids[key] and case.reasons.get(key) == EndReason.LOST:
            about = f"{box.name} of {key}"
            yield Violation(promise="S4", kind="lost but there", about=about, at=moment)


def _left_behind(case: Case) -> Iterator[Violation]:
    for box in case.boxes:
        if box.died is None and box.planted != "foreign":
            of = case.names.get(box.name, "no row")
            about = f"{box.id} {box.name} of {of}, {box.planted or 'created'}"
            yield Violation(promise="L1", kind="left behind", about=about, at=box.born)


def _not_final(case: Case) -> Iterator[Violation]:
    for row in case.evidence.sandboxes:
        if row["state"] != SandboxState.GONE:
            about = f"{row['session_id']} generation {row['generation']} is {row['state']}"
            yield Violation(promise="L2", kind="row not final", about=about)
    for row in case.evidence.sessions:
        if row["status"] != SessionStatus.ENDED:
            about = f"session {row['id']} is {row['status']}"
            yield Violation(promise="L2", kind="row not final", about=about)


def _too_late(case: Case) -> Iterator[Violation]:
    for box in case.boxes:
        if box.died is None or box.planted == "foreign":
            continue
        late = box.died - max(case.healed, box.born) - case.timings.bound
        if late > 0:
            about = f"{box.name}, {late:.1f} s after the bound"
            yield Violation(promise="L1", kind="too late", about=about, at=box.died)


RULES = (
    _foreign_touched,
    _more_than_one_gone,
    _destroyed_out_of_turn,
    _lost_but_there,
    _left_behind,
    _not_final,
    _too_late,
)
