"""The Celery application, and the names that other programs enqueue by."""

from __future__ import annotations

from typing import Final

from celery import Celery

from tasks import filesystem

SWEEP: Final = "sandkeeper.reap_idle_sessions"
TEARDOWN: Final = "sandkeeper.teardown_sandbox"
PURGE: Final = "sandkeeper.purge_ended_sessions"
RECONCILE: Final = "sandkeeper.reconcile_sandboxes"

# A teardown that is due again within so many seconds also rings by itself, so often at most; the
# sweep does the rest. On Redis a message must not wait longer than the visibility timeout.
RETRY_WITHIN: Final = 60.0
RETRIES: Final = 8

filesystem.register()

# Not the current app: a server that imports us may have a Celery of its own.
app = Celery("sandkeeper", set_as_current=False)
# By name, so that it is read when it is needed and not when this is imported: a program that only
# wants to enqueue can report a bad setting in its own way. The prefix is the wheel's package.
app.config_from_object(f"{__name__.removesuffix('tasks.app')}celeryconfig")
