"""The two background works: the sweep that ends idle sessions, and the teardown of one sandbox."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

from .errors import (
    AuthFailed,
    ProviderError,
    RateLimited,
    SchemaOutdated,
    StoreError,
    StoreUnavailable,
    Unavailable,
)
from .events import Event, EventKind
from .model import Claim
from .providers.base import ProviderState, SandboxProvider, SandboxRef
from .store import Store

Doorbell = Callable[[Sequence[tuple[str, int]]], None]
"""Rings for (session_id, generation) pairs. It may lose them: the sweep rings again."""


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What one sweep did, in rows."""

    clamped: int = 0
    rearmed: int = 0
    noticed: int = 0
    ended: int = 0
    expired: int = 0
    published: int = 0
    poisoned: int = 0

    def __add__(self, other: SweepReport) -> SweepReport:
        names = [field.name for field in fields(self)]
        return SweepReport(**{name: getattr(self, name) + getattr(other, name) for name in names})


class TeardownOutcome(StrEnum):
    """How one attempt went."""

    GONE = "gone"  # the provider confirmed that it is not there
    REFUSED = "refused"  # nothing to do, or somebody else is at it
    RETRY = "retry"  # it failed, and is due again


@dataclass(frozen=True, kw_only=True)
class Teardown:
    """The outcome of one attempt; `retry_after` in seconds when it is RETRY."""

    outcome: TeardownOutcome
    retry_after: float | None = None


