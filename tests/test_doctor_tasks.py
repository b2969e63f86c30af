"""The doctor's look at the broker and the workers, on real brokers."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.thread import TaskPool
from celery.worker.control import Panel
from kombu import Connection, Exchange, Queue

from core.doctor import Examination, Finding, Level, Patient, examine
from tasks import panel
from tasks.doctor.broker import Broker, Line, broker_of, queue_depth
from tasks.doctor.workers import (
    Worker,
    Workers,
    understood,
    worker_pools,
    worker_queues,
    worker_settings,
    worker_versions,
    workers,
    workers_of,
)
from tasks.panel import INTRODUCE, introduce, shared
from tests.factories import settings


@pytest.fixture(params=["rabbitmq", "redis", "folder"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of broker."""
    if request.param == "folder":
        return f"sandkeeper+filesystem:///{tmp_path / 'broker'}"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def configured(
    sqlite_url: str, queue_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Celery]]:
    """Our application, as a process with this broker has it."""
    made: list[Celery] = []

    def configure(broker_url: str) -> Celery:
        for name in [name for name in os.environ if name.startswith("SANDKEEPER_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("SANDKEEPER_DATABASE_URL", sqlite_url)
        monkeypatch.setenv("SANDKEEPER_BROKER_URL", broker_url)
        monkeypatch.setenv("SANDKEEPER_QUEUE_PREFIX", queue_prefix)
        monkeypatch.delitem(sys.modules, "celeryconfig", raising=False)
        made.append(Celery("doctor", set_as_current=False))
        made[-1].config_from_object(importlib.import_module("celeryconfig"))
        return made[-1]

    yield configure
    for app in made:
        app.close()


def look(app: Celery, *, at_workers: bool = False) -> dict[str, Finding]:
    """What is found of the broker, by check, and of the workers if that is asked for."""
    patient = Patient(environ=dict(os.environ), within=30.0)
    every: list[Examination[Any]] = [broker_of(app)]
    if at_workers:
        every.append(workers_of(app))
    found = {each.check: each for each in examine(patient, every)}
    patient.close()
    return found


def declare(app: Celery) -> None:
    """What a worker does when it starts."""
    with app.connection_for_write() as connection:
        for queue in app.conf.task_queues:
            queue(connection.channel()).declare()


def test_a_broker_that_is_well(configured: Callable[[str], Celery], broker_url: str) -> None:
    """Queues that workers declared are as they should be, and looking declares none."""
    app = configured(broker_url)
    declare(app)

    found = look(app)

    assert {each.level for each in found.values()} == {Level.OK}


def test_a_broker_that_is_away(configured: Callable[[str], Celery]) -> None:
    """One finding, soon; the workers cannot be asked then."""
    app = configured("amqp://somebody:open-sesame@127.0.0.1:1//")

    found = look(app, at_workers=True)

    assert (found["broker"].level, found["workers"].level) == (Level.FAILURE, Level.NOTE)
    assert "SANDKEEPER_BROKER_URL" in found["broker"].fix
    assert "open-sesame" not in repr(found)


def test_queues_that_no_worker_has_made(
    configured: Callable[[str], Celery], rabbitmq_url: str, queue_prefix: str
) -> None:
    """They are missed, and not made by looking for them."""
    app = configured(rabbitmq_url)

    first, second = look(app), look(app)

    assert first["queues"].level is Level.WARNING
    assert f"{queue_prefix}.sweep" in first["queues"].says
    assert second["queues"] == first["queues"]


def test_a_queue_of_another_type(
    configured: Callable[[str], Celery], rabbitmq_url: str, queue_prefix: str
) -> None:
    """Made by hand, or by an older version: workers cannot consume it."""
    app = configured(rabbitmq_url)
    declare(app)
    name = f"{queue_prefix}.teardown"
    with Connection(rabbitmq_url) as connection:
        Queue(name, channel=connection.default_channel).delete()
        Queue(name, Exchange(name, type="topic"), channel=connection.default_channel).declare()

    found = look(app)

    wrong = [each for each in found.values() if not each.level.is_ok]
    assert [(each.check, each.level) for each in wrong] == [("queues", Level.FAILURE)]
    assert f"delete {name}" in wrong[0].fix


def test_sweeps_that_pile_up(
    configured: Callable[[str], Celery], broker_url: str, queue_prefix: str
) -> None:
    """Beat works, and no worker does."""
    app = configured(broker_url)
    declare(app)
    name = f"{queue_prefix}.sweep"
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for _ in range(25):
            producer.publish({}, exchange=name, routing_key=name)

    found = look(app)

    wrong = [each for each in found.values() if not each.level.is_ok]
    assert [(each.check, each.level) for each in wrong] == [("queue_depth", Level.WARNING)]
    assert f"25 in {name}" in wrong[0].says


def test_messages_that_were_put_aside_by_rabbitmq(
    configured: Callable[[str], Celery], rabbitmq_url: str, queue_prefix: str
) -> None:
    """Something kills workers, or nobody would have given up on them."""
    app = configured(rabbitmq_url)
    declare(app)
    with Connection(rabbitmq_url) as connection:
        dead = Queue(f"{queue_prefix}.dead", channel=connection.default_channel)
        dead.declare()
        connection.Producer().publish({}, routing_key=dead.name)
        while not _waiting(dead):
            time.sleep(0.02)

    finding = look(app)["dead_letters"]

    assert finding.level is Level.WARNING
    assert f"{queue_prefix}.dead" in finding.says


def _waiting(queue: Queue) -> int:
    declared: Any = queue.queue_declare(passive=True)
    return int(declared.message_count)


def test_files_that_were_no_messages(configured: Callable[[str], Celery], tmp_path: Path) -> None:
    """The folder keeps them aside."""
    app = configured(f"sandkeeper+filesystem:///{tmp_path / 'broker'}")
    declare(app)
    (tmp_path / "broker" / "bad").mkdir(exist_ok=True)
    (tmp_path / "broker" / "bad" / "1-x").touch()

    finding = look(app)["dead_letters"]

    assert finding.level is Level.WARNING
    assert "folder" in finding.says


def test_many_teardowns_are_well_where_many_are_due() -> None:
    """A thousand sessions that end at once are no fault."""
    busy = Broker(
        address="memory://",
        makes_queues=True,
        queues=[Line(name="sandkeeper.teardown", messages=1000)],
        dead=None,
        closing=900,
        folder=None,
        set_aside=0,
    )

    assert queue_depth(busy).level is Level.OK
    assert queue_depth(replace(busy, closing=10)).level is Level.WARNING


def test_nobody_answers(configured: Callable[[str], Celery], broker_url: str) -> None:
    """Without a worker that is the finding, and not that queues are not consumed."""
    app = configured(broker_url)
    declare(app)

    found = look(app, at_workers=True)

    wrong = [each for each in found.values() if not each.level.is_ok]
    assert [(each.check, each.level) for each in wrong] == [("workers", Level.FAILURE)]
    assert "celery -A tasks worker" in wrong[0].fix


# What workers say, judged

SETTINGS = {"idle_ttl": 1800.0, "heartbeat": 15.0}
GOOD = Worker(
    name="celery@one",
    version="0.1.0",
    queues=frozenset({"s", "t"}),
    pool="thread",
    concurrency=16,
    installation="abcdefgh",
    settings=SETTINGS,
)
WELL = Workers(
    seen=[GOOD],
    queues=["s", "t"],
    version="0.1.0",
    settings=SETTINGS,
    installation="abcdefgh",
    sqlite=False,
)
CHECKS = (workers, worker_queues, worker_pools, worker_versions, worker_settings)


@pytest.mark.parametrize(
    ("other", "check", "level", "word"),
    [
        (replace(GOOD, queues=frozenset({"t"})), "worker_queues", "failure", "name both queues"),
        (replace(GOOD, pool="solo"), "worker_pools", "warning", "--pool threads"),
        (replace(GOOD, concurrency=100), "worker_pools", "warning", "--concurrency 40"),
        (replace(GOOD, version="0.0.9"), "worker_versions", "note", "finish the rollout"),
        (
            replace(GOOD, settings={**SETTINGS, "idle_ttl": 60.0}),
            "worker_settings",
            "warning",
            "the same settings",
        ),
        (
            replace(GOOD, installation="another1"),
            "worker_settings",
            "failure",
            "SANDKEEPER_QUEUE_PREFIX",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worker_that_is_not_as_it_should_be(
    other: Worker, check: str, level: str, word: str
) -> None:
    """Exactly that is found, and what to do."""
    answers = {each.__name__: each(replace(WELL, seen=[other])) for each in CHECKS}

    odd = {name: answer for name, answer in answers.items() if answer.level is not Level.OK}
    assert {name: answer.level.value for name, answer in odd.items()} == {check: level}
    assert word in odd[check].fix


def test_workers_that_are_as_they_should_be() -> None:
    """Nothing to say; nor of one that has not had its first task."""
    young = replace(GOOD, installation=None)

    answers = [each(replace(WELL, seen=[GOOD, young])) for each in CHECKS]

    assert {answer.level for answer in answers} == {Level.OK}


def test_a_worker_of_an_older_version_is_seen_all_the_same() -> None:
    """It does not know the question, and answers with an error: it is a rollout, not an outage."""
    found = replace(WELL, seen=[Worker(name="celery@old")])

    assert workers(found).level is Level.OK
    assert worker_queues(found).level is Level.NOTE
    assert worker_versions(found).level is Level.NOTE


def test_what_a_worker_answers_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in its main loop, it connects to nothing, and says no secret."""
    monkeypatch.setenv("SANDKEEPER_DATABASE_URL", "postgresql://u:open-sesame@127.0.0.1:1/d")
    pool = TaskPool(7)
    asked = SimpleNamespace(
        consumer=SimpleNamespace(
            task_consumer=SimpleNamespace(queues=[Queue("here.sweep"), Queue("here.teardown")]),
            pool=pool,
        )
    )

    reply = json.loads(json.dumps(introduce(asked)))

    worker = understood("celery@here", reply)
    assert (worker.pool, worker.concurrency) == ("thread", 7)
    assert worker.queues == {"here.sweep", "here.teardown"}
    assert worker.settings == shared(settings())
    assert "open-sesame" not in repr(reply)
    assert understood("celery@old", {"error": "KeyError('sandkeeper_introduce')"}).settings == {}


def test_only_workers_listen() -> None:
    """The question is known once a worker starts, and costs nothing where none does."""
    panel._listen()

    assert Panel.data[INTRODUCE] is introduce
