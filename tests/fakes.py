"""Stand-ins for what is not ours: a cloud that keeps the truth and misbehaves on order, a clock."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

from core.errors import (
    ForeignConflict,
    InvalidSpec,
    OutcomeUnknown,
    RateLimited,
    Unavailable,
    Unsupported,
)
from core.host import Step
from core.providers.base import Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec

# A fault is put between a call and its effect: it decides whether, when and how often that happens.
Effect = Callable[[], Any]
Fault = Callable[[Effect], Any]


class FrozenClock:
    """Time that passes when a test says so. Called, it says the time: an aware UTC datetime."""

    def __init__(self, now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """The time."""
        return self.now

    def monotonic(self) -> float:
        """The time in seconds, as a machine of this time counts them."""
        return self.now.timestamp()

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass, or go back with a negative number as a stepped clock does."""
        self.now += timedelta(seconds=seconds)


class LoopByHand:
    """A background work whose rounds a test runs: `step()` is one of them."""

    def __init__(self, name: str, step: Step, first_pause: float) -> None:
        self.name = name
        self.step = step
        self.first_pause = first_pause
        self.runs = False

    def start(self) -> None:
        """Somebody wants it to run."""
        self.runs = True

    def stop(self) -> None:
        """Nobody does any more."""
        self.runs = False


@dataclass(kw_only=True)
class Box:
    """One sandbox in the cloud's own books: the truth that a test compares the rows with."""

    external_id: str
    name: str
    labels: dict[str, str]
    spec: Spec
    scope: str
    created_at: datetime
    expires_at: datetime | None = None
    state: ProviderState = ProviderState.RUNNING


def _age(box: Box) -> str:
    """Ids are given in order."""
    return box.external_id


class Call(NamedTuple):
    """One line of the journal: written when a call comes in, whatever becomes of it."""

    operation: str
    name: str


class Idle:
    """A background work that never has its turn: for `Host(loop=Idle)`."""

    def __init__(self, name: str, step: Callable[[], float], first_pause: float) -> None:
        pass

    def start(self) -> None:
        """Begin nothing."""

    def stop(self) -> None:
        """Nothing was begun."""


