"""What the dashboard lists and counts at a million rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _index("sessions_active", "sessions", "id", "status = 'active'")
    _index("sandboxes_unsettled", "sandboxes", "session_id", "state IN ('creating', 'closing')")
    _index("turns_open", "turns", "hard_until", "ended_at IS NULL")


def _index(name: str, table: str, column: str, where: str) -> None:
    op.create_index(
        name,
        table,
        [column],
        unique=False,
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(where),
    )
