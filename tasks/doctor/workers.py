"""The workers, by what they answer when all of them are asked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from celery import Celery

from core.doctor.findings import Answer, Examination, failure, note, ok, warning
from core.doctor.patient import Patient
from core.doctor.rounds import bounded
from tasks.panel import INTRODUCE, our_version, shared

ASKED_FOR: Final = 2.0  # seconds; a worker that is well answers in milliseconds
POOL_OF_CONNECTIONS: Final = 40  # of one process, see core/engines.py
KNOWN_POOLS: Final = frozenset({"prefork", "thread"})
START: Final = "start `celery -A tasks worker`; with -Q, name both queues"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker. `settings` is empty when it is of a version that does not answer."""

    name: str
    version: str = ""
    queues: frozenset[str] = frozenset()
    pool: str = ""
    concurrency: int = 0
    installation: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Those that answered, and what they are compared with."""

    seen: list[Worker]
    queues: list[str]
    version: str
    settings: Mapping[str, object]
    installation: str | None
    sqlite: bool

    @property
    def talking(self) -> list[Worker]:
        """Those that say what they are."""
        return [worker for worker in self.seen if worker.settings]


def _look(patient: Patient, app: Celery) -> Workers:
    with app.connection_for_write(connect_timeout=ASKED_FOR) as connection:
        answers = app.control.broadcast(
            INTRODUCE, reply=True, timeout=ASKED_FOR, connection=connection
        )
    replies = {name: reply for answer in answers or [] for name, reply in answer.items()}
    return Workers(
        seen=[understood(name, reply) for name, reply in sorted(replies.items())],
        queues=[queue.name for queue in app.conf.task_queues],
        version=our_version(),
        settings=shared(patient.settings),
        installation=_installation(patient),
        sqlite=patient.checkup.kind == "sqlite",
    )


def _installation(patient: Patient) -> str | None:
    """Whose database ours is; workers can be looked at without it."""
    try:
        return bounded(patient.checkup.installation, patient.within / 4)
    except Exception:  # noqa: BLE001 - what is wrong with the database is said elsewhere
        return None


def understood(name: str, reply: Any) -> Worker:
    """What a worker says of itself; one of an older version says that it does not know."""
    try:
        return Worker(
            name=name,
            version=str(reply["version"]),
            queues=frozenset(map(str, reply["queues"])),
            pool=str(reply["pool"]),
            concurrency=int(reply["concurrency"]),
            installation=reply["installation"],
            settings=dict(reply["settings"]),
        )
    except (KeyError, TypeError, ValueError):
        return Worker(name=name)


def workers(found: Workers) -> Answer:
    """A worker answers. Whether a beat runs is seen by the sweeps alone, which `sweep` looks at."""
    if not found.seen:
        return failure(f"none answered within {ASKED_FOR:g} s", START)
    return ok(", ".join(f"{each.name} ({each.pool} {each.concurrency})" for each in found.seen))


def worker_queues(found: Workers) -> Answer:
    """Each of both queues is consumed by some worker: one sweeps, the other tears down."""
    if not found.talking:
        return note("not looked at: no worker says what it consumes")
    consumed = {queue for worker in found.talking for queue in worker.queues}
    if missing := [queue for queue in found.queues if queue not in consumed]:
        return failure(f"nobody consumes {', '.join(missing)}", START)
    return ok("each is consumed")


def worker_pools(found: Workers) -> Answer:
    """
    Workers use the pool `prefork`, which can stop a task that hangs, or `threads`, which needs
    less memory. `solo` answers nobody while it works; the others are not tried. A thread more than
    the 40 connections of its process waits for one.
    """
    odd = [worker for worker in found.talking if worker.pool not in KNOWN_POOLS]
    if odd:
        named = ", ".join(f"{worker.name} ({worker.pool})" for worker in odd)
        return warning(f"a pool that is not tried: {named}", "start it with --pool threads")
    many = [
        worker
        for worker in found.talking
        if worker.pool == "thread" and worker.concurrency > POOL_OF_CONNECTIONS
    ]
    if many and not found.sqlite:
        named = ", ".join(f"{worker.name} ({worker.concurrency})" for worker in many)
        return warning(
            f"more threads than the {POOL_OF_CONNECTIONS} connections of a process: {named}",
            f"--concurrency {POOL_OF_CONNECTIONS} or less, and more workers instead",
        )
    return ok(", ".join(sorted({worker.pool for worker in found.talking})) or "none")


def worker_versions(found: Workers) -> Answer:
    """Every worker runs the version that this command is of. Two of them are a note: a rollout."""
    other = [worker for worker in found.seen if worker.version != found.version]
    if other:
        named = ", ".join(f"{worker.name} ({worker.version or 'unknown'})" for worker in other)
        return note(f"this is {found.version}, and others: {named}", "finish the rollout")
    return ok(found.version)


def worker_settings(found: Workers) -> Answer:
    """
    Every worker has the durations and limits that this command has, and works on the same
    database: processes that disagree on IDLE_TTL or HEARTBEAT end each other's sessions.
    """
    for worker in found.talking:
        known = None not in {worker.installation, found.installation}
        if known and worker.installation != found.installation:
            return failure(
                f"{worker.name} works on installation {worker.installation}, and this is "
                f"{found.installation}",
                "give both the same SANDKEEPER_DATABASE_URL, or each a SANDKEEPER_QUEUE_PREFIX of "
                "its own",
            )
        differing = [
            f"{name.upper()} {worker.settings.get(name)} (here {value})"
            for name, value in found.settings.items()
            if worker.settings.get(name) != value
        ]
        if differing:
            return warning(
                f"{worker.name} has {', '.join(differing)}",
                "give every process the same settings, and start it again",
            )
    return ok("are the same")


def workers_of(app: Celery) -> Examination[Workers]:
    """What there is to see of the workers that hear this application."""
    return Examination(
        name="workers",
        look=lambda patient: _look(patient, app),
        checks=(workers, worker_queues, worker_pools, worker_versions, worker_settings),
        fix="look at the workers' logs",
        needs=("broker",),
    )
