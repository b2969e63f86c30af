"""The words of the domain: states, the moves between them, and the values that callers see."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from .errors import InvalidArgument

SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PRINTABLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")
TENANT = re.compile(r"[A-Za-z0-9._:-]{1,64}")
KEY_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
KEY_LENGTH = 26
INSTALLATION = re.compile(r"[a-z0-9]{8}")


class SessionStatus(StrEnum):
    """Whether a conversation may run turns."""

    ACTIVE = "active"  # its current sandbox is creating or running; the sweep or a caller ends it
    ENDED = "ended"  # its sandbox is closing or gone; open() makes it active again


class SandboxState(StrEnum):
    """How far one sandbox has come. It never goes back."""

    CREATING = (
        "creating"  # the row is written, the provider may have been called; open() moves it on
    )
    RUNNING = "running"  # the provider's id is recorded and turns may use it; end moves it on
    CLOSING = "closing"  # nobody may use it; teardown moves it on
    GONE = "gone"  # the provider confirmed that it is not there; final


MOVES: Mapping[SandboxState, frozenset[SandboxState]] = {
    SandboxState.CREATING: frozenset({SandboxState.RUNNING, SandboxState.CLOSING}),
    SandboxState.RUNNING: frozenset({SandboxState.CLOSING}),
    SandboxState.CLOSING: frozenset({SandboxState.GONE}),
    SandboxState.GONE: frozenset(),
}


class EndReason(StrEnum):
    """Why the system ended a session. A caller of end() may give a reason in its own words."""

    IDLE = "idle"  # no activity for idle_ttl, noticed and looked at again
    MAX_AGE = "max_age"  # this generation has lived as long as its policy allows
    LOST = "lost"  # the provider no longer has the sandbox
    EVICTED = "evicted"  # its tenant is full, and it was idle for longest when another was opened
    CREATE_FAILED = "create_failed"  # the provider can never make it
    CREATE_EXPIRED = "create_expired"  # nobody finished creating it in time


class OrphanKind(StrEnum):
    """Why no row explains a sandbox that carries our labels."""

    ROWLESS = "rowless"  # no row has its key: the row was lost, or is in another database
    LATE = "late"  # its row is gone: a create landed after its teardown was confirmed
    TWIN = "twin"  # its row has another id: a create was answered twice


class TurnOutcome(StrEnum):
    """How a turn came to its end."""

    COMPLETED = "completed"  # its holder said so
    FAILED = "failed"  # its holder left it with an exception


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """The compute of one session in one generation."""

    key: str
    name: str
    session_id: str
    generation: int
    provider: str
    scope: str
    spec: Mapping[str, object]
    state: SandboxState
    external_id: str | None
    created_at: datetime
    due_at: datetime | None
    expires_at: datetime | None  # what the provider's own TTL allows; None where it has none


@dataclass(frozen=True, kw_only=True)
class Session:
    """
    A conversation, as it was when it was read. `fresh` is True until the first turn on this
    generation has begun, so that whoever runs that turn knows that the workspace is empty;
    `reset_reason` says why the earlier generation went, None for the first.
    """

    id: str
    tenant: str
    status: SessionStatus
    generation: int
    turn_count: int
    idle_ttl: float
    max_age: float | None
    max_turn: float
    never_used_ttl: float | None
    profile: str | None
    metadata: Mapping[str, object]
    created_at: datetime
    opened_at: datetime
    last_activity_at: datetime
    due_at: datetime
    extended_until: datetime | None
    pinned_until: datetime | None
    pinned_by: str | None
    pin_reason: str | None
    noticed_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None
    fresh: bool
    reset_reason: str | None
    seen_at: datetime = field(compare=False)  # the database's clock when this was read
    sandbox: Sandbox


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's fenced, expiring right to tear one sandbox down."""

    key: str
    token: int
    name: str
    session_id: str
    generation: int
    provider: str
    scope: str | None
    external_id: str | None
    attempts: int
    quarantined: bool = False
    failures: int = 0  # of its provider, in a row
    spacing: float = 0.0  # seconds that its provider wants between two calls


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A sandbox row that was written before the provider is asked: all that a create needs."""

    session_id: str
    generation: int
    key: str
    name: str
    labels: Mapping[str, str]
    provider: str
    scope: str
    ttl: float | None = None  # seconds that the provider is asked to let it live
    seconds_left: float  # until nobody may create it any more, counted from the read
    spec: Mapping[str, object] = field(default_factory=dict)
    evicted: Sequence[tuple[str, int]] = ()  # (session, generation) pairs that made room for it


def check_session_id(session_id: object) -> str:
    """The id as it was given, or InvalidArgument that says what an id looks like."""
    if isinstance(session_id, str) and SESSION_ID.fullmatch(session_id):
        return session_id
    raise InvalidArgument(
        f"session id {_shown(session_id)}: use 1 to 128 characters of A-Z a-z 0-9 . _ : -"
    )


def check_tenant(tenant: object) -> str:
    """The tenant as it was given, or InvalidArgument that says what a tenant looks like."""
    if isinstance(tenant, str) and TENANT.fullmatch(tenant):
        return tenant
    raise InvalidArgument(f"tenant {_shown(tenant)}: use 1 to 64 characters of A-Z a-z 0-9 . _ : -")


def check_reason(reason: object) -> str:
    """The reason as it was given, or InvalidArgument that says what a reason looks like."""
    return _printable("reason", reason)


def check_holder(holder: object) -> str:
    """The holder as it was given, or InvalidArgument that says what a holder looks like."""
    return _printable("holder", holder)


def check_owner(owner: object) -> str:
    """The owner of a pin as it was given, or InvalidArgument that says what one looks like."""
    return _printable("owner", owner)


def check_name(name: object) -> str:
    """The name as it was given, or InvalidArgument that says what a name looks like."""
    return _printable("name", name)


def _printable(name: str, value: object) -> str:
    if isinstance(value, str) and PRINTABLE.fullmatch(value) and value.isprintable():
        return value
    raise InvalidArgument(f"{name} {_shown(value)}: use 1 to 200 printable characters")


def new_key(randbits: Callable[[int], int]) -> str:
    """130 random bits: a sandbox key is never reused, not even after a restore from backup."""
    bits = randbits(5 * KEY_LENGTH)
    return "".join(KEY_ALPHABET[bits >> 5 * place & 31] for place in range(KEY_LENGTH))


def sandbox_name(installation: str, key: str) -> str:
    """The provider's name for a sandbox, derived from its row alone."""
    return f"sk-{installation}-{key}"


