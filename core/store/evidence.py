"""All that there is to know of one session, read at one moment: what an explanation is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, or_, select

from ..layers import LIMITS
from ..model import SandboxState, Session
from ..schema import events, holds, installation, providers, sandboxes, turns, windows
from .database import Database, Move
from .history import Recorded
from .rules import UNHELD, Rules, b, s, t
from .sessions import Sessions

MOST_TURNS = 20
e, h, i, p = events.c, holds.c, installation.c, providers.c


@dataclass(frozen=True, kw_only=True)
class SandboxFacts:
    """How far the sandbox of one generation has come."""

    generation: int
    provider: str
    state: SandboxState
    created_at: datetime
    due_at: datetime | None
    not_before: datetime | None
    attempts: int
    claimed_by: str | None
    last_error: str | None
    quarantined_at: datetime | None
    closing_at: datetime | None
    gone_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class TurnFacts:
    """One turn of the current generation."""

    id: str
    holder: str
    started_at: datetime
    hard_until: datetime
    ended_at: datetime | None
    outcome: str | None


@dataclass(frozen=True, kw_only=True)
class HoldFacts:
    """A question to an operator, or an answer that still holds."""

    reason: str
    since: datetime
    decision: str | None
    decided_by: str | None
    until: datetime | None


@dataclass(frozen=True, kw_only=True)
class WindowFacts:
    """A maintenance window that is open."""

    name: str
    until_at: datetime
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProviderFacts:
    """How its provider has been answering."""

    provider: str
    failures: int
    open_until: datetime | None
    limited_until: datetime | None
    spacing: float
    last_error: str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """
    One session as all tables had it at one moment, which is `session.seen_at`. `ends_at` and
    `age_ends` are what the sweep's own statements take; `unheld` whether they may destroy.
    """

    session: Session
    ends_at: datetime
    age_ends: datetime | None
    noticed_activity_at: datetime | None
    unheld: bool
    swept_at: datetime | None
    stood_in_at: datetime | None
    installed_at: datetime
    sandboxes: tuple[SandboxFacts, ...]  # of all generations, the last is the current one
    turns: tuple[TurnFacts, ...]  # the open ones, and the one that began or ended last
    holds: tuple[HoldFacts, ...]
    provider: ProviderFacts | None  # None: it never was in trouble
    window: WindowFacts | None  # the one that is open longest
    layers: Mapping[str, str | None]  # who set each limit; None where the row does not say it
    history: tuple[Recorded, ...]


class Evidence:
    """Reads only."""

    def __init__(self, database: Database, rules: Rules, session_store: Sessions) -> None:
        self.database = database
        self.sessions = session_store
        of = bindparam("session_id", type_=s.id.type)
        self._dates = select(
            rules.ends_at.label("ends_at"), rules.age_ends.label("age_ends"), s.noticed_activity_at
        ).where(s.id == of)
        self._installation = select(
            i.swept_at, i.stood_in_at, i.created_at.label("installed_at"), UNHELD.label("unheld")
        )
        self._sandboxes = select(sandboxes).where(b.session_id == of).order_by(b.generation)
        self._holds = (
            select(holds).where(or_(h.until.is_(None), h.until > rules.now)).order_by(h.since)
        )
        w = windows.c
        self._window = (
            select(w.name, w.until_at, w.reason)
            .where(rules.window_open)
            .order_by(w.until_at.desc())
            .limit(1)
        )
        self._layers = select(*(s[f"{name}_by"].label(name) for name in LIMITS)).where(s.id == of)
        self._provider = select(providers).where(p.provider == bindparam("of_provider"))
        self._history = select(events).where(e.session_id == of).order_by(e.id)
        this = select(turns).where(t.session_id == of, t.generation == bindparam("of_generation"))
        newest_first = this.order_by(t.started_at.desc(), t.id.desc())
        self._turns = (
            newest_first.where(t.ended_at.is_(None)).limit(MOST_TURNS),
            newest_first.limit(1),
            this.where(t.ended_at.is_not(None)).order_by(t.ended_at.desc(), t.id.desc()).limit(1),
        )

    def of(self, session_id: str) -> Facts:
        """Everything about one session. SessionNotFound when there is none."""
        of = {"session_id": session_id}
        with self.database.snapshot() as look:
            session = self.sessions.seen(look, session_id)
            provider = look.one(self._provider, {"of_provider": session.sandbox.provider})
            window = look.one(self._window)
            layers = look.connection.execute(self._layers, of).one()
            return Facts(
                session=session,
                window=None if window is None else WindowFacts(**_known(WindowFacts, window)),
                layers=dict(layers._mapping),
                **look.connection.execute(self._dates, of).one()._mapping,
                **_installed(look.connection.execute(self._installation).one()),
                sandboxes=tuple(
                    SandboxFacts(**{**_known(SandboxFacts, row), "state": SandboxState(row.state)})
                    for row in look.all(self._sandboxes, of)
                ),
                turns=self._turns_of(look, {**of, "of_generation": session.generation}),
                holds=tuple(HoldFacts(**_known(HoldFacts, row)) for row in look.all(self._holds)),
                provider=None
                if provider is None
                else ProviderFacts(**_known(ProviderFacts, provider)),
                history=tuple(
                    Recorded(**_known(Recorded, row)) for row in look.all(self._history, of)
                ),
            )

    def _turns_of(self, look: Move, of: Mapping[str, Any]) -> tuple[TurnFacts, ...]:
        rows = {row.id: row for query in self._turns for row in look.all(query, of)}
        found = [TurnFacts(**_known(TurnFacts, row)) for row in rows.values()]
        return tuple(sorted(found, key=lambda turn: (turn.started_at, turn.id)))


def _installed(row: Row[Any]) -> dict[str, Any]:
    return {**row._mapping, "unheld": bool(row.unheld)}


def _known(facts: Any, row: Row[Any]) -> dict[str, Any]:
    return {name: row._mapping[name] for name in facts.__dataclass_fields__}
