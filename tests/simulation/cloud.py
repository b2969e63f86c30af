"""
Who runs sandboxes, in virtual time: the truth of what lives, and a provider for each process that
fails, lies, forgets its answers and lets calls land late, as the rates of the world say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, Self, TypeVar

from core.errors import (
    AuthFailed,
    ForeignConflict,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    Unavailable,
)
from core.providers.base import Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec
from tests.simulation.database import EPOCH
from tests.simulation.faults import Fault, Faults
from tests.simulation.scheduler import Scheduler

T = TypeVar("T")
OURS = "account-1"
OTHER = "account-2"
CALL = 0.6  # how long a call takes at most, when it takes its time as usual
LATE = (5.0, 15.0, 45.0, 100.0)
SLOW = (5.0, 12.0, 25.0, 40.0)
STALE = (1.0, 10.0, 60.0)
PAGE = 3
DYING = (3.0, 10.0, 30.0)


@dataclass(eq=False, kw_only=True)
class Box:
    """One sandbox in the cloud's own books. Times are those of the world, in seconds."""

    external_id: str
    name: str
    labels: dict[str, str]
    account: str
    born: float
    foreign: bool = False
    dead_at: float | None = None
    dying: bool = False
    expires_at: float | None = None
    extended_at: float = 0.0
    refused_extensions: int = 0  # in a row
    expired: bool = False
    vanished: bool = False
    immortal: bool = False  # no destroy has an effect on it while faults are on


class Watcher(Protocol):
    """Who looks over the cloud's shoulder."""

    def created(self, box: Box) -> None: ...

    def destroyed(self, box: Box) -> None: ...

    def expired(self, box: Box) -> None: ...

    def absent(self, name: str, account: str) -> None: ...


class Cloud:
    """The truth. What happens here happens at once; waiting is the provider's affair."""

    def __init__(self, scheduler: Scheduler, faults: Faults, watcher: Watcher) -> None:
        self.scheduler = scheduler
        self.faults = faults
        self.watcher = watcher
        self.boxes: list[Box] = []

    def alive(self, box: Box) -> bool:
        """Whether it occupies and bills now."""
        return box.dead_at is None

    def living(self, name: str, account: str | None = None) -> list[Box]:
        """What lives under a name, in one account or anywhere."""
        return [
            box
            for box in self.boxes
            if box.name == name and account in (None, box.account) and self.alive(box)
        ]

    def create(
        self, name: str, labels: Mapping[str, str], account: str, *, ttl: float | None
    ) -> Box:
        """A new one, or the one that has this name."""
        for box in self.living(name, account):
            if box.labels != dict(labels):
                raise ForeignConflict(f"{name} is there with other labels")
            return box
        box = self.add(name, labels, account)
        self.watcher.created(box)
        if ttl is not None:
            self.extend(box, ttl)
        return box

    def extend(self, box: Box, ttl: float) -> None:
        """Let it live so long from now, whatever was asked for before."""
        box.expires_at = self.scheduler.now + ttl
        box.extended_at = self.scheduler.now
        box.refused_extensions = 0
        self.scheduler.at(box.expires_at, lambda: self._expire(box))

    def _expire(self, box: Box) -> None:
        due = box.expires_at is not None and box.expires_at <= self.scheduler.now
        if box.dead_at is None and due:
            box.dead_at, box.expired = self.scheduler.now, True
            self.scheduler.note(f"cloud: {box.external_id} expires ({box.name[-6:]})")
            self.watcher.expired(box)

    def add(
        self, name: str, labels: Mapping[str, str], account: str, *, foreign: bool = False
    ) -> Box:
        """A new one; a foreign one is somebody else's."""
        box = Box(
            external_id=f"box-{len(self.boxes) + 1:04}",
            name=name,
            labels=dict(labels),
            account=account,
            born=self.scheduler.now,
            foreign=foreign,
        )
        self.boxes.append(box)
        self.scheduler.note(f"cloud: {box.external_id} lives ({name[-6:]})")
        return box

    def as_it_was(self, ago: float) -> list[Box]:
        """Everything that lived then."""
        then = self.scheduler.now - ago
        return [
            box
            for box in self.boxes
            if box.born <= then and (box.dead_at is None or box.dead_at > then)
        ]

    def destroy(self, box: Box) -> None:
        """It is gone from now on."""
        if self.alive(box):
            box.dead_at = self.scheduler.now
            self.scheduler.note(f"cloud: {box.external_id} is destroyed ({box.name[-6:]})")
            self.watcher.destroyed(box)

    def vanish(self, box: Box) -> None:
        """It is gone, and nobody of ours did it."""
        box.dead_at, box.vanished = self.scheduler.now, True
        self.scheduler.note(f"cloud: {box.external_id} vanishes ({box.name[-6:]})")


