"""Promises made by a clock that has stepped back since, for when it is put right."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "earlier_promises",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=9), nullable=False),
        sa.Column("until", MOMENT, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "kind IN ('extension', 'pin')", name=op.f("earlier_promises_kind_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("earlier_promises_pkey")),
    )
    op.create_index("earlier_promises_of_session", "earlier_promises", ["session_id"])
