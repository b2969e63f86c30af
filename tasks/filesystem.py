"""
A Celery broker in a folder, for the processes of one host: no server, and kill -9 loses nothing.

kombu ships a `filesystem` transport, but its readers take half-written files and lose what they
hold when they die. Here every step of a message is one rename (see spool.py), so delivery is at
least once and no two readers ever get the same message from the queue.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any, Final

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.utils.json import dumps

from tasks.spool import Row, Spool

SCHEME: Final = "sandkeeper+filesystem"
POLL: Final = 0.1  # seconds between two looks at idle queues


def register() -> None:
    """
    Make the scheme known to kombu, which splits a URL at its `+` before it looks the transport
    up: the part before it must be an alias of its own.
    """
    for alias in (SCHEME, SCHEME.partition("+")[0]):
        TRANSPORT_ALIASES[alias] = f"{__name__}:Transport"


class Channel(virtual.Channel):
    """kombu's channel: exchanges, acknowledgements and prefetch are its own, the rest is Spool."""

    supports_fanout = True
    do_restore = True

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._spool = connection.spool
        self._wake = connection.wake
        self._unacknowledged: set[str] = set()

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        if no_ack:
            self._unacknowledged.add(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self._spool.settle(str(message.delivery_tag))
        return message

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        self._spool.settle(delivery_tag)
        super().basic_ack(delivery_tag, multiple)
        self._wake.set()  # there may be room for another message now

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        super().basic_reject(delivery_tag, requeue=requeue)
        self._spool.settle(delivery_tag)
        self._wake.set()

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Bind in the file alone; a table in memory as well would grow with every reply queue."""
        exchange = exchange or "amq.direct"
        self.state.binding_declare(queue, exchange, routing_key, arguments)
        self._spool.bind(exchange, self._row(queue, exchange, routing_key))

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        if not (if_empty and self._size(queue)):
            self.state.queue_bindings_delete(queue)
            self._spool.drop(queue)

    def get_table(self, exchange: str) -> list[Row]:
        return self._spool.table(exchange)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> Any:
        """
        The queues for a message. Nobody: the folder may have been emptied under us, so what this
        process declared is bound again first.
        """
        found = super()._lookup(exchange, routing_key, default)
        if not found and exchange:
            for queue, source, key in list(self.state.bindings or ()):
                if source == exchange:
                    self._spool.bind(exchange, self._row(queue, exchange, key))
            found = super()._lookup(exchange, routing_key, default)
        return found

    def _row(self, queue: str, exchange: str, routing_key: str) -> Row:
        row: Any = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, {})
        key, pattern, target = row
        return (key or "", pattern or "", target or "")

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        while message := self._spool.take(queue):
            tag = message["properties"]["delivery_tag"]
            try:
                self.Message(message, channel=self)
            except Exception as error:  # noqa: BLE001 - kombu would raise it through the worker's main loop
                self._spool.reject(tag, repr(error))
                continue
            if queue in self._unacknowledged:
                self._spool.settle(tag)
            return message
        raise Empty

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self._spool.put(queue, dumps(message), _ttl(message))

    def _put_fanout(self, exchange: str, message: dict[str, Any], key: str, **kwargs: Any) -> None:
        for queue in {queue for _, _, queue in self.get_table(exchange)}:
            self._put(queue, message)

    def _restore(self, message: Any) -> None:
        self._spool.give_back(message.delivery_tag)

    _restore_at_beginning = _restore

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        passing = bool(kwargs.get("auto_delete") or kwargs.get("exclusive"))
        self._spool.declare(queue, passing=passing)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self._spool.has(queue)

    def _size(self, queue: str) -> int:
        return self._spool.size(queue)

    def _purge(self, queue: str) -> int:
        return self._spool.purge(queue)


class Transport(virtual.Transport):
    """The broker URL's folder, and the loop that reads from it."""

    Channel = Channel
    implements = virtual.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "topic", "fanout"])
    )
    connection_errors = (*virtual.Transport.connection_errors, OSError)  # workers wait and retry
    polling_interval = POLL
    default_port = 0
    driver_type = "filesystem"
    driver_name = SCHEME
    global_state = virtual.BrokerState()

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = self.global_state
        self.wake = threading.Event()
        self.spool = Spool(Path((client.hostname or "").partition(":///")[2]))

    def establish_connection(self) -> Any:
        """Here, and not when the transport is made, an error is one of the connection."""
        self.spool.prepare()
        return super().establish_connection()

    def driver_version(self) -> str:
        return "1"

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver one message, or raise TimeoutError. An acknowledgement ends the pause early."""
        end = None if timeout is None else time.monotonic() + timeout
        cycle: Any = self.cycle
        while True:
            self.wake.clear()
            try:
                cycle.get(self._deliver, timeout=timeout)
                return
            except Empty:
                left = self.polling_interval if end is None else end - time.monotonic()
                if left <= 0:
                    raise TimeoutError from None
                self.wake.wait(min(left, self.polling_interval))

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)
        self.spool.close()


def _ttl(message: dict[str, Any]) -> float | None:
    """
    Seconds until nobody wants this message: Celery's `expires` arrives as the AMQP property in
    milliseconds, remote control's as a header in seconds since the epoch.
    """
    with suppress(KeyError, TypeError, ValueError):
        return int(message["properties"]["expiration"]) / 1000
    with suppress(KeyError, TypeError, ValueError):
        if expires := float(message["headers"]["expires"]):
            return expires - time.time()
    return None
