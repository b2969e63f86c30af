"""Whether the tables are those of this version, with all that guards them, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .. import migrations
from ..store.checkup import Clocks
from .findings import Answer, Examination, failure, note, ok, warning
from .patient import Patient

UPGRADE = "run `sandkeeper db upgrade`"
APART = 2.0  # seconds between the host's clock and the database's that are worth a note
FAR_APART = 30.0  # and those that confuse people, TLS and tokens
BEHIND = 5.0  # seconds that a row may be ahead: it was written since we asked for the time


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What is there, beside what should be."""

    revision: str | None
    differences: list[str]
    missing_checks: list[str]
    invalid_indexes: list[str]
    trigger: bool


def _tables(patient: Patient) -> Tables:
    checkup = patient.checkup
    engine = checkup.reading
    migrations.require(engine)
    return Tables(
        revision=migrations.current(engine),
        differences=migrations.differences(engine),
        missing_checks=checkup.missing_checks(),
        invalid_indexes=checkup.invalid_indexes(),
        trigger=checkup.has_trigger(),
    )


def migrated(found: Tables) -> Answer:
    """The tables are at the revision that this version of the code needs."""
    return ok(f"revision {found.revision}")


def tables(found: Tables) -> Answer:
    """Tables, columns and indexes are those of this version: nobody has changed them by hand."""
    if found.differences:
        return failure(
            f"the tables differ: {'; '.join(found.differences)}",
            "undo what was changed by hand, or bring the tables back from a backup: `sandkeeper db "
            "check` says the same",
        )
    if found.invalid_indexes:
        return failure(
            f"indexes that PostgreSQL does not use: {', '.join(found.invalid_indexes)}",
            f"REINDEX INDEX CONCURRENTLY {found.invalid_indexes[0]}",
        )
    return ok("are those of this version")


def guards(found: Tables) -> Answer:
    """
    The trigger that refuses to let a sandbox go back, and every CHECK constraint, are there and
    enabled. A dump without triggers, or one restored with them disabled, loses them in silence.
    """
    missing = [*([] if found.trigger else ["trigger sandboxes_monotone"]), *found.missing_checks]
    if missing:
        return failure(
            f"missing or disabled: {', '.join(missing)}",
            "ALTER TABLE sandboxes ENABLE TRIGGER sandboxes_monotone where it is only disabled; "
            "else make it again as the newest migration does, or restore a complete dump",
        )
    return ok("trigger and CHECK constraints are there")


@dataclass(frozen=True, kw_only=True)
class Times:
    """The host's clock before and after the database was asked for its own, in seconds."""

    before: float
    clocks: Clocks
    after: float


def _clocks(patient: Patient) -> Times:
    before = patient.clock()
    clocks = patient.checkup.clocks()
    return Times(before=before, clocks=clocks, after=patient.clock())


def host_clock(found: Times) -> Answer:
    """
    This host's clock is about that of the database. Sandkeeper itself never compares the two;
    people who read logs do, and so do TLS and providers' tokens. Warning from 30 s on.
    """
    now = found.clocks.now.timestamp()
    # The answer is from some moment in between: only what is outside of that is a difference.
    apart = max(found.before - now, now - found.after, 0.0)
    says = f"{apart:.1f} s from the database's"
    if apart > FAR_APART:
        return warning(says, "run NTP or chrony on this host and on the database's")
    return note(says, "harmless to Sandkeeper") if apart > APART else ok(says)


def database_clock(found: Times) -> Answer:
    """
    Nothing in the database is from the future: its clock did not step back. While it is behind,
    sessions live longer than they should, and nothing ends too early.
    """
    clocks = found.clocks
    ahead = {
        "a session's last activity": _ahead(clocks.activity, clocks.now),
        "the ledger's last event": _ahead(clocks.event, clocks.now),
        "the last sweep": _ahead(clocks.swept, clocks.now),
    }
    what, most = max(ahead.items(), key=lambda each: each[1])
    if most > BEHIND:
        return warning(
            f"the database's clock is behind its own rows: {what} is {most:.0f} s in the future",
            "set the clock of the database's host right, and keep NTP from stepping it back",
        )
    return ok("no row is from the future")


def _ahead(moment: datetime | None, now: datetime) -> float:
    return 0.0 if moment is None else (moment - now).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which database the installation was in, and which one this is."""

    installation: str | None
    wanted: str | None
    known: str | None
    live: str | None


def _identity(patient: Patient) -> Identity:
    known, live = patient.checkup.identities()
    return Identity(
        installation=patient.checkup.installation(),
        wanted=patient.settings.installation,
        known=known,
        live=live,
    )


def identity(found: Identity) -> Answer:
    """
    This is the database that the installation was in: no clone, no backup, no standby that was
    promoted. Otherwise the next sweep holds everything destructive.
    """
    if found.installation is None:
        return note("nothing has used this database yet")
    if found.wanted not in {None, found.installation}:
        return failure(
            f"it belongs to installation {found.installation}, and SANDKEEPER_INSTALLATION is "
            f"{found.wanted}",
            "leave SANDKEEPER_INSTALLATION out, or correct SANDKEEPER_DATABASE_URL",
        )
    if found.known is not None and found.known != found.live:
        return failure(
            f"it was {found.known} and is {found.live}: a clone, a restore or a failover",
            "`sandkeeper breaker status`, and docs/runbook.md: `The database was copied`",
        )
    return ok(f"installation {found.installation}")


TABLES = Examination(
    name="migrations",
    look=_tables,
    checks=(migrated, tables, guards),
    fix=UPGRADE,
    needs=("database",),
)
CLOCKS = Examination(
    name="clocks",
    look=_clocks,
    checks=(host_clock, database_clock),
    fix="look at the database's log",
    needs=("migrations",),
)
IDENTITY = Examination(
    name="installation",
    look=_identity,
    checks=(identity,),
    fix="look at the database's log",
    needs=("migrations",),
)
