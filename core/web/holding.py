"""What a client knows of the turn that it holds, and what an answer means. No I/O in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx2

from .. import errors
from ..errors import (
    SandkeeperError,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    SettingsError,
    TurnExpired,
)
from ..turn import Lost
from .answers import SandboxAnswer, TurnAnswer
from .problems import KINDS, PREFIX, TURN_NOT_FOUND

OPEN_WITHIN: Final = 330.0  # seconds: what the server gives a provider by default, and some
BEAT_WITHIN: Final = 10.0  # seconds for one heartbeat, at most
OVER: Final = (SessionEnded, TurnExpired, SessionNotFound)


class Holding:
    """A turn from its holder's side: where to work, until when, and whether it was lost."""

    def __init__(
        self, answer: TurnAnswer, asked: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.answer = answer
        self.lost = Lost()
        self._monotonic = monotonic
        # By this machine's clock, and from before the question was on its way.
        self._ceiling = asked + (answer.hard_until - answer.started_at).total_seconds()

    @property
    def id(self) -> str:
        return self.answer.turn_id

    @property
    def sandbox(self) -> SandboxAnswer:
        """Where to work: `external_id` is the provider's id."""
        return self.answer.sandbox

    @property
    def fresh(self) -> bool:
        """Whether this is the first turn on its sandbox, which is empty then."""
        return self.answer.fresh

    @property
    def address(self) -> str:
        return f"/v1/sessions/{self.answer.session_id}/turns/{self.id}"

    @property
    def beat_within(self) -> float:
        """Seconds for one heartbeat: the next one must not wait for it."""
        return min(BEAT_WITHIN, self.answer.heartbeat_every)

    def check(self) -> None:
        """Raise SessionEnded or TurnExpired as soon as this turn may not go on."""
        self._expire()
        if self.lost.error is not None:
            raise self.lost.error

    def heard(self, error: SandkeeperError | None) -> float | None:
        """
        What a heartbeat was answered. Gives the seconds until the next, None when there is none.
        What is no answer refuses nothing: the turn goes on, and beats sooner.
        """
        self._expire()
        if isinstance(error, OVER):
            self.lost.set(error)
        if self.lost.is_set():
            return None
        pause = self.answer.heartbeat_every / (1 if error is None else 4)
        return min(pause, max(0.0, self._ceiling - self._monotonic()))

    def ended(self, error: SandkeeperError | None, *, repeated: bool) -> None:
        """
        What the end was answered. Whoever had to ask twice may have been heard the first time;
        but what was lost before stays lost.
        """
        self.check()
        twice = isinstance(error, TurnExpired) and error.reason == "it was ended"
        if error is not None and not (repeated and twice):
            raise error

    def _expire(self) -> None:
        if self._monotonic() >= self._ceiling:
            reason = "it passed its hard ceiling"
            self.lost.set(TurnExpired(self.answer.session_id, self.id, reason=reason))


def error_of(answer: httpx2.Response) -> SandkeeperError | None:
    """The error that the server raised, None where it raised none."""
    status = answer.status_code
    if status < 400:
        return None
    body = _body(answer)
    name = str(body.get("type", "")).removeprefix(PREFIX)
    said = str(body.get("detail", "")) or f"HTTP {status} from {answer.url.host}"
    if name in _MADE_FROM_FACTS:
        return _MADE_FROM_FACTS[name](_Facts(body))
    if name in _BY_TYPE:
        return _BY_TYPE[name](said)
    if status in {401, 403}:
        return SettingsError(f"the API token: {said}")
    return errors.InvalidArgument(said) if status < 500 else errors.StoreUnavailable(said)


def unreachable(url: str, error: Exception) -> errors.StoreUnavailable:
    """No server answered. It may have done what it was asked to."""
    return errors.StoreUnavailable(f"no answer from {url} ({error!r}): it is tried again")


class _Facts:
    """What a problem says besides its words."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.session_id = str(body.get("session_id", "?"))
        self.turn_id = str(body.get("turn_id", "?"))
        self.reason = str(body.get("reason", "the server has no such turn"))


# These classes are made from what happened; the others from words.
_MADE_FROM_FACTS: Final[Mapping[str, Callable[[_Facts], SandkeeperError]]] = {
    KINDS[SessionNotFound].type: lambda at: SessionNotFound(at.session_id),
    KINDS[SessionNotReady].type: lambda at: SessionNotReady(at.session_id),
    KINDS[SessionEnded].type: lambda at: SessionEnded(at.session_id, reason=at.reason),
    KINDS[TurnExpired].type: lambda at: TurnExpired(at.session_id, at.turn_id, reason=at.reason),
    TURN_NOT_FOUND.type: lambda at: TurnExpired(at.session_id, at.turn_id, reason=at.reason),
}
_BY_TYPE: Final[Mapping[str, type[SandkeeperError]]] = {
    kind.type: error for error, kind in KINDS.items()
}


def _body(answer: httpx2.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
