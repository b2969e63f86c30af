"""Opening a session: the intent that is written first, and the record of what the provider made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, case, exists, func, insert, null, select, true, update

from ..errors import InvalidArgument, SessionEnded, SessionNotFound
from ..events import EventKind
from ..layers import LIMITS, OPEN, Layer, Scope
from ..model import EndReason, Intent, SandboxState, Session, SessionStatus, new_key, sandbox_labels
from ..schema import sandboxes, sessions
from .database import Database, Move
from .policies import Policies
from .quotas import Quotas
from .rules import CREATING, ENDED, OF_SESSION, Rules, b, locked, s
from .sessions import Sessions, session_event
from .settling import Settling
from .sql import Earliest

# Of the generation that ended.
FORGOTTEN = (
    "ended_at",
    "end_reason",
    "extended_until",
    "extended_at",
    "pinned_until",
    "pinned_at",
    "pinned_by",
    "pin_reason",
    "noticed_at",
    "noticed_activity_at",
)
_COPIED = (*LIMITS, *(f"{name}_by" for name in LIMITS))
# What is recorded of a sandbox that its provider does not end by itself.
NO_TTL: dict[str, object] = dict.fromkeys(("granted", "lives", "at_most", "pause"))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What open() asks for; limits in seconds, already checked."""

    session_id: str
    tenant: str
    idle_ttl: float
    max_age: float | None
    max_turn: float
    never_used_ttl: float | None = None
    profile: str | None = None  # None: none, or what it had before
    metadata: Mapping[str, object] | None  # None: none, or what it had before
    provider: str
    scope: str
    spec: Mapping[str, object]
    own: Sequence[str] = ()  # the limits that the caller gave; the others are the settings'

    @property
    def limits(self) -> dict[str, Any]:
        """Those that the caller gave stay; what the settings say, the layers may know better."""
        layers = {
            f"{name}_by": OPEN if name in self.own else Layer.INSTALLATION.value for name in LIMITS
        }
        return {**{name: getattr(self, name) for name in LIMITS}, **layers}

    @property
    def fields(self) -> dict[str, Any]:
        return {**self.limits, "profile": self.profile, "metadata": dict(self.metadata or {})}


