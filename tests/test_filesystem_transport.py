"""The broker in a folder: nothing lost, nothing doubled, nothing that makes a worker exit."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue

from tasks import filesystem, spool

filesystem.register()

# Real processes, and not forks of a test run that has threads and sockets.
PROCESSES = multiprocessing.get_context("spawn")
LIMIT = 60.0  # seconds; a wait that takes longer has failed
WORK = Queue("work", Exchange("work", type="topic"), routing_key="work")

Send = Callable[..., None]
Take = Callable[[], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the broker is."""
    return tmp_path / "broker"


@pytest.fixture
def connection(folder: Path) -> Iterator[Connection]:
    """A connection to it."""
    with connect(folder) as opened:
        yield opened


@pytest.fixture
def send(connection: Connection) -> Send:
    """Publish a body to the queue `work`."""
    producer = connection.Producer()

    def publish(body: object, **options: Any) -> None:
        exchange = WORK.exchange
        producer.publish(body, exchange=exchange, routing_key="work", declare=[WORK], **options)

    return publish


@pytest.fixture
def take(connection: Connection) -> Take:
    """The next message of the queue `work`, or None."""
    queue = WORK(connection.channel())
    queue.declare()
    return queue.get


def connect(folder: Path) -> Connection:
    """A connection that looks often."""
    return Connection(
        f"{filesystem.SCHEME}:///{folder}", transport_options={"polling_interval": 0.02}
    )


def body_of(queue: Queue) -> object:
    """The body of the next message."""
    message = queue.get()
    assert message is not None
    return message.payload


def files(folder: Path, *where: str) -> list[str]:
    """The files below, without locks."""
    found = folder.joinpath(*where).rglob("*")
    return sorted(path.name for path in found if path.is_file() and path.name != "lock")


def until(condition: Callable[[], object]) -> None:
    """Wait for something that can be looked at."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# What other processes do


def publish_many(folder: Path, name: str, count: int) -> None:
    """Publish so many messages."""
    with connect(folder) as connection:
        producer = connection.Producer()
        for number in range(count):
            body = {"publisher": name, "number": number}
            producer.publish(body, exchange=WORK.exchange, routing_key="work", declare=[WORK])


def read_all(folder: Path, log: Path, stop: Path) -> None:
    """Write down every message that came, until the queue is empty and there is a stop file."""
    with connect(folder) as connection, log.open("a", buffering=1) as output:

        def note(body: object, message: Any) -> None:
            output.write(json.dumps(body) + "\n")
            message.ack()

        with connection.Consumer(WORK, callbacks=[note], prefetch_count=4):
            while True:
                last_round = stop.exists()
                try:
                    connection.drain_events(timeout=0.3)
                except TimeoutError:
                    if last_round:
                        return


def hold_one(folder: Path, held: Path) -> None:
    """Take a message and never acknowledge it."""
    with connect(folder) as connection:
        queue = WORK(connection.channel())
        while (message := queue.get()) is None:
            time.sleep(0.01)
        held.write_text(json.dumps(message.payload))
        signal.pause()


def run(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Do it in another process."""
    process = PROCESSES.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


# Many processes


def test_readers_and_publishers_race_and_nothing_is_lost_or_doubled(
    folder: Path, tmp_path: Path
) -> None:
    """Three readers and two publishers at once: each message is read once, by one of them."""
    stop, logs = tmp_path / "stop", [tmp_path / f"reader{number}" for number in range(3)]
    readers = [run(read_all, folder, log, stop) for log in logs]
    publishers = [run(publish_many, folder, f"p{number}", 500) for number in range(2)]

    for publisher in publishers:
        publisher.join(LIMIT)
    stop.touch()
    for reader in readers:
        reader.join(LIMIT)

    assert [process.exitcode for process in readers + publishers] == [0] * 5
    read = Counter(line for log in logs for line in log.read_text().splitlines())
    assert len(read) == 1000
    assert set(read.values()) == {1}
    assert files(folder, "queues") == files(folder, "taken") == files(folder, "bad") == []


