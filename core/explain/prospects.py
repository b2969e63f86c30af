"""What happens next to a session and when, and what holds that up."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..model import SandboxState
from ..store.evidence import HoldFacts, ProviderFacts, WindowFacts
from .answer import Point
from .case import Case
from .said import span

APPROVES = "until an operator answers (`sandkeeper breaker status`)"


def obstacles(case: Case) -> tuple[Point, ...]:
    """What holds up ends and teardowns: questions, the provider, a sweep that does not come."""
    found = [_hold(case, hold) for hold in case.facts.holds if hold.decision != "approved"]
    if not case.facts.unheld and not any(hold.until is None for hold in case.facts.holds):
        sentence = (
            "Nothing is destroyed: this is not the database that the installation knows, and the "
            "next sweep asks an operator about it."
        )
        found.append(Point(kind="identity", sentence=sentence))
    if case.window is not None and case.active:
        found.append(_window(case, case.window))
    if case.facts.provider is not None:
        found += _provider(case, case.facts.provider)
    return (*found, *_pulse(case))


def steps(case: Case) -> tuple[Point, ...]:
    """In order, if nothing else happens."""
    if not case.active:
        return _of_ended(case)
    if case.box.state is SandboxState.CREATING:
        return _of_creating(case)
    look = max(case.session.due_at, case.now)
    if not case.over:
        ends_at = case.facts.ends_at
        found = () if look >= ends_at else (_rearm(case, look),)
        return (*found, *_notice_and_end(case, max(look, ends_at)))
    if not case.noticed:
        return _notice_and_end(case, look)
    assert case.session.noticed_at is not None  # noqa: S101 - it was noticed
    return (_end(case, max(look, case.session.noticed_at + _confirm(case))),)


# What holds it up


def _window(case: Case, window: WindowFacts) -> Point:
    sentence = (
        f"Maintenance window {window.name} is open until {case.said(window.until_at)} "
        f"({window.reason}): nothing is ended for idleness before. Max age and end() still act."
    )
    values = {"window": window.name, "reason": window.reason}
    return Point(kind="window", until=window.until_at, values=values, sentence=sentence)


def _hold(case: Case, hold: HoldFacts) -> Point:
    values = {"reason": hold.reason, "decision": hold.decision, "decided_by": hold.decided_by}
    since = f"since {case.said(hold.since)}"
    if hold.until is None:
        denied = "" if hold.decided_by is None else f", which {hold.decided_by} has denied"
        sentence = f"Nothing is destroyed {since}: {hold.reason}{denied}; {APPROVES}."
        return Point(kind="hold", at=hold.since, values=values, sentence=sentence)
    said = f"{hold.decided_by} has denied {hold.reason}"
    until = f"until {case.said(hold.until)}"
    sentence = f"{said}: what it asked about is left alone {until}; the rest goes on."
    return Point(kind="denied", at=hold.since, until=hold.until, values=values, sentence=sentence)


def _provider(case: Case, health: ProviderFacts) -> list[Point]:
    found, name = list[Point](), health.provider
    values = {"failures": health.failures, "last_error": health.last_error}
    if health.open_until is not None:
        said = "" if health.last_error is None else f" ({health.last_error})"
        probe = f"one call may try {case.said(health.open_until)}"
        sentence = f"{name} keeps failing{said}: its circuit is open, and {probe}."
        found.append(
            Point(kind="circuit", until=health.open_until, values=values, sentence=sentence)
        )
    if health.limited_until is not None and health.limited_until > case.now:
        until = f"until {case.said(health.limited_until)}"
        sentence = f"{name} wants fewer calls: no teardown calls it {until}."
        pace = {"spacing": health.spacing}
        found.append(
            Point(kind="rate_limit", until=health.limited_until, values=pace, sentence=sentence)
        )
    return found


def _pulse(case: Case) -> list[Point]:
    swept_at, late_after = case.facts.swept_at, case.policy.late_after
    age = (case.now - (swept_at or case.facts.installed_at)).total_seconds()
    if abs(age) <= late_after:
        return []
    since = case.said(swept_at or case.facts.installed_at)
    last = f"none ran since it was installed {since}" if swept_at is None else f"it ran {since}"
    intervals = int(abs(age) / case.policy.confirm_interval)
    stood_in = case.facts.stood_in_at
    instead = "" if stood_in is None else f"; a stand-in swept {case.said(stood_in)}"
    sentence = (
        f"The sweep is late: {last}, which is {intervals} confirm intervals of "
        f"{span(case.policy.confirm_interval)}{instead}. Nothing scheduled moves it on."
    )
    stand_in = None if stood_in is None else stood_in.isoformat()  # values are plain JSON
    values = {"intervals": intervals, "late_after": late_after, "stood_in_at": stand_in}
    return [Point(kind="sweep_late", at=swept_at, values=values, sentence=sentence)]


# What comes


def _rearm(case: Case, at: datetime) -> Point:
    sentence = f"The first sweep from {case.said(at)} on finds it not over, and looks again later."
    return Point(kind="rearm", at=at, sentence=sentence)


def _notice_and_end(case: Case, at: datetime) -> tuple[Point, ...]:
    sentence = f"The first sweep from {case.said(at)} on notices it, unless it is active by then."
    return (Point(kind="notice", at=at, sentence=sentence), _end(case, at + _confirm(case)))


def _end(case: Case, at: datetime) -> Point:
    return _destroys(
        case,
        "end",
        at,
        f"The first sweep from {case.said(at)} on ends it, unless it is active by then",
    )


def _of_creating(case: Case) -> tuple[Point, ...]:
    assert case.box.due_at is not None  # noqa: S101 - it is being created
    at = max(case.box.due_at, case.now)
    said = f"The first sweep from {case.said(at)} on ends it, unless its open() is answered before"
    return (_destroys(case, "create_deadline", at, said),)


def _of_ended(case: Case) -> tuple[Point, ...]:
    box = case.box
    if box.gone_at is not None:
        return _purge(case)
    assert box.due_at is not None  # noqa: S101 - it is closing
    assert box.not_before is not None  # noqa: S101 - likewise
    values = {"attempts": box.attempts, "claimed_by": box.claimed_by}
    if box.not_before > case.now:
        if box.claimed_by is not None:
            until = f"{box.claimed_by} has {case.said(box.not_before)} as its limit"
            sentence = f"Its teardown is under way: {until}; then another worker may take over."
            return (Point(kind="claim", until=box.not_before, values=values, sentence=sentence),)
        said = f"Its teardown is tried again from {case.said(box.not_before)} on"
        return (_destroys(case, "retry", box.not_before, said, **values),)
    at = max(box.due_at, case.now)
    lost = "" if box.claimed_by is None else f"The claim of {box.claimed_by} has run out. "
    said = f"{lost}The first sweep from {case.said(at)} on publishes its teardown to the workers"
    return (_destroys(case, "publish", at, said, **values),)


def _purge(case: Case) -> tuple[Point, ...]:
    gone = [box.gone_at for box in case.facts.sandboxes]
    dates = [date for date in (*gone, case.session.ended_at) if date is not None]
    if None in gone:
        sentence = "Nothing more happens to it; it is forgotten after its earlier sandboxes went."
        return (Point(kind="purge", sentence=sentence),)
    at = max(dates) + timedelta(seconds=case.policy.retention)
    sentence = f"Nothing more happens to it; it is forgotten from {case.said(at)} on."
    return (Point(kind="purge", at=at, sentence=sentence),)


def _destroys(case: Case, kind: str, at: datetime, said: str, **values: object) -> Point:
    """A step that waits while anything is held, and a teardown for its provider as well."""
    waits = [] if case.facts.unheld else ["the hold is answered"]
    if kind == "end" and case.window is not None and not _ends_by_age(case, at):
        waits.append(f"the maintenance window is over ({case.said(case.window.until_at)})")
    health = case.facts.provider
    if kind in {"retry", "publish"} and health is not None:
        dates = [date for date in (health.open_until, health.limited_until) if date is not None]
        if dates and max(dates) > case.now:
            waits.append(f"its provider may be called ({case.said(max(dates))})")
    until = f", but not before {' and '.join(waits)}" if waits else ""
    return Point(
        kind=kind, at=at, values={**values, "held": bool(waits)}, sentence=f"{said}{until}."
    )


def _ends_by_age(case: Case, at: datetime) -> bool:
    return case.facts.age_ends is not None and case.facts.age_ends <= at


def _confirm(case: Case) -> timedelta:
    return timedelta(seconds=case.policy.confirm_interval)
