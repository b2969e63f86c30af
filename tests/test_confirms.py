"""A fan-out on RabbitMQ: everything is safe with the broker when it returns, or it raises."""

from __future__ import annotations

import importlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from tasks.app import TEARDOWN
from tasks.confirms import Confirms, TooSlow
from tasks.doorbell import FanOut

PAIRS = [(f"conv-{number}", 1) for number in range(1, 501)]


@pytest.fixture
def app(rabbitmq_url: str, queue_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """Celery with our settings on a real RabbitMQ, on queues of its own."""
    monkeypatch.setenv("SANDKEEPER_BROKER_URL", rabbitmq_url)
    monkeypatch.setenv("SANDKEEPER_QUEUE_PREFIX", queue_prefix)
    monkeypatch.delitem(sys.modules, "celeryconfig", raising=False)
    app = Celery("test", set_as_current=False)
    app.config_from_object(importlib.import_module("celeryconfig"))

    @app.task(name=TEARDOWN, shared=False)
    def teardown(session_id: str, generation: int) -> None:
        raise AssertionError("no worker is here")

    yield app
    app.close()


def waiting(app: Celery, prefix: str) -> list[tuple[str, int]]:
    """What the queue has, in its order."""
    found = []
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[f"{prefix}.teardown"](connection.channel())
        while (message := queue.get()) is not None:
            found.append(tuple(message.payload[0]))
            message.ack()
    return found


def test_a_whole_batch_is_with_the_broker_when_it_returns(app: Celery, queue_prefix: str) -> None:
    """Each once, the most overdue first."""
    FanOut(app)(PAIRS)

    assert waiting(app, queue_prefix) == PAIRS


def test_a_connection_that_died_meanwhile_costs_nothing(app: Celery, queue_prefix: str) -> None:
    """The broker was restarted between two sweeps: the second one publishes all the same."""
    ring = FanOut(app)
    ring(PAIRS[:1])
    with app.producer_or_acquire() as producer:
        transport: Any = producer.connection.connection.transport
        transport.sock.shutdown(socket.SHUT_RDWR)

    ring(PAIRS[1:])

    assert {*waiting(app, queue_prefix)} == {*PAIRS}


def test_what_the_broker_refuses_is_no_success(
    app: Celery, queue_prefix: str, rabbitmq_url: str
) -> None:
    """A full queue answers each message, and the answer is no."""
    name = f"{queue_prefix}.teardown"
    arguments = {"x-max-length": 3, "x-overflow": "reject-publish"}
    with Connection(rabbitmq_url) as connection:
        channel: Any = connection.channel()
        channel.exchange_declare(name, "topic", durable=True, auto_delete=False)
        channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
        channel.queue_bind(name, name, name)
        app.amqp.queues.clear()  # it exists, and is not ours to declare

        sent = Connection(rabbitmq_url, transport_options={"confirm_publish": True})
        with sent, sent.channel() as own:
            confirms = Confirms(own)
            producer = app.amqp.Producer(own)
            for pair in PAIRS[:10]:
                producer.publish(pair, exchange=name, routing_key=name, serializer="json")
            with pytest.raises(OperationalError, match=r"refused \d+ of 10 messages"):
                confirms.wait(time.monotonic() + 10, silence=5)


def test_a_queue_that_is_not_there_is_no_success(app: Celery) -> None:
    """The broker closes the channel instead of confirming."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        confirms = Confirms(channel)
        app.amqp.Producer(channel).publish("x", exchange="nowhere", routing_key="nobody")
        with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
            confirms.wait(time.monotonic() + 10, silence=5)


class Mute:
    """A channel whose broker takes everything; its confirmations are ours to give."""

    def __init__(self, drain: Callable[[float], None]) -> None:
        self.events: dict[str, set[Callable[[int, bool], None]]] = {
            "basic_ack": set(),
            "basic_nack": set(),
        }
        self.connection = self
        self.drain = drain
        self.basic_publish: Any = None

    def confirm_select(self) -> None:
        """It counts from here on."""

    def drain_events(self, timeout: float) -> None:
        self.drain(timeout)


def sent(channel: Mute, count: int, monkeypatch: pytest.MonkeyPatch) -> Confirms:
    """So many messages, under way."""
    monkeypatch.setattr("amqp.Channel.basic_publish", lambda *_, **__: None)
    confirms = Confirms(channel)
    for _ in range(count):
        channel.basic_publish("message", confirm_timeout=5)
    return confirms


def test_a_broker_that_confirms_none_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is not confirmed may look published."""

    def silent(timeout: float) -> None:
        assert timeout <= 0.5
        raise TimeoutError

    confirms = sent(Mute(silent), 3, monkeypatch)

    with pytest.raises(TooSlow, match="0 of 3 messages confirmed"):
        confirms.wait(time.monotonic() + 60, silence=0.5)


def test_confirmations_come_one_by_one_or_for_all_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order; each answers for one message, or for all up to it."""
    answers = iter([(2, False), (1, False), (4, True), (6, True), (5, False)])

    def answer(_: float) -> None:
        number, multiple = next(answers)
        for heard in channel.events["basic_ack"]:
            heard(number, multiple)

    channel = Mute(answer)
    sent(channel, 6, monkeypatch).wait(time.monotonic() + 60, silence=1)

    assert [*answers] == [(5, False)]


def test_a_broker_that_is_slow_is_not_sent_everything_again(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has enough to do; the sweep's lease brings back what it did not confirm."""
    waited = []

    def too_slow(*_: object, **__: object) -> None:
        waited.append(1)
        raise TooSlow("slow")

    monkeypatch.setattr(Confirms, "wait", too_slow)

    with pytest.raises(TooSlow):
        FanOut(app)(PAIRS[:3])

    assert waited == [1]