@dataclass
class Hang:
    """
    A call that is stuck, past its deadline if need be. Wait for `entered`, do what the test is
    about, then `release`.
    """

    entered: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let it go on."""
        self._released.set()

    def __call__(self, effect: Effect) -> Any:
        """Be stuck, then have the effect after all."""
        self.entered.set()
        if not self._released.wait(60):
            raise AssertionError("nobody released this hang")
        return effect()


class TokenBucket:
    """
    So many calls a second, and `burst` at once after a pause. `refused` counts the others, which
    are told to come back after `retry_after` seconds.
    """

    def __init__(
        self, clock: Callable[[], datetime], rate: float, *, burst: int, retry_after: float | None
    ) -> None:
        self.rate = rate
        self.burst = burst
        self.retry_after = retry_after
        self.served = 0
        self.refused = 0
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    def take(self) -> None:
        """One call, or RateLimited."""
        now = self._clock()
        passed = (now - self._filled_at).total_seconds()
        self._tokens = min(self.burst, self._tokens + self.rate * passed)
        self._filled_at = now
        if self._tokens < 1:
            self.refused += 1
            raise RateLimited("429", retry_after=self.retry_after)
        self._tokens -= 1
        self.served += 1


class FakeCloud:
    """
    A SandboxProvider in memory, safe to call from many threads. `boxes` is its truth, dead ones
    included; `calls` the journal; `kills` counts teardowns that had an effect, by name. Faults are
    queued per operation ("create", "get", "destroy", "list", "extend") and used up one a call.
    """

    name = "fake"

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        capabilities: frozenset[Capability] = frozenset(Capability),
        account: str = "test-account",
        page_size: int = 100,
        name: str | None = None,
    ) -> None:
        self.name = name or self.name
        self.capabilities = capabilities
        self.account = account  # change it, and what the old account has is not found any more
        self.page_size = page_size
        self.bucket: TokenBucket | None = None  # what limits its calls
        self.longest_ttl: float | None = None  # more than this is never granted
        self.tells_expiry = True
        self.boxes: dict[str, Box] = {}
        self.calls: list[Call] = []
        self.kills: Counter[str] = Counter()
        self.unlisted: set[str] = set()  # ids that a listing leaves out, though they live
        self.lingering: set[str] = set()  # ids that a listing still has, though they are gone
        self._clock = clock or (lambda: datetime.now(UTC))
        self._monotonic = monotonic
        self._ids = itertools.count(1)
        self._faults: dict[str, deque[Fault | None]] = {}
        self._late: list[Effect] = []
        self._lock = threading.RLock()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """A cloud of its own, whatever the environment."""
        return cls()

    # What a test looks at

    def alive(self, name: str | None = None) -> Sequence[Box]:
        """What occupies and bills now: everything, or what has this name."""
        with self._lock:
            living = [box for box in self.boxes.values() if self._lives(box)]
        return [box for box in living if name in (None, box.name)]

    def count(self, operation: str, name: str | None = None) -> int:
        """How often this was called, in all or for one name."""
        with self._lock:
            return sum(c.operation == operation and name in (None, c.name) for c in self.calls)

    # What a test does behind our back

    def plant(self, name: str, labels: Mapping[str, str] | None = None, *, age: float = 0.0) -> Box:
        """A sandbox that somebody else made, so many seconds ago."""
        with self._lock:
            box = self._make(name, labels or {}, Spec(), None)
            box.created_at -= timedelta(seconds=age)
        return box

    def vanish(self, name: str) -> None:
        """Everything of this name is gone, and nobody was told. It counts as nobody's kill."""
        for box in self.alive(name):
            box.state = ProviderState.GONE

    def before(self, operation: str, act: Effect, *, after: int = 0) -> None:
        """Something happens elsewhere while the call is on its way; `after` so many calls."""

        def fault(effect: Effect) -> Any:
            act()
            return effect()

        self._plan(operation, fault, after=after)

    # What a test makes go wrong

    def fail(self, operation: str, error: Exception, *, times: int = 1, after: int = 0) -> None:
        """The call raises and has no effect; `after` so many calls that go well."""

        def fault(effect: Effect) -> Any:
            raise error

        self._plan(operation, fault, times=times, after=after)

    def doubt(self, operation: str, error: Exception, *, times: int = 1, after: int = 0) -> None:
        """The call has its effect, and raises all the same: the answer was lost."""

        def fault(effect: Effect) -> Any:
            effect()
            raise error

        self._plan(operation, fault, times=times, after=after)

    def delay(self, operation: str, *, accepted: bool = False, times: int = 1) -> None:
        """
        The call has no effect until `land()`: it ends in OutcomeUnknown, or `accepted` (a destroy
        that says yes while the sandbox lives on).
        """

        def fault(effect: Effect) -> Any:
            self._late.append(effect)
            if not accepted:
                raise OutcomeUnknown("the cloud did not answer in time")

        self._plan(operation, fault, times=times)

    def lie(self, *, times: int = 1) -> None:
        """The destroy says that it is done, and nothing ever happens."""
        self._plan("destroy", lambda _: None, times=times)

    @contextmanager
    def hang(self, operation: str) -> Iterator[Hang]:
        """The next call is stuck until it is released, at the latest at the end of the block."""
        hang = Hang()
        self._plan(operation, hang)
        try:
            yield hang
        finally:
            hang.release()

    def land(self) -> int:
        """Let every delayed effect happen now. Returns how many there were."""
        with self._lock:
            late, self._late[:] = list(self._late), []
        for effect in late:
            effect()
        return len(late)

    def heal(self) -> None:
        """Forget all faults that are still to come."""
        with self._lock:
            self._faults.clear()

    # The provider

    def scope(self) -> str:
        """The account, as it is called now."""
        return self.account

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        """Make it, or adopt it if this cloud can; other labels are another's."""

        def effect() -> SandboxInfo:
            if spec.options:
                raise InvalidSpec(f"this cloud has no options: {', '.join(spec.options)}")
            for box in self._named(name):
                if dict(labels) != box.labels:
                    raise ForeignConflict(f"{name} is there with other labels")
                if Capability.IDEMPOTENT_CREATE in self.capabilities:
                    return self._info(box)
            return self._info(self._make(name, labels, spec, ttl))

        info: SandboxInfo = self._call("create", name, effect, deadline)
        return info

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """What lives under this name, and id if it is given; in this account only."""

        def effect() -> SandboxInfo | None:
            return next((self._info(box) for box in self._found(ref)), None)

        info: SandboxInfo | None = self._call("get", ref.name, effect, deadline)
        return info

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """The same, made gone."""

        def effect() -> None:
            for box in self._found(ref):
                box.state = ProviderState.GONE
                self.kills[box.name] += 1

        self._call("destroy", ref.name, effect, deadline)

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """What lives in this account with these labels, `page_size` at a time, oldest first."""
        self._need(Capability.LIST)

        def effect() -> Page:
            wanted = labels.items()
            rest = [
                box
                for box in self._listed()
                if box.scope == self.account
                and wanted <= box.labels.items()
                and box.external_id > (cursor or "")
            ]
            page = rest[: self.page_size]
            more = page[-1].external_id if len(rest) > len(page) else None
            return Page(items=tuple(self._shown(box) for box in page), cursor=more)

        page: Page = self._call("list", cursor or "", effect, deadline)
        return page

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """Expire so many seconds from now, on this cloud's clock."""
        self._need(Capability.TTL)

        def effect() -> datetime | None:
            boxes = self._found(ref)
            if not boxes:
                raise Unavailable(f"{ref.name} is not there to be extended")
            boxes[0].expires_at = self._clock() + timedelta(seconds=self._granted(ttl))
            return boxes[0].expires_at if self.tells_expiry else None

        expiry: datetime | None = self._call("extend", ref.name, effect, deadline)
        return expiry

    # How it works

    def _plan(self, operation: str, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        with self._lock:
            self._faults.setdefault(operation, deque()).extend([None] * after + [fault] * times)

    def _call(self, operation: str, name: str, effect: Effect, deadline: float) -> Any:
        def locked() -> Any:
            with self._lock:
                return effect()

        if self._monotonic() > deadline:
            raise OutcomeUnknown(f"{operation} of {name} was called after its deadline")
        with self._lock:
            self.calls.append(Call(operation, name))
            if self.bucket is not None:
                self.bucket.take()
            planned = self._faults.get(operation)
            fault = planned.popleft() if planned else None
        return fault(locked) if fault else locked()

    def _make(self, name: str, labels: Mapping[str, str], spec: Spec, ttl: float | None) -> Box:
        lives = ttl is not None and Capability.TTL in self.capabilities
        box = Box(
            external_id=f"box-{next(self._ids):06}",
            name=name,
            labels=dict(labels),
            spec=spec,
            scope=self.account,
            created_at=self._clock(),
            expires_at=self._clock() + timedelta(seconds=self._granted(ttl or 0))
            if lives
            else None,
        )
        self.boxes[box.external_id] = box
        return box

    def _granted(self, ttl: float) -> float:
        return ttl if self.longest_ttl is None else min(ttl, self.longest_ttl)

    def _lives(self, box: Box) -> bool:
        expired = box.expires_at is not None and box.expires_at <= self._clock()
        return box.state is not ProviderState.GONE and not expired

    def _listed(self) -> Sequence[Box]:
        late = [box for box in self.boxes.values() if box.external_id in self.lingering]
        there = [box for box in self.alive() if box.external_id not in self.unlisted]
        return sorted({box.external_id: box for box in there + late}.values(), key=_age)

    def _shown(self, box: Box) -> SandboxInfo:
        """As a listing has it: one that is behind says of what is gone that it runs."""
        info = self._info(box)
        late = box.external_id in self.lingering
        return replace(info, state=ProviderState.RUNNING) if late else info

    def _named(self, name: str) -> Sequence[Box]:
        return [box for box in self.alive(name) if box.scope == self.account]

    def _found(self, ref: SandboxRef) -> Sequence[Box]:
        named = self._named(ref.name)
        if ref.external_id is None:
            return named
        return [box for box in named if box.external_id == ref.external_id]

    def _info(self, box: Box) -> SandboxInfo:
        return SandboxInfo(
            ref=SandboxRef(name=box.name, external_id=box.external_id),
            state=box.state,
            labels=dict(box.labels),
            created_at=box.created_at,
            expires_at=box.expires_at if self.tells_expiry else None,
        )

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise Unsupported(f"this cloud cannot {capability.value}")
