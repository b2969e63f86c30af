"""Celery: `celery -A tasks worker`, and `ring` for programs that end sessions themselves."""

from __future__ import annotations

from tasks import logs as _logs  # noqa: F401 - connects to the signal
from tasks import panel as _panel  # noqa: F401 - registers what a worker answers
from tasks.app import app
from tasks.doorbell import BackgroundDoorbell
from tasks.reap import purge_ended_sessions, reap_idle_sessions, teardown_sandbox

ring = BackgroundDoorbell(app)

__all__ = ["app", "purge_ended_sessions", "reap_idle_sessions", "ring", "teardown_sandbox"]