class Provider:
    """The cloud as one process reaches it, with that process's credentials."""

    name = "cloud"

    def __init__(
        self,
        cloud: Cloud,
        account: str,
        monotonic: Callable[[], float],
        die: Callable[[], None],
    ) -> None:
        self.capabilities = frozenset(
            {Capability.LIST, Capability.TTL, Capability.IDEMPOTENT_CREATE}
        )
        self.cloud = cloud
        self.account = account
        self._monotonic = monotonic
        self._die = die

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        raise NotImplementedError

    def scope(self) -> str:
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
        if spec.options:
            self._begin("create", name, deadline)
            raise InvalidSpec("this cloud has no options")

        def effect() -> SandboxInfo:
            return self._info(self.cloud.create(name, labels, self.account, ttl=ttl))

        return self._call("create", name, effect, effect, deadline)

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        def effect() -> SandboxInfo | None:
            found = self._found(ref)
            if not found:
                self.cloud.watcher.absent(ref.name, self.account)
                return None
            return self._info(found[0])

        return self._call("get", ref.name, effect, lambda: None, deadline)

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        def effect() -> None:
            for box in self._found(ref):
                self._destroy(box)

        self._call("destroy", ref.name, effect, effect, deadline)

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        def effect() -> Page:
            ago = 0.0
            if self.cloud.faults.hit(Fault.STALE_LIST):
                ago = self.cloud.scheduler.random.choice(STALE)
            boxes = [
                box
                for box in self.cloud.as_it_was(ago)
                if box.account == self.account
                and labels.items() <= box.labels.items()
                and box.external_id > (cursor or "")
            ]
            page = boxes[:PAGE]
            more = page[-1].external_id if len(boxes) > PAGE else None
            return Page(items=tuple(self._info(box) for box in page), cursor=more)

        if cursor is not None and self.cloud.faults.hit(Fault.BROKEN_LIST):
            raise Unavailable("502 on a later page")
        return self._call("list", cursor or "", effect, lambda: None, deadline)

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        def effect() -> datetime | None:
            found = self._found(ref)
            if not found:
                raise Unavailable("404")
            self.cloud.extend(found[0], ttl)
            return self._info(found[0]).expires_at

        for box in self._found(ref):
            box.refused_extensions += 1  # until it is granted
        return self._call("extend", ref.name, effect, effect, deadline)

    # How calls go wrong

    def _begin(self, operation: str, name: str, deadline: float) -> None:
        """On the way there."""
        scheduler, faults = self.cloud.scheduler, self.cloud.faults
        scheduler.note(f"{operation} {name[-6:]}")
        scheduler.point()
        if operation == "destroy" and faults.hit(Fault.POISON):
            self._die()
        if self._monotonic() > deadline:
            raise OutcomeUnknown("called after its deadline")
        scheduler.sleep(CALL * scheduler.random.random())
        if faults.hit(Fault.REFUSED):
            raise Unavailable("503")
        if faults.hit(Fault.LIMITED):
            raise RateLimited("429", retry_after=scheduler.random.choice((None, 1.0, 8.0, 200.0)))
        if faults.hit(Fault.DENIED):
            raise AuthFailed("403")

    def _call(
        self,
        operation: str,
        name: str,
        effect: Callable[[], T],
        land: Callable[[], object],
        deadline: float,
    ) -> T:
        """`land` is what happens when it happens after nobody waits for it any more."""
        scheduler, faults = self.cloud.scheduler, self.cloud.faults
        self._begin(operation, name, deadline)
        if faults.hit(Fault.LATE):
            self._later(land, scheduler.random.choice(LATE), deadline)
        if faults.hit(Fault.SLOW):
            length = scheduler.random.choice(SLOW)
            if self._monotonic() + length > deadline:
                self._later(land, length, deadline)
            scheduler.sleep(length)
        if faults.hit(Fault.DENIED):
            raise AuthFailed("403, at last")
        result = effect()
        if faults.hit(Fault.STOP_IN_CALL):
            scheduler.stop(scheduler.actor.process, scheduler.random.choice(SLOW))
        if faults.hit(Fault.DOUBT):
            raise OutcomeUnknown("the answer was lost")
        scheduler.note(f"{operation} {name[-6:]} is answered")
        scheduler.point()
        return result

    def _later(self, land: Callable[[], object], after: float, deadline: float) -> None:
        scheduler = self.cloud.scheduler

        def landing() -> None:
            with suppress(ProviderError):  # nobody is there to hear it
                land()

        scheduler.at(scheduler.now + after, landing)
        scheduler.sleep(min(after, max(0.0, deadline - self._monotonic())))
        raise OutcomeUnknown("no answer in time")

    def _destroy(self, box: Box) -> None:
        cloud, faults = self.cloud, self.cloud.faults
        if box.immortal and faults.on:
            return
        if faults.hit(Fault.DESTROY_LIE):
            return
        if faults.hit(Fault.DESTROY_LATER):
            box.dying = True
            when = cloud.scheduler.now + cloud.scheduler.random.choice(DYING)
            cloud.scheduler.at(when, lambda: cloud.destroy(box))
            return
        cloud.destroy(box)

    def _found(self, ref: SandboxRef) -> Sequence[Box]:
        named = self.cloud.living(ref.name, self.account)
        return [box for box in named if ref.external_id in (None, box.external_id)]

    def _info(self, box: Box) -> SandboxInfo:
        until = box.expires_at
        return SandboxInfo(
            ref=SandboxRef(name=box.name, external_id=box.external_id),
            state=ProviderState.STOPPING if box.dying else ProviderState.RUNNING,
            labels=dict(box.labels),
            created_at=EPOCH + timedelta(seconds=box.born),
            expires_at=None if until is None else EPOCH + timedelta(seconds=until),
        )
