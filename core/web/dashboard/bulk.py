"""
Many sessions at once: first which and how many, then the act with its reason. What is acted upon
is what was shown: each by its id and generation, so that one that was opened again since is left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Response

from ...errors import InvalidArgument, SandkeeperError, SessionNotFound
from ...lifecycle import Keeper
from ...model import Session, SessionStatus, check_reason, check_session_id
from ...policy import duration
from .door import Act, Acting, Form
from .render import page
from .route import new_router
from .sessions import Filter

router = new_router()

MOST: Final = 500  # sessions of one act
LARGEST: Final = 40_000  # characters of their ids: a body has 64 KiB
ACTS: Final = ("end", "extend")


@dataclass(frozen=True)
class Picked:
    """One session as it was when it was shown."""

    id: str
    generation: int

    @property
    def value(self) -> str:
        return f"{self.id}/{self.generation}"


@dataclass(frozen=True)
class Outcome:
    """What became of one of them."""

    id: str
    done: bool
    words: str


@router.post("/sessions/preview")
async def preview(act: Acting) -> Response:
    """Which sessions it would be, and how many more match."""
    return await act.desk.page(_preview, act)


@router.post("/sessions/act")
async def perform(act: Acting) -> Response:
    """Do it to what was shown."""
    return await act.desk.slow(_perform, act)


def _preview(act: Act) -> Response:
    wanted = Filter.model_validate({name: act.form.one(name) for name in _given(act.form)})
    every = act.form.one("every") == "1"
    matching, more = 0, False
    if every:
        selection, wish = act.desk.keeper.store.selection, wanted.wish(act)
        found = selection.page(wish, limit=MOST).matches
        picked = [Picked(one.id, one.generation) for one in found if one.status == "active"]
        matching, more = selection.count(wish)
    else:
        picked = [_picked(value) for value in act.form.all("pick")]
    shown = _that_fit(picked)
    facts: dict[str, Any] = {
        "verb": _verb(act.form),
        "picked": shown,
        "matching": matching if every else len(picked),
        "more": more,
        "every": every,
        "wanted": wanted,
    }
    return page(act.request, "preview.html", visit=act, **facts)


def _perform(act: Act) -> Response:
    verb, reason = _verb(act.form), check_reason(act.form.one("reason"))
    keeper = act.desk.keeper.acting_as(act.actor)
    by = minutes(act.form) if verb == "extend" else 0.0
    do = _extending(keeper, reason, by) if verb == "extend" else _ending(keeper, reason)
    picked = [_picked(value) for value in act.form.all("pick")][:MOST]
    outcomes = [_tried(act, do, one) for one in picked]
    back = Filter.model_validate({name: act.form.one(name) for name in _given(act.form)})
    facts: dict[str, Any] = {"verb": verb, "outcomes": outcomes, "back": back.address()}
    return page(act.request, "result.html", visit=act, **facts)


Deed = Callable[[Picked], tuple[bool, str]]


def _ending(keeper: Keeper, reason: str) -> Deed:
    def end(one: Picked) -> tuple[bool, str]:
        session: Session = keeper.end(one.id, reason=reason, generation=one.generation)
        if session.generation != one.generation or session.status is SessionStatus.ACTIVE:
            return False, "it was opened again since you saw it: left alone"
        if session.end_reason != reason:
            return False, f"it had ended already ({session.end_reason})"
        return True, "ended"

    return end


def _extending(keeper: Keeper, reason: str, by: float) -> Deed:
    def extend(one: Picked) -> tuple[bool, str]:
        until = keeper.extend(one.id, by, reason=reason).extended_until
        return True, "kept" if until is None else f"kept until {until:%Y-%m-%d %H:%M:%S} UTC"

    return extend


def _tried(act: Act, do: Deed, one: Picked) -> Outcome:
    """One that is refused does not stop the others."""
    try:
        act.expect(one.id)
        done, words = do(one)
    except SessionNotFound:
        return Outcome(one.id, done=False, words="there is no such session")
    except SandkeeperError as error:
        return Outcome(one.id, done=False, words=str(error))
    return Outcome(one.id, done=done, words=words)


def minutes(form: Form) -> float:
    """The field `minutes`, in seconds. InvalidArgument when it is no duration."""
    try:
        return duration("minutes", float(form.one("minutes")) * 60.0)
    except ValueError as error:
        raise InvalidArgument(
            f"minutes {form.one('minutes')!r}: use a number greater than 0"
        ) from error


def _given(form: Form) -> list[str]:
    return [name for name in Filter.model_fields if form.all(name)]


def _verb(form: Form) -> str:
    if form.one("verb") not in ACTS:
        raise InvalidArgument(f"verb {form.one('verb')!r}: use {' or '.join(ACTS)}")
    return form.one("verb")


def _picked(value: str) -> Picked:
    session_id, _, generation = value.rpartition("/")
    if not generation.isdecimal() or len(generation) > 10:
        raise InvalidArgument(f"pick {value[:60]!r}: use id/generation")
    return Picked(check_session_id(session_id), int(generation))


def _that_fit(picked: Sequence[Picked]) -> list[Picked]:
    shown: list[Picked] = []
    size = 0
    for one in picked[:MOST]:
        size += len(one.value) + len("&pick=")
        if size > LARGEST:
            break
        shown.append(one)
    return shown
