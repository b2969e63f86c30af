"""The tasks: in eager mode with a scripted reaper, and in real workers on a real broker."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue

from core.reaper import Doorbell, SweepReport, Teardown, TeardownOutcome
from core.reconcile import ReconcileReport
from tasks import app, purge_ended_sessions, reap_idle_sessions, teardown_sandbox
from tasks.app import PURGE, RECONCILE, RETRIES, SWEEP, TEARDOWN
from tasks.reap import reconcile_sandboxes
from tasks.runtime import Runtime, runtime
from tests import services
from tests.forks import in_child

ROOT = Path(__file__).parents[1]
LIMIT = 60.0  # seconds; a wait that takes longer has failed
GONE = Teardown(outcome=TeardownOutcome.GONE)
AGAIN = Teardown(outcome=TeardownOutcome.RETRY, retry_after=3600.0)


class ScriptedSystem:
    """Takes the place of the database and the provider; the tasks are the real ones."""

    def __init__(self) -> None:
        self.answers: list[Teardown] = []
        self.due: Sequence[tuple[str, int]] = ()
        self.teardowns: list[tuple[str, int, bool]] = []
        self.workers: list[str] = []
        self.doorbell: Doorbell | None = None
        self.providers = dict.fromkeys(["fake"])
        self.compared: list[str] = []
        self.closed = False

    def reaper(self, doorbell: Doorbell) -> ScriptedSystem:
        self.doorbell = doorbell
        return self

    def sweep(self) -> SweepReport:
        assert self.doorbell is not None
        self.doorbell(self.due)
        return SweepReport(published=len(self.due))

    def teardown(
        self, session_id: str, generation: int, *, worker: str, early: bool = False
    ) -> Teardown:
        self.teardowns.append((session_id, generation, early))
        self.workers.append(worker)
        return self.answers.pop(0) if self.answers else GONE

    def reconciler(self) -> ScriptedSystem:
        return self

    def reconcile(self, only: str | None = None) -> list[ReconcileReport]:
        names = [name for name in self.providers if only in (None, name)]
        self.compared += names
        return [ReconcileReport(provider=name) for name in names]

    def purge(self) -> int:
        return 7

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> ScriptedSystem:
    """What the tasks of this process find."""
    scripted = ScriptedSystem()
    monkeypatch.setattr(runtime, "system", lambda: scripted)
    return scripted


@pytest.fixture(params=[True, False], ids=["propagates", "swallows"])
def eager(request: pytest.FixtureRequest) -> Iterator[None]:
    """Celery's eager mode, with both answers to what an exception does."""
    before = (app.conf.task_always_eager, app.conf.task_eager_propagates)
    app.conf.update(task_always_eager=True, task_eager_propagates=request.param)
    yield
    app.conf.update(task_always_eager=before[0], task_eager_propagates=before[1])


# In eager mode


def test_the_names_are_those_that_other_programs_enqueue() -> None:
    """They are an interface: a server in another language knows nothing else of us."""
    ours = {name for name in app.tasks if name.startswith("sandkeeper.")}

    assert ours == {SWEEP, TEARDOWN, RECONCILE, PURGE}
    assert (SWEEP, TEARDOWN) == ("sandkeeper.reap_idle_sessions", "sandkeeper.teardown_sandbox")


@pytest.mark.usefixtures("eager")
def test_a_teardown_says_how_it_went(system: ScriptedSystem) -> None:
    """One attempt when it succeeds, by a worker that has a name of its own."""
    assert teardown_sandbox.delay("a", 1).get() == "gone"
    assert teardown_sandbox.delay("a", 1).get() == "gone"

    assert system.teardowns == [("a", 1, False), ("a", 1, False)]
    assert len(set(system.workers)) == 2
    assert all(str(os.getpid()) in worker for worker in system.workers)


@pytest.mark.usefixtures("eager")
def test_an_eager_teardown_is_retried_to_the_end(system: ScriptedSystem) -> None:
    """Inline and without the pauses, because nobody else rings again."""
    system.answers = [AGAIN, AGAIN, GONE]

    assert teardown_sandbox.delay("a", 1).get() == "gone"
    assert system.teardowns == [("a", 1, False), ("a", 1, True), ("a", 1, True)]


