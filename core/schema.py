"""
The tables, and nothing that acts: columns, indexes named for the query they serve, CHECKs that
repeat the facts of the moves, and the trigger that refuses to let a sandbox go back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.types import TypeDecorator

from .monotone import MONOTONE
from .settings import LONGEST


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC in, aware UTC out, on every database; SQLite alone would hand back naive ones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: make it aware, in UTC")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

# A touch rewrites the row in place (HOT) when its page has room; due_at is left alone by it.
_ROOM_FOR_TOUCHES = {"fillfactor": 85}

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("status", String(8), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("turn_count", BigInteger, nullable=False),
    Column("turns_before", BigInteger, nullable=False),  # turn_count when this generation opened
    Column("idle_ttl", Double, nullable=False),
    Column("max_age", Double),
    Column("max_turn", Double, nullable=False),
    Column("never_used_ttl", Double),  # in place of idle_ttl until the first turn, if shorter
    Column("profile", String(64)),
    # Which layer set each limit; null where an earlier version opened it: no policy changes those.
    Column("idle_ttl_by", String(12)),
    Column("max_age_by", String(12)),
    Column("max_turn_by", String(12)),
    Column("never_used_ttl_by", String(12)),
    Column("metadata", JSON, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("opened_at", UTCDateTime, nullable=False),  # when this generation opened
    Column("last_activity_at", UTCDateTime, nullable=False),
    Column("due_at", UTCDateTime, nullable=False),  # when the sweep looks next
    Column("extended_until", UTCDateTime),
    Column("extended_at", UTCDateTime),  # by which clock that date was promised
    Column("pinned_until", UTCDateTime),
    Column("pinned_at", UTCDateTime),  # likewise
    Column("pinned_by", String(200)),
    Column("pin_reason", String(200)),
    Column("noticed_at", UTCDateTime),
    Column("noticed_activity_at", UTCDateTime),  # the witness: what last_activity_at was then
    Column("ended_at", UTCDateTime),
    Column("end_reason", String(200)),
    Column("reset_reason", String(200)),  # why the generation before this one went
    CheckConstraint("length(id) BETWEEN 1 AND 128", name="id"),
    CheckConstraint("status IN ('active', 'ended')", name="status"),
    CheckConstraint("generation >= 1 AND turns_before >= 0", name="counts"),
    CheckConstraint("turn_count >= turns_before", name="turns"),
    CheckConstraint(f"idle_ttl > 0 AND idle_ttl <= {LONGEST}", name="idle_ttl"),
    CheckConstraint(f"max_age > 0 AND max_age <= {LONGEST}", name="max_age"),
    CheckConstraint(f"max_turn > 0 AND max_turn <= {LONGEST}", name="max_turn"),
    CheckConstraint(f"never_used_ttl > 0 AND never_used_ttl <= {LONGEST}", name="never_used_ttl"),
    CheckConstraint("(status = 'ended') = (ended_at IS NOT NULL)", name="ended_at"),
    CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="end_reason"),
    CheckConstraint("(noticed_at IS NULL) = (noticed_activity_at IS NULL)", name="noticed"),
    CheckConstraint(
        "(pinned_until IS NULL) = (pinned_by IS NULL) AND (pinned_until IS NULL) = "
        "(pin_reason IS NULL) AND (pinned_until IS NULL) = (pinned_at IS NULL)",
        name="pinned",
    ),
    postgresql_with=_ROOM_FOR_TOUCHES,
)
# Serves the sweep: what is due, most overdue first. Ended rows are not in it and cost nothing.
Index(
    "sessions_due",
    sessions.c.due_at,
    postgresql_where=text("status = 'active'"),
    sqlite_where=text("status = 'active'"),
)
# Serves purge_ended_sessions: the longest ended first.
Index(
    "sessions_purgeable",
    sessions.c.ended_at,
    postgresql_where=text("status = 'ended'"),
    sqlite_where=text("status = 'ended'"),
)

# Serves a tenant's list of sessions: it must not read everybody else's.
Index("sessions_of_tenant", sessions.c.tenant, sessions.c.id)

# Serves the list of active sessions by id: where sessions are kept for a month, few are active.
Index(
    "sessions_active",
    sessions.c.id,
    postgresql_where=text("status = 'active'"),
    sqlite_where=text("status = 'active'"),
)

# Serves a tenant's quota, and a policy that its active sessions have to follow.
Index(
    "sessions_active_of_tenant",
    sessions.c.tenant,
    sessions.c.id,
    postgresql_where=text("status = 'active'"),
    sqlite_where=text("status = 'active'"),
)
# Serves the same for a profile, which few sessions have.
Index(
    "sessions_active_of_profile",
    sessions.c.profile,
    sessions.c.id,
    postgresql_where=text("status = 'active' AND profile IS NOT NULL"),
    sqlite_where=text("status = 'active' AND profile IS NOT NULL"),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("key", String(26), primary_key=True),
    Column("session_id", String(128), ForeignKey("sessions.id"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("tenant", String(64), nullable=False, server_default="default"),  # its session's
    Column("provider", String(200), nullable=False),
    Column("scope", String(200), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("external_id", String(255)),  # write-once
    Column("state", String(8), nullable=False),
    Column(
        "due_at", UTCDateTime
    ),  # creating: its deadline; closing: when to publish; running: its session's
    Column("not_before", UTCDateTime),  # closing: a claim or a pause holds others off until then
    Column("attempts", Integer, nullable=False),
    Column("claim_token", Integer, nullable=False),
    Column("claimed_by", String(200)),
    Column("last_error", Text),
    Column("quarantined_at", UTCDateTime),
    Column("created_at", UTCDateTime, nullable=False),
    Column("running_at", UTCDateTime),
    Column("over_at", UTCDateTime),  # closing: since when nobody was entitled to it any more
    Column("closing_at", UTCDateTime),
    Column("gone_at", UTCDateTime),
    Column("expires_at", UTCDateTime),  # what the provider granted; null where it has no TTL
    Column("extend_at", UTCDateTime),  # not before this is it asked for more
    UniqueConstraint("session_id", "generation"),
    CheckConstraint("state IN ('creating', 'running', 'closing', 'gone')", name="state"),
    CheckConstraint("generation >= 1", name="generation"),
    CheckConstraint("(state IN ('creating', 'closing')) = (due_at IS NOT NULL)", name="due_at"),
    CheckConstraint("(state = 'closing') = (not_before IS NOT NULL)", name="not_before"),
    CheckConstraint("(state IN ('closing', 'gone')) = (closing_at IS NOT NULL)", name="closing_at"),
    CheckConstraint("(state = 'gone') = (gone_at IS NOT NULL)", name="gone_at"),
    CheckConstraint("(external_id IS NULL) = (running_at IS NULL)", name="running_at"),
    CheckConstraint("state <> 'running' OR external_id IS NOT NULL", name="external_id"),
    CheckConstraint("claimed_by IS NULL OR state = 'closing'", name="claimed_by"),
    CheckConstraint("(expires_at IS NULL) = (extend_at IS NULL)", name="expires_at"),
    postgresql_with=_ROOM_FOR_TOUCHES,
)
# Serves the sweep's fourth step: creates that nobody finished.
Index(
    "sandboxes_creating",
    sandboxes.c.due_at,
    postgresql_where=text("state = 'creating'"),
    sqlite_where=text("state = 'creating'"),
)
# Serves reconcile: what the provider should have, in the order of keys.
Index(
    "sandboxes_running",
    sandboxes.c.provider,
    sandboxes.c.key,
    postgresql_where=text("state = 'running'"),
    sqlite_where=text("state = 'running'"),
)
# Serves the look before the sweep's fifth step, and the watchdog: the most overdue.
Index(
    "sandboxes_closing",
    sandboxes.c.due_at,
    postgresql_where=text("state = 'closing' AND quarantined_at IS NULL"),
    sqlite_where=text("state = 'closing' AND quarantined_at IS NULL"),
)
# Serves the fifth step: teardowns to publish, each provider's and each tenant's most overdue first.
# It and the next one say what a closing sandbox alone has, and not its state: so no other index can
# serve their queries. Statistics are from when nothing was closing, mostly, and by them a planner
# takes all indexes of that state for equally empty, and reads the whole backlog in any of them.
WAITING = "not_before IS NOT NULL AND quarantined_at IS NULL"
Index(
    "sandboxes_waiting",
    sandboxes.c.provider,
    sandboxes.c.tenant,
    sandboxes.c.due_at,
    postgresql_where=text(WAITING),
    sqlite_where=text(WAITING),
)
# Serves its bound: what was published or is claimed, and is not done. Publishing moves due_at
# alone; claims, pauses and what is due at once have the same date twice.
IN_FLIGHT = "quarantined_at IS NULL AND (claimed_by IS NOT NULL OR due_at > not_before)"
Index(
    "sandboxes_in_flight",
    sandboxes.c.provider,
    sandboxes.c.due_at,
    postgresql_where=text(IN_FLIGHT),
    sqlite_where=text(IN_FLIGHT),
)
# Serves the same for those that always fail: they come after the others.
Index(
    "sandboxes_failing",
    sandboxes.c.due_at,
    postgresql_where=text("state = 'closing' AND quarantined_at IS NOT NULL"),
    sqlite_where=text("state = 'closing' AND quarantined_at IS NOT NULL"),
)
# Serves the quarantine list.
Index(
    "sandboxes_quarantined",
    sandboxes.c.quarantined_at,
    postgresql_where=text("state = 'closing' AND quarantined_at IS NOT NULL"),
    sqlite_where=text("state = 'closing' AND quarantined_at IS NOT NULL"),
)

# Serves the list of sessions whose sandbox is creating or closing: there are few of them.
Index(
    "sandboxes_unsettled",
    sandboxes.c.session_id,
    postgresql_where=text("state IN ('creating', 'closing')"),
    sqlite_where=text("state IN ('creating', 'closing')"),
)

turns = Table(
    "turns",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("session_id", String(128), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("holder", String(200), nullable=False),
    Column("started_at", UTCDateTime, nullable=False),
    Column("hard_until", UTCDateTime, nullable=False),
    Column("ended_at", UTCDateTime),
    Column("outcome", String(16)),
    CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="outcome"),
)
# Serves "who holds a turn on this session", and purge.
Index("turns_of_session", turns.c.session_id)
# Serves "how many are in a turn": what was never ended and is past its ceiling is not in the range.
Index(
    "turns_open",
    turns.c.hard_until,
    postgresql_where=text("ended_at IS NULL"),
    sqlite_where=text("ended_at IS NULL"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UTCDateTime, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("session_id", String(128)),
    Column("generation", Integer),
    Column("actor", String(200), nullable=False),
    Column("detail", JSON, nullable=False),
)
# Serves the history of one session, and purge.
Index("events_of_session", events.c.session_id, events.c.id)
# One effective teardown a generation (S3): webhooks and billing read it.
Index(
    "events_one_gone",
    events.c.session_id,
    events.c.generation,
    unique=True,
    postgresql_where=text("kind = 'sandbox_gone'"),
    sqlite_where=text("kind = 'sandbox_gone'"),
)

installation = Table(
    "installation",
    metadata,
    Column("row", Integer, primary_key=True, autoincrement=False),
    Column("id", String(8), nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("swept_at", UTCDateTime),  # the sweep's pulse
    Column("stood_in_at", UTCDateTime),  # when an API process last swept because nobody did
    Column("identity", String(200)),  # of the database that this row was written in
    Column("epoch", BigInteger, nullable=False, server_default="0"),  # counts sweeps
    Column("told", BigInteger, nullable=False, server_default="0"),  # events counted, by id
    Column("seen", BigInteger, nullable=False, server_default="0"),  # to be counted next, by id
    Column("writers", JSON, nullable=False, server_default="[]"),  # who wrote events when seen was
    CheckConstraint('"row" = 1', name="one"),
)

# Limits by layer. A field that is null leaves the limit to the layer below.
policies = Table(
    "policies",
    metadata,
    Column("layer", String(12), primary_key=True),
    Column("name", String(64), primary_key=True),  # "" for the installation's
    Column("idle_ttl", Double),
    Column("max_age", Double),
    Column("max_turn", Double),
    Column("never_used_ttl", Double),
    Column("max_live", Integer),
    Column("when_full", String(20)),
    Column("revision", BigInteger, nullable=False),  # counts changes
    Column("changed_at", UTCDateTime, nullable=False),
    Column("changed_by", String(200), nullable=False),
    Column("cursor", String(128)),  # open sessions up to this id follow it; null: all do
    Column("again", Integer, nullable=False),  # 1: some could not be moved, and are looked for
    CheckConstraint("layer IN ('installation', 'tenant', 'profile')", name="layer"),
    CheckConstraint("(layer = 'installation') = (name = '')", name="name"),
    CheckConstraint(f"idle_ttl > 0 AND idle_ttl <= {LONGEST}", name="idle_ttl"),
    CheckConstraint(f"max_age > 0 AND max_age <= {LONGEST}", name="max_age"),
    CheckConstraint(f"max_turn > 0 AND max_turn <= {LONGEST}", name="max_turn"),
    CheckConstraint(f"never_used_ttl > 0 AND never_used_ttl <= {LONGEST}", name="never_used_ttl"),
    CheckConstraint("max_live >= 1", name="max_live"),
    CheckConstraint("when_full IN ('refuse', 'evict-oldest-idle')", name="when_full"),
    CheckConstraint("again IN (0, 1)", name="again"),
)
# Serves the sweep: policies that changed, and that open sessions have yet to follow.
Index(
    "policies_to_follow",
    policies.c.layer,
    policies.c.name,
    postgresql_where=text("cursor IS NOT NULL"),
    sqlite_where=text("cursor IS NOT NULL"),
)

# Spans in which nothing is ended for idleness.
windows = Table(
    "windows",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("from_at", UTCDateTime, nullable=False),
    Column("until_at", UTCDateTime, nullable=False),
    Column("reason", String(200), nullable=False),
    Column("made_by", String(200), nullable=False),
    Column("made_at", UTCDateTime, nullable=False),
    CheckConstraint("from_at < until_at", name="span"),
)

# Totals that outlive every process: store/tallies.py says what each name counts.
tallies = Table(
    "tallies",
    metadata,
    Column("name", String(20), primary_key=True),
    Column("label", String(200), primary_key=True),
    Column("bucket", String(8), primary_key=True),  # its upper bound; "" where there is none
    Column("count", BigInteger, nullable=False),
    Column("total", Double, nullable=False),  # of the seconds that were counted
)

# Questions to an operator, one a reason, and the answers. While one is open nothing is destroyed.
holds = Table(
    "holds",
    metadata,
    Column("reason", String(20), primary_key=True),
    Column("since", UTCDateTime, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("decision", String(8)),
    Column("decided_by", String(200)),
    Column("until", UTCDateTime),  # an answer holds until then; null: nothing is destroyed
    CheckConstraint("decision IN ('approved', 'denied')", name="decision"),
    CheckConstraint("(decision IS NULL) = (decided_by IS NULL)", name="decided_by"),
    CheckConstraint("decision IS NOT NULL OR until IS NULL", name="until"),
)

# What callers were promised by a clock that has stepped back since, and may be put right again.
earlier_promises = Table(
    "earlier_promises",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("session_id", String(128), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("kind", String(9), nullable=False),
    Column("until", UTCDateTime, nullable=False),
    Column("at", UTCDateTime, nullable=False),  # by which clock that date was promised
    CheckConstraint("kind IN ('extension', 'pin')", name="kind"),
)
Index("earlier_promises_of_session", earlier_promises.c.session_id)

# What a provider has that carries our labels and that no row explains, until it is gone.
orphans = Table(
    "orphans",
    metadata,
    Column("provider", String(200), primary_key=True),
    Column("external_id", String(255), primary_key=True),
    Column("key", String(26), nullable=False),
    Column("scope", String(200), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("first_seen_at", UTCDateTime, nullable=False),
    Column("last_seen_at", UTCDateTime, nullable=False),
    Column("sightings", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", UTCDateTime, nullable=False),  # a claim or a pause holds others off
    Column("last_error", Text),
    CheckConstraint("kind IN ('rowless', 'late', 'twin')", name="kind"),
)

# How far the comparison with each provider has come, and how healthy the provider is.
providers = Table(
    "providers",
    metadata,
    Column("provider", String(200), primary_key=True),
    Column("cursor", String(26), nullable=False, server_default=""),
    Column("reconciled_at", UTCDateTime),
    Column("report", JSON),
    Column("failures", Integer, nullable=False, server_default="0"),  # in a row
    Column("failed_key", String(26)),  # the last sandbox that failed: one alone proves nothing
    Column("open_until", UTCDateTime),  # the circuit: no calls before this
    Column("spacing", Double, nullable=False, server_default="0"),  # seconds between two calls
    Column("next_call_at", UTCDateTime),
    Column("limited_until", UTCDateTime),  # it asked for no calls before this
    Column("last_error", Text),
    Column("published_after", String(64)),  # the tenant whose turn to be published was the last
    CheckConstraint("failures >= 0 AND spacing >= 0", name="health"),
)

# Rights to call a provider, as many rows as calls may be under way: a fleet cannot pass its bound,
# because there is no row more. Who dies with one leaves it to others when its time has run out.
call_slots = Table(
    "call_slots",
    metadata,
    Column("provider", String(200), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("token", BigInteger, nullable=False, server_default="0"),  # counts who had it
    Column("until", UTCDateTime, nullable=False),  # taken until then
    Column("holder", String(200)),
)

# Who may call the HTTP API: never the secret, and a row stays when its token is revoked.
api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("tenant", String(64)),  # null: all of them
    Column("created_at", UTCDateTime, nullable=False),
    Column("expires_at", UTCDateTime),
    Column("revoked_at", UTCDateTime),
    CheckConstraint("length(digest) = 64", name="digest"),
)

for _dialect, _statements in MONOTONE.items():
    for _statement in _statements:
        event.listen(
            sandboxes,
            "after_create",
            DDL(_statement).execute_if(dialect=_dialect),  # type: ignore[no-untyped-call]
        )
