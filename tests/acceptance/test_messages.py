from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select

from core import schema
from tests.acceptance.site import ROOT, Site

TEARDOWN = "sandkeeper.teardown_sandbox"

# All that another team's program knows. The folder broker is ours, so it needs one import more.
STRANGER = """
import json, sys
from celery import Celery
from kombu import Exchange, Queue
try:
    from tasks.filesystem import register
except ImportError:
    pass
else:
    register()
broker, queue, messages, raw = json.load(sys.stdin)
app = Celery("stranger", broker=broker)
if broker.startswith("amqp"):
    # A name alone would declare the queue as this program sees it, and RabbitMQ refuses that.
    exchange = Exchange(queue, type="topic", no_declare=True)
    target = Queue(queue, exchange, routing_key=queue, no_declare=True)
else:
    target = queue
with app.connection_for_write() as connection:
    for body, options in raw:
        connection.Producer().publish(body.encode(), exchange="", routing_key=queue, **options)
for name, args, kwargs in messages:
    app.send_task(name, args=args, kwargs=kwargs, queue=target)
"""


class Message(NamedTuple):
    """What send_task() is given."""

    task: str
    args: Sequence[object]
    kwargs: Mapping[str, object]


FORGED_ARGUMENTS: tuple[tuple[Sequence[object], Mapping[str, object]], ...] = (
    ([], {}),
    (["live"], {}),
    (["live", 1, 1], {}),
    (["live", 1], {"force": True}),
    (["live", 1], {}),  # well made, and nobody ended it
    (["live", 2], {}),
    (["live", 0], {}),
    (["live", -1], {}),
    (["live", 2**40], {}),
    (["live", True], {}),
    (["live", "1"], {}),
    (["live", 1.0], {}),
    (["live", None], {}),
    (["live", [1]], {}),
    (["unknown", 1], {}),
    ([None, 1], {}),
    ([["live"], 1], {}),
    ([{"$ne": ""}, 1], {}),
    (["'; DROP TABLE sessions; --", 1], {}),
    (["x" * 10_000, 1], {}),
    ([], {"session_id": "live", "generation": {}}),
)
ANY: tuple[object, ...] = (None, True, 0, -1, 2**60, 1.5, "", "x", [], [1], {}, {"a": [None]})
HEADERS = ("eta", "expires", "retries", "timelimit", "group", "root_id", "lang", "origin", "shadow")
TASKS = ("celery.map", "celery.chord_unlock", "celery.chain", "sandkeeper.purge_ended_sessions")
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
GARBAGE = (
    ("not json", JSON),
    ("[]", JSON),
    ("null", JSON),
    ('[["live"], {}]', {**JSON, "headers": {"task": TEARDOWN, "id": "2", "eta": "never"}}),
    ('[["live", 1], {}, {}]', {**JSON, "headers": {"task": TEARDOWN, "id": None}}),
    ('{"task": 7}', JSON),
    (
        "cos\nsystem\n(S'false'\ntR.",
        {"content_type": "application/x-python-serialize", "content_encoding": "binary"},
    ),
    ("", {"content_type": "image/png", "content_encoding": "binary"}),
)

# Celery's own worker dies of these: what it takes for granted is not there.
POISON = (
    ("null", {**JSON, "headers": {"task": TEARDOWN, "id": "1"}}),
    ("7", {**JSON, "headers": {"task": TEARDOWN, "id": "2"}}),
    ("7", {**JSON, "headers": {"task": [TEARDOWN], "id": "3"}}),
)


def test_other_programs_may_enqueue_by_name_and_cannot_do_harm(site: Site) -> None:
    """
    A program without any of our code rings by a task's name. S1, S3: what it forges or garbles
    changes no row, and the worker lives on.
    """
    worker = site.worker(concurrency=1)  # one at a time, so that the last comes after all others
    site.until(site.swept_at, "the worker's first sweep ran; without beat it is the only one")
    site.keeper.open("live", idle_ttl=3600)
    site.keeper.open("ended", idle_ttl=3600)
    site.keeper.open("last", idle_ttl=3600)
    site.keeper.end("ended")

    _enqueue(site, [Message(TEARDOWN, ["ended", 1], {})])
    site.until(lambda: site.gone("ended"), "the stranger's message was heard")
    site.keeper.end("last")
    before = _rows(site)
    forged = [Message(TEARDOWN, *given) for given in FORGED_ARGUMENTS]
    unknown = [Message(name, ["live", 1], {}) for name in ("sandkeeper.no_such_task", "os.system")]
    _enqueue(site, [*forged, *unknown, Message(TEARDOWN, ["last", 1], {})], GARBAGE)
    site.until(lambda: site.gone("last"), "the worker came through")

    after = _rows(site)
    assert worker.exit_code is None
    assert {key: row for key, row in after.items() if key[1] != "last"} == {
        key: row for key, row in before.items() if key[1] != "last"
    }
    assert site.alive() == {site.name("live")}
    assert site.recorded("sandbox_gone") == {("ended", 1): 1, ("last", 1): 1}


