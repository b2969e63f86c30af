"""The first tables: sessions, sandboxes, turns, events, installation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)

MONOTONE = {
    "postgresql": [
        "CREATE FUNCTION sandboxes_monotone() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN IF (CASE new.state WHEN 'creating' THEN 1 WHEN 'running' THEN 2 WHEN "
        "'closing' THEN 3 ELSE 4 END < CASE old.state WHEN 'creating' THEN 1 WHEN "
        "'running' THEN 2 WHEN 'closing' THEN 3 ELSE 4 END OR new.claim_token < "
        "old.claim_token OR (old.external_id IS NOT NULL AND new.external_id IS "
        "DISTINCT FROM old.external_id) OR new.key <> old.key OR new.session_id <> "
        "old.session_id OR new.generation <> old.generation) THEN RAISE EXCEPTION 'a "
        "sandbox never goes back: state, claim_token and external_id are monotone'; "
        "END IF; RETURN new; END $$",
        "CREATE TRIGGER sandboxes_monotone BEFORE UPDATE ON sandboxes FOR EACH ROW "
        "EXECUTE FUNCTION sandboxes_monotone()",
    ],
    "sqlite": [
        "CREATE TRIGGER sandboxes_monotone BEFORE UPDATE ON sandboxes WHEN CASE new.state "
        "WHEN 'creating' THEN 1 WHEN 'running' THEN 2 WHEN 'closing' THEN 3 ELSE 4 END < "
        "CASE old.state WHEN 'creating' THEN 1 WHEN 'running' THEN 2 WHEN 'closing' THEN "
        "3 ELSE 4 END OR new.claim_token < old.claim_token OR (old.external_id IS NOT "
        "NULL AND new.external_id IS NOT old.external_id) OR new.key <> old.key OR "
        "new.session_id <> old.session_id OR new.generation <> old.generation BEGIN "
        "SELECT RAISE(ABORT, 'a sandbox never goes back: state, claim_token and "
        "external_id are monotone'); END"
    ],
}


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("events_pkey")),
    )
    op.create_index("events_of_session", "events", ["session_id", "id"], unique=False)
    op.create_index(
        "events_one_gone",
        "events",
        ["session_id", "generation"],
        unique=True,
        postgresql_where=sa.text("kind = 'sandbox_gone'"),
        sqlite_where=sa.text("kind = 'sandbox_gone'"),
    )
    op.create_table(
        "installation",
        sa.Column("row", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=8), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("swept_at", MOMENT, nullable=True),
        sa.CheckConstraint('"row" = 1', name=op.f("installation_one_check")),
        sa.PrimaryKeyConstraint("row", name=op.f("installation_pkey")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=8), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("turn_count", sa.BigInteger(), nullable=False),
        sa.Column("turns_before", sa.BigInteger(), nullable=False),
        sa.Column("idle_ttl", sa.Double(), nullable=False),
        sa.Column("max_age", sa.Double(), nullable=True),
        sa.Column("max_turn", sa.Double(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("opened_at", MOMENT, nullable=False),
        sa.Column("last_activity_at", MOMENT, nullable=False),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.Column("extended_until", MOMENT, nullable=True),
        sa.Column("noticed_at", MOMENT, nullable=True),
        sa.Column("noticed_activity_at", MOMENT, nullable=True),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("end_reason", sa.String(length=200), nullable=True),
        sa.Column("reset_reason", sa.String(length=200), nullable=True),
        sa.CheckConstraint(
            "(status = 'ended') = (ended_at IS NOT NULL)", name=op.f("sessions_ended_at_check")
        ),
        sa.CheckConstraint("status IN ('active', 'ended')", name=op.f("sessions_status_check")),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (end_reason IS NULL)", name=op.f("sessions_end_reason_check")
        ),
        sa.CheckConstraint(
            "(noticed_at IS NULL) = (noticed_activity_at IS NULL)",
            name=op.f("sessions_noticed_check"),
        ),
        sa.CheckConstraint(
            "generation >= 1 AND turns_before >= 0", name=op.f("sessions_counts_check")
        ),
        sa.CheckConstraint(
            "idle_ttl > 0 AND idle_ttl <= 315576000.0", name=op.f("sessions_idle_ttl_check")
        ),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 128", name=op.f("sessions_id_check")),
        sa.CheckConstraint(
            "max_age > 0 AND max_age <= 315576000.0", name=op.f("sessions_max_age_check")
        ),
        sa.CheckConstraint(
            "max_turn > 0 AND max_turn <= 315576000.0", name=op.f("sessions_max_turn_check")
        ),
        sa.CheckConstraint("turn_count >= turns_before", name=op.f("sessions_turns_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("sessions_pkey")),
        postgresql_with={"fillfactor": 85},
    )
    op.create_index(
        "sessions_due",
        "sessions",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("status = 'active'"),
        sqlite_where=sa.text("status = 'active'"),
    )
    op.create_index(
        "sessions_purgeable",
        "sessions",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("status = 'ended'"),
        sqlite_where=sa.text("status = 'ended'"),
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("hard_until", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (outcome IS NULL)", name=op.f("turns_outcome_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("turns_pkey")),
    )
    op.create_index("turns_of_session", "turns", ["session_id"], unique=False)
    op.create_table(
        "sandboxes",
        sa.Column("key", sa.String(length=26), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("provider", sa.String(length=200), nullable=False),
        sa.Column("scope", sa.String(length=200), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("external_id", sa.String(length=255), nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("due_at", MOMENT, nullable=True),
        sa.Column("not_before", MOMENT, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("claim_token", sa.Integer(), nullable=False),
        sa.Column("claimed_by", sa.String(length=200), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("quarantined_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("running_at", MOMENT, nullable=True),
        sa.Column("closing_at", MOMENT, nullable=True),
        sa.Column("gone_at", MOMENT, nullable=True),
        sa.CheckConstraint(
            "(state = 'closing') = (not_before IS NOT NULL)",
            name=op.f("sandboxes_not_before_check"),
        ),
        sa.CheckConstraint(
            "(state = 'gone') = (gone_at IS NOT NULL)", name=op.f("sandboxes_gone_at_check")
        ),
        sa.CheckConstraint(
            "(state IN ('closing', 'gone')) = (closing_at IS NOT NULL)",
            name=op.f("sandboxes_closing_at_check"),
        ),
        sa.CheckConstraint(
            "(state IN ('creating', 'closing')) = (due_at IS NOT NULL)",
            name=op.f("sandboxes_due_at_check"),
        ),
        sa.CheckConstraint(
            "claimed_by IS NULL OR state = 'closing'", name=op.f("sandboxes_claimed_by_check")
        ),
        sa.CheckConstraint(
            "state <> 'running' OR external_id IS NOT NULL",
            name=op.f("sandboxes_external_id_check"),
        ),
        sa.CheckConstraint(
            "state IN ('creating', 'running', 'closing', 'gone')",
            name=op.f("sandboxes_state_check"),
        ),
        sa.CheckConstraint(
            "(external_id IS NULL) = (running_at IS NULL)", name=op.f("sandboxes_running_at_check")
        ),
        sa.CheckConstraint("generation >= 1", name=op.f("sandboxes_generation_check")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("sandboxes_session_id_fkey")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("sandboxes_pkey")),
        sa.UniqueConstraint(
            "session_id", "generation", name=op.f("sandboxes_session_id_generation_key")
        ),
        postgresql_with={"fillfactor": 85},
    )
    op.create_index(
        "sandboxes_closing",
        "sandboxes",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("state = 'closing'"),
        sqlite_where=sa.text("state = 'closing'"),
    )
    op.create_index(
        "sandboxes_creating",
        "sandboxes",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("state = 'creating'"),
        sqlite_where=sa.text("state = 'creating'"),
    )
    op.create_index(
        "sandboxes_quarantined",
        "sandboxes",
        ["quarantined_at"],
        unique=False,
        postgresql_where=sa.text("state = 'closing' AND quarantined_at IS NOT NULL"),
        sqlite_where=sa.text("state = 'closing' AND quarantined_at IS NOT NULL"),
    )
    for statement in MONOTONE[op.get_bind().dialect.name]:
        op.execute(sa.text(statement.replace(":", "\\:")))
