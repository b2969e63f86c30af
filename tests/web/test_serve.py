"""Real servers and real clients: what holds when one of them is killed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.errors import (
    InvalidArgument,
    SessionEnded,
    SessionNotFound,
    SettingsError,
    StoreUnavailable,
    TurnExpired,
)
from core.lifecycle import Keeper
from core.reaper import Reaper
from core.web.client import AsyncClient, Client
from core.wiring import System
from tests.web.servers import Server, serving, until

Start = Callable[..., Server]
SECRET = "s" * 40


@pytest.fixture
def environ(sqlite_url: str, tmp_path: Path) -> dict[str, str]:
    """An installation of quick turns: two idle TTLs are six seconds."""
    return {
        "SANDKEEPER_DATABASE_URL": sqlite_url,
        "SANDKEEPER_BROKER_URL": f"sandkeeper+filesystem:///{tmp_path}/broker",
        "SANDKEEPER_PROVIDER": "tests.fakes:FakeCloud",
        "SANDKEEPER_IDLE_TTL": "3",
        "SANDKEEPER_SWEEP_INTERVAL": "0.6",
        "SANDKEEPER_HEARTBEAT": "0.2",
    }


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Servers of that installation."""
    with serving(tmp_path, environ) as start:
        yield start


@pytest.fixture
def system(environ: dict[str, str]) -> Iterator[System]:
    """The same installation, seen from here."""
    system = System.from_env(environ)
    yield system
    system.close()


def active_at(keeper: Keeper) -> datetime:
    """When `conv` showed activity last."""
    return keeper.get("conv").last_activity_at


def swept(reaper: Reaper, stop: threading.Event) -> threading.Thread:
    """Sweeps, one after the other, until they are stopped."""

    def sweep() -> None:
        while not stop.wait(0.3):
            reaper.sweep()

    thread = threading.Thread(target=sweep)
    thread.start()
    return thread


def test_a_killed_server_harms_no_turn(start: Start, system: System) -> None:
    """
    kill -9 of the server that began it, in the middle of the turn: heartbeats go on at another
    one, for twice the idle TTL and past every sweep, and the turn is ended in good order.
    """
    first, second = start(), start()
    keeper, stop = system.keeper(), threading.Event()
    sweeps = swept(system.reaper(lambda _: None), stop)
    try:
        with Client([first.url, second.url]) as client:
            opened = client.open("conv")
            with client.turn("conv", holder="far away") as turn:
                before = active_at(keeper)
                until(lambda: active_at(keeper) > before, first.said)

                first.kill()

                killed_at = active_at(keeper)
                until(
                    lambda: (active_at(keeper) - killed_at).total_seconds() > 6 or turn.lost.error,
                    second.said,
                )
                turn.check()
            assert opened.outcome == "created"
            session = keeper.get("conv")
            assert (session.generation, session.end_reason) == (1, None)
    finally:
        stop.set()
        sweeps.join()


def test_a_killed_client_leaves_nothing(start: Start, system: System) -> None:
    """L1: a turn whose holder is gone beats no more, and its session goes idle."""
    server = start()
    stop = threading.Event()
    sweeps = swept(system.reaper(lambda _: None), stop)
    keeper = system.keeper()
    try:
        with httpx2.Client(base_url=server.url, trust_env=False) as raw:
            raw.post("/v1/sessions", json={"id": "conv"})
            turn = raw.post("/v1/sessions/conv/turns").json()["turn_id"]
            until(lambda: keeper.get("conv").end_reason == "idle", server.said)

            answer = raw.put(f"/v1/sessions/conv/turns/{turn}")

        assert answer.status_code == 410
        assert answer.json()["reason"] == "idle"
    finally:
        stop.set()
        sweeps.join()


def test_a_client_is_told_that_its_session_ended(start: Start) -> None:
    """The next heartbeat says so: whoever waits for it stops at once, and the block raises."""
    server = start()
    with Client(server.url) as client, Client(server.url) as other:
        client.open("conv")
        with (  # noqa: PT012 - leaving the block is what raises
            pytest.raises(SessionEnded, match="user left"),
            client.turn("conv") as turn,
        ):
            other.end("conv", reason="user left")
            assert turn.lost.wait(30)
            with pytest.raises(SessionEnded):
                turn.check()


