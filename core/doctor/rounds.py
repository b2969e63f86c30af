"""Making the round: each look bounded in time, and none of them the end of the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ..errors import SandkeeperError, words
from .findings import Answer, Examination, Finding, Level, failure, note
from .patient import Patient
from .redaction import Redaction

T = TypeVar("T")


class TooSlow(Exception):
    """There was no answer in time."""


def examine(patient: Patient, examinations: Iterable[Examination[Any]]) -> Iterator[Finding]:
    """Every finding, in order, as it is found. Nothing that an examination does can raise here."""
    redaction = Redaction.of(patient.environ)
    failed: set[str] = set()
    for examination in examinations:
        for finding in _one(patient, examination, failed):
            yield Finding(
                check=finding.check,
                level=finding.level,
                says=redaction.hide(finding.says),
                fix=redaction.hide(finding.fix),
            )


def _one(patient: Patient, examination: Examination[Any], failed: set[str]) -> Iterator[Finding]:
    first = next((name for name in examination.needs if name in failed), None)
    if first is not None:
        failed.add(examination.name)
        yield _finding(examination.name, note(f"not looked at: {first} comes first"))
        return
    try:
        facts = bounded(lambda: examination.look(patient), patient.within)
    except Exception as error:  # noqa: BLE001 - whatever a driver or a provider raises
        failed.add(examination.name)
        yield _finding(examination.name, _unchecked(error, examination.fix))
        return
    for check in examination.checks:
        yield _finding(check.__name__, _answer(check, facts, patient.within, examination.fix))


def _answer(check: Callable[[T], Answer], facts: T, within: float, fix: str) -> Answer:
    try:
        return bounded(lambda: check(facts), within)
    except Exception as error:  # noqa: BLE001 - a mistake of ours must not hide what else there is
        return _unchecked(error, fix)


def _unchecked(error: Exception, fix: str) -> Answer:
    if isinstance(error, TooSlow):
        return failure(f"could not be checked: {error}", fix)
    if isinstance(error, SandkeeperError):
        return failure(str(error), fix)
    return failure(f"could not be checked: {words(error)}", fix)


def _finding(check: str, answer: Answer) -> Finding:
    one_line = " ".join(answer.says.split())
    return Finding(check=check, level=answer.level, says=one_line, fix=answer.fix)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of all."""
    return max((finding.level for finding in findings), key=list(Level).index, default=Level.OK)


def bounded(work: Callable[[], T], within: float) -> T:
    """
    What `work` gives or raises, or TooSlow after `within` seconds. A driver that hangs in a system
    call cannot be interrupted: its thread is left behind, and does not keep the process.
    """
    done: SimpleQueue[Callable[[], T]] = SimpleQueue()
    threading.Thread(
        target=_deliver, args=(work, done), name="sandkeeper-doctor", daemon=True
    ).start()
    try:
        outcome = done.get(timeout=within)
    except Empty:
        raise TooSlow(f"no answer within {within:g} s") from None
    return outcome()


def _deliver(work: Callable[[], T], done: SimpleQueue[Callable[[], T]]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        raised = error

        def again() -> T:
            raise raised

        done.put(again)
    else:
        done.put(lambda: result)
