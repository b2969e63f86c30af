"""A provider's whole trial: what became of each check, and how long its calls took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import words
from .contract import CHECKS, Check
from .trial import NotKept, Subject, Trial


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """
    Of one check. `kept` is None when the provider does not claim what it is about; `said` is then
    empty, as for one that is kept. `seconds` is the whole check, `calls` its single calls by kind.
    """

    check: str
    promise: str
    kept: bool | None
    said: str
    seconds: float
    calls: Mapping[str, list[float]]


def verdicts(subject: Subject) -> Iterator[Verdict]:
    """
    Run every check, each with sandboxes of its own, which are gone before the next. A provider that
    raises breaks that check and no other. Raises SettingsError when no handle can be made.
    """
    subject.handle()
    for check in CHECKS:
        yield verdict(check, subject)


def verdict(check: Check, subject: Subject) -> Verdict:
    """Run one of them."""
    trial, began = Trial(subject), time.monotonic()
    concerns = check.concerns(trial.provider)
    said = _said(check, trial) if concerns else ""
    return Verdict(
        check=check.name,
        promise=check.promise,
        kept=not said if concerns else None,
        said=said,
        seconds=time.monotonic() - began,
        calls=dict(trial.seconds),
    )


def _said(check: Check, trial: Trial) -> str:
    """What is wrong, if anything: the check itself, or that what it made cannot be made to go."""
    try:
        said = _failure(lambda: check.run(trial))
    finally:  # after Ctrl-C too: nobody else knows what it made
        left = _failure(trial.close)
    return said or left


def _failure(do: Callable[[], None]) -> str:
    try:
        do()
    except NotKept as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever a provider raises, the next is tried
        return words(error)
    return ""
