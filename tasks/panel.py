"""What a worker says of itself when it is asked: `sandkeeper doctor` compares it with our own."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from celery import signals

from core.policy import Policy
from core.settings import Settings
from tasks.runtime import runtime

INTRODUCE: Final = "sandkeeper_introduce"
# Settings that every process of an installation has to share; none of them is a secret.
SHARED: Final = (*Policy.__dataclass_fields__, "sweep_interval", "purge_interval", "provider")


def shared(settings: Settings) -> dict[str, object]:
    """What processes of one installation must agree on, as JSON has it."""
    return {name: getattr(settings, name) for name in SHARED}


def our_version() -> str:
    """Of the package that is installed; a checkout has none."""
    try:
        return version("sandkeeper")
    except PackageNotFoundError:
        return "checkout"


@signals.worker_init.connect
def _listen(**_: Any) -> None:
    """In workers alone: an API server that only enqueues need not import what they are made of."""
    from celery.worker.control import inspect_command  # noqa: PLC0415

    inspect_command(name=INTRODUCE)(introduce)


def introduce(state: Any) -> dict[str, object]:
    """Runs in the worker's main loop: it connects to nothing, and answers at once."""
    consumer = state.consumer.task_consumer
    pool = state.consumer.pool
    return {
        "version": our_version(),
        "settings": shared(runtime.settings()),
        "installation": runtime.installation,
        "queues": sorted(queue.name for queue in consumer.queues) if consumer else [],
        "pool": type(pool).__module__.rpartition(".")[2],
        "concurrency": int(pool.limit or 0),
    }
