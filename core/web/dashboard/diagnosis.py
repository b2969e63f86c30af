"""What is wrong with a fleet, the cause first, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...store.guard import HoldReason
from .advice import advice
from .numbers import Fleet
from .words import ago, count, span, times

WORKER: Final = "celery -A tasks worker -P threads -c 64"
BEAT: Final = "celery -A tasks beat"
PING: Final = "celery -A tasks inspect ping"

QUESTIONS: Final = {
    HoldReason.MASS_END: "A sweep would end more sessions at once than is plausible.",
    HoldReason.MASS_ORPHANS: "A reconcile would tear down many sandboxes that no row explains.",
    HoldReason.MASS_MISSING: "A provider does not have many of the sandboxes that should run.",
    HoldReason.STORE: "A provider has sandboxes of this installation that this database cannot "
    "know.",
    HoldReason.DATABASE: "This is not the database that it was: a clone, a restore, a failover.",
    HoldReason.REWOUND: "The database went back in time.",
    HoldReason.RESTORE: "A backup is being brought back.",
    HoldReason.OPERATOR: "Somebody asked for it.",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong. `link` leads to where it is put right."""

    title: str
    why: str
    fix: str
    commands: Sequence[str] = ()
    link: str | None = None
    link_says: str = ""
    grave: bool = True


def diagnosis(fleet: Fleet) -> list[Finding]:
    """All that is wrong; nothing to one tenant, who could do nothing about it."""
    if fleet.pulse is None:
        return []
    causes = [*_held(fleet), *_late(fleet), *_providers(fleet)]
    return [*causes, *_overdue(fleet, causes), *_failing(fleet), *_orphans(fleet)]


def _held(fleet: Fleet) -> Iterator[Finding]:
    for hold in fleet.holds:
        if hold.open:
            yield Finding(
                title=f"Everything destructive is held: {hold.reason.value.replace('_', ' ')}",
                why=f"{QUESTIONS[hold.reason]} Asked {ago(hold.since, fleet.now)}. Until it is "
                "answered nothing is ended or torn down; callers go on.",
                fix="Read what was found, then approve or deny it.",
                link="/sweeps#holds",
                link_says="Answer it",
            )


def _late(fleet: Fleet) -> Iterator[Finding]:
    pulse = fleet.pulse
    if pulse is None or not fleet.late:
        return
    never = pulse.age is None
    stands_in = pulse.stand_in_age is not None and abs(pulse.stand_in_age) <= fleet.late_after
    helped = (
        " An API server sweeps in their place; teardowns still need a worker." if stands_in else ""
    )
    yield Finding(
        title="No sweep ever ran" if never else f"The last sweep was {span(pulse.age)} ago",
        why=f"It should run at least every {span(fleet.late_after)}: it ends idle sessions and "
        f"publishes teardowns. No worker and beat do it.{helped}",
        fix="Start a worker and a beat. If they run, see whether both reach the broker.",
        commands=(WORKER, BEAT, PING),
        link="/sweeps",
        link_says="Sweep now",
    )


def _providers(fleet: Fleet) -> Iterator[Finding]:
    for health in fleet.providers:
        if health.open_until is not None:
            yield Finding(
                title=f"Provider {health.provider} fails",
                why=f"{health.failures} failures in a row: it is not called but for a probe "
                f"{ago(health.open_until, fleet.now)}. Last: {health.last_error or 'unknown'}",
                fix=f"{advice(health.last_error)} Nothing is lost meanwhile: it is probed, and "
                "once it answers the teardowns go on by themselves.".strip(),
                link="/providers",
                link_says="Providers",
            )


def _overdue(fleet: Fleet, causes: Sequence[Finding]) -> Iterator[Finding]:
    waiting = fleet.waiting
    if waiting is None or not waiting.total or fleet.pulse is None:
        return
    worst = waiting.worst
    seconds = max(fleet.pulse.overdue, 0.0 if worst is None else worst.seconds)
    longest = f"The longest waits for {span(seconds)}."
    title = f"{count(waiting.total, fleet.lots)} overdue"
    sessions: dict[str, Any] = {"link": "/sessions?overdue=1&status=", "link_says": "Which ones"}
    if worst is not None and waiting.total == 1:
        sessions = {"link": f"/sessions/{worst.session_id}", "link_says": "Look at it"}
    if causes:
        why = f"{longest} The cause is above: {causes[0].title}."
        yield Finding(title=title, why=why, fix="Put that right first.", **sessions)
    elif waiting.untried:
        why = (
            f"{longest} {count(waiting.untried, fleet.lots)} teardowns wait, and no worker has "
            "taken them."
        )
        fix = "Start a worker. If one runs, is it busy, or does it not reach the broker?"
        yield Finding(title=title, why=why, fix=fix, commands=(WORKER, PING), **sessions)
    elif worst is not None:
        answer = worst.last_error or "none was kept"
        why = (
            f"{longest} The teardown of {worst.session_id} at {worst.provider} was tried "
            f"{times(worst.attempts)} and is tried again. Last answer: {answer}"
        )
        fix = advice(worst.last_error) or "A worker is at it: see its log. More workers may help."
        yield Finding(title=title, why=why, fix=fix, **sessions)
    else:
        why = f"{longest} Sweeps run, and leave these rows: they could not be moved, or are many."
        fix = "See in the audit which rows were poisoned. Otherwise more sweeps will catch up."
        where = "/audit?kind=row_poisoned"
        yield Finding(title=title, why=why, fix=fix, link=where, link_says="Poisoned rows")


def _failing(fleet: Fleet) -> Iterator[Finding]:
    for worst in fleet.failing:
        many, number = fleet.has.quarantined != 1, count(fleet.has.quarantined, fleet.has.most)
        yield Finding(
            title=f"{number} teardown{'s' if many else ''} in quarantine",
            why=f"They failed too often, and are tried more seldom. For longest {worst.session_id} "
            f"at {worst.provider}, tried {times(worst.attempts)}. Last answer: "
            f"{worst.last_error or 'none was kept'}",
            fix=f"{advice(worst.last_error)} Then have them tried again at once.".strip(),
            link="/quarantine",
            link_says="Quarantine",
            grave=False,
        )


def _orphans(fleet: Fleet) -> Iterator[Finding]:
    if fleet.has.orphans:
        many, number = fleet.has.orphans != 1, count(fleet.has.orphans, fleet.has.most)
        yield Finding(
            title=f"{number} sandbox{'es' if many else ''} that no row explains",
            why="A provider has what carries our labels, and the database does not know it.",
            fix="Nothing: they are torn down after a grace. Many at once are an operator's "
            "question. Were rows lost, or is this an old database?",
            link="/orphans",
            link_says="Orphans",
            grave=False,
        )
