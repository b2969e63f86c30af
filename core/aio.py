"""The same for asyncio: every call runs in a thread of its own pool, so the loop never waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from .errors import SandkeeperError
from .explain import Explanation
from .lifecycle import DEFAULT_TENANT, Keeper
from .model import Sandbox, Session
from .turn import Lost, Turn

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 32


class AsyncKeeper:
    """`Keeper` for asyncio; `keeper` does the work."""

    def __init__(self, keeper: Keeper, *, threads: int = THREADS) -> None:
        self.keeper = keeper
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="sandkeeper")

    async def open(
        self,
        session_id: str | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
        idle_ttl: timedelta | float | None = None,
        max_age: timedelta | float | None = None,
        max_turn: timedelta | float | None = None,
        never_used_ttl: timedelta | float | None = None,
        profile: str | None = None,
        metadata: Mapping[str, object] | None = None,
        spec: Mapping[str, object] | None = None,
    ) -> Session:
        """See Keeper.open. Cancelled while it waits, it still makes the session: open it again."""
        return await self._run(
            self.keeper.open,
            session_id,
            tenant=tenant,
            idle_ttl=idle_ttl,
            max_age=max_age,
            max_turn=max_turn,
            never_used_ttl=never_used_ttl,
            profile=profile,
            metadata=metadata,
            spec=spec,
        )

    def turn(
        self, session_id: str, *, holder: str | None = None, cancel_on_lost: bool = False
    ) -> AsyncTurn:
        """
        See Keeper.turn, with `async with`. With `cancel_on_lost` the task is cancelled as soon as
        a heartbeat is refused, and the block raises SessionEnded or TurnExpired.
        """
        turn = self.keeper.turn(session_id, holder=holder)
        return AsyncTurn(turn, self._run, cancel_on_lost=cancel_on_lost)

    async def touch(self, session_id: str) -> None:
        """See Keeper.touch."""
        await self._run(self.keeper.touch, session_id)

    async def extend(
        self, session_id: str, by: timedelta | float, *, reason: str | None = None
    ) -> Session:
        """See Keeper.extend."""
        return await self._run(self.keeper.extend, session_id, by, reason=reason)

    async def pin(
        self, session_id: str, for_: timedelta | float, *, reason: str, owner: str | None = None
    ) -> Session:
        """See Keeper.pin."""
        return await self._run(self.keeper.pin, session_id, for_, reason=reason, owner=owner)

    async def unpin(self, session_id: str, *, reason: str | None = None) -> Session:
        """See Keeper.unpin."""
        return await self._run(self.keeper.unpin, session_id, reason=reason)

    async def end(
        self, session_id: str, *, reason: str = "ended", generation: int | None = None
    ) -> Session:
        """See Keeper.end."""
        return await self._run(self.keeper.end, session_id, reason=reason, generation=generation)

    async def get(self, session_id: str) -> Session:
        """See Keeper.get."""
        return await self._run(self.keeper.get, session_id)

    async def explain(self, session_id: str) -> Explanation:
        """See Keeper.explain."""
        return await self._run(self.keeper.explain, session_id)

    async def close(self) -> None:
        """Stop the heartbeats and the threads."""
        await self._run(self.keeper.close)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(call, *args, **kwargs))


class AsyncTurn:
    """A turn for `async with`; `turn` is the one underneath."""

    def __init__(self, turn: Turn, run: Callable[..., Any], *, cancel_on_lost: bool) -> None:
        self.turn = turn
        self._run = run
        self.cancel_on_lost = cancel_on_lost
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._cancelling = 0  # cancellations that the task had when it entered
        self._lock = threading.Lock()
        self._begun = self._abandoned = False

    @property
    def id(self) -> str:
        return self.turn.id

    @property
    def session(self) -> Session:
        return self.turn.session

    @property
    def sandbox(self) -> Sandbox:
        return self.turn.sandbox

    @property
    def lost(self) -> Lost:
        return self.turn.lost

    def check(self) -> None:
        """Raise SessionEnded or TurnExpired as soon as this turn may not go on."""
        self.turn.check()

    async def __aenter__(self) -> Self:
        beginning = asyncio.ensure_future(self._run(self._begin))
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            self._abandon()
            beginning.add_done_callback(_heard)
            raise
        if self.cancel_on_lost:
            self._task = asyncio.current_task()
            self._cancelling = self._task.cancelling() if self._task else 0
            loop = asyncio.get_running_loop()
            self.turn.lost.on(lambda error: loop.call_soon_threadsafe(self._cancel, error))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        # Our own cancellation is taken back; somebody else's, at the same time, goes on.
        ours = self._cancelled and task is not None and task.uncancel() <= self._cancelling
        ending = asyncio.ensure_future(self._run(self.turn.__exit__, kind, error, trace))
        await asyncio.shield(ending)
        if ours and kind is asyncio.CancelledError:
            raise self._why() from error

    def _why(self) -> SandkeeperError:
        assert self.turn.lost.error is not None  # noqa: S101
        return self.turn.lost.error

    def _cancel(self, _error: SandkeeperError) -> None:
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()

    def _begin(self) -> None:
        self.turn.begin()
        with self._lock:
            self._begun = True
            abandoned = self._abandoned
        if abandoned:
            self.turn.__exit__(asyncio.CancelledError, None, None)

    def _abandon(self) -> None:
        """
        The client went away while the statement ran in its thread. It may yet succeed, and a turn
        that nobody holds would be kept alive by our own heartbeats: the thread that begins it
        ends it, because the loop may be gone by then.
        """
        with self._lock:
            self._abandoned = True
            begun = self._begun
        if begun:
            ending = self._run(self.turn.__exit__, asyncio.CancelledError, None, None)
            _background.add(task := asyncio.ensure_future(ending))
            task.add_done_callback(_background.discard)


def _heard(beginning: asyncio.Future[Any]) -> None:
    """Nobody waits for its error any more, and asyncio would log that nobody did."""
    if not beginning.cancelled():
        beginning.exception()


_background: set[asyncio.Future[Any]] = set()  # the loop itself keeps only weak references