def test_asyncio_is_told_too(start: Start) -> None:
    """With cancel_on_lost the task is cancelled where it waits, and the block says why."""
    server = start()

    async def work() -> None:
        async with AsyncClient(server.url) as client:
            await client.open("conv")
            async with client.turn("conv", cancel_on_lost=True):
                await client.end("conv", reason="user left")
                await asyncio.sleep(60)

    with pytest.raises(SessionEnded, match="user left"):
        asyncio.run(work())


def test_asyncio_beats_as_well(start: Start, system: System) -> None:
    """A silent turn shows activity, and is ended when its block is left."""
    server = start()
    keeper = system.keeper()

    async def work() -> tuple[Any, Any]:
        async with AsyncClient(server.url) as client:
            opened = await client.open("conv", metadata={"user": "ada"})
            async with client.turn("conv") as turn:
                before = active_at(keeper)
                await asyncio.to_thread(until, lambda: active_at(keeper) > before, server.said)
                turn.check()
            return opened, await client.get("conv")

    opened, session = asyncio.run(work())

    assert opened.metadata == {"user": "ada"}
    assert session.turn_count == 1


def test_a_client_pins_and_is_explained(start: Start) -> None:
    """From both clients, as the keeper says it."""
    server = start()
    with Client(server.url) as client:
        client.open("conv")
        pinned = client.pin("conv", 60, reason="debugging")
        explained = client.explain("conv")

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            assert (await client.unpin("conv")).pinned_until is None
            assert (await client.pin("conv", 5, reason="again")).pin_reason == "again"
            assert (await client.explain("conv")).kept[0].values["reason"] == "again"

    asyncio.run(main())

    assert (pinned.pinned_by, pinned.pin_reason) == ("nobody", "debugging")
    assert [point.kind for point in explained.kept] == ["pin"]


def test_errors_of_a_client_are_those_of_a_lifecycle(start: Start) -> None:
    """By class, with their facts: one `except` for both."""
    server = start(SANDKEEPER_API_TOKENS=f"sk_ops_{SECRET}:operate sk_see_{SECRET}:read")
    with Client(server.url, token=f"sk_ops_{SECRET}") as client:
        client.open("conv", max_turn=0.5, idle_ttl=60)
        with pytest.raises(SessionNotFound, match="nobody"):
            client.get("nobody")
        with pytest.raises(InvalidArgument, match="use 1 to 128 characters"):
            client.open("two words")
        with pytest.raises(TurnExpired), client.turn("conv") as turn:
            assert turn.lost.wait(30)
        client.end("conv", reason="done")
        with pytest.raises(SessionEnded, match="done"):
            client.extend("conv", 60)
    for token in (None, f"sk_see_{SECRET}"):
        with Client(server.url, token=token) as client, pytest.raises(SettingsError, match="token"):
            client.open("conv")
    with Client("http://127.0.0.1:1") as client, pytest.raises(StoreUnavailable, match="no answer"):
        client.get("conv")


def test_a_server_stops_in_good_order(start: Start) -> None:
    """SIGTERM: exit code 0, and no traceback."""
    server = start()
    with Client(server.url) as client:
        client.open("conv")

        code = server.stop()

    assert code == 0, server.said()
    assert "Traceback" not in server.said()


def test_an_answer_does_not_wait_for_an_acknowledgement(start: Start) -> None:
    """An answer has two parts: with Nagle's algorithm the second is 40 ms late, each time."""
    with httpx2.Client(base_url=start().url, trust_env=False) as client:
        took = [client.get("/healthz").elapsed.total_seconds() for _ in range(60)]

    assert min(took[20:]) < 0.03  # the first ones are acknowledged at once


def test_without_tokens_it_listens_on_loopback_only(start: Start) -> None:
    """Whatever host it was given; and it says so, and what to do."""
    server = start("--host", "0.0.0.0")  # noqa: S104 - this is what must not happen

    assert server.url.startswith("http://127.0.0.1:")
    assert "no token is there: listening on 127.0.0.1 only, not on 0.0.0.0" in server.said()
    assert "sandkeeper tokens create" in server.said()


def test_with_a_token_it_listens_where_it_should(start: Start) -> None:
    """And lets nobody in without it."""
    server = start("--host", "0.0.0.0", SANDKEEPER_API_TOKENS=f"sk_ops_{SECRET}:operate")  # noqa: S104 - it has a token

    url = server.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - where it says it is
    assert server.url.startswith("http://0.0.0.0:")
    assert httpx2.get(f"{url}/v1/sessions", trust_env=False).status_code == 401
    assert httpx2.get(f"{url}/readyz", trust_env=False).json()["checks"]["broker"] == "ok"
