"""
The HTTP API from Python, without a database: what `Lifecycle` does, at a server. Errors are those
of `Lifecycle`; a server that does not answer is StoreUnavailable. Thread-safe.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import httpx2

from ..errors import InvalidArgument, SandkeeperError, StoreError, StoreUnavailable
from .answers import ExplanationAnswer, OpenAnswer, SessionAnswer, TurnAnswer
from .holding import OPEN_WITHIN, Holding, error_of, unreachable

logger = logging.getLogger("sandkeeper")

Url = str | Sequence[str]
Seconds = timedelta | float


class Client:
    """
    `url` is one server, or several of one installation: when one does not answer, the next is
    asked, and goes on where it was. `options` are those of httpx2.Client.
    """

    def __init__(self, url: Url, *, token: str | None = None, **options: Any) -> None:
        self._urls = _urls(url)
        self._http = httpx2.Client(headers=_headers(token), timeout=OPEN_WITHIN, **options)

    def open(self, session_id: str | None = None, **limits: Any) -> OpenAnswer:
        """See Keeper.open, without its spec: tenant, limits, profile, metadata. Safe to repeat."""
        sent = _json(id=session_id, **limits)
        return OpenAnswer.model_validate_json(self._call("POST", "/v1/sessions", json=sent))

    def get(self, session_id: str) -> SessionAnswer:
        """See Keeper.get."""
        return SessionAnswer.model_validate_json(self._call("GET", f"/v1/sessions/{session_id}"))

    def extend(self, session_id: str, by: Seconds) -> SessionAnswer:
        """See Keeper.extend."""
        path = f"/v1/sessions/{session_id}/extend"
        return SessionAnswer.model_validate_json(self._call("POST", path, json=_json(by=by)))

    def pin(self, session_id: str, for_: Seconds, *, reason: str) -> SessionAnswer:
        """See Keeper.pin; its owner is the token."""
        path, pin = f"/v1/sessions/{session_id}/pin", _json(**{"for": for_, "reason": reason})
        return SessionAnswer.model_validate_json(self._call("POST", path, json=pin))

    def unpin(self, session_id: str) -> SessionAnswer:
        """See Keeper.unpin."""
        path = f"/v1/sessions/{session_id}/pin"
        return SessionAnswer.model_validate_json(self._call("DELETE", path))

    def explain(self, session_id: str) -> ExplanationAnswer:
        """See Keeper.explain."""
        path = f"/v1/sessions/{session_id}/explain"
        return ExplanationAnswer.model_validate_json(self._call("GET", path))

    def end(self, session_id: str, *, reason: str = "ended") -> SessionAnswer:
        """See Keeper.end."""
        path, why = f"/v1/sessions/{session_id}", {"reason": reason}
        return SessionAnswer.model_validate_json(self._call("DELETE", path, params=why))

    def turn(self, session_id: str, *, holder: str | None = None) -> RemoteTurn:
        """See Keeper.turn: to be used in a `with` statement, with heartbeats in the background."""
        return RemoteTurn(self, session_id, holder)

    def close(self) -> None:
        """Let go of the connections. Turns that are open go idle."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, path: str, **request: Any) -> bytes:
        answer, _ = self._ask(method, path, **request)
        if (error := error_of(answer)) is not None:
            raise error
        return answer.content

    def _ask(self, method: str, path: str, **request: Any) -> tuple[httpx2.Response, bool]:
        """The answer, and whether more than one server was asked for it."""
        failed: StoreUnavailable | None = None
        for url in self._urls:
            try:
                return self._http.request(method, url + path, **request), failed is not None
            except httpx2.TransportError as error:
                failed = unreachable(url, error)
                self._urls = _last(self._urls, url)
        assert failed is not None  # noqa: S101 - there is a url
        raise failed


