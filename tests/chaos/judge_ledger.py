"""Where the rows and the ledger disagree with the cloud and the callers: L3 and H1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from core.model import SandboxState
from tests.chaos.case import Case
from tests.chaos.evidence import Box, to_monotonic
from tests.chaos.judge_sandboxes import WALL_SLACK
from tests.chaos.violation import Violation


def _rows_lost(case: Case) -> Iterator[Violation]:
    names = {key: name for name, key in case.names.items()}
    for line in case.evidence.all_clients():
        if line["what"] == "open":
            key = (line["id"], line["generation"])
            if names.get(key) != line["name"]:
                about = f"{key} was opened as {line['name']}, its row says {names.get(key)}"
                yield Violation(promise="H1", kind="row lost", about=about, at=line["at"])


def _gone_without_proof(case: Case) -> Iterator[Violation]:
    """L3: gone is written after the provider itself said that it is not there."""
    absent = {
        line["name"]
        for line in case.evidence.cloud
        if line["what"] == "answered" and line["op"] == "get" and line["status"] == 404
    }
    # Under a name that somebody else has taken, ours is as absent as can be.
    absent |= {box.name for box in case.boxes if box.planted == "foreign"}
    own = {row["external_id"]: row for row in case.evidence.sandboxes if row["external_id"]}
    lives = {
        (own[box.id]["session_id"], own[box.id]["generation"]): box
        for box in case.boxes
        if box.id in own
    }
    names = {key: name for name, key in case.names.items()}
    for event in case.evidence.events:
        if event["kind"] != "sandbox_gone":
            continue
        key = (event["session_id"], event["generation"])
        about = f"{names.get(key)} of {key}"
        if names.get(key) not in absent:
            yield Violation(promise="L3", kind="gone unconfirmed", about=about)
        elif key in lives and not case.steps:
            moment = to_monotonic(case.evidence, event["at"])
            if _lived_through(lives[key], moment):
                yield Violation(promise="L3", kind="gone but there", about=about, at=moment)


def _ledger_disagrees(case: Case) -> Iterator[Violation]:
    events = Counter(
        (event["kind"], event["session_id"], event["generation"]) for event in case.evidence.events
    )
    for row in case.evidence.sandboxes:
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
        for line in case.evidence.all_clients()
        if line["what"] == "extend"
    )
    for key, count in extensions.items():
        if events["session_extended", *key] < count:
            about = f"{key}: {count} extensions, {events['session_extended', *key]} recorded"
            yield Violation(promise="H1", kind="ledger disagrees", about=about)


def _untyped_errors(case: Case) -> Iterator[Violation]:
    for line in case.evidence.all_clients():
        if line["what"] == "crashed":
            yield Violation(promise="H1", kind="untyped error", about=line["error"])


def _lived_through(box: Box, moment: float) -> bool:
    """Clearly before and after this moment."""
    died = float("inf") if box.died is None else box.died
    return box.born < moment - WALL_SLACK and died > moment + WALL_SLACK


RULES = (_rows_lost, _gone_without_proof, _ledger_disagrees, _untyped_errors)
