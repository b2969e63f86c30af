"""Ringing for teardowns: what the sweep uses, and what programs that end sessions use."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from queue import Full, Queue
from typing import Any, Final

from celery import Celery

from core.host import in_forked_children
from tasks.app import TEARDOWN
from tasks.confirms import Confirms, TooSlow

logger = logging.getLogger("sandkeeper")

PUBLISH_WITHIN: Final = 30.0  # seconds for one batch; what is left is published after the lease
CONFIRM_WITHIN: Final = 5.0  # seconds; a RabbitMQ that is well confirms in milliseconds
WAITING: Final = 1000  # batches
RINGS: Final = 1000  # teardowns a minute that a program rings for
MINUTE: Final = 60.0

Pairs = Sequence[tuple[str, int]]


class FanOut:
    """
    Publishes teardowns through one producer, and raises when it cannot: OperationalError from the
    broker, TooSlow when it takes too long. In eager mode, and `inline`, it runs them instead.
    """

    def __init__(self, app: Celery, *, inline: bool = False) -> None:
        self.app = app
        self.inline = inline
        self._patience = app.conf.task_publish_retry_policy

    def __call__(self, pairs: Pairs) -> None:
        """Ring for each pair of session id and generation."""
        teardown = self.app.tasks[TEARDOWN]
        if self.inline or self.app.conf.task_always_eager:
            for pair in pairs:
                teardown.apply(pair, throw=self.app.conf.task_eager_propagates)
            return
        end = time.monotonic() + PUBLISH_WITHIN
        with self.app.producer_or_acquire() as producer:
            confirmed = producer.connection.transport.driver_type == "amqp"
            publish = self._confirmed if confirmed else self._batched
            # All of them again over another connection when this one turns out to be dead, as it is
            # after the broker was restarted: who hears of a teardown twice finds it done.
            again = producer.connection.ensure(producer, publish, **self._patience)
            again(producer, pairs, end)

    def _batched(self, producer: Any, pairs: Pairs, end: float) -> None:
        """In one pipeline where the transport has that (Redis), else one by one."""
        self._connect(producer)
        with producer.batch():
            self._publish(producer, pairs, end)

    def _confirmed(self, producer: Any, pairs: Pairs, end: float) -> None:
        """All at once, and then a wait until RabbitMQ has all of them."""
        self._connect(producer)
        with producer.connection.channel() as channel:
            confirms = Confirms(channel)
            self._publish(self.app.amqp.Producer(channel), pairs, end)
            confirms.wait(end, silence=CONFIRM_WITHIN)

    def _connect(self, producer: Any) -> None:
        # A pooled connection that was closed makes no channel until it is told to connect; and left
        # to itself it tries for longer than anybody waits.
        producer.connection.ensure_connection(**{**self._patience, "max_retries": 1})

    def _publish(self, producer: Any, pairs: Pairs, end: float) -> None:
        teardown = self.app.tasks[TEARDOWN]
        for count, pair in enumerate(pairs):
            if time.monotonic() > end:
                raise TooSlow(
                    f"{count} of {len(pairs)} teardowns published in {PUBLISH_WITHIN:g} s: "
                    "the broker is slow; the sweep publishes the rest"
                )
            teardown.apply_async(pair, producer=producer, retry=False)


class BackgroundDoorbell:
    """
    The doorbell of a program that must not wait for the broker: a thread publishes. It drops what
    it cannot publish and what there is no room for; the next sweep rings for both. So it does for
    more than `rings` a minute: in the broker they would stand before everybody who comes later,
    while the sweep lets tenants take turns.
    """

    def __init__(self, app: Celery, *, waiting: int = WAITING, rings: int = RINGS) -> None:
        self.app = app
        self.waiting = waiting
        self.rings = rings
        self._minute, self._rung = 0.0, 0
        self._queue: Queue[Pairs] = Queue()
        self._forget()
        in_forked_children(self, BackgroundDoorbell._forget)

    def _forget(self) -> None:
        """Threads stay with the parent, and whoever held the lock."""
        self._start_lock = threading.Lock()
        self._started = False

    def __call__(self, pairs: Pairs) -> None:
        """Ring, some time soon. Never blocks and never raises; in eager mode it runs the tasks."""
        if self.app.conf.task_always_eager:
            FanOut(self.app)(pairs)
            return
        if not self._may_ring(len(pairs)):
            return
        if not self._started:
            self._start()
        try:
            self._queue.put_nowait(list(pairs))
        except Full:
            logger.warning("DoorbellDropped teardowns=%d reason=full", len(pairs))

    def _may_ring(self, teardowns: int) -> bool:
        """Two threads that count at once may miss one: it is no more than a rough bound."""
        now = time.monotonic()
        if now - self._minute >= MINUTE:
            self._minute, self._rung = now, 0
        self._rung += teardowns
        return self._rung <= self.rings

    def flush(self, timeout: float) -> bool:
        """Wait until all is published or dropped, `timeout` seconds at most. False: not yet."""
        end = time.monotonic() + timeout
        while self._queue.unfinished_tasks:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def _start(self) -> None:
        """Lazily, and again in a forked child."""
        with self._start_lock:
            if not self._started:
                self._queue = Queue(self.waiting)
                threading.Thread(
                    target=self._publish, args=(self._queue,), name="sandkeeper-ring", daemon=True
                ).start()
                self._started = True

    def _publish(self, queue: Queue[Pairs]) -> None:
        while True:
            pairs = queue.get()
            try:
                FanOut(self.app)(pairs)
            except Exception as error:  # noqa: BLE001 - whatever the broker's trouble is: later ones may succeed
                logger.warning("DoorbellDropped teardowns=%d reason=%r", len(pairs), error)
            finally:
                queue.task_done()
