"""One attempt to make one sandbox gone, and to have it confirmed by its provider."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum

from .errors import (
    AuthFailed,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    StoreError,
    Unavailable,
    words,
)
from .host import Host, in_forked_children
from .model import Claim, ownership
from .providers.base import ProviderState, SandboxProvider, SandboxRef
from .store import Store
from .store.calls import Slot
from .store.health import FAILURES

CALLS_AT_ONCE = 8  # of one provider, in a worker that has several


class TeardownOutcome(StrEnum):
    """How one attempt went."""

    GONE = "gone"  # the provider confirmed that it is not there
    REFUSED = "refused"  # nothing to do, or somebody else is at it
    RETRY = "retry"  # it failed, and is due again


@dataclass(frozen=True, kw_only=True)
class Teardown:
    """
    The outcome of one attempt; `retry_after` in seconds when it is RETRY. `provider` is whose the
    sandbox was, where it was claimed.
    """

    outcome: TeardownOutcome
    retry_after: float | None = None
    provider: str | None = field(default=None, compare=False)


class Undertaker:
    """
    Claims, destroys, confirms. `providers` by the name that is on the rows. With several of them
    each may have `at_once` calls under way in this process: one that hangs leaves threads to the
    others.
    """

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, SandboxProvider],
        *,
        host: Host,
        at_once: int = CALLS_AT_ONCE,
    ) -> None:
        self.store = store
        self.policy = store.policy
        self.providers = providers
        self.host = host
        self._at_once = at_once if len(providers) > 1 else None
        self._forget()
        in_forked_children(self, Undertaker._forget)

    def _forget(self) -> None:
        """No call is under way in a child that was forked."""
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()

    def teardown(
        self, session_id: str, generation: int, *, worker: str, early: bool = False
    ) -> Teardown:
        """See Reaper.teardown."""
        # Counted from before the claim, so that the provider is never called on a claim that
        # may have run out.
        deadline = self.host.monotonic() + self.policy.attempt_budget
        claim = self.store.teardowns.claim(session_id, generation, worker, early=early)
        if claim is None:
            return Teardown(outcome=TeardownOutcome.REFUSED)
        with self._room(claim.provider) as room:
            if not room:
                return self._put_off(claim)
            return replace(self._bounded(claim, worker, deadline), provider=claim.provider)

    def _bounded(self, claim: Claim, worker: str, deadline: float) -> Teardown:
        """The attempt, in one of the slots that the fleet has for this provider."""
        if self.store.calls.bound is None:
            return self._attempt(claim, worker, deadline)
        slot = self.store.calls.take(claim.provider, worker)
        if slot is None:
            return self._stand_back(claim)
        try:
            return self._attempt(claim, worker, deadline)
        finally:
            self._give(slot)

    def _give(self, slot: Slot) -> None:
        with suppress(StoreError):  # it runs out, like the slot of a worker that was killed
            self.store.calls.give(slot)

    def _stand_back(self, claim: Claim) -> Teardown:
        """
        As many calls are under way as may be. It is due at once, and nobody is told to try again:
        each call that ends makes room for one, and the sweep for the rest.
        """
        self.store.teardowns.put_off(claim, 0.0)
        return Teardown(outcome=TeardownOutcome.REFUSED)

    def _attempt(self, claim: Claim, worker: str, deadline: float) -> Teardown:
        if not self._admitted(claim):
            return self._put_off(claim)
        try:
            left = self._destroy(claim, deadline)
        except ProviderError as error:
            return self._failed(claim, worker, error)
        except Exception as error:  # noqa: BLE001 - a provider's bug does not end its teardown
            return self._failed(claim, worker, Unavailable(words(error)))
        if left is not None:
            return self._failed(claim, worker, still_there(left), answered=True)
        if claim.failures or claim.spacing:
            self.store.health.answered(claim.provider, actor=worker)
        if self.store.teardowns.gone(claim, actor=worker):
            return Teardown(outcome=TeardownOutcome.GONE)
        return Teardown(outcome=TeardownOutcome.REFUSED)

    def _admitted(self, claim: Claim) -> bool:
        """A provider that is well is not asked; of one in trouble the whole fleet asks little."""
        if not (claim.failures or claim.spacing):
            return True
        wait = self.store.health.admit(claim.provider, probe_for=self.policy.claim_ttl)
        if wait is None:
            return False
        if not wait:
            return True
        self.host.sleep(wait)
        return not self.store.health.is_blocked(claim.provider)

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
        if claim.external_id is None and self._is_anothers(provider, ref, deadline):
            return None  # its name was taken before ours was made: nothing of ours is here
        return destroy(provider, ref, deadline)

    def _is_anothers(self, provider: SandboxProvider, ref: SandboxRef, deadline: float) -> bool:
        """S2: without an id of our own a name alone does not make a sandbox ours."""
        found = provider.get(ref, deadline=deadline)
        if found is None or found.state is ProviderState.GONE:
            return False
        return ownership(found.ref.name, found.labels, self.store.installation) is None

    def _failed(
        self, claim: Claim, worker: str, error: ProviderError, *, answered: bool = False
    ) -> Teardown:
        if isinstance(error, RateLimited):
            return self._limited(claim, worker, error)
        counts = not self._is_outage(claim, worker, error, answered=answered)
        quarantine = not error.retryable or (
            counts and claim.attempts >= self.policy.quarantine_after
        )
        attempts = claim.attempts if error.retryable else self.policy.quarantine_after
        pause = self.policy.pause(max(1, attempts), spread=self.host.spread())
        return self._release(claim, worker, error, pause, counts=counts, quarantine=quarantine)

    def _limited(self, claim: Claim, worker: str, error: RateLimited) -> Teardown:
        """It says nothing of this sandbox, and it slows the whole fleet down."""
        pause = self.policy.limit_pause(error.retry_after, spread=self.host.spread())
        self.store.health.limited(claim.provider, pause)
        return self._release(claim, worker, error, pause, counts=False)

    def _is_outage(
        self, claim: Claim, worker: str, error: ProviderError, *, answered: bool
    ) -> bool:
        """
        Whether the provider as a whole fails, as far as anybody can tell: then the attempt says
        nothing of this sandbox. One that always fails is no witness against its provider.
        """
        witness = isinstance(error, Unavailable | OutcomeUnknown)
        if answered or not witness:
            # It is there, and said no. A failed login may be said by us, before any call.
            if claim.failures and not isinstance(error, AuthFailed):
                self.store.health.answered(claim.provider, actor=worker)
            return False
        if claim.quarantined:
            return False
        pause = self.policy.outage_pause(claim.failures + 1, spread=self.host.spread())
        return self.store.health.failed(
            claim.provider,
            claim.key,
            words(error),
            pause,
            actor=worker,
            probe=claim.failures >= FAILURES,
        )

    def _put_off(self, claim: Claim) -> Teardown:
        """No call can be made now: its provider is in trouble, or busy with others."""
        pause = self.policy.pause(1, spread=self.host.spread())
        if self.store.teardowns.put_off(claim, pause):
            return Teardown(outcome=TeardownOutcome.RETRY, retry_after=pause)
        return Teardown(outcome=TeardownOutcome.REFUSED)

    def _release(
        self,
        claim: Claim,
        worker: str,
        error: ProviderError,
        pause: float,
        *,
        counts: bool,
        quarantine: bool = False,
    ) -> Teardown:
        released = self.store.teardowns.release(
            claim, words(error), pause, actor=worker, counts=counts, quarantine=quarantine
        )
        if not released:
            return Teardown(outcome=TeardownOutcome.REFUSED)
        return Teardown(outcome=TeardownOutcome.RETRY, retry_after=pause)

    @contextmanager
    def _room(self, provider: str) -> Iterator[bool]:
        with self._lock:
            room = self._at_once is None or self._under_way[provider] < self._at_once
            self._under_way[provider] += room
        try:
            yield room
        finally:
            with self._lock:
                self._under_way[provider] -= room


def destroy(provider: SandboxProvider, ref: SandboxRef, deadline: float) -> ProviderState | None:
    """
    What is left of a sandbox after its destroy, by the provider's own later word: None when it is
    gone. `deadline` is of the host's monotonic clock. Raises what the provider raises.
    """
    provider.destroy(ref, deadline=deadline)
    left = provider.get(ref, deadline=deadline)
    return None if left is None or left.state is ProviderState.GONE else left.state


def still_there(left: ProviderState) -> Unavailable:
    """The error of a destroy that was accepted and not done."""
    return Unavailable(f"destroy was accepted, and the provider still says {left}")
