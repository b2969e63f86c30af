"""The tables: what their CHECKs and their trigger refuse, whatever code does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, Table, exc, insert, select, update

from core.lifecycle import Keeper
from core.model import MOVES, SandboxState
from core.schema import UTCDateTime, events, installation, sandboxes, sessions, turns
from tests.fakes import FrozenClock

T0 = FrozenClock().now

SESSION: dict[str, Any] = {
    "id": "conv",
    "tenant": "default",
    "status": "active",
    "generation": 1,
    "turn_count": 0,
    "turns_before": 0,
    "idle_ttl": 60.0,
    "max_turn": 60.0,
    "metadata": {},
    "created_at": T0,
    "opened_at": T0,
    "last_activity_at": T0,
    "due_at": T0,
}
SANDBOX: dict[str, Any] = {
    "key": "k" * 26,
    "session_id": "conv",
    "generation": 1,
    "provider": "fake",
    "scope": "s",
    "spec": {},
    "state": "creating",
    "due_at": T0,
    "attempts": 0,
    "claim_token": 3,
    "created_at": T0,
}
RUNNING = {"state": "running", "due_at": None, "external_id": "x", "running_at": T0}
CLOSING = {"state": "closing", "not_before": T0, "closing_at": T0}
GONE = {"state": "gone", "due_at": None, "closing_at": T0, "gone_at": T0}
TURN: dict[str, Any] = {
    "id": "t",
    "session_id": "conv",
    "generation": 1,
    "holder": "h",
    "started_at": T0,
    "hard_until": T0,
}
STATES: dict[str, dict[str, Any]] = {
    "creating": {"state": "creating"},
    "running": RUNNING,
    "closing": CLOSING,
    "gone": GONE,
}


def put(engine: Engine, table: Table, values: dict[str, Any], **overrides: Any) -> None:
    """Write one row."""
    with engine.begin() as connection:
        connection.execute(insert(table).values({**values, **overrides}))


@pytest.fixture
def row(engine: Engine) -> Engine:
    """An engine whose database has a session, for sandboxes to belong to."""
    put(engine, sessions, SESSION)
    return engine


BROKEN_SESSIONS: dict[str, dict[str, Any]] = {
    "no id": {"id": ""},
    "unknown status": {"status": "idle"},
    "generation 0": {"generation": 0},
    "negative turns": {"turns_before": -1},
    "turns that went back": {"turn_count": 1, "turns_before": 2},
    "no idle ttl": {"idle_ttl": 0.0},
    "negative idle ttl": {"idle_ttl": -1.0},
    "endless idle ttl": {"idle_ttl": 1e12},
    "no max age": {"max_age": 0.0},
    "endless max age": {"max_age": 1e12},
    "no max turn": {"max_turn": 0.0},
    "ended without a date": {"status": "ended", "end_reason": "x"},
    "ended without a reason": {"status": "ended", "ended_at": T0},
    "active with an end": {"ended_at": T0, "end_reason": "x"},
    "a notice without its witness": {"noticed_at": T0},
    "a witness without its notice": {"noticed_activity_at": T0},
    "no due date": {"due_at": None},
    "no tenant": {"tenant": None},
}
BROKEN_SANDBOXES: dict[str, dict[str, Any]] = {
    "unknown state": {"state": "paused"},
    "generation 0": {"generation": 0},
    "creating without a deadline": {"due_at": None},
    "closing without a due date": {**CLOSING, "due_at": None},
    "closing without a pause": {**CLOSING, "not_before": None},
    "closing without a date": {**CLOSING, "closing_at": None},
    "running with a due date": {**RUNNING, "due_at": T0},
    "running without an id": {**RUNNING, "external_id": None, "running_at": None},
    "an id without a date": {"external_id": "x"},
    "a date without an id": {"running_at": T0},
    "gone without a date": {**GONE, "gone_at": None},
    "gone with a due date": {**GONE, "due_at": T0},
    "gone that never closed": {**GONE, "closing_at": None},
    "gone and claimed": {**GONE, "claimed_by": "w"},
    "running and claimed": {**RUNNING, "claimed_by": "w"},
    "no session": {"session_id": "nobody"},
    "no scope": {"scope": None},
}


def test_a_session_that_contradicts_itself_is_refused(engine: Engine) -> None:
    """L2, F8, F22: the CHECKs repeat the facts of the moves; a due date is not optional."""
    accepted = []
    for name, values in BROKEN_SESSIONS.items():
        try:
            put(engine, sessions, SESSION, **{"id": name.replace(" ", "-"), **values})
        except exc.IntegrityError:
            continue
        accepted.append(name)

    assert accepted == []


def test_a_sandbox_that_contradicts_itself_is_refused(row: Engine) -> None:
    """L2, F9, F22: no state but gone and running lacks a due date of its own."""
    accepted = []
    for name, values in BROKEN_SANDBOXES.items():
        try:
            put(row, sandboxes, SANDBOX, **{"key": name[:26], **values})
        except exc.IntegrityError:
            continue
        accepted.append(name)

    assert accepted == []


def test_every_state_can_be_written(row: Engine) -> None:
    """The CHECKs refuse nothing that the moves make."""
    for generation, (state, values) in enumerate(STATES.items(), 1):
        put(row, sandboxes, SANDBOX, **{"key": state, "generation": generation, **values})


def test_there_is_one_sandbox_a_generation(row: Engine) -> None:
    """S3: the database holds it."""
    put(row, sandboxes, SANDBOX)

    with pytest.raises(exc.IntegrityError):
        put(row, sandboxes, SANDBOX, key="another")


def test_there_is_one_gone_event_a_generation(engine: Engine) -> None:
    """S3: webhooks and billing read it; other kinds repeat as they like."""
    line = {"at": T0, "session_id": "conv", "generation": 1, "actor": "w", "detail": {}}
    put(engine, events, line, kind="sandbox_gone")
    put(engine, events, line, kind="sandbox_gone", generation=2)
    put(engine, events, line, kind="teardown_failed")
    put(engine, events, line, kind="teardown_failed")

    with pytest.raises(exc.IntegrityError):
        put(engine, events, line, kind="sandbox_gone")


def test_there_is_one_installation(engine: Engine) -> None:
    """S2: a second id would make our own sandboxes foreign."""
    with pytest.raises(exc.IntegrityError):
        put(engine, installation, {"row": 2, "id": "otherone", "created_at": T0})


def test_an_ended_turn_has_an_outcome(engine: Engine) -> None:
    """And an open one has none."""
    for values in ({"ended_at": T0}, {"outcome": "completed"}):
        with pytest.raises(exc.IntegrityError):
            put(engine, turns, TURN, **values)


def test_a_sandbox_moves_as_it_is_drawn_and_never_back(row: Engine) -> None:
    """S3: every pair of states against MOVES; what is no move forward is refused by the trigger."""
    order = list(SandboxState)
    wrong = []
    for before in order:
        for after in order:
            key = f"{before}-{after}"
            generation = 1 + order.index(before) * 4 + order.index(after)
            first = {**STATES[before], "key": key, "generation": generation}
            put(row, sandboxes, SANDBOX, **first)
            blank = dict.fromkeys(("due_at", "not_before", "closing_at", "gone_at"))
            wanted = {**blank, "due_at": T0, **STATES[after]}
            kept = {k: first[k] for k in ("external_id", "running_at") if k in first}
            try:
                with row.begin() as connection:
                    connection.execute(
                        update(sandboxes).where(sandboxes.c.key == key).values({**wanted, **kept})
                    )
            except exc.DBAPIError as error:
                refused = "a sandbox never goes back" in str(error)
            else:
                refused = False
            if refused != (order.index(after) < order.index(before)):
                wrong.append(key)

    assert wrong == []
    assert all(order.index(b) > order.index(a) for a, then in MOVES.items() for b in then)


def test_a_sandbox_keeps_its_token_its_id_and_its_identity(row: Engine) -> None:
    """S3: none of what a late worker or a bug might write; the row stays as it was."""
    put(row, sandboxes, SANDBOX, **RUNNING)
    backwards: list[dict[str, Any]] = [
        {"claim_token": 2},
        {"external_id": "y"},
        {"external_id": None, "running_at": None, **CLOSING, "due_at": T0},
        {"key": "another"},
        {"generation": 2},
    ]
    for values in backwards:
        with pytest.raises(exc.DBAPIError, match="a sandbox never goes back"), row.begin() as c:
            c.execute(update(sandboxes).values(values))

    with row.connect() as connection:
        query = select(sandboxes.c.claim_token, sandboxes.c.external_id, sandboxes.c.key)
        kept = connection.execute(query).one()
    assert tuple(kept) == (3, "x", "k" * 26)


def test_moments_are_aware_utc_in_and_out(row: Engine) -> None:
    """F27: whatever zone they were given in, on every database."""
    eastern = datetime.fromisoformat("2026-03-01T07:00:00.123456-05:00")
    put(row, sandboxes, SANDBOX, created_at=eastern)

    with row.connect() as connection:
        read = connection.execute(select(sandboxes.c.created_at)).scalar_one()

    assert read == eastern
    assert read.tzinfo == UTC


def test_a_naive_moment_is_refused(row: Engine) -> None:
    """F27: nobody knows which moment it means."""
    naive = T0.replace(tzinfo=None)

    with pytest.raises(exc.StatementError, match="naive datetime"):
        put(row, sandboxes, SANDBOX, created_at=naive)


def test_no_moment_is_no_moment(engine: Engine) -> None:
    """NULL in, None out."""
    kind = UTCDateTime()

    assert kind.process_bind_param(None, engine.dialect) is None
    assert kind.process_result_value(None, engine.dialect) is None


def test_what_the_product_writes_passes_them_all(keeper: Keeper) -> None:
    """The two lists above are about rows that it never makes."""
    keeper.open("conv", max_age=100)
    keeper.end("conv")

    assert keeper.open("conv").generation == 2