def sandbox_labels(
    installation: str, key: str, session_id: str, generation: int, created_at: datetime
) -> dict[str, str]:
    """
    The labels that make a sandbox ours. All values come from the row, so a retried create sends
    the same bytes; the session's id is digested because it may not fit a provider's alphabet.
    """
    return {
        "sandkeeper-installation": installation,
        "sandkeeper-key": key,
        "sandkeeper-session": hashlib.sha256(session_id.encode()).hexdigest()[:40],
        "sandkeeper-generation": str(generation),
        "sandkeeper-created-at": str(int(created_at.timestamp())),
        "sandkeeper-schema": "1",
    }


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """What the labels of a sandbox that is ours say of it."""

    key: str
    session_digest: str
    generation: int
    created_at: int  # seconds since 1970, by the database's clock when its row was written


def ownership(name: str, labels: Mapping[str, str], installation: str) -> Ownership | None:
    """
    Whose sandbox this is, by name and labels: ours only if every one of them is as we write it.
    None is not ours, and is never touched (S2).
    """
    said = [labels.get(label) for label in _LABELS]
    # Strangers label too, and a provider may hand on what is no text.
    if not all(isinstance(value, str) for value in said):
        return None
    found = _WRITTEN.fullmatch("\n".join(said))  # type: ignore[arg-type]
    if found is None or found["installation"] != installation:
        return None
    if name != sandbox_name(installation, found["key"]):
        return None
    return Ownership(
        key=found["key"],
        session_digest=found["session"],
        generation=int(found["generation"]),
        created_at=int(found["created_at"]),
    )


_LABELS = tuple(
    f"sandkeeper-{label}"
    for label in ("installation", "key", "session", "generation", "created-at", "schema")
)
# All of them in that order, a line each: no value of ours has a line of its own.
_WRITTEN = re.compile(
    rf"(?P<installation>{INSTALLATION.pattern})\n"
    rf"(?P<key>[{KEY_ALPHABET}]{{{KEY_LENGTH}}})\n"
    r"(?P<session>[0-9a-f]{40})\n"
    r"(?P<generation>[1-9][0-9]{0,9})\n"
    r"(?P<created_at>[0-9]{1,12})\n"
    r"1"
)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({len(text)} characters)"
