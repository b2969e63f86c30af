"""One open turn, as its holder sees it: the sandbox to work in, and the news that it was lost."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .beater import Beater
from .errors import InvalidArgument, SandkeeperError, StoreError, TurnExpired
from .events import Event, EventKind
from .model import Sandbox, Session, TurnOutcome
from .store import BegunTurn, Store

logger = logging.getLogger("sandkeeper")


class Lost:
    """Set once, when the store refused a heartbeat; `error` says why."""

    def __init__(self) -> None:
        self.error: SandkeeperError | None = None
        self._set = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[SandkeeperError], object]] = []

    def is_set(self) -> bool:
        return self._set.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the turn is lost, at most `timeout` seconds; True when it is."""
        return self._set.wait(timeout)

    def on(self, callback: Callable[[SandkeeperError], object]) -> None:
        """
        Call back with the error, once, from the heartbeat's thread; at once if it is lost already.
        The callback must not block: the heartbeats of all other turns come after it.
        """
        with self._lock:
            if self.error is None:
                self._callbacks.append(callback)
                return
            error = self.error
        callback(error)

    def set(self, error: SandkeeperError) -> bool:
        """Say so to everybody who waits; False when it was said before."""
        with self._lock:
            if self.error is not None:
                return False
            self.error = error
            callbacks, self._callbacks = self._callbacks, []
        self._set.set()
        for callback in callbacks:
            try:
                callback(error)
            except BaseException:
                logger.exception("LostCallbackFailed")
        return True


class Turn:
    """
    A turn as a context manager. Entering begins it and starts its heartbeats; leaving ends it.
    Leaving normally raises SessionEnded or TurnExpired when the turn had been lost, so that work
    on a sandbox that is going away is never taken for done; another exception is never replaced.
    """

    def __init__(
        self,
        store: Store,
        beater: Beater,
        session_id: str,
        *,
        new_id: Callable[[], str],
        holder: str,
        monotonic: Callable[[], float],
        begun: Callable[[Session], None] = lambda _: None,
    ) -> None:
        self.id = new_id()
        self.session_id = session_id
        self.holder = holder
        self.lost = Lost()
        self._new_id = new_id
        self._store = store
        self._beater = beater
        self._monotonic = monotonic
        self._begun: BegunTurn | None = None
        self._tell_begun = begun
        self._ceiling = 0.0
        self._process = 0

    @property
    def session(self) -> Session:
        """The session as it was when the turn began."""
        return self._entered().session

    @property
    def sandbox(self) -> Sandbox:
        """Where to work: `external_id` is the provider's id."""
        return self._entered().session.sandbox

    def check(self) -> None:
        """Raise SessionEnded or TurnExpired as soon as this turn may not go on."""
        self._entered()
        self.expire()
        if self.lost.error is not None:
            raise self.lost.error

    def expire(self) -> bool:
        """Lose it if it passed its hard ceiling by the clock of this process; True when it did."""
        over = self._monotonic() >= self._ceiling
        if over:
            self.lose(TurnExpired(self.session_id, self.id, reason="it passed its hard ceiling"))
        return over

    def lose(self, error: SandkeeperError) -> None:
        """What the heartbeat calls when the store refused this turn."""
        self._beater.remove(self)
        if self.lost.set(error):
            self._tell(EventKind.TURN_LOST, error)

    def begin(self) -> Self:
        """Begin it; see Lifecycle.turn for what is raised."""
        if self._begun is not None:
            raise InvalidArgument(f"turn {self.id} was begun already: make a new one")
        asked = self._monotonic()  # the ceiling counts from before the answer was on its way
        try:
            self._begun = self._store.turns.begin(self.id, self.session_id, self.holder)
        except StoreError:
            self.id = self._new_id()  # the row of this one may be there, and its answer was lost
            raise
        self._process = os.getpid()
        self._ceiling = asked + (self._begun.hard_until - self._begun.started_at).total_seconds()
        try:
            self._beater.add(self)
            self._tell_begun(self._begun.session)
            self.check()  # the provider may have taken long, or this process was stopped meanwhile
        except BaseException:
            # Nobody leaves a block that was never entered: after an interrupt our own heartbeats
            # would keep a turn alive that nobody holds.
            self._beater.remove(self)
            raise
        return self

    def end(self, outcome: TurnOutcome = TurnOutcome.COMPLETED) -> None:
        """End it; SessionEnded or TurnExpired when it had been lost."""
        self._entered()
        self._beater.remove(self)
        self._store.turns.end(self.id, self.session_id, outcome)
        if self.lost.error is not None:
            raise self.lost.error

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._process != os.getpid():
            return  # a forked child leaves the block; the turn is its parent's, and goes on
        try:
            self.end(TurnOutcome.COMPLETED if kind is None else TurnOutcome.FAILED)
        except StoreError as error:
            # The work is done, and without heartbeats the session goes idle by itself: failing
            # the caller's request over this would lose what it did.
            self._tell(EventKind.TURN_END_FAILED, error)
            if kind is None:  # not being able to ask is no yes to what was refused before
                self.check()
        except SandkeeperError:
            if kind is None:
                raise

    def _entered(self) -> BegunTurn:
        if self._begun is None:
            raise InvalidArgument(f"turn {self.id} was not begun: use it in a with statement")
        return self._begun

    def _tell(self, kind: EventKind, error: SandkeeperError) -> None:
        generation = None if self._begun is None else self._begun.session.generation
        self._store.database.tell(
            Event(
                kind=kind,
                actor=self.holder,
                session_id=self.session_id,
                generation=generation,
                detail={"turn_id": self.id, "error": str(error)},
            )
        )
