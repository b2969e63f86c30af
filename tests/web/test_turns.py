"""Turns over HTTP: they live in the database, by the heartbeats of somebody far away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine

from core.host import Host
from core.lifecycle import Keeper
from core.model import SessionStatus
from core.reaper import Reaper
from core.store import Store
from core.web.desk import QUICK, SLOW
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock, LoopByHand
from tests.web.callers import Api, problem

TURNS = "/v1/sessions/conv/turns"


@pytest.fixture
def store(engine: Engine, clock: FrozenClock) -> Store:
    """One whose idle TTL is a few heartbeats."""
    return Store(engine, policy=policy(idle_ttl=120, confirm_interval=30), clock=clock)


async def while_waiting(
    api: Api, turn: str, *waiting: Any, ready: threading.Event, release: Callable[[], object]
) -> int:
    """The status of a heartbeat that is sent while all of these calls wait for somebody else."""
    tasks = [asyncio.ensure_future(call) for call in waiting]
    try:
        assert await asyncio.to_thread(ready.wait, 10)
        answer = await asyncio.wait_for(api.send("PUT", turn), 10)
        assert not any(task.done() for task in tasks)
    finally:
        release()
        await asyncio.gather(*tasks)
    return answer.status_code


def begin(api: Api) -> str:
    """A turn on `conv`, as its address."""
    api.keeper.open("conv")
    answer = api.call("POST", TURNS)
    assert answer.status_code == 201, answer.text
    return f"{TURNS}/{answer.json()['turn_id']}"


def test_a_turn_says_where_to_work_and_how_to_stay(
    api: Api, keeper: Keeper, clock: FrozenClock
) -> None:
    """The sandbox, the rhythm of the heartbeats, and until when at most."""
    session = keeper.open("conv", max_turn=600)

    first = api.call("POST", TURNS, json={"holder": "worker-3"}).json()
    second = api.call("POST", TURNS).json()

    assert first["sandbox"]["external_id"] == session.sandbox.external_id
    assert (first["generation"], first["fresh"], second["fresh"]) == (1, True, False)
    assert first["heartbeat_every"] == keeper.policy.heartbeat
    assert first["started_at"] == clock.now.isoformat().replace("+00:00", "Z")
    assert first["hard_until"].startswith("2026-03-01T12:10:00")
    assert keeper.get("conv").turn_count == 2


def test_heartbeats_keep_a_silent_turn_alive(
    api: Api, keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """S1: for twice its idle TTL, past every sweep; and when they stop, the session goes idle."""
    turn = begin(api)
    for _ in range(20):
        clock.advance(keeper.policy.heartbeat)
        assert api.call("PUT", turn).status_code == 200
        reaper.sweep()

    assert keeper.get("conv").status is SessionStatus.ACTIVE
    for _ in range(3):
        clock.advance(keeper.policy.idle_ttl)
        reaper.sweep()
    assert keeper.get("conv").end_reason == "idle"
    assert problem(api.call("PUT", turn)) == "session-ended"


def test_another_server_takes_the_heartbeats(
    api: Api, engine: Engine, provider: FakeCloud, clock: FrozenClock
) -> None:
    """Nothing of a turn is in the server that began it: another one beats and ends it."""
    turn = begin(api)
    store = Store(engine, policy=api.keeper.policy, clock=clock)
    with Keeper(store, provider) as keeper:
        other = Api(keeper)
        clock.advance(60)

        beat, end = other.call("PUT", turn), other.call("DELETE", turn)

        assert (beat.status_code, end.status_code) == (200, 204)
        assert keeper.get("conv").last_activity_at == clock.now


def test_a_turn_is_told_when_its_session_ended(api: Api, keeper: Keeper) -> None:
    """410 with the reason, at the next heartbeat and at its end; also once it is open again."""
    turn = begin(api)
    keeper.end("conv", reason="user left")

    ended = api.call("PUT", turn)
    keeper.open("conv")
    reopened, end = api.call("PUT", turn), api.call("DELETE", turn)

    assert [one.status_code for one in (ended, reopened, end)] == [410, 410, 410]
    assert {problem(one) for one in (ended, reopened, end)} == {"session-ended"}
    assert ended.json()["reason"] == "user left"


def test_a_turn_has_a_ceiling(api: Api, keeper: Keeper, clock: FrozenClock) -> None:
    """Whoever beats for ever is refused when max_turn has passed."""
    keeper.open("conv", max_turn=60)
    turn = f"{TURNS}/{api.call('POST', TURNS).json()['turn_id']}"
    clock.advance(61)

    answer = api.call("PUT", turn)

    assert (answer.status_code, problem(answer)) == (410, "turn-expired")
    assert "hard ceiling" in answer.json()["detail"]


def test_a_turn_that_was_ended_is_over(api: Api) -> None:
    """204 once; after that 410, for a heartbeat as for another end."""
    turn = begin(api)

    answers = [api.call(method, turn) for method in ("DELETE", "PUT", "DELETE")]

    assert [answer.status_code for answer in answers] == [204, 410, 410]


def test_the_outcome_is_kept(api: Api, keeper: Keeper, engine: Engine) -> None:
    """`failed` for who left it with an error."""
    turn = begin(api)

    answer = api.call("DELETE", turn, params={"outcome": "failed"})

    assert answer.status_code == 204
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT outcome, holder FROM turns").one()
    assert found.outcome == "failed"
    assert found.holder.startswith("nobody, request ")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_turn_belongs_to_one_session(api: Api, keeper: Keeper, method: str) -> None:
    """Under the address of another one it is not found, and stays as it is."""
    turn = begin(api)
    keeper.open("other")

    answer = api.call(method, turn.replace("conv", "other"))

    assert (answer.status_code, problem(answer)) == (404, "turn-not-found")
    assert api.call("PUT", turn).status_code == 200


@pytest.mark.parametrize("turn", ["x", "0199C0DE-7A11-7000-8000-2F6B1C0A9D3E", "%00"])
def test_a_turn_id_that_is_none_is_refused(api: Api, turn: str) -> None:
    """In words, before the database is asked."""
    assert api.call("PUT", f"{TURNS}/{turn}").status_code == 422


def test_a_turn_waits_for_its_sandbox(api: Api, store: Store, provider: FakeCloud) -> None:
    """409 and when to come back, while somebody is still creating it."""
    provider.fail("create", TimeoutError("the process died here"))
    with pytest.raises(TimeoutError):
        api.keeper.open("conv")

    answer = api.call("POST", TURNS)

    assert (answer.status_code, problem(answer)) == (409, "session-not-ready")
    assert answer.headers["Retry-After"] == "1"


def test_heartbeats_keep_the_provider_s_own_ttl_ahead(
    store: Store, provider: FakeCloud, clock: FrozenClock
) -> None:
    """Whichever server hears them asks for more: the sandbox outlives what it was created with."""
    loops: list[LoopByHand] = []

    def by_hand(*arguments: object) -> LoopByHand:
        loops.append(LoopByHand(*arguments))  # type: ignore[arg-type]
        return loops[-1]

    keeper = Keeper(store, provider, host=Host(loop=by_hand))
    api = Api(keeper)
    turn = begin(api)
    (box,) = provider.boxes.values()
    granted = box.expires_at
    backstop = next(loop for loop in loops if "backstop" in loop.name)

    for _ in range(80):
        clock.advance(keeper.policy.heartbeat)
        assert api.call("PUT", turn).status_code == 200
        backstop.step()

    assert granted is not None
    assert box.expires_at is not None
    assert clock.now > granted
    assert box.expires_at > clock.now


def test_heartbeats_do_not_wait_for_sandboxes(api: Api, provider: FakeCloud) -> None:
    """As many creates hang as there are threads for them, and more: a heartbeat is answered."""
    turn = begin(api)
    with ExitStack() as stack:
        hangs = [stack.enter_context(provider.hang("create")) for _ in range(SLOW + QUICK)]
        opens = [
            api.send("POST", "/v1/sessions", json={"id": f"s-{number}"})
            for number in range(SLOW + QUICK)
        ]
        ready = hangs[SLOW - 1].entered

        status = asyncio.run(while_waiting(api, turn, *opens, ready=ready, release=stack.close))

    assert status == 200


def test_heartbeats_do_not_wait_for_probes(keeper: Keeper) -> None:
    """Everybody may ask /readyz: while the broker hangs, that costs nobody else a thread."""
    asked, release = threading.Event(), threading.Event()

    def hangs() -> None:
        asked.set()
        release.wait(60)

    api = Api(keeper, broker=hangs)
    turn = begin(api)
    probes = [api.send("GET", "/readyz") for _ in range(2 * QUICK)]

    status = asyncio.run(while_waiting(api, turn, *probes, ready=asked, release=release.set))

    assert status == 200
