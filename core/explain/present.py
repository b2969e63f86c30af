"""What a session is now: its state, its limits, its last activity, what is left of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from ..events import EventKind
from ..layers import LIMITS
from ..model import SandboxState
from ..store.listings import OPENINGS
from .answer import Activity, Limit, Point
from .case import Case
from .said import span

SAME = timedelta(seconds=0.05)  # between two statements of one move
LAYERS = {"open": "by its own open()", "installation": "by the installation's default"}
BY_NAME = {"tenant": "by the policy of tenant {}", "profile": "by the policy of profile {}"}


def state(case: Case) -> tuple[str, str]:
    """One word for programs, and one sentence."""
    if not case.active:
        return _state_of_ended(case)
    if case.box.state is SandboxState.CREATING:
        return _state_of_creating(case)
    if case.over:
        return _state_of_over(case)
    if any(turn.live for turn in case.turns):
        return "in_turn", "It is active: a turn on it is open, and its idle TTL is not over."
    if case.kept and case.idle_at <= case.now:
        by = " and ".join(sorted(point.kind for point in case.kept))
        return "kept", f"It is idle since {case.said(case.idle_at)}, and kept by its {by}."
    ttl = "never-used TTL" if case.unused else "idle TTL"
    return "active", f"It is active: its {ttl} ends {case.said(case.idle_at)}."


def _state_of_creating(case: Case) -> tuple[str, str]:
    began = f"Its sandbox is being created since {case.said(case.box.created_at)}"
    if case.box.due_at is not None and case.box.due_at <= case.now:
        return "create_overdue", f"{began}, and nobody has finished that in time."
    return "creating", f"{began}."


def _state_of_ended(case: Case) -> tuple[str, str]:
    ended = f"It was ended ({case.session.end_reason})"
    box = case.box
    if box.gone_at is not None:
        return "gone", f"{ended}, and its sandbox is gone since {case.said(box.gone_at)}."
    if box.claimed_by is not None and box.not_before is not None and box.not_before > case.now:
        return "claimed", f"{ended}, and {box.claimed_by} is tearing its sandbox down."
    said = "" if box.last_error is None else f": {box.last_error}"
    if box.quarantined_at is not None:
        often = "once" if box.attempts == 1 else f"{box.attempts} times"
        failed = f"its teardown failed {often} and is in quarantine{said}"
        return "quarantined", f"{ended}, and {failed}. It is tried again all the same."
    if box.last_error is not None:
        return "retrying", f"{ended}, and its teardown failed and is tried again{said}."
    return "closing", f"{ended}, and its sandbox waits to be torn down."


def _state_of_over(case: Case) -> tuple[str, str]:
    why = "older than its max age" if case.too_old else "idle for longer than it may be"
    said = f"It is {why} since {case.said(case.facts.ends_at)}"
    if case.noticed:
        return "noticed", f"{said}, and was noticed: it is about to end."
    return "idle", f"{said}, and not noticed yet."


def limits(case: Case) -> tuple[Limit, ...]:
    """With the layer that set each, as the row has it; of an older row as the ledger has it."""
    opened = [
        line
        for line in case.facts.history
        if line.kind in OPENINGS and line.generation == case.session.generation
    ]
    found = opened[-1].detail.get("limits") if opened else None
    told: Mapping[str, object] = found if isinstance(found, Mapping) else {}
    known = {name: case.facts.layers.get(name) or told.get(name) for name in LIMITS}
    return tuple(_limit(case, name, layer) for name, layer in known.items())


def _limit(case: Case, name: str, layer: object) -> Limit:
    seconds: float | None = getattr(case.session, name)
    set_by = layer if isinstance(layer, str) else None
    value = "none" if seconds is None else span(seconds)
    sentence = f"{name} is {value}, set {_who(case, set_by)}."
    return Limit(name=name, seconds=seconds, layer=set_by, sentence=sentence)


def _who(case: Case, layer: str | None) -> str:
    if layer is None:
        return "by whom is not recorded"
    of = {"tenant": case.session.tenant, "profile": case.session.profile}
    if layer in BY_NAME:
        return BY_NAME[layer].format(of[layer])
    return LAYERS.get(layer, f"by {layer}")


def activity(case: Case) -> Activity:
    """A begin, an end and the first open are recorded with their time; the rest is not."""
    at = case.session.last_activity_at
    source, what = None, _unrecorded(case, at)
    for name, recorded, sentence in _recorded(case):
        if abs(at - recorded) <= SAME:
            source, what = name, sentence
    return Activity(
        at=at, source=source, sentence=f"Its last activity was {case.said(at)}: {what}."
    )


def _recorded(case: Case) -> Sequence[tuple[str, datetime, str]]:
    found = [("open", case.session.opened_at, "it was opened")]
    running = [
        line.at
        for line in case.facts.history
        if line.kind == EventKind.SANDBOX_RUNNING.value
        and line.generation == case.session.generation
    ]
    found += [("open", at, "its open() was given the sandbox") for at in running]
    for turn in case.facts.turns:
        found.append(("begin", turn.started_at, f"turn {turn.id} of {turn.holder} began"))
        if turn.ended_at is not None:
            found.append(("end", turn.ended_at, f"turn {turn.id} of {turn.holder} ended"))
    return found


def _unrecorded(case: Case, at: datetime) -> str:
    others = "a touch(), an open() of what was there, or the amnesty of a restore"
    held = any(turn.started_at <= at for turn in case.facts.turns if turn.ended_at is None)
    if held:
        return f"a heartbeat of an open turn, {others}; which of them is not recorded"
    return f"{others}; which of them is not recorded"


def earlier(case: Case) -> tuple[Point, ...]:
    """Sandboxes of generations before this one that are not gone: they cost as well."""
    return tuple(
        Point(
            kind=box.state.value,
            at=box.closing_at,
            values={"generation": box.generation, "last_error": box.last_error},
            sentence=f"The sandbox of generation {box.generation} is not gone yet"
            + ("." if box.last_error is None else f": {box.last_error}."),
        )
        for box in case.facts.sandboxes[:-1]
        if box.state is not SandboxState.GONE
    )
