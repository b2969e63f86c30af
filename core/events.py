"""What happened, said once: the Event, its kinds, and the sinks that hear it after the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import structlog


class EventKind(StrEnum):
    """Everything that is ever recorded or logged. docs/lifecycle.md has the table."""

    # Moves: in the ledger, in the transaction that made them.
    SESSION_OPENED = "session_opened"  # a new session and its sandbox's row
    SESSION_REOPENED = "session_reopened"  # an ended session, with the next generation
    SESSION_NOTICED = "session_noticed"  # idle at first sight; ends unless it shows activity
    SESSION_EXTENDED = "session_extended"  # a caller asked to keep it until a later moment
    SESSION_ENDED = "session_ended"  # active to ended, its sandbox to closing
    SANDBOX_RUNNING = "sandbox_running"  # the provider's id is recorded
    TEARDOWN_FAILED = "teardown_failed"  # an attempt failed and will be made again
    TEARDOWN_QUARANTINED = "teardown_quarantined"  # as above, and an operator should look
    SANDBOX_GONE = "sandbox_gone"  # the provider confirmed absence; once a generation
    ROW_POISONED = "row_poisoned"  # the sweep could not move this row, and went on without it
    # Not moves: logged only.
    FAN_OUT_FAILED = "fan_out_failed"  # teardowns were not published; the next sweep does it
    BEAT_FAILED = "beat_failed"  # heartbeats could not be written; they are tried again
    TURN_LOST = "turn_lost"  # a heartbeat was refused; the holder was told
    TURN_END_FAILED = "turn_end_failed"  # a turn's end was not recorded; it stops beating


_WARNINGS = {
    EventKind.TEARDOWN_FAILED,
    EventKind.FAN_OUT_FAILED,
    EventKind.BEAT_FAILED,
    EventKind.TURN_LOST,
    EventKind.TURN_END_FAILED,
}
_ERRORS = {EventKind.TEARDOWN_QUARANTINED, EventKind.ROW_POISONED}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One act. `actor` is who did it: a process that holds turns, the sweep, a worker, a person."""

    kind: EventKind
    actor: str
    session_id: str | None = None
    generation: int | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


Sink = Callable[[Event], None]


def log(event: Event) -> None:
    """The sink that writes the log: WARNING when we retry, ERROR when a human is needed."""
    logger = structlog.get_logger("sandkeeper")
    write = (
        logger.error
        if event.kind in _ERRORS
        else logger.warning
        if event.kind in _WARNINGS
        else logger.info
    )
    write(
        event.kind.value.title().replace("_", ""),
        session_id=event.session_id,
        generation=event.generation,
        actor=event.actor,
        **event.detail,
    )


def emit(sinks: Iterable[Sink], events: Iterable[Event]) -> None:
    """Tell every sink every event. A sink that fails must not undo what is committed."""
    for event in events:
        for sink in sinks:
            try:
                sink(event)
            except Exception:  # noqa: BLE001 - the fact stands, heard or not
                structlog.get_logger("sandkeeper").exception("SinkFailed", kind=event.kind.value)
