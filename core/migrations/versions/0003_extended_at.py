"""When an extension was promised, so that a clock that stepped back shows in it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("extended_at", sa.DateTime(timezone=True), nullable=True))
    # What it was measured by until now.
    op.execute(
        "UPDATE sessions SET extended_at = last_activity_at WHERE extended_until IS NOT NULL"
    )
