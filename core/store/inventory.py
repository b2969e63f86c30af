"""What reconcile reads of the rows: which explain a listing, and which should be in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import String, bindparam, exists, select, update

from ..model import EndReason, SandboxState, SessionStatus, sandbox_name
from ..schema import installation as installation_table
from ..schema import providers, sessions
from .database import Database
from .endings import Endings
from .rules import ACTIVE, OF_SESSION, RUNNING, UNHELD, Rules, b, locked, s
from .sql import any_of

ACTOR = "reconcile"
KEYS = 500  # that one statement asks about
p = providers.c


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The beginning of one comparison, by the database's clock."""

    began_at: datetime
    store_created_at: datetime
    cursor: str
    first: bool


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the row of a listed sandbox says of it."""

    state: SandboxState
    external_id: str | None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A sandbox that its provider should have."""

    key: str
    name: str
    session_id: str
    external_id: str


class Inventory:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules, installation: str) -> None:
        self.database = database
        self.installation = installation
        self._endings = Endings(rules)
        self._prepare_passes(rules)
        self._prepare_missing(rules)

    # A pass

    def begin(self, provider: str) -> Pass:
        """Where the last pass came to, and the moment before the provider is asked."""
        with self.database.look() as look:
            row = look.connection.execute(self._begin, {"of_provider": provider}).one()
        return Pass(
            began_at=row.began_at,
            store_created_at=row.created_at,
            cursor=row.cursor or "",
            first=row.reconciled_at is None,
        )

    def finish(self, provider: str, cursor: str, report: Mapping[str, object]) -> None:
        """Keep where this pass came to, and what it found."""
        parameters = {"of_provider": provider, "new_cursor": cursor, "new_report": dict(report)}
        with self.database.move() as move:
            move.run(self._finish, parameters)

    def explain(self, keys: Sequence[str]) -> dict[str, Known]:
        """The rows that have these keys, at most KEYS of them."""
        with self.database.look() as look:
            return {
                row.key: Known(state=SandboxState(row.state), external_id=row.external_id)
                for row in look.all(self._explain, {"keys": keys})
            }

    def is_empty(self) -> bool:
        """Whether this store never had a sandbox."""
        with self.database.look() as look:
            return look.one(self._any) is None

    # Missing sandboxes

    def running(self, provider: str, scope: str, after: str, born: datetime) -> list[Running]:
        """A page of what this provider should have had at `born`, in the order of keys."""
        of = {"of_provider": provider, "of_scope": scope, "after": after, "born": born}
        with self.database.look() as look:
            return [
                Running(
                    key=row.key,
                    name=sandbox_name(self.installation, row.key),
                    session_id=row.session_id,
                    external_id=row.external_id,
                )
                for row in look.all(self._running, of)
            ]

    def lost(self, session_id: str, key: str, *, actor: str = ACTOR) -> bool:
        """
        End the session of a sandbox that its provider confirmed to be gone, so that its next turn
        is told that the workspace was reset. False when it moved on meanwhile, or all is held.
        """
        of = {"session_id": session_id, "of_key": key}
        with self.database.move() as move:
            move.run(self._hold, of)
            ended = move.all(self._lose, of)
            self._endings.close(move, ended, actor)
        return bool(ended)

    # Statements, built once

    def _prepare_passes(self, rules: Rules) -> None:
        this = p.provider == bindparam("of_provider")
        self._begin = select(
            rules.now.label("began_at"),
            installation_table.c.created_at,
            p.cursor,
            p.reconciled_at,
        ).outerjoin_from(installation_table, providers, this)
        found = {
            "cursor": bindparam("new_cursor"),
            "report": bindparam("new_report", type_=p.report.type),
            "reconciled_at": rules.now,
        }
        self._finish = (
            self.database.insert(providers)
            .values(provider=bindparam("of_provider"), **found)
            .on_conflict_do_update(index_elements=["provider"], set_=found)
        )
        self._any = select(b.key).limit(1)
        self._explain = select(b.key, b.state, b.external_id).where(any_of(b.key, "keys"))

    def _prepare_missing(self, rules: Rules) -> None:
        self._running = (
            select(b.key, b.session_id, b.external_id)
            .where(
                RUNNING,
                b.provider == bindparam("of_provider"),
                b.scope == bindparam("of_scope"),
                b.key > bindparam("after", type_=String),
                b.running_at <= bindparam("born", type_=b.running_at.type),
            )
            .order_by(b.key)
            .limit(KEYS)
        )
        this = s.id == bindparam("session_id")
        self._hold = locked(select(s.id).where(this), skip=False)
        still = exists(
            select(1).where(OF_SESSION, RUNNING, b.key == bindparam("of_key")).correlate(sessions)
        )
        self._lose = (
            update(sessions)
            .where(this, ACTIVE, still, UNHELD)
            .values(
                status=SessionStatus.ENDED.value,
                ended_at=rules.now,
                end_reason=EndReason.LOST.value,
            )
            .returning(s.id, s.generation, s.end_reason)
        )
