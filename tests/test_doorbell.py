"""Ringing for teardowns: everything or an error for the sweep; never a wait for an API server."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from tasks import doorbell
from tasks.app import TEARDOWN
from tasks.confirms import TooSlow
from tasks.doorbell import BackgroundDoorbell, FanOut
from tests.forks import in_child

ROOT = Path(__file__).parents[1]
PAIRS = [("a", 1), ("b", 2), ("c", 3)]
LIMIT = 30.0  # seconds

Ran = list[tuple[str, int]]
MakeApp = Callable[[str], Celery]


@pytest.fixture
def ran() -> Ran:
    """The teardowns that ran in this process."""
    return []


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch, ran: Ran) -> Iterator[MakeApp]:
    """Celery with our settings and a teardown that only takes note."""
    made: list[Celery] = []

    def make(broker_url: str) -> Celery:
        monkeypatch.setenv("SANDKEEPER_BROKER_URL", broker_url)
        monkeypatch.delitem(sys.modules, "celeryconfig", raising=False)
        app = Celery("test", set_as_current=False)
        app.config_from_object(importlib.import_module("celeryconfig"))

        @app.task(name=TEARDOWN, shared=False)
        def teardown(session_id: str, generation: int) -> None:
            ran.append((session_id, generation))

        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A broker that works."""
    return f"sandkeeper+filesystem:///{tmp_path}/broker"


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A broker that cannot be used: a file is where its folder should be."""
    (tmp_path / "file").touch()
    return f"sandkeeper+filesystem:///{tmp_path}/file"


@pytest.fixture
def deaf() -> Iterator[str]:
    """A broker that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def published(app: Celery) -> list[Any]:
    """The arguments of what waits in the queue of teardowns."""
    with app.connection_for_read() as connection:
        queue = app.amqp.queues["sandkeeper.teardown"](connection.channel())
        queue.declare()
        found = []
        while (message := queue.get()) is not None:
            found.append(tuple(message.payload[0]))
            message.ack()
        return found


# For the sweep


def test_rings_for_every_pair_in_order(make_app: MakeApp, folder: str) -> None:
    """One message for each, the most overdue first."""
    app = make_app(folder)

    FanOut(app)(PAIRS)

    assert published(app) == PAIRS


def test_a_message_expires_after_sixty_leases(
    make_app: MakeApp, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep publishes again each lease: what nobody hears must not pile up for ever."""
    monkeypatch.setenv("SANDKEEPER_PUBLISH_LEASE", "0.001")
    app = make_app(folder)
    FanOut(app)(PAIRS)

    time.sleep(0.1)  # the promise is about time that passes

    assert published(app) == []


def test_says_so_when_it_could_not_ring(make_app: MakeApp, broken: str) -> None:
    """The sweep counts what was published; an error must not look like a success."""
    with pytest.raises(OperationalError):
        FanOut(make_app(broken))(PAIRS)


def test_gives_up_on_a_broker_that_is_slow(
    make_app: MakeApp, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has an end, so that a sweep has one."""
    app = make_app(folder)
    monkeypatch.setattr(doorbell, "PUBLISH_WITHIN", -1.0)

    with pytest.raises(TooSlow, match="0 of 3 teardowns"):
        FanOut(app)(PAIRS)


@pytest.mark.parametrize("propagates", [True, False])
def test_runs_the_teardowns_in_eager_mode(
    make_app: MakeApp, broken: str, ran: Ran, *, propagates: bool
) -> None:
    """Without a broker: everything is done when it returns."""
    app = make_app(broken)
    app.conf.update(task_always_eager=True, task_eager_propagates=propagates)

    FanOut(app)(PAIRS)

    assert ran == PAIRS


# For API servers


def test_a_ring_is_published_in_the_background(make_app: MakeApp, folder: str) -> None:
    """It arrives, though nobody waited for it."""
    app = make_app(folder)
    ring = BackgroundDoorbell(app)

    ring(PAIRS)

    assert ring.flush(LIMIT)
    assert published(app) == PAIRS


def test_more_rings_than_a_minute_has_are_left_to_the_sweep(make_app: MakeApp, folder: str) -> None:
    """In the queue they would stand before everybody who comes later; the next minute rings."""
    app = make_app(folder)
    ring = BackgroundDoorbell(app, rings=5)

    ring(PAIRS)
    ring(PAIRS)
    ring._minute -= doorbell.MINUTE
    ring(PAIRS)

    assert ring.flush(LIMIT)
    assert published(app) == [*PAIRS, *PAIRS]


def test_a_ring_does_not_wait_for_a_broker_that_hangs(
    make_app: MakeApp, deaf: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the broker hangs, the request goes on; what finds no room is dropped."""
    ring = BackgroundDoorbell(make_app(deaf), waiting=2)

    with caplog.at_level(logging.WARNING):
        began = time.monotonic()
        for _ in range(50):
            ring(PAIRS)
        took = time.monotonic() - began

    assert took < 1.0
    assert not ring.flush(0.01)
    assert any("reason=full" in record.message for record in caplog.records)


def test_a_ring_that_cannot_be_published_is_dropped(
    make_app: MakeApp, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller hears nothing of it, the log does, and the thread goes on."""
    ring = BackgroundDoorbell(make_app(broken))

    with caplog.at_level(logging.WARNING):
        ring(PAIRS)
        ring(PAIRS)
        assert ring.flush(LIMIT)

    # Of our own broker: the thread of an earlier test may still be giving up on its.
    dropped = [record for record in caplog.records if "Not a directory" in record.message]
    assert len(dropped) == 2


def test_many_threads_ring_at_once(make_app: MakeApp, folder: str) -> None:
    """An API server's first requests come together: one thread publishes, nothing is lost."""
    app = make_app(folder)
    ring = BackgroundDoorbell(app)
    before = threading.active_count()

    threads = [threading.Thread(target=ring, args=([(f"s{n}", 1)],)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ring.flush(LIMIT)
    assert threading.active_count() == before + 1
    assert sorted(published(app)) == sorted((f"s{n}", 1) for n in range(20))


FORKS = """
import os
from tasks import app, ring
ring([("parent", 1)])
assert ring.flush(30)
child = os.fork()
if child == 0:
    ring([("child", 1)])
    os._exit(0 if ring.flush(30) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
ring([("parent", 2)])
assert ring.flush(30)
"""


def test_a_forked_server_rings_too(make_app: MakeApp, folder: str) -> None:
    """Threads stay with the parent: a preloaded API server's children start their own."""
    environ = {**os.environ, "SANDKEEPER_BROKER_URL": folder}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        cwd=ROOT,
        env=environ,
        check=True,
        timeout=LIMIT,
    )

    assert published(make_app(folder)) == [("parent", 1), ("child", 1), ("parent", 2)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_not_stuck_at_its_first_ring() -> None:
    """Another thread of its parent was starting the doorbell when it was forked."""
    bell = BackgroundDoorbell(Celery(broker="memory://"))

    def rings() -> bool:
        bell([("conv", 1)])
        return True

    with bell._start_lock:
        assert in_child(rings)
