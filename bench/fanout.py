"""Publishing teardowns: beside a producer that does nothing else, with the same guarantees."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from kombu import Connection

from .figures import Figure
from .fleet import Fleet, fleet
from .ground import Ground
from .meter import timed

NAME = "fanout"
MESSAGES = 10_000
BATCH = 500  # what a sweep publishes at a time
ROUNDS = 3


def run(here: Ground) -> Iterator[Figure]:
    """The figures."""
    with fleet() as own:
        ours, raw = [], []
        for _ in range(ROUNDS):
            ours.append(timed(publish_teardowns))
            raw.append(timed(lambda: _publish_raw(own)))
    yield Figure(
        bench=NAME,
        what=f"{MESSAGES:,} teardowns published and confirmed",
        ours=MESSAGES / median(ours),
        peer=MESSAGES / median(raw),
        peer_is="a raw kombu producer",
        unit="/s",
        at_least=0.8,
    )


def publish_teardowns(count: int = MESSAGES) -> None:
    """As a sweep does, for conv-1 and on."""
    from tasks.app import app  # noqa: PLC0415 - its settings are read at import
    from tasks.doorbell import FanOut  # noqa: PLC0415 - likewise

    ring = FanOut(app)
    for first in range(1, count + 1, BATCH):
        ring([(f"conv-{number}", 1) for number in range(first, first + BATCH)])


def _publish_raw(own: Fleet) -> None:
    """The same body, persistent and confirmed, to the same queue."""
    body = [["conv-1", 1], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    with Connection(own.broker_url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer(serializer="json")
        for _ in range(MESSAGES):
            producer.publish(
                body,
                exchange=own.queue,
                routing_key=own.queue,
                delivery_mode=2,
                confirm_timeout=5,
                retry=False,
            )
