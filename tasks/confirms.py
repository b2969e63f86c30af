"""Many messages on their way to RabbitMQ at once, and one wait until it has confirmed them all."""

from __future__ import annotations

import time
from typing import Any

import amqp
from kombu.exceptions import OperationalError


class TooSlow(Exception):
    """A broker that takes too long. No TimeoutError: kombu would begin again with all of it."""


class Confirms:
    """
    What was published on a channel of its own and is not confirmed yet. kombu waits for each
    message by itself: a round trip and a write to the disk a message, where one does for hundreds.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._sent = 0
        self._waiting: set[int] = set()
        self._refused = 0
        # The broker counts what is published on a channel from here on, and confirms by number.
        channel.confirm_select()
        channel.events["basic_ack"].add(self._confirmed)
        channel.events["basic_nack"].add(self._nacked)
        channel.basic_publish = self._publish

    def wait(self, until: float, *, silence: float) -> None:
        """
        Returns when every message is safe with the broker. TooSlow `until` a date of the
        monotonic clock, or after `silence` seconds without any word; OperationalError when the
        broker refuses some.
        """
        while self._waiting:
            # Of nothing at all left amqp would make "for ever".
            left = max(0.001, min(silence, until - time.monotonic()))
            try:
                self._channel.connection.drain_events(timeout=left)
            except TimeoutError as error:
                raise TooSlow(
                    f"{self._sent - len(self._waiting)} of {self._sent} messages confirmed: the "
                    "broker is slow, or takes none (a memory or disk alarm)"
                ) from error
        if self._refused:
            raise OperationalError(f"the broker refused {self._refused} of {self._sent} messages")

    def _publish(self, message: Any, **options: Any) -> None:
        options.pop("confirm_timeout", None)
        amqp.Channel.basic_publish(self._channel, message, **options)
        self._sent += 1
        self._waiting.add(self._sent)

    def _confirmed(self, number: int, multiple: bool) -> None:  # noqa: FBT001 - amqp's signature
        self._waiting -= {*range(min(self._waiting), number + 1)} if multiple else {number}

    def _nacked(self, number: int, multiple: bool) -> None:  # noqa: FBT001 - amqp's signature
        before = len(self._waiting)
        self._confirmed(number, multiple)
        self._refused += before - len(self._waiting)
