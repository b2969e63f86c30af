"""What almost everybody writes first: read every active session, and look at each in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, registry

from core.schema import sessions


class Row:
    """A session as an ORM has it."""

    last_activity_at: datetime
    idle_ttl: float


registry().map_imperatively(Row, sessions)


@contextmanager
def idle_among(url: str) -> Iterator[Callable[[], tuple[int, int]]]:
    """Looks at all of them: how many are idle, and how many were read to know it."""
    # No engine of ours: that would end a transaction in which somebody thinks for so long.
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def look() -> tuple[int, int]:
        with Session(engine) as session:
            rows = session.scalars(select(Row).where(sessions.c.status == "active")).all()
            now = datetime.now(UTC)
            late = [r for r in rows if r.last_activity_at + timedelta(seconds=r.idle_ttl) < now]
            return len(late), len(rows)

    try:
        yield look
    finally:
        engine.dispose()
