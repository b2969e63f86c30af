"""What API servers call: open a session, run turns on it, keep it, end it. No broker in here."""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Self

from . import identifiers
from .backstop import Backstop
from .beater import Beater
from .errors import (
    AuthFailed,
    InvalidArgument,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)
from .events import Event, EventKind
from .explain import Explanation, explain
from .host import Host, Loop
from .layers import check_profile
from .model import (
    Intent,
    Session,
    check_holder,
    check_owner,
    check_reason,
    check_session_id,
    check_tenant,
)
from .policy import duration
from .providers.base import SandboxInfo, SandboxProvider
from .providers.spec import spec_of
from .remote import RemoteTurns
from .store import Store, Wanted
from .turn import Turn

CREATE_ATTEMPTS = 3
DEFAULT_TENANT = "default"
LONGEST_JSON = 16_384


class Keeper:
    """
    The lifecycle of sessions on one store. `provider` makes new sandboxes, `providers` may have
    made older ones. Thread-safe; make one per process.
    `doorbell` rings for a teardown after the commit and must return at once;
    `loops` are begun with the first call and stopped with close().
    """

    def __init__(
        self,
        store: Store,
        provider: SandboxProvider,
        *,
        providers: Mapping[str, SandboxProvider] | None = None,
        spec: Mapping[str, object] | None = None,
        doorbell: Callable[[list[tuple[str, int]]], None] | None = None,
        holder: str | None = None,
        host: Host | None = None,
        loops: Sequence[Loop] = (),
    ) -> None:
        self.store = store
        self.policy = store.policy
        self.provider = provider
        self.spec = dict(spec or {})
        self.doorbell = doorbell
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}"
        self._host = host or Host()
        self._beater = Beater(
            store.turns.beat,
            self.policy.heartbeat,
            host=self._host,
            tell=store.database.tell,
            actor=self.holder,
        )
        self._backstop = Backstop(
            store,
            {**(providers or {}), provider.name: provider},
            self._beater.sessions,
            host=self._host,
            actor=self.holder,
        )
        self._loops = tuple(loops)
        self.remote = RemoteTurns(
            store,
            new_id=lambda: identifiers.new_id(self._host),
            works_on=self._work_on,
            begun=self._backstop.begun,
        )

    def acting_as(self, actor: str) -> Self:
        """The same keeper, for acts that the ledger is to show as somebody else's."""
        other = copy.copy(self)
        other.holder = actor
        return other

    def start(self) -> None:
        """Begin what else runs in the background, which otherwise the first call does."""
        for loop in self._loops:
            loop.start()

    def open(
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
        """
        Get a session with a running sandbox: the one that is there, a new one, or the next
        generation of one that ended. Concurrent calls make one sandbox. It counts as activity.
        Limits (seconds or timedelta) and metadata are those of a new generation; a running one
        keeps its own, and a reopened one its metadata and profile where none is given. What is
        not given is decided by the profile's policy, the tenant's, the installation's.
        Without an id one is generated (UUIDv7). Raises ProviderError when no sandbox could be
        made, TenantFull when the tenant's quota has no room, and SessionEnded when the session
        was ended while it was made; call again then.
        """
        if session_id is None:
            session_id = identifiers.new_id(self._host)
        given = {
            "idle_ttl": idle_ttl,
            "max_age": max_age,
            "max_turn": max_turn,
            "never_used_ttl": never_used_ttl,
        }
        wanted = Wanted(
            session_id=check_session_id(session_id),
            tenant=check_tenant(tenant),
            idle_ttl=self._limit("idle_ttl", idle_ttl, self.policy.idle_ttl),
            max_age=self._optional("max_age", max_age, self.policy.max_age),
            max_turn=self._limit("max_turn", max_turn, self.policy.max_turn),
            never_used_ttl=self._optional(
                "never_used_ttl", never_used_ttl, self.policy.never_used_ttl
            ),
            profile=None if profile is None else check_profile(profile),
            own=tuple(name for name, value in given.items() if value is not None),
            metadata=None if metadata is None else _metadata(metadata),
            provider=self.provider.name,
            scope=self.provider.scope(),
            spec=_spec_fields(self.spec if spec is None else spec),
        )
        return self._open(wanted)

    def _open(self, wanted: Wanted) -> Session:
        asked = self._host.monotonic()
        session, intent = self.store.openings.open(wanted, actor=self.holder)
        if intent is None and self._backstop.has_ended(session):
            session, intent = self.store.openings.open(wanted, actor=self.holder)
        self._work_on(session.id)
        if intent is None:
            self._backstop.begun(session)
            return session
        self._ring(intent.evicted)
        # From the row's own date: what this process begins to create after it, nobody would close.
        made = self._create(intent, deadline=asked + 0.9 * intent.seconds_left)
        external_id = made.ref.external_id
        if external_id is None:
            raise OutcomeUnknown(f"the provider gave no id for {intent.name}: open() again")
        return self.store.openings.record(
            intent,
            external_id,
            actor=self.holder,
            expires_at=made.expires_at,
            has_ttl=self._backstop.is_set(self.provider),
        )

    def turn(self, session_id: str, *, holder: str | None = None) -> Turn:
        """
        A turn, to be used in a `with` statement: it begins on entry, is kept alive by one
        background thread of this process however long it is silent, and ends on exit. Entering
        raises SessionEnded, SessionNotReady or SessionNotFound.
        """
        self._work_on(check_session_id(session_id))
        return Turn(
            self.store,
            self._beater,
            session_id,
            new_id=lambda: identifiers.new_id(self._host),
            holder=self.holder if holder is None else check_holder(holder),
            monotonic=self._host.monotonic,
            begun=self._backstop.begun,
        )

    def touch(self, session_id: str) -> None:
        """Count as activity what is no turn. Raises SessionEnded or SessionNotFound."""
        self.store.sessions.touch(check_session_id(session_id))
        self._work_on(session_id)

    def extend(
        self, session_id: str, by: timedelta | float, *, reason: str | None = None
    ) -> Session:
        """
        Keep an idle session for so long from now (seconds or timedelta). Its max age still
        holds: `extended_until` of the answer is what was granted. The ledger keeps the reason.
        Raises SessionEnded.
        """
        session = self.store.sessions.extend(
            check_session_id(session_id),
            duration("by", by),
            actor=self.holder,
            reason=None if reason is None else check_reason(reason),
        )
        self._work_on(session_id)
        self._backstop.extend_now(session_id)  # before the caller has our word
        return session

    def pin(
        self, session_id: str, for_: timedelta | float, *, reason: str, owner: str | None = None
    ) -> Session:
        """
        Keep it from being ended by idleness for so long from now (seconds or timedelta, at most
        LONGEST_PIN), and show who did it (this process without `owner`) and why. Max age still
        holds: `pinned_until` is what was granted. No second pin shortens it. Raises SessionEnded.
        """
        session = self.store.pins.pin(
            check_session_id(session_id),
            self.policy.pin_length(for_),
            owner=self.holder if owner is None else check_owner(owner),
            reason=check_reason(reason),
            actor=self.holder,
        )
        self._work_on(session_id)
        self._backstop.extend_now(session_id)  # as for an extension
        return session

    def unpin(self, session_id: str, *, reason: str | None = None) -> Session:
        """
        Lift the pin, if there is one: the next sweep looks at what else keeps it. The ledger
        keeps the reason. Raises SessionNotFound.
        """
        why = None if reason is None else check_reason(reason)
        return self.store.pins.unpin(check_session_id(session_id), actor=self.holder, reason=why)

    def end(
        self, session_id: str, *, reason: str = "ended", generation: int | None = None
    ) -> Session:
        """
        End it now; its sandbox is torn down in the background. Ending an ended session changes
        nothing, and with `generation` only that one is ended. A turn that is open on it is
        refused at its next heartbeat.
        """
        session = self.store.sessions.end(
            check_session_id(session_id),
            check_reason(reason),
            actor=self.holder,
            generation=generation,
        )
        self._ring([(session.id, session.generation)])
        return session

    def get(self, session_id: str) -> Session:
        """The session as it is. Raises SessionNotFound."""
        return self.store.sessions.get(check_session_id(session_id))

    def explain(self, session_id: str) -> Explanation:
        """
        Why it is still there, or why it was taken, as rows and ledger have it at one moment.
        It does not count as activity. Raises SessionNotFound.
        """
        return explain(self.store.evidence.of(check_session_id(session_id)), self.policy)

    def close(self) -> None:
        """Stop the heartbeats and what else runs in the background; open turns go idle."""
        self._beater.close()
        self._backstop.stop()
        for loop in self._loops:
            loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work_on(self, session_id: str) -> None:
        """What runs in the background begins with the first call, in the process that makes it."""
        self._backstop.watch(session_id)
        self.start()

    def _ring(self, ended: Sequence[tuple[str, int]]) -> None:
        """Best effort: the end is committed, and the next sweep covers what was not heard."""
        if self.doorbell is None or not ended:
            return
        try:
            self.doorbell(list(ended))
        except Exception as error:  # noqa: BLE001 - the caller's end stands, whatever broke
            self.store.database.tell(
                Event(
                    kind=EventKind.FAN_OUT_FAILED,
                    actor=self.holder,
                    session_id=ended[0][0],
                    generation=ended[0][1],
                    detail={"error": str(error)},
                )
            )

    def _limit(self, name: str, value: timedelta | float | None, default: float) -> float:
        return default if value is None else duration(name, value)

    def _optional(
        self, name: str, value: timedelta | float | None, default: float | None
    ) -> float | None:
        return default if value is None else duration(name, value)

    def _create(self, intent: Intent, *, deadline: float) -> SandboxInfo:
        """
        Ask the provider, again after any doubt: it adopts what has this name and these labels.
        Nothing is cleaned up here, whatever happens: an answer that was lost may have been a yes,
        and only teardown destroys.
        """
        self._check_same_place(intent)
        spec = spec_of(intent.spec)
        ttl = intent.ttl if self._backstop.is_set(self.provider) else None
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                return self.provider.create(
                    intent.name, intent.labels, spec, ttl=ttl, deadline=deadline
                )
            except ProviderError as error:
                if not error.retryable:
                    # It will never make it: the next generation can be opened.
                    self.store.openings.give_up(intent, actor=self.holder)
                    raise
                pause = 0.2 * 2**attempt * (1.0 - self._host.spread() / 2.0)
                if isinstance(error, RateLimited):
                    pause = max(pause, error.retry_after or 0.0)
                out_of_time = self._host.monotonic() + pause >= deadline
                if isinstance(error, QuotaExceeded) or attempt == CREATE_ATTEMPTS or out_of_time:
                    raise
                self._host.sleep(pause)
        raise AssertionError("unreachable")

    def _check_same_place(self, intent: Intent) -> None:
        """A create that another process began is finished where it was begun, or not at all."""
        ours = (self.provider.name, self.provider.scope())
        if (intent.provider, intent.scope) != ours:
            raise AuthFailed(
                f"session {intent.session_id!r} is being created at {intent.provider} in scope "
                f"{intent.scope!r}, and this process uses {ours[0]} in {ours[1]!r}: end() it, or "
                "give both the same provider and credentials"
            )


def _metadata(metadata: Mapping[str, object]) -> Mapping[str, object]:
    try:
        return _storable(metadata)
    except ValueError as error:
        raise InvalidArgument(f"metadata: {error}") from error


def _spec_fields(fields: Mapping[str, object]) -> Mapping[str, object]:
    """The fields as they are stored, once it is known that they make a Spec."""
    spec_of(fields)
    try:
        return _storable(fields)
    except ValueError as error:
        raise InvalidSpec(f"spec: {error}") from error


def _storable(fields: Mapping[str, object]) -> Mapping[str, object]:
    """A copy that any JSON column takes, or ValueError."""
    try:
        text = json.dumps(dict(fields), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if len(text) > LONGEST_JSON:
        raise ValueError(f"{len(text)} characters of JSON; keep it under {LONGEST_JSON}")
    copy: Mapping[str, object] = json.loads(text)
    return copy
