"""The same for asyncio: threads underneath, and cancellation at every await."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import Engine, event

from core.aio import AsyncKeeper
from core.errors import (
    SandkeeperError,
    SessionEnded,
    SessionNotFound,
    StoreUnavailable,
    TurnExpired,
)
from core.lifecycle import Keeper
from core.model import SessionStatus
from tests.fakes import FakeCloud, FrozenClock

SOON = 30.0


@asynccontextmanager
async def asynchronous(keeper: Keeper) -> AsyncIterator[AsyncKeeper]:
    """The keeper, for a loop."""
    async with AsyncKeeper(keeper) as aio:
        yield aio


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """A loop of its own, as a server has one."""
    return asyncio.run(main())


class Stuck:
    """A statement that does not return before it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()


@contextmanager
def stuck(engine: Engine, fragment: str) -> Iterator[Stuck]:
    """The next statement with this in it hangs, after it was executed, until it is released."""
    hang = Stuck()

    def wait(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if fragment in statement and not hang.entered.is_set():
            hang.entered.set()
            assert hang.released.wait(SOON)

    event.listen(engine, "after_cursor_execute", wait)
    try:
        yield hang
    finally:
        hang.released.set()


async def entered(hang: Stuck) -> None:
    """Until the statement hangs."""
    assert await asyncio.to_thread(hang.entered.wait, SOON)


async def until(holds: Callable[[], bool]) -> None:
    """Until something holds that another thread brings about."""
    async with asyncio.timeout(SOON):
        while not holds():  # noqa: ASYNC110 - a thread brings it about
            await asyncio.sleep(0.001)


def test_every_call_is_there(keeper: Keeper, clock: FrozenClock) -> None:
    """open, turn, touch, extend, pin, explain, end, get: the same arguments and answers."""

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            session = await aio.open("conv", tenant="acme", idle_ttl=60, metadata={"a": 1})
            async with aio.turn("conv", holder="me") as turn:
                assert turn.sandbox == session.sandbox
                assert turn.session.fresh
                assert turn.id == turn.turn.id
                turn.check()
            await aio.touch("conv")
            assert (await aio.extend("conv", 10)).extended_until is not None
            assert (await aio.pin("conv", 10, reason="x", owner="ada")).pinned_by == "ada"
            assert (await aio.unpin("conv")).pinned_by is None
            assert (await aio.explain("conv")).state == "active"
            assert (await aio.get("conv")).turn_count == 1
            assert (await aio.end("conv", reason="done")).end_reason == "done"

    run(main)


def test_refusals_are_the_same(keeper: Keeper) -> None:
    """By type, from the await."""

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            with pytest.raises(SessionNotFound):
                async with aio.turn("nobody"):
                    pytest.fail("it has begun")
            await aio.open("conv")
            await aio.end("conv")
            with pytest.raises(SessionEnded):
                await aio.touch("conv")

    run(main)


def test_many_turns_run_at_once(keeper: Keeper) -> None:
    """More than the pool has threads: a turn holds none while it is open."""

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            await aio.open("conv")
            ready = asyncio.Barrier(40)

            async def work() -> None:
                async with aio.turn("conv") as turn:
                    await ready.wait()
                    turn.check()

            async with asyncio.TaskGroup() as group:
                for _ in range(40):
                    group.create_task(work())

    run(main)

    assert keeper.get("conv").turn_count == 40
    assert keeper._beater._turns == {}


def test_the_loop_goes_on_while_a_statement_hangs(keeper: Keeper, engine: Engine) -> None:
    """A slow database must not stop the server."""
    keeper.open("conv")

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            with stuck(engine, "UPDATE sessions") as hang:
                touching = asyncio.create_task(aio.touch("conv"))
                await entered(hang)
                assert not touching.done()
                hang.released.set()
                await touching

    run(main)


# Cancelled


def test_cancelled_while_it_begins_it_leaves_no_turn_that_beats(
    keeper: Keeper, engine: Engine
) -> None:
    """F5: the client went away; nobody holds the turn, so nobody keeps its session alive."""
    keeper.open("conv")

    async def main() -> None:
        async with asynchronous(keeper) as aio:

            async def work() -> None:
                async with aio.turn("conv"):
                    pytest.fail("it has begun")

            with stuck(engine, "turn_count") as hang:
                task = asyncio.create_task(work())
                await entered(hang)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                hang.released.set()
            await until(lambda: keeper.get("conv").turn_count == 1)
            await until(lambda: not open_turns(keeper))
            assert keeper._beater._turns == {}

    run(main)


def open_turns(keeper: Keeper) -> int:
    """How many turns the store takes for open."""
    return sum(line.turns_open for line in keeper.store.history.lines())


def test_a_loop_that_ends_while_a_turn_begins_leaves_no_turn_that_beats(
    keeper: Keeper, engine: Engine
) -> None:
    """F5: no callback of a closed loop can end it: the thread that began it has to."""
    keeper.open("conv")
    aio = AsyncKeeper(keeper)

    async def main() -> None:
        async def work() -> None:
            async with aio.turn("conv"):
                pytest.fail("it has begun")

        task = asyncio.create_task(work())
        await entered(hang)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with stuck(engine, "turn_count") as hang:
        run(main)
    aio._threads.shutdown(wait=True)

    assert keeper.get("conv").turn_count == 1
    assert keeper._beater._turns == {}
    assert open_turns(keeper) == 0


def test_cancelled_in_the_block_it_ends_as_failed(keeper: Keeper) -> None:
    """And the cancellation goes on to whoever waits for it."""
    keeper.open("conv")

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            inside = asyncio.Event()

            async def work() -> None:
                async with aio.turn("conv"):
                    inside.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert keeper._beater._turns == {}
            assert open_turns(keeper) == 0

    run(main)


def test_cancelled_while_it_ends_it_still_ends(keeper: Keeper, engine: Engine) -> None:
    """The end is on its way in its thread; nothing calls it back."""
    keeper.open("conv")

    async def main() -> None:
        async with asynchronous(keeper) as aio:

            async def work() -> None:
                async with aio.turn("conv"):
                    pass

            with stuck(engine, "UPDATE turns") as hang:
                task = asyncio.create_task(work())
                await entered(hang)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                hang.released.set()
            await until(lambda: not open_turns(keeper))

    run(main)


def test_a_cancelled_open_is_still_made(keeper: Keeper, provider: FakeCloud) -> None:
    """F1: opening again finds it; there is one sandbox."""

    async def main() -> str | None:
        async with asynchronous(keeper) as aio:
            with provider.hang("create") as hang:
                task = asyncio.create_task(aio.open("conv"))
                assert await asyncio.to_thread(hang.entered.wait, SOON)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            return (await aio.open("conv")).sandbox.external_id

    external_id = run(main)

    assert [box.external_id for box in provider.alive()] == [external_id]


# Lost


def test_a_callback_hears_that_it_was_lost(keeper: Keeper) -> None:
    """From the heartbeat's thread: it hands over to the loop."""
    keeper.open("conv")

    async def main() -> SandkeeperError:
        async with asynchronous(keeper) as aio:
            loop = asyncio.get_running_loop()
            told: asyncio.Future[SandkeeperError] = loop.create_future()
            with pytest.raises(SessionEnded, match="user left"):  # noqa: PT012 - the block is the turn's
                async with aio.turn("conv") as turn:
                    turn.lost.on(lambda error: loop.call_soon_threadsafe(told.set_result, error))
                    await aio.end("conv", reason="user left")
                    await asyncio.to_thread(keeper._beater.once)
                    error = await asyncio.wait_for(told, SOON)
                    with pytest.raises(SessionEnded):
                        turn.check()
            return error

    assert isinstance(run(main), SessionEnded)


def test_cancel_on_lost_stops_the_work_at_once(keeper: Keeper) -> None:
    """S1: the block raises why, and the task is not left cancelled."""
    keeper.open("conv")

    async def main() -> int:
        async with asynchronous(keeper) as aio:
            with pytest.raises(SessionEnded, match="user left"):  # noqa: PT012 - the block is the turn's
                async with aio.turn("conv", cancel_on_lost=True):
                    await aio.end("conv", reason="user left")
                    await asyncio.to_thread(keeper._beater.once)
                    await asyncio.sleep(SOON)
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

    assert run(main) == 0


def test_cancel_on_lost_raises_why_at_the_ceiling_too(keeper: Keeper, clock: FrozenClock) -> None:
    """F5: TurnExpired, by the same way."""
    keeper.open("conv", max_turn=5)

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            with pytest.raises(TurnExpired):  # noqa: PT012 - the block is the turn's
                async with aio.turn("conv", cancel_on_lost=True):
                    clock.advance(5)
                    await asyncio.to_thread(keeper._beater.once)
                    await asyncio.sleep(SOON)

    run(main)


def test_a_block_that_swallows_the_cancellation_leaves_the_task_well(keeper: Keeper) -> None:
    """It cleaned up and left normally: it hears why, and a timeout around it still works."""
    keeper.open("conv")

    async def main() -> int:
        async with asynchronous(keeper) as aio:
            with pytest.raises(SessionEnded):  # noqa: PT012 - the block is the turn's
                async with aio.turn("conv", cancel_on_lost=True):
                    await aio.end("conv")
                    keeper._beater.once()  # in the loop's thread: it cancels at the next await
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(SOON)
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

    assert run(main) == 0


def test_somebody_elses_cancellation_is_never_swallowed(keeper: Keeper) -> None:
    """Lost and cancelled at once: whoever cancelled waits for a CancelledError."""
    keeper.open("conv")

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            inside = asyncio.Event()

            async def work() -> None:
                async with aio.turn("conv", cancel_on_lost=True):
                    inside.set()
                    await asyncio.sleep(SOON)

            task = asyncio.create_task(work())
            await inside.wait()
            await aio.end("conv")
            keeper._beater.once()  # in the loop's thread: what it asks for runs in the next round
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_without_it_a_lost_turn_goes_on_until_it_asks(keeper: Keeper) -> None:
    """Nothing is cancelled that did not ask for it."""
    keeper.open("conv")

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            with pytest.raises(SessionEnded):  # noqa: PT012 - the block is the turn's
                async with aio.turn("conv") as turn:
                    await aio.end("conv")
                    await asyncio.to_thread(keeper._beater.once)
                    await asyncio.sleep(0)
                    assert turn.lost.is_set()

    run(main)


def test_closing_stops_the_heartbeats_and_leaves_the_session(keeper: Keeper) -> None:
    """A server that shuts down lets its turns go idle."""

    async def main() -> None:
        async with asynchronous(keeper) as aio:
            await aio.open("conv")

    run(main)

    assert keeper.get("conv").status is SessionStatus.ACTIVE


def test_an_outage_at_the_end_loses_no_work(keeper: Keeper, engine: Engine) -> None:
    """As for threads."""
    keeper.open("conv")

    def refuse(*_: object, **__: object) -> None:
        raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection")

    async def main() -> str:
        async with asynchronous(keeper) as aio:
            with pytest.MonkeyPatch.context() as patch:
                async with aio.turn("conv"):
                    patch.setattr(engine.dialect, "do_execute", refuse)
                with pytest.raises(StoreUnavailable):
                    await aio.get("conv")
            return "done"

    assert run(main) == "done"