@pytest.mark.usefixtures("eager")
def test_an_eager_teardown_gives_up_in_the_end(system: ScriptedSystem) -> None:
    """A provider that is down for good does not hang the caller."""
    system.answers = [AGAIN] * 100

    assert teardown_sandbox.delay("a", 1).get() == "retry"
    assert len(system.teardowns) == 1 + RETRIES


@pytest.mark.usefixtures("eager")
def test_an_eager_sweep_runs_its_teardowns(system: ScriptedSystem) -> None:
    """All of it is done when it returns."""
    system.due = [("a", 1), ("b", 2)]

    assert reap_idle_sessions.delay().get()["published"] == 2
    assert system.teardowns == [("a", 1, False), ("b", 2, False)]


def test_an_applied_sweep_needs_no_broker(system: ScriptedSystem) -> None:
    """`.apply()` runs one task in place; so are the teardowns that it rings for."""
    system.due = [("a", 1)]

    assert reap_idle_sessions.apply().get()["published"] == 1
    assert system.teardowns == [("a", 1, False)]


@pytest.mark.usefixtures("eager")
def test_an_eager_purge_says_how_many(system: ScriptedSystem) -> None:
    """It runs in place like the others."""
    assert purge_ended_sessions.delay().get() == 7


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("providers", [("one",), ("one", "two")])
def test_an_eager_comparison_is_of_every_provider(
    system: ScriptedSystem, providers: tuple[str, ...]
) -> None:
    """In place, and one after the other: there is no broker that could carry a message each."""
    system.providers = dict.fromkeys(providers)

    reports = reconcile_sandboxes.delay().get()

    assert [report["provider"] for report in reports] == list(providers)
    assert system.compared == list(providers)


