"""A tenant's own share of what is published, and slots for calls of a provider."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
WAITING = sa.text("not_before IS NOT NULL AND quarantined_at IS NULL")
IN_FLIGHT = sa.text("quarantined_at IS NULL AND (claimed_by IS NOT NULL OR due_at > not_before)")


def upgrade() -> None:
    # A version before this one may still write rows: theirs are in the default tenant's share.
    op.add_column(
        "sandboxes",
        sa.Column("tenant", sa.String(length=64), nullable=False, server_default="default"),
    )
    op.execute(
        "UPDATE sandboxes SET tenant = (SELECT tenant FROM sessions WHERE id = session_id) "
        "WHERE state <> 'gone' AND EXISTS "
        "(SELECT 1 FROM sessions WHERE id = session_id AND tenant <> 'default')"
    )
    op.add_column("providers", sa.Column("published_after", sa.String(length=64), nullable=True))
    op.create_table(
        "call_slots",
        sa.Column("provider", sa.String(length=200), nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("until", MOMENT, nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("provider", "slot", name=op.f("call_slots_pkey")),
    )
    for name, columns, where in (
        ("sandboxes_waiting", ["provider", "tenant", "due_at"], WAITING),
        ("sandboxes_in_flight", ["provider", "due_at"], IN_FLIGHT),
    ):
        op.create_index(
            name, "sandboxes", columns, unique=False, postgresql_where=where, sqlite_where=where
        )
