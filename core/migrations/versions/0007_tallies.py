"""Totals for metrics: the ledger's lines counted once each, and since when a sandbox was over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column("bucket", sa.String(length=8), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "bucket", name=op.f("tallies_pkey")),
    )
    for name in ("told", "seen"):
        column = sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
        op.add_column("installation", column)
    writers = sa.Column("writers", sa.JSON(), server_default="[]", nullable=False)
    op.add_column("installation", writers)
    op.add_column("sandboxes", sa.Column("over_at", MOMENT, nullable=True))