def test_a_message_of_a_killed_reader_is_delivered_again(
    folder: Path, tmp_path: Path, send: Send, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 between delivery and acknowledgement loses nothing, and the flag says so."""
    monkeypatch.setattr(spool, "RECOVER", 0.0)
    send({"number": 1})
    victim = run(hold_one, folder, tmp_path / "held")
    until((tmp_path / "held").exists)
    assert take() is None  # it is taken, and its reader lives

    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(LIMIT)

    message = take()
    assert message.payload == {"number": 1}
    assert message.delivery_info["redelivered"] is True
    message.ack()
    assert files(folder, "queues") == files(folder, "taken") == []


def test_a_live_reader_keeps_what_it_holds(
    folder: Path, tmp_path: Path, send: Send, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes: there is no visibility timeout that runs out during a teardown."""
    monkeypatch.setattr(spool, "RECOVER", 0.0)
    send({"number": 1})
    reader = run(hold_one, folder, tmp_path / "held")
    until((tmp_path / "held").exists)

    assert [take() for _ in range(20)] == [None] * 20

    reader.kill()
    reader.join(LIMIT)


def test_a_connection_that_closes_gives_back_what_it_holds(
    folder: Path, send: Send, take: Take
) -> None:
    """A reader that stops in an orderly way leaves its messages to the others, in their places."""
    send(1)
    send(2)
    with connect(folder) as other:
        assert body_of(WORK(other.channel())) == 1

    assert [take().payload, take().payload] == [1, 2]


# One reader


def test_order_is_that_of_publishing(send: Send, take: Take) -> None:
    """First in, first out."""
    for number in range(200):
        send(number)

    assert [take().payload for _ in range(200)] == list(range(200))


def test_order_survives_a_clock_that_steps_back(
    send: Send, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one process publishes stays in order whatever its clock does."""
    now = time.time_ns()
    for number, step in enumerate([0, -(10**9), -(10**9), 5]):
        monkeypatch.setattr(time, "time_ns", lambda step=step: now + step)
        send(number)
    monkeypatch.undo()

    assert [take().payload for _ in range(4)] == [0, 1, 2, 3]


def test_an_expired_message_is_dropped(folder: Path, send: Send, take: Take) -> None:
    """Celery's `expires`: what nobody wants any more is not delivered, and its file is gone."""
    send("old", expiration=0.001)
    send("new", expiration=600)
    time.sleep(0.01)  # the promise is about time that passes

    assert take().payload == "new"
    assert take() is None
    assert files(folder, "queues") == []


def test_a_rejected_message_is_gone_and_a_requeued_one_comes_first(
    folder: Path, send: Send, take: Take
) -> None:
    """As on any broker."""
    for number in range(3):
        send(number)

    take().reject()
    take().requeue()

    assert [take().payload, take().payload] == [1, 2]
    assert files(folder, "queues") == []


def test_purge_and_size_count_what_waits(connection: Connection, send: Send, take: Take) -> None:
    """Neither what is delivered nor what has expired waits."""
    for number in range(4):
        send(number)
    send("old", expiration=0.001)
    time.sleep(0.01)  # the promise is about time that passes
    take()
    channel: Any = connection.channel()

    assert channel.queue_declare("work", passive=True).message_count == 3
    assert channel.queue_purge("work") >= 3
    assert channel.queue_declare("work", passive=True).message_count == 0
    assert take() is None


def test_a_long_queue_is_not_listed_for_each_message(
    send: Send, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands may wait after an outage: reading them must not cost their square."""
    for number in range(1000):
        send(number)
    listings: Counter[str] = Counter()
    listdir = os.listdir

    def counted(path: Any) -> list[str]:
        listings[Path(path).name] += 1
        return listdir(path)

    monkeypatch.setattr(os, "listdir", counted)

    for _ in range(1000):
        take().ack()

    assert listings["work"] <= 2


# What does not belong


GARBAGE = [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"properties": {}}', b'{"properties": []}']
UNDELIVERABLE = [
    {"properties": {"delivery_info": {}, "body_encoding": "base64"}, "body": "abc"},
    {"properties": {"delivery_info": {}, "body_encoding": "klingon"}, "body": "x"},
]


@pytest.mark.parametrize("content", [*GARBAGE, *(json.dumps(m).encode() for m in UNDELIVERABLE)])
def test_a_file_that_is_no_message_is_set_aside(
    folder: Path, send: Send, take: Take, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once and kept for a human; what comes after it is delivered."""
    send("first")
    first = next((folder / "queues" / "work").iterdir())
    first.write_bytes(content)
    send("second")

    with caplog.at_level(logging.ERROR):
        assert take().payload == "second"
        assert take() is None

    assert len(files(folder, "bad")) == 1
    assert len([record for record in caplog.records if "Set aside" in record.message]) == 1


def test_a_foreign_file_is_set_aside(folder: Path, send: Send, take: Take) -> None:
    """Whatever somebody puts into the folder, directories included."""
    send("ours")
    waiting = folder / "queues" / "work"
    (waiting / "0000-notes.txt").write_text("remember the milk")
    (waiting / "0000-holiday").mkdir()

    assert take().payload == "ours"
    assert {name.partition("-")[2] for name in os.listdir(folder / "bad")} == {
        "0000-notes.txt",
        "0000-holiday",
    }


def test_few_bad_files_are_kept(folder: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes garbage all day must not fill the disk through us."""
    monkeypatch.setattr(spool, "BAD", 3)
    take()
    for number in range(10):
        (folder / "queues" / "work" / f"junk{number}").touch()

    assert take() is None
    assert len(files(folder, "bad")) == 3


def test_a_message_that_kills_its_readers_is_set_aside(
    folder: Path, send: Send, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is delivered a number of times, and then it is out of the way."""
    monkeypatch.setattr(spool, "RETURNS", 2)
    send("poison")

    for _ in range(3):
        take().requeue()

    assert take() is None
    assert len(files(folder, "bad")) == 1


def test_a_table_of_bindings_that_cannot_be_read_is_made_again(
    folder: Path, send: Send, take: Take
) -> None:
    """A publisher that reaches nobody declares its queue again before it gives up."""
    send(1)
    (folder / "exchanges" / "work").write_text("[[1")

    send(2)

    assert [take().payload, take().payload] == [1, 2]


def test_a_folder_that_is_removed_is_made_again(
    folder: Path, send: Send, take: Take, tmp_path: Path
) -> None:
    """Somebody cleans up while the system runs: what was waiting is lost, what comes is not."""
    send(1)
    take().ack()
    folder.rename(tmp_path / "elsewhere")

    send(2)

    message = take()
    assert message.payload == 2
    message.ack()


def test_a_half_written_file_is_removed_when_it_is_old(
    folder: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What publishers that were killed left behind does not pile up."""
    monkeypatch.setattr(spool, "RECOVER", 0.0)
    take()
    old, new = folder / "tmp" / "old", folder / "tmp" / "new"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))

    take()

    assert files(folder, "tmp") == ["new"]


# Queues that go with their readers


def declare_passing(folder: Path, declared: Path) -> None:
    """Own a queue that goes with its reader, and wait to be killed."""
    with connect(folder) as connection:
        exchange = Exchange("news", type="fanout", durable=False)
        Queue("listener", exchange, exclusive=True)(connection.channel()).declare()
        declared.touch()
        signal.pause()


def test_a_passing_queue_goes_with_its_reader(
    folder: Path, tmp_path: Path, send: Send, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor that was killed does not collect messages for ever."""
    monkeypatch.setattr(spool, "RECOVER", 0.0)
    listener = run(declare_passing, folder, tmp_path / "declared")
    until((tmp_path / "declared").exists)
    take()
    assert (folder / "queues" / "listener").is_dir()  # its reader lives

    listener.kill()
    listener.join(LIMIT)
    take()

    assert not (folder / "queues" / "listener").exists()
    assert json.loads((folder / "exchanges" / "news").read_text()) == []


def test_a_fanout_reaches_every_queue(connection: Connection, folder: Path) -> None:
    """Remote control works: each worker hears what is said to all."""
    exchange = Exchange("news", type="fanout")
    queues = [Queue(f"listener{n}", exchange)(connection.channel()) for n in range(3)]
    for queue in queues:
        queue.declare()

    connection.Producer().publish("hello", exchange=exchange, routing_key="")

    assert [body_of(queue) for queue in queues] == ["hello"] * 3


@pytest.mark.parametrize("name", ["../../etc", "celery@host.example", "ä/ö", "x" * 300, ".", ".."])
def test_a_queue_of_any_name_stays_in_the_folder(
    connection: Connection, folder: Path, name: str
) -> None:
    """A queue's name may be anything; a file's name may not."""
    queue = Queue(name, Exchange(name, type="topic"), routing_key="k")(connection.channel())
    queue.declare()

    connection.Producer().publish("here", exchange=queue.exchange, routing_key="k")

    assert body_of(queue) == "here"
    assert len(os.listdir(folder / "queues")) == 1
    queue.delete()
    assert os.listdir(folder / "queues") == []


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are relative and four absolute, as in SQLite's URLs."""
    monkeypatch.chdir(tmp_path)

    with Connection(f"{filesystem.SCHEME}:///some/broker") as connection:
        connection.connect()

    assert (tmp_path / "some" / "broker" / "queues").is_dir()


def test_an_acknowledgement_ends_the_pause_between_two_looks(folder: Path, send: Send) -> None:
    """With a prefetch of one, a reader is as fast as its work, not as its polling interval."""
    for number in range(20):
        send(number)
    read: list[object] = []

    def note(body: object, message: Any) -> None:
        read.append(body)
        threading.Timer(0.001, message.ack).start()

    url = f"{filesystem.SCHEME}:///{folder}"
    began = time.monotonic()
    with (
        Connection(url, transport_options={"polling_interval": 5}) as slow,
        slow.Consumer(WORK, callbacks=[note], prefetch_count=1),
    ):
        while len(read) < 20:
            slow.drain_events(timeout=LIMIT)

    assert read == list(range(20))
    assert time.monotonic() - began < 5
