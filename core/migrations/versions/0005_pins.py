"""Pins: an operator keeps a session, with a name and a reason to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
CHECK = (
    "CONSTRAINT sessions_pinned_check CHECK ((pinned_until IS NULL) = (pinned_by IS NULL) AND "
    "(pinned_until IS NULL) = (pin_reason IS NULL) AND "
    "(pinned_until IS NULL) = (pinned_at IS NULL))"
)


def upgrade() -> None:
    op.add_column("sessions", sa.Column("pinned_until", MOMENT, nullable=True))
    op.add_column("sessions", sa.Column("pinned_at", MOMENT, nullable=True))
    op.add_column("sessions", sa.Column("pinned_by", sa.String(length=200), nullable=True))
    # Not a batch on SQLite: that copies the table, which others refer to.
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"ALTER TABLE sessions ADD COLUMN pin_reason VARCHAR(200) {CHECK}")
    else:
        op.add_column("sessions", sa.Column("pin_reason", sa.String(length=200), nullable=True))
        op.execute(f"ALTER TABLE sessions ADD {CHECK}")
