"""Policies in layers, quotas, maintenance windows; and which layer set each limit of a session."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
LONGEST = 315576000.0
LIMITS = ("idle_ttl", "max_age", "max_turn", "never_used_ttl")
ACTIVE = "status = 'active'"
CHECK = (
    "CONSTRAINT sessions_never_used_ttl_check CHECK "
    f"(never_used_ttl > 0 AND never_used_ttl <= {LONGEST})"
)


def upgrade() -> None:
    _sessions()
    _policies()
    op.create_table(
        "windows",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("from_at", MOMENT, nullable=False),
        sa.Column("until_at", MOMENT, nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("made_by", sa.String(length=200), nullable=False),
        sa.Column("made_at", MOMENT, nullable=False),
        sa.CheckConstraint("from_at < until_at", name=op.f("windows_span_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("windows_pkey")),
    )


def _sessions() -> None:
    # Not a batch on SQLite: that copies the table, which others refer to.
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"ALTER TABLE sessions ADD COLUMN never_used_ttl DOUBLE {CHECK}")
    else:
        op.add_column("sessions", sa.Column("never_used_ttl", sa.Double(), nullable=True))
        op.execute(f"ALTER TABLE sessions ADD {CHECK}")
    op.add_column("sessions", sa.Column("profile", sa.String(length=64), nullable=True))
    for name in LIMITS:
        op.add_column("sessions", sa.Column(f"{name}_by", sa.String(length=12), nullable=True))
    _index("sessions_active_of_tenant", "sessions", ["tenant", "id"], ACTIVE)
    with_profile = f"{ACTIVE} AND profile IS NOT NULL"
    _index("sessions_active_of_profile", "sessions", ["profile", "id"], with_profile)


def _policies() -> None:
    checks = {
        "layer": "layer IN ('installation', 'tenant', 'profile')",
        "name": "(layer = 'installation') = (name = '')",
        **{name: f"{name} > 0 AND {name} <= {LONGEST}" for name in LIMITS},
        "max_live": "max_live >= 1",
        "when_full": "when_full IN ('refuse', 'evict-oldest-idle')",
        "again": "again IN (0, 1)",
    }
    op.create_table(
        "policies",
        sa.Column("layer", sa.String(length=12), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=True) for name in LIMITS),
        sa.Column("max_live", sa.Integer(), nullable=True),
        sa.Column("when_full", sa.String(length=20), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.Column("changed_by", sa.String(length=200), nullable=False),
        sa.Column("cursor", sa.String(length=128), nullable=True),
        sa.Column("again", sa.Integer(), nullable=False),
        *(
            sa.CheckConstraint(text, name=op.f(f"policies_{name}_check"))
            for name, text in checks.items()
        ),
        sa.PrimaryKeyConstraint("layer", "name", name=op.f("policies_pkey")),
    )
    _index("policies_to_follow", "policies", ["layer", "name"], "cursor IS NOT NULL")


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(
        name,
        table,
        columns,
        unique=False,
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(where),
    )
