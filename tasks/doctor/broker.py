"""The broker: whether it answers, and whether its queues are those that we declare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amqp.exceptions import AMQPError
from celery import Celery
from kombu import Queue
from kombu.exceptions import ChannelError

from core.doctor.disks import Space, judged, space
from core.doctor.findings import Answer, Examination, failure, ok, warning
from core.doctor.patient import Patient
from core.doctor.rounds import bounded
from tasks.filesystem import SCHEME

WITHIN: Final = 3  # seconds to connect; a broker that is there answers at once
MANY: Final = 20  # messages in the queue of sweeps: beat makes three or so in one interval
BACKLOG: Final = 200  # teardowns
NOT_FOUND: Final = 404


@dataclass(frozen=True, kw_only=True)
class Line:
    """One queue as the broker has it. `messages` is None where there is none of that name."""

    name: str
    messages: int | None
    differs: str | None = None  # what the broker says of how it was declared


@dataclass(frozen=True, kw_only=True)
class Broker:
    """What the broker says, and the folder where it is one."""

    address: str
    makes_queues: bool  # by being published to; a queue that is not there is empty
    queues: list[Line]
    dead: Line | None
    closing: int  # sandboxes that wait for a teardown, by the rows
    folder: Space | None
    set_aside: int  # files of a folder that were no messages


def _look(patient: Patient, app: Celery) -> Broker:
    with app.connection_for_read(connect_timeout=WITHIN) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=WITHIN)
        is_amqp = connection.transport.driver_type == "amqp"
        queues = [_line(connection, queue, compare=is_amqp) for queue in app.conf.task_queues]
        dead = _dead_letters(connection, app) if is_amqp else None
        folder = _folder(app)
        return Broker(
            address=connection.as_uri(),
            makes_queues=not is_amqp,
            queues=queues,
            dead=dead,
            closing=_closing(patient),
            folder=None if folder is None else space(folder, patient),
            set_aside=0 if folder is None else len(list((folder / "bad").glob("*"))),
        )


def _closing(patient: Patient) -> int:
    """By the rows; a broker can be looked at without them."""
    try:
        return bounded(patient.checkup.census, patient.within / 4).sandboxes["closing"]
    except Exception:  # noqa: BLE001 - what is wrong with the database is said elsewhere
        return 0


def _line(connection: Any, queue: Queue, *, compare: bool) -> Line:
    """A channel of its own for each question: a broker closes the one that asked in vain."""
    try:
        with connection.channel() as channel:
            found = queue(channel).queue_declare(passive=True)
    except (AMQPError, ChannelError) as error:
        if getattr(error, "reply_code", getattr(error, "code", None)) in {NOT_FOUND, "404"}:
            return Line(name=queue.name, messages=None)
        raise
    if not compare:
        return Line(name=queue.name, messages=_size(found))
    try:
        with connection.channel() as channel:
            # It is there: to declare it as it is changes nothing, and as it is not is refused.
            queue(channel).declare()
    except (AMQPError, ChannelError) as error:
        return Line(name=queue.name, messages=_size(found), differs=str(error))
    return Line(name=queue.name, messages=_size(found))


def _size(found: Any) -> int:
    return int(getattr(found, "message_count", 0) or 0)


def _dead_letters(connection: Any, app: Celery) -> Line | None:
    arguments = app.conf.task_queues[0].queue_arguments or {}
    name = arguments.get("x-dead-letter-exchange")
    return _line(connection, Queue(name), compare=False) if name else None


def _folder(app: Celery) -> Path | None:
    scheme, _, path = str(app.conf.broker_url).partition(":///")
    if scheme != SCHEME:
        return None
    return Path(path)


def broker(found: Broker) -> Answer:
    """The broker answers within three seconds. While it does not, only API processes sweep."""
    return ok(found.address)


def queues(found: Broker) -> Answer:
    """
    Both queues are there, as workers declare them. RabbitMQ refuses to declare a queue that was
    made with another type or other arguments, and the workers that try consume nothing.
    """
    differing = [queue for queue in found.queues if queue.differs is not None]
    if differing:
        names = ", ".join(queue.name for queue in differing)
        return failure(
            f"{names} was declared otherwise: {differing[0].differs}",
            f"stop the workers, delete {names} (a message is only a doorbell), and start them",
        )
    missing = [queue.name for queue in found.queues if queue.messages is None]
    if missing and not found.makes_queues:
        return warning(
            f"no worker has made {', '.join(missing)} yet", "start `celery -A tasks worker`"
        )
    return ok(", ".join(f"{queue.name}: {queue.messages or 0}" for queue in found.queues))


def queue_depth(found: Broker) -> Answer:
    """
    Workers keep up: few sweeps wait, and not many more teardowns than there are sandboxes to tear
    down. What waits too long expires, and the sweep rings again.
    """
    deep = [
        queue
        for queue in found.queues
        if (queue.messages or 0) > (_most(found) if queue.name.endswith("teardown") else MANY)
    ]
    if deep:
        said = ", ".join(f"{queue.messages} in {queue.name}" for queue in deep)
        return warning(
            f"messages pile up: {said}, for {found.closing} sandboxes that are closing",
            "start more workers, or look at what those that run are doing",
        )
    return ok("few messages wait")


def _most(found: Broker) -> int:
    return BACKLOG + 3 * found.closing


def dead_letters(found: Broker) -> Answer:
    """
    No message came back so often that it was put aside (RabbitMQ's queue `.dead`, the folder's
    `bad`). Nothing depends on them, but something kills workers, or writes what is no message.
    """
    count = found.set_aside + (0 if found.dead is None else found.dead.messages or 0)
    if not count:
        return ok("none")
    where = "the folder `bad` of the broker" if found.dead is None else f"queue {found.dead.name}"
    return warning(
        f"{count} messages in {where}",
        "look at one of them and at the workers' logs; then purge it",
    )


def broker_space(found: Broker) -> Answer:
    """The disk that the broker's folder is on has room, where the broker is a folder."""
    return ok("is on the broker's host") if found.folder is None else judged(found.folder)


def broker_of(app: Celery) -> Examination[Broker]:
    """What there is to see of this application's broker."""
    return Examination(
        name="broker",
        look=lambda patient: _look(patient, app),
        checks=(broker, queues, queue_depth, dead_letters, broker_space),
        fix="see that SANDKEEPER_BROKER_URL is right, that the broker runs and lets us in",
        needs=("settings",),
    )
