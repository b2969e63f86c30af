"""What an examination finds: a level, what it saw, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from .patient import Patient

Facts = TypeVar("Facts")


class Level(StrEnum):
    """How bad it is; the later the worse."""

    OK = "ok"
    NOTE = "note"  # somebody should know, and need do nothing
    WARNING = "warning"  # it works, and will not for ever
    FAILURE = "failure"  # a promise is not kept while this is so

    @property
    def is_ok(self) -> bool:
        """Whether nobody has to do anything."""
        return self in {Level.OK, Level.NOTE}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one check makes of the facts. `fix` is what to do, empty when there is nothing."""

    level: Level
    says: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An answer, and the check that gave it."""

    check: str
    level: Level
    says: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Examination(Generic[Facts]):
    """
    Facts, looked up once, and the checks that judge them. `look` may take its time and raise;
    checks are pure, and their docstrings are what docs/doctor.md says of them. `fix` is what to do
    when there are no facts. After a look that failed, examinations that need it are left out.
    """

    name: str
    look: Callable[[Patient], Facts]
    checks: tuple[Callable[[Facts], Answer], ...]
    fix: str
    needs: tuple[str, ...] = ()


def ok(says: str) -> Answer:
    """All is well."""
    return Answer(level=Level.OK, says=says)


def note(says: str, fix: str = "") -> Answer:
    """Somebody should know."""
    return Answer(level=Level.NOTE, says=says, fix=fix)


def warning(says: str, fix: str) -> Answer:
    """It will not go well for ever."""
    return Answer(level=Level.WARNING, says=says, fix=fix)


def failure(says: str, fix: str) -> Answer:
    """It does not go well."""
    return Answer(level=Level.FAILURE, says=says, fix=fix)


def together(answers: Iterable[Answer], otherwise: str) -> Answer:
    """
    One answer out of several of one check: the worst level, and what those of that level say.
    Without any, all is well, `otherwise`.
    """
    given = list(answers)
    if not given:
        return ok(otherwise)
    order = list(Level)
    level = max((answer.level for answer in given), key=order.index)
    worst = [answer for answer in given if answer.level is level]
    fixes = dict.fromkeys(answer.fix for answer in worst if answer.fix)
    return Answer(
        level=level, says="; ".join(answer.says for answer in worst), fix="; ".join(fixes)
    )
