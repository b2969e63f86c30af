"""The worker's consumer: Celery's own, except that no message can end the worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import consumer

logger = logging.getLogger("sandkeeper")


class Consumer(consumer.Consumer):
    """
    Celery takes for granted that a message which names a task was made by Celery: what else it
    holds raises through the main loop, and the worker exits. The message is then delivered to the
    next worker. Here it is refused; RabbitMQ keeps it among the dead letters.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def careful(message: Any) -> None:
            try:
                handle(message)
            # kombu counts KeyError among the connection errors of Redis, and Celery then connects
            # anew and gets the same message again; sockets raise none of these.
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                logger.error("MessageRefused error=%r", error)  # noqa: TRY400 - the worker is well
                if not message.acknowledged:
                    message.reject_log_error(logger, self.connection_errors)  # type: ignore[attr-defined]

        return careful
