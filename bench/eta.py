"""A timer for each session: a Celery task with an ETA, held by the worker until it is due."""

from __future__ import annotations

from celery import Celery

NAME = "bench.expire"
QUEUE = "bench-eta"
QUEUES = (QUEUE, f"{QUEUE}.pidbox", f"reply.{QUEUE}.pidbox")  # all that it leaves in a broker

app = Celery("bench-eta", set_as_current=False)
app.conf.update(task_default_queue=QUEUE, control_exchange=QUEUE, task_ignore_result=True)


@app.task(name=NAME, shared=False)
def expire(session_id: str) -> None:
    """Would look at the session again."""


def publish(broker_url: str, count: int, seconds: float) -> None:
    """One task for each of conv-1 to conv-`count`, due after so many seconds."""
    app.conf.update(broker_url=broker_url)
    with app.producer_or_acquire() as producer:
        for number in range(1, count + 1):
            expire.apply_async((f"conv-{number}",), countdown=seconds, producer=producer)