class Openings:
    """One method, one transaction, and the provider is called between two of them."""

    def __init__(
        self,
        database: Database,
        rules: Rules,
        session_store: Sessions,
        randbits: Callable[[int], int],
        *,
        policies: Policies,
        settling: Settling,
    ) -> None:
        self.database = database
        self.sessions = session_store
        self._policies = policies
        self._settling = settling
        self._quotas = Quotas(database, rules)
        self._randbits = randbits
        self._policy = rules.policy
        self._this = s.id == bindparam("session_id")
        self._prepare_new(rules)
        self._prepare_join(rules)
        self._prepare_record(rules)

    def open(self, wanted: Wanted, *, actor: str) -> tuple[Session, Intent | None]:
        """
        The session, new, as it is, or reopened with the next generation. An Intent comes with it
        while its sandbox is being created: by this caller, by another one, or by one that died.
        """
        try:
            return self._open(wanted, actor)
        except SessionNotFound:  # it was purged between two of our statements: it is new again
            return self._open(wanted, actor)

    def _open(self, wanted: Wanted, actor: str) -> tuple[Session, Intent | None]:
        evicted: list[tuple[str, int]] = []
        with self.database.move() as move:
            inserted = move.one(
                self._insert, {"id": wanted.session_id, "tenant": wanted.tenant, **wanted.fields}
            )
            if inserted is None:
                evicted = self._join(move, wanted, actor)
            else:
                evicted = self._admitted(move, wanted, actor)
                self._intend(move, wanted, 1)
                told = (EventKind.SESSION_OPENED, wanted.session_id, 1, actor)
                move.record(session_event(*told, limits=self._settled(move, wanted)))
            session, intent = self._opened(move, wanted.session_id)
        return session, None if intent is None else replace(intent, evicted=tuple(evicted))

    def _admitted(self, move: Move, wanted: Wanted, actor: str) -> list[tuple[str, int]]:
        """For a new generation alone: its profile is known, and its tenant has room for it."""
        profile = wanted.profile
        if profile is not None:
            scope = Scope(layer=Layer.PROFILE, name=profile)
            if not self._policies.exists(move, scope):
                raise InvalidArgument(
                    f"profile {profile!r}: nobody has set its limits; use one of `sandkeeper "
                    f"policies ls`, or make it: `sandkeeper policies set {scope} idle_ttl=…`"
                )
        return self._quotas.admit(move, wanted.session_id, wanted.tenant, actor=actor)

    def _settled(self, move: Move, wanted: Wanted) -> dict[str, str | None]:
        """Which layer set each limit, for the ledger."""
        return self._settling.settle(move, [wanted.session_id])[wanted.session_id]

    def _join(self, move: Move, wanted: Wanted, actor: str) -> list[tuple[str, int]]:
        """Another caller's session: keep it going, or open its next generation."""
        row = move.one(self._lock, {"session_id": wanted.session_id})
        if row is None:  # purged between the insert and the lock
            raise SessionNotFound(wanted.session_id)
        if row.tenant != wanted.tenant:
            raise InvalidArgument(
                f"session {wanted.session_id!r} belongs to another tenant: use another id"
            )
        if row.status == SessionStatus.ACTIVE:
            over = move.one(self._over, {"session_id": wanted.session_id})
            if over is None or over.reason is None:
                self.sessions.touch_in(move, wanted.session_id)
                return []
            # No turn can be live here: there never was a sandbox, or the ceiling of each turn was
            # this very date.
            self.sessions.end_in(move, wanted.session_id, over.reason, actor)
        return self._begin_generation(move, wanted, actor)

    def _begin_generation(self, move: Move, wanted: Wanted, actor: str) -> list[tuple[str, int]]:
        evicted = self._admitted(move, wanted, actor)
        new = {f"new_{name}": value for name, value in wanted.fields.items()}
        new["keeps_metadata"] = wanted.metadata is None
        row = move.one(self._reopen, {"session_id": wanted.session_id, **new})
        if row is None:
            raise SessionNotFound(wanted.session_id)
        self._intend(move, wanted, row.generation)
        move.record(
            session_event(
                EventKind.SESSION_REOPENED,
                wanted.session_id,
                row.generation,
                actor,
                reset_reason=row.reset_reason,
                limits=self._settled(move, wanted),
            )
        )
        return evicted

    def _intend(self, move: Move, wanted: Wanted, generation: int) -> None:
        move.run(
            self._insert_sandbox,
            {
                "key": new_key(self._randbits),
                "tenant": wanted.tenant,
                "session_id": wanted.session_id,
                "generation": generation,
                "provider": wanted.provider,
                "scope": wanted.scope,
                "spec": dict(wanted.spec),
            },
        )

    def _opened(self, move: Move, session_id: str) -> tuple[Session, Intent | None]:
        session = self.sessions.seen(move, session_id)
        sandbox = session.sandbox
        if sandbox.due_at is None or sandbox.state is not SandboxState.CREATING:
            return session, None
        intent = Intent(
            session_id=session.id,
            generation=session.generation,
            key=sandbox.key,
            name=sandbox.name,
            provider=sandbox.provider,
            scope=sandbox.scope,
            seconds_left=(sandbox.due_at - session.seen_at).total_seconds(),
            spec=sandbox.spec,
            ttl=self._ttl(session.idle_ttl),
            labels=sandbox_labels(
                self.sessions.installation,
                sandbox.key,
                session.id,
                session.generation,
                sandbox.created_at,
            ),
        )
        return session, intent

    def _ttl(self, idle_ttl: float) -> float | None:
        """What the provider is asked for: one that is adopted late must have as much left."""
        backstop = self._policy.backstop_ttl(idle_ttl)
        return None if backstop is None else backstop + self._policy.create_deadline

    def record(
        self,
        intent: Intent,
        external_id: str,
        *,
        actor: str,
        expires_at: datetime | None = None,
        has_ttl: bool = False,
    ) -> Session:
        """
        creating → running, with the provider's id, and what was granted where it has a TTL.
        SessionEnded when somebody decided meanwhile to close it; the caller then destroys
        nothing, teardown will.
        """
        running = {"of_key": intent.key, "new_external_id": external_id, **NO_TTL}
        if has_ttl:
            lives = (intent.ttl or 0.0) - self._policy.create_deadline
            granted = {"granted": expires_at, "lives": lives, "at_most": intent.ttl}
            running |= {**granted, "pause": lives / 4}
        of = {"session_id": intent.session_id, "of_generation": intent.generation}
        with self.database.move() as move:
            if move.run(self._recorded_session, of):
                # A policy that changed while it was opened was not followed by a row that nobody
                # could see: now everybody can, and whoever changes one later finds it.
                self._settling.settle(move, [intent.session_id])
                move.run(self._first_look, {"session_id": intent.session_id})
            if move.one(self._recorded, running) is not None:
                told = (EventKind.SANDBOX_RUNNING, intent.session_id, intent.generation, actor)
                move.record(session_event(*told, external_id=external_id))
            session = self.sessions.seen(move, intent.session_id)
        if session.generation != intent.generation or session.status is SessionStatus.ENDED:
            reason = session.end_reason or session.reset_reason or "ended"
            raise SessionEnded(intent.session_id, reason=reason)
        # Should two creates of one name ever answer with two ids, the row's is the sandbox; the
        # other carries our labels and a key whose row names another id: an orphan.
        return session

    def give_up(self, intent: Intent, *, actor: str) -> None:
        """
        End the generation whose sandbox can never be made. Only while it is being created:
        another caller, with other credentials, may have made it, and runs a turn on it.
        """
        with self.database.move() as move:
            # First the lock, then the look: a record() that is under way decides before us.
            move.one(self._lock, {"session_id": intent.session_id})
            if move.one(self._still_creating, {"of_key": intent.key}) is not None:
                self.sessions.end_in(
                    move,
                    intent.session_id,
                    EndReason.CREATE_FAILED.value,
                    actor,
                    generation=intent.generation,
                )

    # Statements, built once

    def _prepare_new(self, rules: Rules) -> None:
        first = {"generation": 1, "turn_count": 0, "turns_before": 0, "created_at": rules.now}
        self._insert = (
            self.database.insert(sessions)
            .values(**first, **_began(rules))
            .on_conflict_do_nothing(index_elements=["id"])
            .returning(s.id)
        )
        # The row goes first: a crash between this and the provider's answer leaves a row that
        # names what may exist, with a deadline; never a sandbox that no row explains.
        self._insert_sandbox = insert(sandboxes).values(
            state=SandboxState.CREATING.value,
            due_at=rules.in_(rules.policy.create_deadline),
            created_at=rules.now,
            attempts=0,
            claim_token=0,
        )

    def _prepare_join(self, rules: Rules) -> None:
        expired = exists(
            select(1).where(OF_SESSION, CREATING, b.due_at <= rules.now).correlate(sessions)
        )
        over = case(
            (rules.too_old, EndReason.MAX_AGE.value),
            (expired, EndReason.CREATE_EXPIRED.value),
            else_=None,
        )
        self._lock = locked(select(s.status, s.tenant).where(self._this), skip=False)
        # A statement of its own, with the row locked: one that waits for the lock still sees the
        # sandbox as it was before the record() that it waited for.
        self._over = select(over.label("reason")).where(self._this)
        metadata = case(
            (bindparam("keeps_metadata", type_=true().type), s.metadata),
            else_=bindparam("new_metadata", type_=s.metadata.type),
        )
        self._reopen = (
            update(sessions)
            .where(self._this, ENDED)
            .values(
                generation=s.generation + 1,
                turns_before=s.turn_count,
                reset_reason=s.end_reason,
                metadata=metadata,
                profile=func.coalesce(bindparam("new_profile", type_=s.profile.type), s.profile),
                **_began(rules),
                **dict.fromkeys(FORGOTTEN, null()),
                **{name: bindparam(f"new_{name}", type_=s[name].type) for name in _COPIED},
            )
            .returning(s.generation, s.reset_reason)
        )

    def _prepare_record(self, rules: Rules) -> None:
        # The session's row first, as everywhere: the sweep locks in the same order.
        self._recorded_session = (
            update(sessions)
            .where(self._this, s.generation == bindparam("of_generation"), rules.usable)
            .values(last_activity_at=rules.active_now)
        )
        self._first_look = update(sessions).where(self._this).values(due_at=rules.first_look)
        self._still_creating = select(b.key).where(b.key == bindparam("of_key"), CREATING)
        lives = rules.in_(bindparam("lives", type_=rules.seconds))
        self._recorded = (
            update(sandboxes)
            .where(b.key == bindparam("of_key"), b.state == SandboxState.CREATING.value)
            .values(
                state=SandboxState.RUNNING.value,
                external_id=bindparam("new_external_id"),
                # A provider's clock may be ahead of the database's: never more than was asked.
                expires_at=Earliest(
                    func.coalesce(bindparam("granted", type_=b.expires_at.type), lives),
                    rules.in_(bindparam("at_most", type_=rules.seconds)),
                ),
                # Granted less than was asked for: the next look asks again, and knows by how much.
                extend_at=case(
                    (bindparam("granted", type_=b.expires_at.type) < lives, rules.now),
                    else_=rules.in_(bindparam("pause", type_=rules.seconds)),
                ),
                running_at=rules.now,
                due_at=null(),
            )
            .returning(b.key)
        )


def _began(rules: Rules) -> dict[str, Any]:
    """What every generation begins with, the first and the next ones."""
    return {
        "status": SessionStatus.ACTIVE.value,
        "opened_at": rules.now,
        "last_activity_at": rules.now,
        "due_at": rules.in_(rules.policy.create_deadline),
    }