class RemoteTurn:
    """A turn at a server, for `with`, which gives a Holding: `check()` and `lost` as in a Turn."""

    def __init__(self, client: Client, session_id: str, holder: str | None) -> None:
        self.session_id = session_id
        self._client = client
        self._sent = _json(holder=holder)
        self._done = threading.Event()
        self._begun = False

    def __enter__(self) -> Holding:
        self._begun = _once_only(self.session_id, begun=self._begun)
        asked = time.monotonic()
        path = f"/v1/sessions/{self.session_id}/turns"
        answer = TurnAnswer.model_validate_json(self._client._call("POST", path, json=self._sent))  # noqa: SLF001 - ours
        self._holding = Holding(answer, asked)
        # One each: a heartbeat that waits for its answer must not hold up those of other turns.
        self._thread = threading.Thread(target=self._beat, name="sandkeeper-beat", daemon=True)
        self._thread.start()
        return self._holding

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(self._holding.beat_within)
        outcome = {"outcome": "completed" if kind is None else "failed"}
        try:
            answer, repeated = self._client._ask("DELETE", self._holding.address, params=outcome)  # noqa: SLF001 - ours
            self._holding.ended(error_of(answer), repeated=repeated)
        except SandkeeperError as error:
            _left(self._holding, kind, error)

    def _beat(self) -> None:
        pause: float | None = self._holding.answer.heartbeat_every
        while pause is not None and not self._done.wait(pause):
            pause = self._holding.heard(self._once())

    def _once(self) -> SandkeeperError | None:
        within = self._holding.beat_within
        try:
            answer, _ = self._client._ask("PUT", self._holding.address, timeout=within)  # noqa: SLF001 - ours
        except SandkeeperError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, it refuses nothing
            return unreachable(self._holding.address, error)
        return error_of(answer)