def test_several_providers_are_compared_by_a_task_each(
    system: ScriptedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14: one that hangs delays no other, and a message that nobody ran in time is dropped."""
    system.providers = dict.fromkeys(["one", "two"])
    sent: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        reconcile_sandboxes, "apply_async", lambda args, **options: sent.append((args, options))
    )
    reconcile_sandboxes.push_request(is_eager=False, called_directly=False, id="a-message")
    try:
        reports = reconcile_sandboxes.run()
        ours = reconcile_sandboxes.run("two")
    finally:
        reconcile_sandboxes.pop_request()

    assert (reports, [report["provider"] for report in ours]) == ([], ["two"])
    assert [args for args, _ in sent] == [("one",), ("two",)]
    assert all(options["expires"] == reconcile_sandboxes.expires for _, options in sent)
    assert system.compared == ["two"]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("provider", ["", "another", "x" * 100_000, 7, True, 1.5])
def test_a_provider_that_nobody_has_is_logged_and_done_with(
    system: ScriptedSystem, provider: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody who reaches the broker can enqueue it."""
    with caplog.at_level(logging.WARNING):
        assert reconcile_sandboxes.delay(provider).get() == []

    assert system.compared == []
    (refusal,) = [r.getMessage() for r in caplog.records if "ReconcileRefused" in r.message]
    assert len(refusal) < 300


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("provider", [["fake"], {"name": "fake"}])
def test_a_provider_that_is_no_name_is_logged_and_done_with(
    system: ScriptedSystem, provider: Any
) -> None:
    """The same."""
    assert reconcile_sandboxes.delay(provider).get() == []


def test_a_comparison_that_is_called_like_a_function_needs_no_broker(
    system: ScriptedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker, no message: all of it is done when it returns."""
    system.providers = dict.fromkeys(["one", "two"])
    monkeypatch.setattr(reconcile_sandboxes, "apply_async", lambda *_, **__: None)

    assert [report["provider"] for report in reconcile_sandboxes()] == ["one", "two"]


def test_a_task_that_is_called_like_a_function_is_one_attempt(system: ScriptedSystem) -> None:
    """No worker, no message, no exception of Celery's."""
    system.answers = [Teardown(outcome=TeardownOutcome.RETRY, retry_after=1.0)]

    assert teardown_sandbox("a", 1) == "retry"


FORGED: list[tuple[Any, Any]] = [
    ("", 1),
    ("a b", 1),
    ("x" * 129, 1),
    ({"id": "a"}, 1),
    (None, 1),
    (["a"], 1),
    ("a", 0),
    ("a", -1),
    ("a", "1"),
    ("a", True),
    ("a", 1.5),
    ("a", 10**30),
    ("a", None),
]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("session_id", "generation"), FORGED)
def test_nonsense_is_logged_and_done_with(
    system: ScriptedSystem, session_id: Any, generation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody who reaches the broker can enqueue: it must neither act nor loop."""
    with caplog.at_level(logging.WARNING):
        assert teardown_sandbox.delay(session_id, generation).get() == "invalid"

    assert system.teardowns == []
    assert any("TeardownRefused" in record.message for record in caplog.records)


# One system per process


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever held the lock when it was forked does not exist there."""
    scripted: Any = ScriptedSystem()
    ours = Runtime()
    monkeypatch.setattr("tasks.runtime.System.from_env", lambda: scripted)

    with ours._lock:
        worked = in_child(lambda: ours.system() is scripted)

    assert worked


# In real workers

# A worker whose reaper writes down what it is asked, and answers by the session's name.
WORKER = """
import json, os, time
from core.reaper import SweepReport, Teardown, TeardownOutcome
import tasks.runtime
from tasks import app

class System:
    def reaper(self, doorbell):
        return self
    def note(self, **what):
        with open(os.environ["JOURNAL"], "a") as journal:
            journal.write(json.dumps({"pid": os.getpid(), "at": time.time(), **what}) + "\\n")
    def sweep(self):
        self.note(sweep=True)
        return SweepReport()
    def teardown(self, session_id, generation, *, worker, early=False):
        self.note(began=session_id)
        if session_id.startswith("slow") and not os.path.exists(os.environ["JOURNAL"] + ".go"):
            time.sleep(600)
        again = {"soon": 0.2, "late": 3600.0}.get(session_id)
        self.note(ended=session_id)
        if again:
            return Teardown(outcome=TeardownOutcome.RETRY, retry_after=again)
        return Teardown(outcome=TeardownOutcome.GONE)
    def close(self):
        self.note(closed=True)

tasks.runtime.System.from_env = System
tasks.runtime.runtime.system()  # in the parent, so that a child inherits it
"""

Start = Callable[..., subprocess.Popen[bytes]]


class Journal:
    """What the workers wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def read(self, key: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.path.read_text().splitlines())
        return [line for line in lines if key in line]

    def has(self, key: str, value: object, times: int = 1) -> list[dict[str, Any]]:
        """Wait until it was written so often."""
        end = time.monotonic() + LIMIT
        while len(found := [line for line in self.read(key) if line[key] == value]) < times:
            assert time.monotonic() < end, self.path.read_text()
            time.sleep(0.05)
        return found


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Where the workers write."""
    return Journal(tmp_path / "journal")


@pytest.fixture
def environ(tmp_path: Path, journal: Journal) -> dict[str, str]:
    """The settings of the workers, and of what is sent to them."""
    (tmp_path / "scripted.py").write_text(WORKER)
    return {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "JOURNAL": str(journal.path),
        "SANDKEEPER_BROKER_URL": f"sandkeeper+filesystem:///{tmp_path}/broker",
    }


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a worker; it is gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def worker(*options: str) -> subprocess.Popen[bytes]:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        name = ["-n", f"w{len(started)}@%h"]
        with (tmp_path / f"worker{len(started)}.log").open("w") as log:
            command = [sys.executable, "-m", "celery", "-A", "scripted", "worker", *name, *quiet]
            started.append(
                subprocess.Popen(
                    [*command, *(options or ("-P", "threads", "-c", "4"))],
                    env=environ,
                    cwd=tmp_path,
                    stdout=log,
                    stderr=log,
                )
            )
        return started[-1]

    yield worker
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def send(environ: dict[str, str]) -> Callable[..., None]:
    """Enqueue by name, as any server does: from a process of its own."""

    def enqueue(*calls: Sequence[Any], **options: Any) -> None:
        script = (
            "import json, sys; from tasks import app\n"
            "calls, options = json.loads(sys.argv[1])\n"
            f"for args in calls: app.send_task({TEARDOWN!r}, args=args, **options)"
        )
        subprocess.run(
            [sys.executable, "-c", script, json.dumps([calls, options])],
            env=environ,
            check=True,
            timeout=LIMIT,
        )

    return enqueue


@pytest.fixture(params=["folder", "redis", "rabbitmq"])
def every_broker(
    request: pytest.FixtureRequest, environ: dict[str, str], queue_prefix: str
) -> Iterator[None]:
    """The test runs once on each."""
    environ["SANDKEEPER_QUEUE_PREFIX"] = queue_prefix
    if request.param != "folder":
        environ["SANDKEEPER_BROKER_URL"] = request.getfixturevalue(f"{request.param}_url")
    yield
    if request.param == "rabbitmq":
        services.delete_queues(environ["SANDKEEPER_BROKER_URL"], [f"{queue_prefix}.dead"])


@pytest.mark.usefixtures("every_broker")
def test_a_worker_sweeps_when_it_starts_and_rings_again_after_a_failure(
    start: Start, send: Callable[..., None], journal: Journal
) -> None:
    """
    Without a beat: a sweep at once. A teardown that is due again soon comes back by itself, one
    that is due later is left to the sweep.
    """
    start()
    journal.has("sweep", value=True)

    send(["late", 1], ["soon", 1], ["gone", 1])

    first, second = journal.has("ended", "soon", times=2)[:2]
    assert second["at"] - first["at"] >= 0.2
    assert len(journal.has("ended", "gone")) == 1
    assert len(journal.has("ended", "late")) == 1


def test_rabbitmq_keeps_what_came_back_too_often(
    rabbitmq_url: str, queue_prefix: str, start: Start, environ: dict[str, str], journal: Journal
) -> None:
    """There is a queue behind the dead letters, with a bound: a human can look."""
    environ.update(SANDKEEPER_QUEUE_PREFIX=queue_prefix, SANDKEEPER_BROKER_URL=rabbitmq_url)
    start()
    journal.has("sweep", value=True)

    with Connection(rabbitmq_url) as connection:
        dead = Exchange(f"{queue_prefix}.dead", type="topic")
        connection.Producer().publish("x", exchange=dead, routing_key="any.key")
        queue = Queue(f"{queue_prefix}.dead")(connection.channel())
        end = time.monotonic() + LIMIT
        while (message := queue.get(no_ack=True)) is None:
            assert time.monotonic() < end
        assert message.payload == "x"
    services.delete_queues(rabbitmq_url, [f"{queue_prefix}.dead"])


def test_a_teardown_of_a_killed_worker_is_done_by_another(
    start: Start, send: Callable[..., None], journal: Journal
) -> None:
    """kill -9 in the middle: the message comes back, and the row decides what is left to do."""
    victim = start()
    send(["slow", 1])
    (began,) = journal.has("began", "slow")
    assert began["pid"] == victim.pid

    victim.send_signal(signal.SIGKILL)
    Path(f"{journal.path}.go").touch()
    other = start()

    (ended,) = journal.has("ended", "slow")
    assert ended["pid"] == other.pid


def test_forged_messages_do_not_stop_a_worker(
    start: Start, send: Callable[..., None], journal: Journal
) -> None:
    """Wrong types, too few, too many: each is done with, and the next one is heard."""
    worker = start()

    send([{"a": 1}, []], ["only-one"], ["a", 1, 2, 3], [], ["good", 1])

    journal.has("ended", "good")
    assert [line["began"] for line in journal.read("began")] == ["good"]
    assert worker.poll() is None


def test_a_prefork_child_works_with_what_it_inherited(
    start: Start, send: Callable[..., None], journal: Journal
) -> None:
    """Its parent has a System, and it does all that is asked."""
    parent = start("-P", "prefork", "-c", "1")

    send(["a", 1], ["b", 1])

    journal.has("ended", "a")
    journal.has("ended", "b")
    (child,) = {line["pid"] for line in journal.read("began")}
    assert child != parent.pid


def test_a_worker_that_is_told_to_stop_closes_its_system(start: Start, journal: Journal) -> None:
    """SIGTERM ends it with code 0, and its connections are closed."""
    worker = start()
    journal.has("sweep", value=True)

    worker.terminate()

    assert worker.wait(LIMIT) == 0
    assert journal.read("closed")