@pytest.mark.parametrize("stack", ["sqlite+folder", "postgresql+redis"], indirect=True)
def test_a_message_that_would_kill_a_worker_is_refused(site: Site) -> None:
    """L1: one message must not keep every worker from its work for ever, however it is made."""
    worker = site.worker(concurrency=1)
    site.until(site.swept_at, "the worker's first sweep ran")
    site.keeper.open("conv", idle_ttl=3600)
    site.keeper.end("conv")

    _enqueue(site, [Message(TEARDOWN, ["conv", 1], {})], POISON)
    site.until(lambda: site.gone("conv") or worker.exit_code is not None, "the worker came through")

    assert worker.exit_code is None
    site.assert_nothing_left()


def test_whatever_is_in_the_queue_harms_nobody(site: Site, tmp_path: Path) -> None:
    """S1: hundreds of messages of chance, near to real ones; pickle is refused unread."""
    touched = tmp_path / "unpickled"
    worker = site.worker(concurrency=1)
    site.until(site.swept_at, "the worker's first sweep ran")
    site.keeper.open("live", idle_ttl=3600)
    site.keeper.open("last", idle_ttl=3600)
    site.keeper.end("last")

    _enqueue(site, [Message(TEARDOWN, ["last", 1], {})], _by_chance(300, touched))
    site.until(lambda: site.gone("last") or worker.exit_code is not None, "the worker came through")

    assert worker.exit_code is None
    assert not touched.exists()
    assert site.alive() == {site.name("live")}
    assert site.recorded("sandbox_gone") == {("last", 1): 1}


def _by_chance(count: int, touched: Path) -> list[tuple[str, Mapping[str, object]]]:
    """Bodies and headers, each well made or not; the same ones in every run."""
    chance = Random(7)
    pickled = f"cos\nsystem\n(S'touch {touched}'\ntR."
    bodies = [
        *(json.dumps(body) for body in ANY),
        *(
            json.dumps([args, kwargs, {}])
            for args, kwargs in FORGED_ARGUMENTS
            if "last" not in args
        ),
        *('[["live", 1], {}, {"chain": [1], "callbacks": "x", "chord": {}}]', '[["live"', "\x00"),
        pickled,
    ]
    kinds = ["application/json", "application/x-python-serialize", "application/x-yaml", "", "x/y"]
    messages: list[tuple[str, Mapping[str, object]]] = []
    for number in range(count):
        headers = {name: chance.choice(ANY) for name in chance.sample(HEADERS, 4)}
        headers |= {"task": chance.choice([TEARDOWN, *TASKS, *ANY]), "id": str(number)}
        coding = chance.choice(["utf-8", "binary", "us-ascii"])
        options = {"content_type": chance.choice(kinds), "content_encoding": coding}
        messages.append((chance.choice(bodies), {**options, "headers": headers}))
    return messages


def _enqueue(
    site: Site,
    messages: Sequence[Message],
    raw: Sequence[tuple[str, Mapping[str, object]]] = (),
) -> None:
    ours = site.stack.name.endswith("+folder")
    stack = site.stack
    arguments = [stack.broker_url, f"{stack.queue_prefix}.teardown", messages, raw]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        input=json.dumps(arguments),
        cwd=site.folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT) if ours else ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _rows(site: Site) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    with site.engine.connect() as connection:
        for row in connection.execute(select(schema.sandboxes)):
            found["sandbox", row.session_id] = row
        for row in connection.execute(select(schema.sessions)):
            found["session", row.id] = row
    return found