class Reaper:
    """
    Safe to run many at once, twice, or late. `providers` by the name that is on the rows;
    `monotonic` bounds calls and `spread` in [0, 1) jitters pauses: tests hand in their own.
    """

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, SandboxProvider],
        *,
        doorbell: Doorbell,
        monotonic: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self.policy = store.policy
        self.providers = providers
        self.doorbell = doorbell
        self.monotonic = monotonic
        self.spread = spread

    # The sweep

    def sweep(self) -> SweepReport:
        """
        One pass over what is due: clamp, end, notice, re-arm, expire creates, publish teardowns.
        Each step stops with the first batch that is not full. StoreError when the database refuses.
        """
        report = SweepReport(clamped=self._until_short(self.store.sweeps.clamp))
        report += self._sweep_sessions()
        report += SweepReport(expired=self._until_short(self.store.sweeps.expired_creates))
        report += self._fan_out()
        self.store.sweeps.pulse()
        return report

    def _sweep_sessions(self) -> SweepReport:
        total = SweepReport()
        while True:
            try:
                looked, rearmed, noticed, ended = self.store.sweeps.sessions(self.policy.batch)
            except (StoreUnavailable, SchemaOutdated):
                raise
            except StoreError:
                return total + self._one_by_one()
            total += SweepReport(rearmed=rearmed, noticed=noticed, ended=ended)
            if looked < self.policy.batch:
                return total

    def _one_by_one(self) -> SweepReport:
        """Some row makes its batch fail: move the others without it, and show it."""
        total = SweepReport()
        for session_id in self.store.sweeps.due_sessions(self.policy.batch):
            try:
                _, rearmed, noticed, ended = self.store.sweeps.sessions(1, only=session_id)
                total += SweepReport(rearmed=rearmed, noticed=noticed, ended=ended)
            except (StoreUnavailable, SchemaOutdated):
                raise
            except StoreError as error:
                self._postpone(session_id, error)
                total += SweepReport(poisoned=1)
        return total

    def _postpone(self, session_id: str, error: StoreError) -> None:
        try:
            self.store.sweeps.postpone(session_id, str(error))
        except (StoreUnavailable, SchemaOutdated):
            raise
        except StoreError as refused:  # not even that: it stays due, and the others go on
            self.store.database.tell(
                Event(
                    kind=EventKind.ROW_POISONED,
                    actor="sweep",
                    session_id=session_id,
                    detail={"error": str(refused)},
                )
            )

    def _until_short(self, step: Callable[[int], int]) -> int:
        total = 0
        while (count := step(self.policy.batch)) >= self.policy.batch:
            total += count
        return total + count

    def _fan_out(self) -> SweepReport:
        published = 0
        # No longer than the lease: what was published first is due again then, and a slow broker
        # would keep this sweep ringing for the same rows for ever.
        end = self.monotonic() + self.policy.publish_lease
        while batch := self.store.sweeps.to_publish(self.policy.batch):
            try:
                self.doorbell(batch)
            except Exception as error:  # noqa: BLE001 - the rows are due again after the lease
                self.store.database.tell(
                    Event(
                        kind=EventKind.FAN_OUT_FAILED,
                        actor="sweep",
                        detail={"teardowns": len(batch), "error": _words(error)},
                    )
                )
                break
            published += len(batch)
            if len(batch) < self.policy.batch or self.monotonic() >= end:
                break
        return SweepReport(published=published)

    def purge(self) -> int:
        """Delete what ended longer ago than the retention; returns how many sessions."""
        return self._until_short(self.store.retention.purge)

    # The teardown

    def teardown(
        self, session_id: str, generation: int, *, worker: str, early: bool = False
    ) -> Teardown:
        """
        One attempt to make a sandbox go away and to confirm it. Only a row that says `closing`
        can be claimed, whatever a message says. `early` does not wait for a pause to end.
        """
        # Counted from before the claim, so that the provider is never called on a claim that
        # may have run out.
        deadline = self.monotonic() + 0.8 * self.policy.claim_ttl
        claim = self.store.teardowns.claim(session_id, generation, worker, early=early)
        if claim is None:
            return Teardown(outcome=TeardownOutcome.REFUSED)
        try:
            present = self._destroy(claim, deadline)
        except ProviderError as error:
            return self._failed(claim, worker, error)
        except Exception as error:  # noqa: BLE001 - a provider's bug does not end its teardown
            return self._failed(claim, worker, Unavailable(_words(error)))
        if present is not None:
            said = Unavailable(f"destroy was accepted, and the provider still says {present}")
            return self._failed(claim, worker, said)
        if self.store.teardowns.gone(claim, actor=worker):
            return Teardown(outcome=TeardownOutcome.GONE)
        return Teardown(outcome=TeardownOutcome.REFUSED)

    def _destroy(self, claim: Claim, deadline: float) -> ProviderState | None:
        """What is left afterwards: None when the provider itself says that it is not there."""
        provider = self.providers.get(claim.provider)
        if provider is None:
            known = ", ".join(sorted(self.providers))
            raise AuthFailed(
                f"no provider {claim.provider!r} here, only {known}: run a worker that has it"
            )
        scope = provider.scope()
        if scope != claim.scope:
            # A not-found from another account says nothing of this sandbox.
            raise AuthFailed(
                f"the sandbox is in scope {claim.scope!r}, and this worker is logged in to "
                f"{scope!r}: give it the credentials of the first"
            )
        ref = SandboxRef(name=claim.name, external_id=claim.external_id)
        provider.destroy(ref, deadline=deadline)
        left = provider.get(ref, deadline=deadline)
        return None if left is None or left.state is ProviderState.GONE else left.state

    def _failed(self, claim: Claim, worker: str, error: ProviderError) -> Teardown:
        limited = isinstance(error, RateLimited)
        quarantine = not error.retryable or (
            not limited and claim.attempts >= self.policy.quarantine_after
        )
        attempts = self.policy.quarantine_after if not error.retryable else claim.attempts
        pause = self.policy.pause(max(1, attempts), spread=self.spread())
        if isinstance(error, RateLimited) and error.retry_after is not None:
            pause = min(max(error.retry_after, self.policy.retry_base), self.policy.longest_pause)
        released = self.store.teardowns.release(
            claim,
            f"{type(error).__name__}: {error}",
            pause,
            actor=worker,
            counts=not limited,
            quarantine=quarantine,
        )
        if not released:
            return Teardown(outcome=TeardownOutcome.REFUSED)
        return Teardown(outcome=TeardownOutcome.RETRY, retry_after=pause)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