class AsyncClient:
    """`Client` for asyncio. `options` are those of httpx2.AsyncClient."""

    def __init__(self, url: Url, *, token: str | None = None, **options: Any) -> None:
        self._urls = _urls(url)
        self._http = httpx2.AsyncClient(headers=_headers(token), timeout=OPEN_WITHIN, **options)

    async def open(self, session_id: str | None = None, **limits: Any) -> OpenAnswer:
        """See Client.open."""
        sent = _json(id=session_id, **limits)
        return OpenAnswer.model_validate_json(await self._call("POST", "/v1/sessions", json=sent))

    async def get(self, session_id: str) -> SessionAnswer:
        """See Client.get."""
        found = await self._call("GET", f"/v1/sessions/{session_id}")
        return SessionAnswer.model_validate_json(found)

    async def extend(self, session_id: str, by: Seconds) -> SessionAnswer:
        """See Client.extend."""
        found = await self._call("POST", f"/v1/sessions/{session_id}/extend", json=_json(by=by))
        return SessionAnswer.model_validate_json(found)

    async def pin(self, session_id: str, for_: Seconds, *, reason: str) -> SessionAnswer:
        """See Client.pin."""
        path, pin = f"/v1/sessions/{session_id}/pin", _json(**{"for": for_, "reason": reason})
        return SessionAnswer.model_validate_json(await self._call("POST", path, json=pin))

    async def unpin(self, session_id: str) -> SessionAnswer:
        """See Client.unpin."""
        path = f"/v1/sessions/{session_id}/pin"
        return SessionAnswer.model_validate_json(await self._call("DELETE", path))

    async def explain(self, session_id: str) -> ExplanationAnswer:
        """See Client.explain."""
        path = f"/v1/sessions/{session_id}/explain"
        return ExplanationAnswer.model_validate_json(await self._call("GET", path))

    async def end(self, session_id: str, *, reason: str = "ended") -> SessionAnswer:
        """See Client.end."""
        path, why = f"/v1/sessions/{session_id}", {"reason": reason}
        return SessionAnswer.model_validate_json(await self._call("DELETE", path, params=why))

    def turn(
        self, session_id: str, *, holder: str | None = None, cancel_on_lost: bool = False
    ) -> AsyncRemoteTurn:
        """See Client.turn, with `async with`; `cancel_on_lost` as AsyncKeeper.turn has it."""
        return AsyncRemoteTurn(self, session_id, holder, cancel_on_lost=cancel_on_lost)

    async def close(self) -> None:
        """Let go of the connections. Turns that are open go idle."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: str, path: str, **request: Any) -> bytes:
        answer, _ = await self._ask(method, path, **request)
        if (error := error_of(answer)) is not None:
            raise error
        return answer.content

    async def _ask(self, method: str, path: str, **request: Any) -> tuple[httpx2.Response, bool]:
        failed: StoreUnavailable | None = None
        for url in self._urls:
            try:
                return await self._http.request(method, url + path, **request), failed is not None
            except httpx2.TransportError as error:
                failed = unreachable(url, error)
                self._urls = _last(self._urls, url)
        assert failed is not None  # noqa: S101 - there is a url
        raise failed


class AsyncRemoteTurn:
    """A turn at a server, for `async with`."""

    def __init__(
        self, client: AsyncClient, session_id: str, holder: str | None, *, cancel_on_lost: bool
    ) -> None:
        self.session_id = session_id
        self._client = client
        self._sent = _json(holder=holder)
        self.cancel_on_lost = cancel_on_lost
        self._cancelled = self._begun = False

    async def __aenter__(self) -> Holding:
        self._begun = _once_only(self.session_id, begun=self._begun)
        asked = time.monotonic()
        path = f"/v1/sessions/{self.session_id}/turns"
        found = await self._client._call("POST", path, json=self._sent)  # noqa: SLF001 - ours
        self._holding = Holding(TurnAnswer.model_validate_json(found), asked)
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        self._beating = asyncio.create_task(self._beat())
        return self._holding

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._beating.cancel()
        # Our own cancellation is taken back; somebody else's, at the same time, goes on.
        task = self._task
        ours = self._cancelled and task is not None and task.uncancel() <= self._cancelling
        outcome = {"outcome": "completed" if kind is None else "failed"}
        try:
            ending = self._client._ask("DELETE", self._holding.address, params=outcome)  # noqa: SLF001 - ours
            answer, repeated = await asyncio.shield(asyncio.ensure_future(ending))
            self._holding.ended(error_of(answer), repeated=repeated)
        except SandkeeperError as error:
            _left(self._holding, kind, error)
        if ours and kind is asyncio.CancelledError:
            self._holding.check()

    async def _beat(self) -> None:
        pause: float | None = self._holding.answer.heartbeat_every
        while pause is not None:
            await asyncio.sleep(pause)
            pause = self._holding.heard(await self._once())
        if self.cancel_on_lost and self._task is not None:
            self._cancelled = True
            self._task.cancel()

    async def _once(self) -> SandkeeperError | None:
        within = self._holding.beat_within
        try:
            answer, _ = await self._client._ask("PUT", self._holding.address, timeout=within)  # noqa: SLF001 - ours
        except SandkeeperError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, it refuses nothing
            return unreachable(self._holding.address, error)
        return error_of(answer)


def _once_only(session_id: str, *, begun: bool) -> bool:
    """True from now on. A second turn needs heartbeats of its own."""
    if begun:
        raise InvalidArgument(f"this turn on {session_id!r} was begun already: make a new one")
    return True


def _left(holding: Holding, kind: type[BaseException] | None, error: SandkeeperError) -> None:
    """
    What becomes of an end that was refused. The block's own exception is never replaced; work that
    is done is not thrown away because nobody answered, unless the turn was lost before.
    """
    if isinstance(error, StoreError):
        logger.warning("RemoteTurnEndFailed turn_id=%s error=%s", holding.id, error)
        if kind is None:
            holding.check()
    elif kind is None:
        raise error


def _urls(url: Url) -> tuple[str, ...]:
    found = tuple(each.rstrip("/") for each in ([url] if isinstance(url, str) else url))
    if not found:
        raise InvalidArgument("url (): name at least one server")
    return found


def _last(urls: tuple[str, ...], url: str) -> tuple[str, ...]:
    """The others are asked first from now on."""
    return (*(each for each in urls if each != url), url)


def _headers(token: str | None) -> Mapping[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _json(**fields: Any) -> dict[str, Any]:
    """The fields that were given; durations in seconds."""
    return {
        name: value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in fields.items()
        if value is not None
    }
