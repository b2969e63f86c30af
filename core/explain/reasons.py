"""Why the last sweep left a session alone, and why one was taken."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..events import EventKind
from ..model import EndReason, SandboxState
from ..store.history import Recorded
from .case import Case
from .said import span

ENDED, POISONED = EventKind.SESSION_ENDED.value, EventKind.ROW_POISONED.value


def not_reaped(case: Case) -> str | None:
    """Why the last sweep did not end it; None when it has ended."""
    if not case.active:
        return None
    swept_at = case.facts.swept_at
    if swept_at is None:
        return "No sweep ever ran."
    return f"The last sweep was {case.said(swept_at)}: {_spared(case, swept_at)}."


def _spared(case: Case, swept_at: datetime) -> str:
    session, ends_at = case.session, case.facts.ends_at
    if session.last_activity_at > swept_at:
        return "it was active after that"
    if case.box.state is SandboxState.CREATING:
        return _not_expired(case, swept_at)
    if ends_at > swept_at:
        return f"it is not over, {_keeps(case)} until {case.said(ends_at)}"
    return _over_and_spared(case, swept_at)


def _over_and_spared(case: Case, swept_at: datetime) -> str:
    session = case.session
    if not case.facts.unheld:
        return "nothing may be ended while there is a hold"
    if case.window is not None and not case.too_old:
        window = case.window
        return f"maintenance window {window.name} is open until {case.said(window.until_at)}"
    if case.noticed and session.noticed_at is not None:
        confirm = span(case.policy.confirm_interval)
        return f"it was noticed {case.said(session.noticed_at)}, and may end {confirm} after that"
    if session.due_at > swept_at:
        return f"its date had not come: the sweep looks at it from {case.said(session.due_at)} on"
    return f"it was due and was left: {_left(case)}"


def _not_expired(case: Case, swept_at: datetime) -> str:
    if case.box.due_at is not None and case.box.due_at > swept_at:
        return f"its sandbox may be created until {case.said(case.box.due_at)}"
    if not case.facts.unheld:
        return "nothing may be ended while there is a hold"
    return f"its create was overdue and was left: {_left(case)}"


def _keeps(case: Case) -> str:
    ends_at, session = case.facts.ends_at, case.session
    if ends_at == session.pinned_until:
        return "a pin keeps it"
    if ends_at == session.extended_until:
        return "an extension keeps it"
    if ends_at == case.facts.age_ends:
        return "its max age ends later, and its last activity keeps it"
    if ends_at > session.last_activity_at + timedelta(seconds=session.idle_ttl):
        return "what was promised before the database's clock stepped back keeps it"
    return "its last activity keeps it"


def _left(case: Case) -> str:
    poisoned = [line for line in case.facts.history if line.kind == POISONED]
    if poisoned:
        return f"the database refused to move it ({poisoned[-1].detail.get('error')})"
    return "somebody held its row, or the sweep was stopped before it; which is not recorded"


def taken(case: Case) -> str | None:
    """Why it was ended, or, of a session that was opened again, why the sandbox before went."""
    ends = [line for line in case.facts.history if line.kind == ENDED]
    if not case.active:
        return _ended(case, ends)
    if case.session.reset_reason is None:
        return None
    why = f"its session was ended ({case.session.reset_reason}){_by(case, ends)}"
    return f"The sandbox before this one went, because {why}."


def _ended(case: Case, ends: list[Recorded]) -> str:
    session = case.session
    said = f"It was ended{_by(case, ends)}: {_why(case)}"
    active = f"Its last activity was {case.said(session.last_activity_at)}"
    if session.end_reason == EndReason.IDLE and session.noticed_at is not None:
        return f"{said}. {active}, and it was noticed {case.said(session.noticed_at)}."
    return f"{said}. {active}."


def _by(case: Case, ends: list[Recorded]) -> str:
    if not ends:
        return ""
    return f" by {ends[-1].actor} {case.said(ends[-1].at)}"


def _why(case: Case) -> str:
    session = case.session
    ttl = "never-used TTL" if case.unused else "idle TTL"
    idle = span(case.idle_ttl)
    age = "" if session.max_age is None else f" of {span(session.max_age)}"
    known = {
        EndReason.IDLE.value: f"idle for longer than its {ttl} of {idle}, and looked at twice",
        EndReason.MAX_AGE.value: f"its max age{age} was over",
        EndReason.LOST.value: "lost, its provider said that the sandbox is not there",
        EndReason.EVICTED.value: "its tenant was full, and it was idle for longest when another "
        "session was opened",
        EndReason.CREATE_FAILED.value: "its sandbox could never be made",
        EndReason.CREATE_EXPIRED.value: "nobody finished creating its sandbox in time",
    }
    reason = session.end_reason or ""
    return known.get(reason, f"the reason that was given is {reason!r}")
