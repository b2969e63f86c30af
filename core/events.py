"""What happened, said once: the Event, its kinds, and the sinks that hear it after the commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from structlog.typing import EventDict, Processor

logger = logging.getLogger("sandkeeper")


class EventKind(StrEnum):
    """Everything that is ever recorded or logged. docs/lifecycle.md has the table."""

    # Moves: in the ledger, in the transaction that made them.
    SESSION_OPENED = "session_opened"  # a new session and its sandbox's row
    SESSION_REOPENED = "session_reopened"  # an ended session, with the next generation
    SESSION_NOTICED = "session_noticed"  # idle at first sight; ends unless it shows activity
    SESSION_EXTENDED = "session_extended"  # a caller asked to keep it until a later moment
    SESSION_PINNED = "session_pinned"  # somebody keeps it until a date, and says why
    SESSION_UNPINNED = "session_unpinned"  # the pin was lifted before its date
    SESSION_ENDED = "session_ended"  # active to ended, its sandbox to closing
    SANDBOX_RUNNING = "sandbox_running"  # the provider's id is recorded
    TEARDOWN_FAILED = "teardown_failed"  # an attempt failed and will be made again
    TEARDOWN_QUARANTINED = "teardown_quarantined"  # as above, and an operator should look
    SANDBOX_GONE = "sandbox_gone"  # the provider confirmed absence; once a generation
    QUARANTINE_RETRIED = "quarantine_retried"  # an operator ended the pauses of failed teardowns
    ORPHAN_GONE = "orphan_gone"  # a sandbox that no row explains was torn down
    DESTRUCTION_HELD = "destruction_held"  # everything destructive waits for an operator
    HOLD_DECIDED = "hold_decided"  # an operator approved or denied
    STORE_RESTORED = "store_restored"  # an operator said that a backup was brought back
    CIRCUIT_OPENED = "circuit_opened"  # a provider fails: no more calls for a while
    CIRCUIT_CLOSED = "circuit_closed"  # it answers again
    SWEEP_ASKED = "sweep_asked"  # an operator asked for a sweep at once
    TOKEN_CREATED = "token_created"  # noqa: S105 - somebody may call the HTTP API
    TOKEN_REVOKED = "token_revoked"  # noqa: S105 - and may no more
    POLICY_CHANGED = "policy_changed"  # an operator set or unset limits of one layer
    WINDOW_CHANGED = "window_changed"  # an operator added or took away a maintenance window
    ROW_POISONED = "row_poisoned"  # the sweep could not move this row, and went on without it
    # Not moves: logged only.
    FAN_OUT_FAILED = "fan_out_failed"  # teardowns were not published; the next sweep does it
    BEAT_FAILED = "beat_failed"  # heartbeats could not be written; they are tried again
    SWEEP_LATE = "sweep_late"  # the sweep's pulse is old, or there never was one
    EXTEND_FAILED = "extend_failed"  # the provider's TTL was not extended; it is tried again
    RECONCILE_SKIPPED = "reconcile_skipped"  # a provider could not be compared; nothing concluded
    ORPHAN_FAILED = "orphan_failed"  # one was not torn down; the next pass tries again
    OTHER_INSTALLATIONS = "other_installations"  # the account has sandboxes that are not ours
    TURN_LOST = "turn_lost"  # a heartbeat was refused; the holder was told
    TURN_END_FAILED = "turn_end_failed"  # a turn's end was not recorded; it stops beating


LOGGED = {
    EventKind.FAN_OUT_FAILED,
    EventKind.BEAT_FAILED,
    EventKind.SWEEP_LATE,
    EventKind.EXTEND_FAILED,
    EventKind.RECONCILE_SKIPPED,
    EventKind.ORPHAN_FAILED,
    EventKind.OTHER_INSTALLATIONS,
    EventKind.TURN_LOST,
    EventKind.TURN_END_FAILED,
}
RECORDED = frozenset(EventKind) - LOGGED
_WARNINGS = {
    EventKind.TEARDOWN_FAILED,
    EventKind.FAN_OUT_FAILED,
    EventKind.BEAT_FAILED,
    EventKind.TURN_LOST,
    EventKind.TURN_END_FAILED,
    EventKind.EXTEND_FAILED,
    EventKind.RECONCILE_SKIPPED,
    EventKind.ORPHAN_FAILED,
    EventKind.OTHER_INSTALLATIONS,
    EventKind.CIRCUIT_OPENED,
}
_ERRORS = {
    EventKind.TEARDOWN_QUARANTINED,
    EventKind.ROW_POISONED,
    EventKind.DESTRUCTION_HELD,
    EventKind.SWEEP_LATE,
}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One act. `actor` is who did it: a process that holds turns, the sweep, a worker, a person."""

    kind: EventKind
    actor: str
    session_id: str | None = None
    generation: int | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


Sink = Callable[[Event], None]


class Log:
    """
    The sink that writes to the standard library's logger `sandkeeper`, where the program that we
    run in decides what becomes of it: WARNING when we retry, ERROR when a human is needed. A line
    is `SandboxGone session_id='conv-42' …`, or a JSON object with the same fields.
    """

    def __init__(self, style: str = "console") -> None:
        self._logger = structlog.wrap_logger(
            logging.getLogger("sandkeeper"),
            processors=[
                structlog.contextvars.merge_contextvars,
                _without_blanks,
                *_STYLES[style],
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        )

    def __call__(self, event: Event) -> None:
        level = (
            logging.ERROR
            if event.kind in _ERRORS
            else logging.WARNING
            if event.kind in _WARNINGS
            else logging.INFO
        )
        self._logger.log(
            level,
            event.kind.value.title().replace("_", ""),
            session_id=event.session_id,
            generation=event.generation,
            actor=event.actor,
            **event.detail,
        )


def _without_blanks(_logger: object, _name: str, fields: EventDict) -> EventDict:
    return {name: value for name, value in fields.items() if value is not None}


def _line(_logger: object, _name: str, fields: EventDict) -> str:
    sentence = str(fields.pop("event"))
    return " ".join([sentence, *(f"{name}={value!r}" for name, value in fields.items())])


_STYLES: Mapping[str, list[Processor]] = {
    "console": [_line],
    "json": [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(default=str),
    ],
}


def emit(sinks: Iterable[Sink], events: Iterable[Event]) -> None:
    """Tell every sink every event. A sink that fails must not undo what is committed."""
    for event in events:
        for sink in sinks:
            try:
                sink(event)
            except Exception:
                logger.exception("SinkFailed kind=%s", event.kind.value)
