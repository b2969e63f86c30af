"""
The provider's own TTL, kept ahead of live sessions: should all of Sandkeeper die, the bill stops by
itself. It is extended at most every quarter of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from .errors import AuthFailed, OutcomeUnknown, ProviderError, Unavailable, words
from .events import Event, EventKind
from .host import Host, in_forked_children
from .model import Sandbox, Session
from .providers.base import Capability, ProviderState, SandboxProvider, SandboxRef
from .store import Store
from .store.backstops import Extension

BATCH = 500


class Backstop:
    """
    Looks in the background at the sessions that this process works on: those of its open turns,
    those that it touched since the last look, and those that were granted too little. A forked
    child forgets them: its parent goes on.
    """

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, SandboxProvider],
        in_turns: Callable[[], Mapping[str, Session]],
        *,
        host: Host,
        actor: str,
    ) -> None:
        self.store = store
        self.policy = store.policy
        self.providers = providers
        self._in_turns = in_turns
        self._host = host
        self._actor = actor
        self._loop = host.loop("sandkeeper-backstop", self.look, self.policy.extend_interval)
        self._forget()
        in_forked_children(self, Backstop._forget)

    def _forget(self) -> None:
        self._watched: dict[str, float] = {}  # until when, by the host's monotonic clock
        # What the provider heard last of these is not what the row says: two asked at once, or
        # one was extended while the store did not answer. And since when.
        self._doubted: dict[str, float] = {}
        # An extension of these was not answered, and may land until then: after a longer one,
        # which it would shorten.
        self._may_land: dict[str, float] = {}
        self._answered_at = self._host.monotonic()  # the store, at the last look
        self._lock = threading.Lock()

    def is_set(self, provider: SandboxProvider) -> bool:
        """Whether sandboxes of this provider are made with a TTL."""
        return self.policy.backstop is not None and Capability.TTL in provider.capabilities

    def watch(self, session_id: str, *, seconds: float = 0.0) -> None:
        """A session that showed activity in this process: look at it once, or for so long."""
        if self._is_needed():
            until = self._host.monotonic() + seconds
            with self._lock:
                self._watched[session_id] = max(until, self._watched.get(session_id, until))
            self._loop.start()

    def begun(self, session: Session) -> None:
        """
        Somebody works on it from now on. Where sweeps were late, or nobody worked on it for long,
        the next look might come too late.
        """
        expires_at = session.sandbox.expires_at
        if expires_at is None:
            return
        left = (expires_at - session.seen_at).total_seconds()
        if left < 2 * (self.policy.extend_interval + self.policy.extend_claim):
            try:
                self.extend_now(session.id)
            except Exception as error:  # noqa: BLE001 - it may be there for a while yet
                self._tell(None, error)

    def has_ended(self, session: Session) -> bool:
        """
        Whether the provider has ended its sandbox while all of us were away, and nobody had the
        time to compare. Then its session ends as lost: who opens it is not given what is dead.
        """
        sandbox = session.sandbox
        if sandbox.expires_at is None or sandbox.expires_at > session.seen_at:
            return False
        try:
            if not self._is_gone(sandbox):
                return False
        except ProviderError as error:  # no answer is no "no"
            self._tell(None, error)
            return False
        return self.store.inventory.lost(session.id, sandbox.key, actor=self._actor)

    def _is_gone(self, sandbox: Sandbox) -> bool:
        """By the provider's own word, and in the account that it was made in."""
        provider = self.providers.get(sandbox.provider)
        if provider is None:
            return False
        ref = SandboxRef(name=sandbox.name, external_id=sandbox.external_id)
        deadline = self._host.monotonic() + self.policy.extend_claim
        found = provider.get(ref, deadline=deadline)
        here = provider.scope() == sandbox.scope
        return here and (found is None or found.state is ProviderState.GONE)

    def stop(self) -> None:
        self._loop.stop()

    def look(self) -> float:
        """Extend what has to be; gives the seconds until the next look."""
        now = self._host.monotonic()
        with self._lock:
            watched, self._watched = self._watched, {}
            doubted, self._doubted = self._doubted, {}
        try:
            self._make_good(doubted)
            ids = sorted(watched.keys() | set(self._in_turns()))
            for start in range(0, len(ids), BATCH):
                for extension in self.store.backstops.claim(ids[start : start + BATCH]):
                    self._extend_or_tell(extension)
        except Exception as error:  # noqa: BLE001 - nobody is forgotten, and the looks go on
            with self._lock:
                self._doubted |= doubted
            self._tell(None, error)
            self._extend_blindly()
        else:
            self._answered_at = now
            with self._lock:  # callers extend meanwhile
                self._may_land = {of: until for of, until in self._may_land.items() if until > now}
            watched = {name: until for name, until in watched.items() if until > now}
        with self._lock:
            for name, until in watched.items():
                self._watched[name] = max(until, self._watched.get(name, until))
        return self.policy.extend_interval

    def _make_good(self, doubted: Mapping[str, float]) -> None:
        """
        The row knows the longest of all promises: ask the provider for that. Until it has done
        it: no other look would see that it ends the sandbox sooner than the row says.
        """
        for session_id in sorted(doubted.keys() | self._may_land.keys()):
            for extension in self.store.backstops.claim([session_id], anyway=True):
                if not self._extend_or_tell(extension):
                    self._doubt(session_id)

    def _doubt(self, session_id: str) -> None:
        with self._lock:
            self._doubted.setdefault(session_id, self._host.monotonic())

    def extend_now(self, session_id: str) -> None:
        """
        Before a caller is promised that a session is kept: let its sandbox live that long.
        Raises ProviderError when the provider did not.
        """
        if self._is_needed():
            for extension in self.store.backstops.claim([session_id], at_once=True):
                self._extend(extension)

    def _is_needed(self) -> bool:
        return any(self.is_set(provider) for provider in self.providers.values())

    def _extend_or_tell(self, extension: Extension) -> bool:
        try:
            self._extend(extension)
        except Exception as error:  # noqa: BLE001 - the next one is not to blame
            self._tell(extension, error)
            return False
        return True

    def _extend(self, extension: Extension, *, again: bool = True) -> None:
        provider = self.providers.get(extension.provider)
        if provider is None or provider.scope() != extension.scope:
            # Or one that looks as often as the claim runs out would keep it from those who can.
            self.store.backstops.release(extension)
            raise AuthFailed(
                f"the sandbox is at {extension.provider} in scope {extension.scope!r}, which this "
                "process does not use"
            )
        deadline = self._host.monotonic() + self.policy.extend_claim
        enough: bool | None = False
        try:
            granted = provider.extend(extension.ref, ttl=extension.ttl, deadline=deadline)
            enough = self.store.backstops.granted(extension, granted)
        except (OutcomeUnknown, Unavailable):
            with self._lock:
                self._may_land[extension.session_id] = deadline + self.policy.create_deadline
            raise
        finally:
            if not enough:  # its session may be idle from now on, and is kept all the same
                self.watch(extension.session_id, seconds=extension.ttl)
        if enough is None:
            self._ask_again(extension.session_id, again=again)

    def _ask_again(self, session_id: str, *, again: bool) -> None:
        """
        Two asked at once. The longer of two promises must be what the provider heard last: by
        now the row knows both.
        """
        self._doubt(session_id)  # or the next look does it
        if again:
            for extension in self.store.backstops.claim([session_id], anyway=True):
                self._extend(extension, again=False)

    def _extend_blindly(self) -> None:
        """
        The store does not answer, and the turns of this process go on: an outage that is longer
        than the TTL must not end them. At most every eighth of it, since nobody can say when it
        was extended last.
        """
        now = self._host.monotonic()
        for session in self._in_turns().values():
            ttl = self.policy.backstop_ttl(session.idle_ttl) or 0.0
            asked = ttl + self.policy.create_deadline  # as a create does; less would shorten it
            for until in (session.extended_until, session.pinned_until):
                if until is not None:  # less would take back what was promised
                    promised = (until - session.seen_at).total_seconds()
                    asked = max(asked, ttl + self.policy.create_deadline + promised)
            provider = self.providers.get(session.sandbox.provider)
            if provider is None or not self.is_set(provider):
                continue
            # One failed statement is no outage: others may have extended it for longer.
            if now - self._doubted.get(session.id, self._answered_at) < ttl / 8:
                continue
            self._doubted[session.id] = now
            ref = SandboxRef(name=session.sandbox.name, external_id=session.sandbox.external_id)
            try:
                deadline = self._host.monotonic() + self.policy.extend_claim
                provider.extend(ref, ttl=asked, deadline=deadline)
            except Exception as error:  # noqa: BLE001 - the next one is not to blame
                self._tell(None, error)

    def _tell(self, extension: Extension | None, error: Exception) -> None:
        self.store.database.tell(
            Event(
                kind=EventKind.EXTEND_FAILED,
                actor=self._actor,
                session_id=None if extension is None else extension.session_id,
                generation=None if extension is None else extension.generation,
                detail={"error": words(error)},
            )
        )
