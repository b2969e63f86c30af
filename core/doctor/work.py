"""Whether the work is done: sweeps, teardowns, reconciles, purges, and what waits for somebody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import SettingsError
from ..policy import Policy
from ..providers.base import Capability
from ..settings import Settings
from ..store.census import Census
from ..store.checkup import Line, Tuples
from ..store.watch import Pulse
from .findings import Answer, Examination, failure, note, ok, together, warning
from .patient import Patient

START = "start `celery -A tasks worker` and `celery -A tasks beat`, or look at their logs"
MENDED = "it goes on when what is said here of sweeps, holds or circuits is mended"
MANY_DEAD = 10_000  # rows; of fewer nobody needs to know
DEAD_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was done, and what waits."""

    settings: Settings
    policy: Policy
    pulse: Pulse | None  # None: nothing has used this database yet
    census: Census
    questions: Mapping[str, float]
    oldest_teardown: float | None
    lines: list[Line]
    overripe: float | None
    listing: frozenset[str]  # providers that can be compared

    @property
    def excused(self) -> bool:
        """Whether what is overdue is explained by something that is said elsewhere."""
        late = self.pulse is None or self.pulse.late(self.policy.late_after)
        return late or bool(self.questions) or any(line.open for line in self.lines)


def _work(patient: Patient) -> Work:
    checkup, settings, policy = patient.checkup, patient.settings, patient.policy
    return Work(
        settings=settings,
        policy=policy,
        pulse=checkup.pulse() if checkup.installation() else None,
        census=checkup.census(),
        questions=checkup.questions(),
        oldest_teardown=checkup.oldest_teardown(),
        lines=checkup.lines(),
        overripe=checkup.overripe(policy.retention + 3 * settings.purge_interval),
        listing=_listing(patient),
    )


def _listing(patient: Patient) -> frozenset[str]:
    try:
        can = [each for each in patient.providers if Capability.LIST in each.capabilities]
    except SettingsError:
        return frozenset()  # which is said where providers are looked at
    return frozenset(provider.name for provider in can)


def sweep(found: Work) -> Answer:
    """
    The last sweep is younger than LATE_AFTER: a worker and a beat are at work. This is the pulse
    that API processes watch too.
    """
    pulse = found.pulse
    if pulse is None or (pulse.age is None and pulse.late(found.policy.late_after)):
        return failure("no sweep ever ran", START)
    if pulse.age is None:
        return note(f"none yet; this installation is {pulse.installed:.0f} s old", START)
    if pulse.late(found.policy.late_after):
        return failure(f"the last one was {pulse.age:.0f} s ago", START)
    return ok(f"the last one was {pulse.age:.0f} s ago")


def stand_in(found: Work) -> Answer:
    """No API process had to sweep in place of worker and beat, lately (10 × LATE_AFTER)."""
    age = None if found.pulse is None else found.pulse.stand_in_age
    if age is None or abs(age) > 10 * found.policy.late_after:
        return ok("nobody had to")
    return warning(f"an API process swept {age:.0f} s ago, because nobody else did", START)


def overdue(found: Work) -> Answer:
    """No row waits for longer than three sweeps after its time."""
    waits = 0.0 if found.pulse is None else found.pulse.overdue
    limit = 3 * found.settings.sweep_interval
    says = f"the most overdue row waits for {waits:.0f} s"
    if waits <= limit:
        return ok(says)
    if found.excused:
        return note(says, MENDED)
    return warning(
        says,
        "run `sandkeeper sweep` and see what it says; more workers, if there are many of them",
    )


def teardowns(found: Work) -> Answer:
    """Workers keep up: no sandbox is closing for longer than two claims, three sweeps, a pause."""
    policy, oldest = found.policy, found.oldest_teardown
    limit = 2 * policy.claim_ttl + 3 * found.settings.sweep_interval + policy.retry_max
    closing = found.census.sandboxes["closing"] - found.census.quarantined
    if oldest is None:
        return ok("none waits")
    says = f"{closing} wait, the oldest for {oldest:.0f} s"
    if oldest <= limit:
        return ok(says)
    if found.excused:
        return note(says, MENDED)
    return warning(says, "see that workers consume the teardown queue, and look at their logs")


