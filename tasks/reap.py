"""
The tasks: thin, because the row decides. A message may be lost, late, doubled or forged: none of
it changes what happens, only when.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict
from typing import Any

from celery.exceptions import Reject

from core.errors import InvalidArgument
from core.model import check_session_id
from core.reaper import Reaper, Teardown, TeardownOutcome
from tasks.app import PURGE, RECONCILE, RETRIES, RETRY_WITHIN, SWEEP, TEARDOWN, app
from tasks.doorbell import FanOut
from tasks.runtime import runtime

logger = logging.getLogger("sandkeeper")


@app.task(name=SWEEP, bind=True, shared=False)
def reap_idle_sessions(self: Any) -> dict[str, int]:
    """
    One sweep. Safe to run twice, late or beside itself: each row is moved by one statement that
    carries its proof and skips rows that another sweep holds, and what is not due is not touched.
    """
    return asdict(_reaper(self).sweep())


@app.task(name=TEARDOWN, bind=True, shared=False, max_retries=RETRIES)
def teardown_sandbox(self: Any, session_id: str, generation: int) -> str:
    """
    One attempt to make a sandbox gone. Safe to run twice, late or beside itself: only a row that
    says `closing` can be claimed, by one worker at a time, and the sandbox of another generation
    has another row. When it fails, the row says when it is due again.
    """
    try:
        check_session_id(session_id)
        _check_generation(generation)
    except InvalidArgument as error:
        logger.warning("TeardownRefused task_id=%s error=%s", self.request.id, error)
        return "invalid"
    teardown = _attempt(self, session_id, generation)
    if teardown.outcome is TeardownOutcome.RETRY:
        _ring_again(self, teardown.retry_after)
    elif not (self.request.is_eager or self.request.called_directly):
        _reaper(self).follow_up(teardown)
    return teardown.outcome.value


@app.task(name=RECONCILE, bind=True, shared=False)
def reconcile_sandboxes(self: Any, provider: object = None) -> list[dict[str, Any]]:
    """
    Compare each provider with the store, or one of them. Safe to run twice, late or beside itself:
    what it tears down it claims by a statement that reads the rows again. With several providers
    each has a task of its own, so that one that hangs delays no other.
    """
    reconciler = runtime.system().reconciler()
    inline = self.request.is_eager or self.request.called_directly
    if provider is None and len(reconciler.providers) > 1 and not inline:
        for name in reconciler.providers:
            self.apply_async((name,), expires=self.expires)
        return []
    if provider is None:
        return [asdict(report) for report in reconciler.reconcile()]
    if not isinstance(provider, str) or provider not in reconciler.providers:
        logger.warning("ReconcileRefused task_id=%s provider=%.60r", self.request.id, provider)
        return []
    return [asdict(report) for report in reconciler.reconcile(provider)]


@app.task(name=PURGE, bind=True, shared=False)
def purge_ended_sessions(self: Any) -> int:
    """
    Delete what ended longer ago than the retention. Safe to run twice, late or beside itself: it
    deletes in batches what nothing changes any more.
    """
    return _reaper(self).purge()


def _reaper(task: Any) -> Reaper:
    return runtime.system().reaper(FanOut(app, inline=bool(task.request.is_eager)))


def _attempt(task: Any, session_id: str, generation: int) -> Teardown:
    """One attempt; in eager mode, where nobody rings again, as many as a message has."""
    reaper, eager = _reaper(task), bool(task.request.is_eager)
    worker = f"{task.request.hostname or 'direct'}:{os.getpid()}:{task.request.id or '-'}"
    teardown = reaper.teardown(session_id, generation, worker=worker)
    for _ in range(RETRIES if eager else 0):
        if teardown.outcome is not TeardownOutcome.RETRY:
            break
        teardown = reaper.teardown(session_id, generation, worker=worker, early=True)
    return teardown


def _ring_again(task: Any, after: float | None) -> None:
    """
    Come back as soon as the row is due. Only a doorbell: beyond its bounds, and when it cannot be
    published, the sweep finds the row. Raises celery's Retry when it was published.
    """
    request = task.request
    if request.is_eager or request.called_directly or request.retries >= RETRIES:
        return
    if after is None or after > RETRY_WITHIN:
        return
    countdown = max(1, math.ceil(after))  # RabbitMQ delays by whole seconds, and refuses 0
    try:
        raise task.retry(countdown=countdown, expires=countdown + task.expires)
    except Reject as error:
        # Celery has it that the message is to be thrown away: there is nothing else to do with it.
        logger.warning("RetryNotPublished task_id=%s error=%s", request.id, error)


def _check_generation(generation: object) -> None:
    if type(generation) is not int or not 1 <= generation < 2**31:
        raise InvalidArgument(f"generation {generation!r:.60}: use a whole number from 1")
