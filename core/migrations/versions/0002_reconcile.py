"""Reconcile, breaker, interlock, watchdog, backstop, provider health."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_tables()
    with op.batch_alter_table("installation") as table:
        table.add_column(sa.Column("stood_in_at", MOMENT, nullable=True))
        table.add_column(sa.Column("identity", sa.String(length=200), nullable=True))
        table.add_column(sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False))
    _add_expiry()
    _create_indexes()


def _add_expiry() -> None:
    # Not a batch on SQLite: that copies the table, and the copy would have lost its trigger.
    op.add_column("sandboxes", sa.Column("expires_at", MOMENT, nullable=True))
    check = (
        "CONSTRAINT sandboxes_expires_at_check CHECK ((expires_at IS NULL) = (extend_at IS NULL))"
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"ALTER TABLE sandboxes ADD COLUMN extend_at DATETIME {check}")
    else:
        op.add_column("sandboxes", sa.Column("extend_at", MOMENT, nullable=True))
        op.execute(f"ALTER TABLE sandboxes ADD {check}")


def _create_tables() -> None:
    op.create_table(
        "holds",
        sa.Column("reason", sa.String(length=20), nullable=False),
        sa.Column("since", MOMENT, nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("decision", sa.String(length=8), nullable=True),
        sa.Column("decided_by", sa.String(length=200), nullable=True),
        sa.Column("until", MOMENT, nullable=True),
        sa.CheckConstraint("decision IN ('approved', 'denied')", name=op.f("holds_decision_check")),
        sa.CheckConstraint(
            "(decision IS NULL) = (decided_by IS NULL)", name=op.f("holds_decided_by_check")
        ),
        sa.CheckConstraint("decision IS NOT NULL OR until IS NULL", name=op.f("holds_until_check")),
        sa.PrimaryKeyConstraint("reason", name=op.f("holds_pkey")),
    )
    op.create_table(
        "orphans",
        sa.Column("provider", sa.String(length=200), nullable=False),
        sa.Column("external_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=26), nullable=False),
        sa.Column("scope", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("first_seen_at", MOMENT, nullable=False),
        sa.Column("last_seen_at", MOMENT, nullable=False),
        sa.Column("sightings", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", MOMENT, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('rowless', 'late', 'twin')", name=op.f("orphans_kind_check")),
        sa.PrimaryKeyConstraint("provider", "external_id", name=op.f("orphans_pkey")),
    )
    op.create_table(
        "providers",
        sa.Column("provider", sa.String(length=200), nullable=False),
        sa.Column("cursor", sa.String(length=26), server_default="", nullable=False),
        sa.Column("reconciled_at", MOMENT, nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed_key", sa.String(length=26), nullable=True),
        sa.Column("open_until", MOMENT, nullable=True),
        sa.Column("spacing", sa.Double(), server_default="0", nullable=False),
        sa.Column("next_call_at", MOMENT, nullable=True),
        sa.Column("limited_until", MOMENT, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint("failures >= 0 AND spacing >= 0", name=op.f("providers_health_check")),
        sa.PrimaryKeyConstraint("provider", name=op.f("providers_pkey")),
    )


def _create_indexes() -> None:
    op.drop_index("sandboxes_closing", table_name="sandboxes")
    _index("sandboxes_closing", "sandboxes", "state = 'closing' AND quarantined_at IS NULL")
    _index("sandboxes_failing", "sandboxes", "state = 'closing' AND quarantined_at IS NOT NULL")
    _index("sandboxes_running", "sandboxes", "state = 'running'", "provider", "key")


def _index(name: str, table: str, where: str, *columns: str) -> None:
    op.create_index(
        name,
        table,
        list(columns) or ["due_at"],
        unique=False,
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(where),
    )