def quarantine(found: Work) -> Answer:
    """No teardown failed so often that a human should look."""
    if not found.census.quarantined:
        return ok("empty")
    return warning(
        f"{found.census.quarantined} teardowns failed too often (QUARANTINE_AFTER "
        f"{found.policy.quarantine_after})",
        "`sandkeeper quarantine ls` has the provider's words; mend that, then `sandkeeper "
        "quarantine retry --all`",
    )


def orphans(found: Work) -> Answer:
    """Each sandbox with our labels has its row; others, a note, go after ORPHAN_GRACE."""
    if not found.census.orphans:
        return ok("none")
    return note(
        f"{found.census.orphans} sandboxes carry our labels and no row explains them",
        "`sandkeeper orphans` lists them; they are torn down after ORPHAN_GRACE",
    )


def held(found: Work) -> Answer:
    """No question to an operator is open: while one is, nothing is torn down."""
    if not found.questions:
        return ok("nothing")
    asked = ", ".join(f"{reason} for {age:.0f} s" for reason, age in found.questions.items())
    first = next(iter(found.questions))
    return failure(
        f"everything destructive is held: {asked}",
        f"`sandkeeper breaker status`, then `sandkeeper breaker approve {first}` or `deny`: "
        "docs/runbook.md",
    )


def circuits(found: Work) -> Answer:
    """No provider's circuit is open, and none has asked for fewer calls (a note)."""
    said = [
        warning(
            f"calls to {line.provider} fail: {line.last_error}",
            "look at the provider's status page and credentials; it is probed by itself",
        )
        if line.open
        else note(f"{line.provider} asked for fewer calls", "it is asked again by itself")
        for line in found.lines
        if line.open or line.limited
    ]
    return together(said, "all closed")


def reconcile(found: Work) -> Answer:
    """Each provider was compared with the rows within the last three RECONCILE_INTERVALs."""
    installed = 0.0 if found.pulse is None else abs(found.pulse.installed)
    limit = 3 * found.policy.reconcile_interval
    ages = {line.provider: line.age for line in found.lines}
    blocked = {line.provider for line in found.lines if line.open}
    # A provider has no line before its first reconcile; it counts since the installation.
    expected = {name: ages.get(name) for name in found.listing if name not in blocked}
    said = [
        warning(
            f"{name} was {'never compared' if age is None else f'compared {age:.0f} s ago'}",
            "run `sandkeeper reconcile` and see why it is skipped; a beat has to enqueue it",
        )
        for name, age in expected.items()
        if (installed if age is None else age) > limit
    ]
    if found.pulse is None or found.excused:
        return note(said[0].says, "see `sweep` first") if said else ok("in time")
    return together(said, "in time")


def purge(found: Work) -> Answer:
    """What ended longer ago than RETENTION and three PURGE_INTERVALs is forgotten."""
    if found.overripe is None:
        return ok("nothing is older than RETENTION")
    says = f"a session that ended {found.overripe / 86400:.1f} days ago is still there"
    if found.excused:
        return note(says, "nothing is purged while everything is held or nobody works")
    return warning(says, "see that a beat enqueues `sandkeeper.purge_ended_sessions`")


def bloat(found: list[Tuples]) -> Answer:
    """PostgreSQL's autovacuum keeps up: dead rows are no large part of a table. A note."""
    said = [
        note(
            f"{table.dead} of {table.live + table.dead} rows of {table.name} are dead",
            f"VACUUM {table.name}; a lower autovacuum_vacuum_scale_factor, and no transaction that "
            "stays open for hours",
        )
        for table in found
        if table.dead >= MANY_DEAD and table.dead > DEAD_SHARE * (table.live + table.dead)
    ]
    return together(said, "few dead rows")


WORK = Examination(
    name="work",
    look=_work,
    checks=(
        sweep,
        stand_in,
        overdue,
        teardowns,
        quarantine,
        orphans,
        held,
        circuits,
        reconcile,
        purge,
    ),
    fix="look at the database's log",
    needs=("migrations",),
)
BLOAT = Examination(
    name="vacuum",
    look=lambda patient: patient.checkup.tuples(),
    checks=(bloat,),
    fix="look at the database's log",
    needs=("migrations",),
)
