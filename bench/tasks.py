"""The workers' own application with one task more: what Celery costs when a task does nothing."""

from __future__ import annotations

from tasks import app

__all__ = ["NOTHING", "app", "nothing"]

NOTHING = "bench.nothing"


@app.task(name=NOTHING, shared=False)
def nothing(session_id: str, generation: int) -> None:
    """Take what a teardown takes."""
