"""The ledger and the sinks: what happened is recorded with the move, and told after it."""

from __future__ import annotations

import json
import logging

import pytest
from sqlalchemy import Engine, func, select

from core.errors import AuthFailed, StoreError
from core.events import Event, EventKind, Log
from core.lifecycle import Keeper
from core.reaper import Reaper
from core.schema import events as ledger
from core.store import Store
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock


def lines(engine: Engine) -> int:
    """How many lines the ledger has, as another process sees it."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(ledger)).scalar_one()


def test_every_move_is_recorded_with_who_made_it(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock, provider: FakeCloud
) -> None:
    """H1: the whole life of a session, in order."""
    keeper.open("conv")
    keeper.extend("conv", 1)
    clock.advance(keeper.policy.idle_ttl)
    reaper.sweep()
    clock.advance(keeper.policy.confirm_interval)
    reaper.sweep()
    provider.fail("destroy", AuthFailed("401"))
    reaper.teardown("conv", 1, worker="worker-1")
    clock.advance(keeper.policy.quarantine_retry)
    reaper.teardown("conv", 1, worker="worker-2")
    keeper.open("conv")

    history = keeper.store.history.of_session("conv")

    me = keeper.holder
    assert [(line.kind, line.generation, line.actor) for line in history] == [
        ("session_opened", 1, me),
        ("sandbox_running", 1, me),
        ("session_extended", 1, me),
        ("session_noticed", 1, "sweep"),
        ("session_ended", 1, "sweep"),
        ("teardown_quarantined", 1, "worker-1"),
        ("sandbox_gone", 1, "worker-2"),
        ("session_reopened", 2, me),
        ("sandbox_running", 2, me),
    ]
    assert history[-1].at == clock.now
    assert history[4].detail == {"reason": "idle"}


def test_nothing_is_recorded_or_told_when_the_transaction_fails(
    engine: Engine, clock: FrozenClock, provider: FakeCloud
) -> None:
    """H1: neither in the ledger nor in the log nor in a metric."""
    heard: list[Event] = []
    store = Store(engine, policy=policy(), clock=clock, sinks=[heard.append])
    event = Event(kind=EventKind.SANDBOX_GONE, actor="w", session_id="conv", generation=1)

    def fail_late() -> None:
        with store.database.move() as move:
            move.record(event)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_late()

    assert (lines(engine), heard) == (0, [])


def test_a_move_whose_record_is_refused_is_not_made(
    keeper: Keeper, reaper: Reaper, store: Store, engine: Engine
) -> None:
    """H1: one transaction: a second gone event of a generation takes its move with it."""
    keeper.open("conv")
    keeper.end("conv")
    with store.database.move() as move:
        move.record(Event(kind=EventKind.SANDBOX_GONE, actor="x", session_id="conv", generation=1))
    claim = store.teardowns.claim("conv", 1, "w")
    assert claim is not None

    with pytest.raises(StoreError):
        store.teardowns.gone(claim, actor="w")

    assert store.sessions.get("conv").sandbox.state == "closing"


def test_sinks_hear_only_what_is_committed(
    engine: Engine, clock: FrozenClock, provider: FakeCloud
) -> None:
    """A listener that looks finds what it was told."""
    found: list[int] = []
    look = [lambda _: found.append(lines(engine))]
    store = Store(engine, policy=policy(), clock=clock, sinks=look)

    Keeper(store, provider).open("conv")

    assert found == [1, 2]


def test_a_sink_that_fails_breaks_nothing(
    engine: Engine, clock: FrozenClock, provider: FakeCloud, caplog: pytest.LogCaptureFixture
) -> None:
    """The fact stands, and the other sinks hear of it."""
    heard: list[Event] = []

    def broken(_: Event) -> None:
        raise RuntimeError("no disk")

    store = Store(engine, policy=policy(), clock=clock, sinks=[broken, heard.append])
    session = Keeper(store, provider).open("conv")

    assert session.sandbox.external_id
    assert [event.kind for event in heard] == [EventKind.SESSION_OPENED, EventKind.SANDBOX_RUNNING]
    assert [line.getMessage() for line in caplog.records] == [
        "SinkFailed kind=session_opened",
        "SinkFailed kind=sandbox_running",
    ]


def test_the_log_says_each_kind_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    """INFO: a state changed; WARNING: we retry; ERROR: a person is needed."""
    caplog.set_level(logging.DEBUG, logger="sandkeeper")
    log = Log()

    for kind in EventKind:
        log(Event(kind=kind, actor="w", session_id="conv", detail={"reason": "idle"}))

    levels = {line.getMessage().split()[0]: line.levelname for line in caplog.records}
    assert len(levels) == len(EventKind)
    assert levels["SandboxGone"] == "INFO"
    assert levels["TeardownFailed"] == "WARNING"
    assert levels["TeardownQuarantined"] == levels["RowPoisoned"] == "ERROR"
    assert caplog.records[0].getMessage() == (
        "SessionOpened session_id='conv' actor='w' reason='idle'"
    )


def test_the_log_can_be_json(caplog: pytest.LogCaptureFixture) -> None:
    """The same fields, for machines; what is no JSON is said as text."""
    caplog.set_level(logging.INFO, logger="sandkeeper")
    event = Event(kind=EventKind.SANDBOX_GONE, actor="w", detail={"at": FrozenClock().now})

    Log("json")(event)

    line = json.loads(caplog.records[0].getMessage())
    assert (line["event"], line["actor"], line["level"]) == ("SandboxGone", "w", "info")
    assert "2026-03-01" in line["at"]
    assert "session_id" not in line


def test_importing_configures_no_logging() -> None:
    """The program that we run in decides what becomes of our lines."""
    assert logging.getLogger("sandkeeper").handlers == []
