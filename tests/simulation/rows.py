"""What the rows say after each commit, and what they said before it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

SESSIONS = (
    "SELECT id, status, generation, last_activity_at, due_at, noticed_at, noticed_activity_at,"
    " extended_until, opened_at, idle_ttl, max_age, ended_at, end_reason FROM sessions ORDER BY id"
)
SANDBOXES = (
    "SELECT key, session_id, generation, scope, state, external_id, due_at, not_before, attempts,"
    " claim_token, claimed_by, quarantined_at FROM sandboxes ORDER BY key"
)
LIVE_TURNS = (
    "SELECT count(*) FROM turns WHERE session_id = ? AND generation = ? AND ended_at IS NULL"
    " AND hard_until > ?"
)
OPEN_HOLDS = "SELECT count(*) FROM holds WHERE until IS NULL"
KEPT_FOR_GOOD = "SELECT count(*) FROM holds WHERE reason = 'store' AND decision = 'denied'"
GONE_EVENTS = (
    "SELECT count(*) FROM events WHERE kind = 'sandbox_gone' AND session_id = ? AND generation = ?"
)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session as it is stored; times as text, which compares as the moments do."""

    id: str
    status: str
    generation: int
    last_activity_at: str
    due_at: str
    noticed_at: str | None
    noticed_activity_at: str | None
    extended_until: str | None
    opened_at: str
    idle_ttl: float
    max_age: float | None
    ended_at: str | None
    end_reason: str | None


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """One sandbox as it is stored."""

    key: str
    session_id: str
    generation: int
    scope: str
    state: str
    external_id: str | None
    due_at: str | None
    not_before: str | None
    attempts: int
    claim_token: int
    claimed_by: str | None
    quarantined_at: str | None


class Rows:
    """A copy of the two tables, brought up to date by `changes`."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real
        self.sessions: dict[str, SessionRow] = {}
        self.sandboxes: dict[str, SandboxRow] = {}
        self._raw: tuple[dict[str, tuple[object, ...]], dict[str, tuple[object, ...]]] = ({}, {})
        self._seen = real.total_changes

    def changed(self) -> tuple[list[str], list[str]]:
        """Ids of sessions and keys of sandboxes that are not as the copy has them."""
        if self.real.total_changes == self._seen:
            return [], []
        self._seen = self.real.total_changes
        self._new = (
            {row[0]: row for row in self.real.execute(SESSIONS)},
            {row[0]: row for row in self.real.execute(SANDBOXES)},
        )
        sessions, sandboxes = (
            [*(k for k in new if old.get(k) != new[k]), *(k for k in old if k not in new)]
            for old, new in zip(self._raw, self._new, strict=True)
        )
        return sessions, sandboxes

    def new_session(self, session_id: str) -> SessionRow | None:
        """The session as it is now."""
        row = self._new[0].get(session_id)
        return None if row is None else SessionRow(*row)

    def new_sandbox(self, key: str) -> SandboxRow | None:
        """The sandbox as it is now."""
        row = self._new[1].get(key)
        return None if row is None else SandboxRow(*row)

    def accept(self, sessions: list[str], sandboxes: list[str]) -> None:
        """Take over what has changed."""
        for session_id in sessions:
            session = self.new_session(session_id)
            if session is None:
                del self.sessions[session_id]
            else:
                self.sessions[session_id] = session
        for key in sandboxes:
            sandbox = self.new_sandbox(key)
            if sandbox is None:
                del self.sandboxes[key]
            else:
                self.sandboxes[key] = sandbox
        self._raw = self._new

    def current(self, session: SessionRow) -> SandboxRow | None:
        """The sandbox of a session's generation, as the copy has it."""
        for row in self.sandboxes.values():
            if row.session_id == session.id and row.generation == session.generation:
                return row
        return None

    def live_turns(self, session: SessionRow, now: datetime) -> int:
        """How many turns of this generation have not ended, nor reached their ceiling."""
        of = (session.id, session.generation, stored(now))
        found: int = self.real.execute(LIVE_TURNS, of).fetchone()[0]
        return found

    def held(self) -> bool:
        """Whether a question to an operator is open."""
        return bool(self.real.execute(OPEN_HOLDS).fetchone()[0])

    def keeps_what_it_cannot_know(self) -> bool:
        """Whether an operator has said that rowless sandboxes are not to be torn down."""
        return bool(self.real.execute(KEPT_FOR_GOOD).fetchone()[0])

    def gone_events(self, row: SandboxRow) -> int:
        """How often the ledger says that this generation is gone."""
        found: int = self.real.execute(GONE_EVENTS, (row.session_id, row.generation)).fetchone()[0]
        return found


def moment(text: str) -> datetime:
    """A stored time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def stored(time: datetime) -> str:
    """The same the other way round."""
    return time.replace(tzinfo=None).isoformat(" ", timespec="microseconds")
