"""What a worker process keeps between tasks, and what it does when it starts and stops."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Final

import structlog
from celery import bootsteps, signals
from kombu import Exchange, Queue

from core.errors import SandkeeperError, StoreUnavailable
from core.host import in_forked_children
from core.settings import Settings
from core.wiring import System
from tasks.app import SWEEP, app

logger = logging.getLogger("sandkeeper")

DEAD_KEPT: Final = 1000  # messages
DEAD_TTL: Final = 7 * 24 * 3600 * 1000  # milliseconds


class Runtime:
    """
    One System per process, made when the first task needs it. A prefork child that finds its
    parent's may use it: it has forgotten the parent's connections.
    """

    def __init__(self) -> None:
        self._forget_lock()
        self._system: System | None = None
        in_forked_children(self, Runtime._forget_lock)

    def _forget_lock(self) -> None:
        """Whoever held it does not exist in a child."""
        self._lock = threading.Lock()

    def system(self) -> System:
        """This process's System."""
        with self._lock:
            if self._system is None:
                self._system = System.from_env()
            return self._system

    @property
    def installation(self) -> str | None:
        """Whose rows this process works on; None before its first task. Connects to nothing."""
        system = self._system
        return None if system is None else system.store.installation

    def settings(self) -> Settings:
        """Those of the environment that this process was started in. Connects to nothing."""
        return Settings.from_env(os.environ)

    def close(self) -> None:
        """Let go of every connection. The next task, if there is one, begins anew."""
        with self._lock:
            system, self._system = self._system, None
            if system is not None:
                system.close()


runtime = Runtime()


class DeadLetters(bootsteps.StartStopStep):
    """
    RabbitMQ keeps what came back too often where a human can look; without a queue of that name
    it is dropped. Nothing reads it: the row of a session says what is to be done.
    """

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """Declare it again with every connection: the broker may be a new one."""
        arguments = {"x-max-length": DEAD_KEPT, "x-message-ttl": DEAD_TTL}
        for source in parent.app.conf.task_queues:
            if name := (source.queue_arguments or {}).get("x-dead-letter-exchange"):
                exchange = Exchange(name, type="topic")
                queue = Queue(name, exchange, routing_key="#", queue_arguments=arguments)
                with parent.connection.channel() as channel:
                    queue(channel).declare()


app.steps["consumer"].add(DeadLetters)


@signals.worker_init.connect
def _look_first(**_: Any) -> None:
    """
    A worker that could do nothing must not look alive. One whose database is away for now
    starts: the order in which things start does not matter.
    """
    try:
        System.from_env().close()  # not kept: a prefork worker forks after this
    except StoreUnavailable as error:
        logger.warning("DatabaseAway error=%s", error)
    except SandkeeperError as error:
        raise SystemExit(f"sandkeeper: {error}") from None


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def _stopped(**_: Any) -> None:
    runtime.close()


@signals.worker_ready.connect
def _sweep_now(sender: Any, **_: Any) -> None:
    """
    Sweep at once: beat's first tick comes a full interval after its start, so a beat that is
    restarted more often than that would never sweep.
    """
    try:
        sender.app.tasks[SWEEP].apply_async(
            **app.conf.beat_schedule["reap-idle-sessions"]["options"]
        )
    except Exception as error:  # noqa: BLE001 - a worker without a broker goes on and waits for it
        logger.warning("FirstSweepNotPublished error=%r", error)


@signals.task_prerun.connect
def _task_started(task_id: str, task: Any, **_: Any) -> None:
    structlog.contextvars.bind_contextvars(task_id=task_id, task=task.name)


@signals.task_postrun.connect
def _task_ended(**_: Any) -> None:
    structlog.contextvars.unbind_contextvars("task_id", "task")
