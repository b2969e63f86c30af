"""Sessions of a crowd at the next moment of their lives: due to be ended, or to be torn down."""

from __future__ import annotations

from .ground import Ground

# What the next sweep ends.
NOTICED = (
    "UPDATE sessions SET due_at = now() - interval '1 minute', "
    "last_activity_at = now() - interval '2 hours', noticed_at = now() - interval '1 hour', "
    "noticed_activity_at = now() - interval '2 hours' "
    "WHERE id IN (SELECT id FROM sessions WHERE status = 'active' LIMIT {count})"
)
CLOSING = (
    "SELECT session_id, generation FROM sandboxes WHERE state = 'closing' AND not_before <= now()"
)


def rows_for(live: int) -> int:
    """How many rows a crowd needs, a tenth of which has ended, so that so many live."""
    return live * 10 // 9


def grow_live(here: Ground, live: int) -> None:
    """Let there be at least so many active sessions."""
    here.grow(rows_for(live))


def closing(here: Ground) -> list[tuple[str, int]]:
    """The sandboxes that may be torn down now: their session ids and generations."""
    with here.connect() as connection:
        return [(str(row[0]), int(row[1])) for row in connection.execute(CLOSING.encode())]


def gone(here: Ground) -> int:
    """Sandboxes that were torn down, those of the crowd that ended long ago included."""
    with here.connect() as connection:
        row = connection.execute("SELECT count(*) FROM sandboxes WHERE state = 'gone'").fetchone()
    return int(row[0]) if row else 0
