"""Tokens of the HTTP API: made, found, listed, revoked. Their secrets never come here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, false, func, insert, select, update

from ..access import Grant, Known, check_scopes
from ..events import Event, EventKind
from ..schema import api_tokens, sessions
from .database import Database
from .sql import later

a = api_tokens.c


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token, as operators see it."""

    id: str
    name: str
    scopes: Sequence[str]
    tenant: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class Tokens:
    """One method, one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        this = a.id == bindparam("of_id")
        seconds = bindparam("seconds", type_=sessions.c.idle_ttl.type)
        self._create = insert(api_tokens).values(
            created_at=database.now, expires_at=later(database.now, seconds)
        )
        expired = func.coalesce(a.expires_at <= database.now, false())
        self._find = select(api_tokens, expired.label("expired")).where(this)
        self._any = select(a.id).limit(1)
        self._all = select(*(a[name] for name in Token.__dataclass_fields__)).order_by(
            a.created_at, a.id
        )
        self._revoke = (
            update(api_tokens)
            .where(this, a.revoked_at.is_(None))
            .values(revoked_at=database.now)
            .returning(a.id)
        )

    def create(
        self, grant: Grant, digest: str, *, name: str, seconds: float | None, actor: str
    ) -> None:
        """Keep a new token, for so many seconds or for good."""
        row: dict[str, Any] = {
            "id": grant.id,
            "name": name,
            "digest": digest,
            "scopes": sorted(grant.scopes),
            "tenant": grant.tenant,
            "seconds": seconds,
        }
        with self.database.move() as move:
            move.run(self._create, row)
            move.record(
                _event(
                    EventKind.TOKEN_CREATED,
                    grant.id,
                    actor,
                    scopes=sorted(grant.scopes),
                    tenant=grant.tenant,
                )
            )

    def find(self, token_id: str) -> Known | None:
        """One token, with why it is refused if it is; None when there never was one."""
        with self.database.look() as look:
            row = look.one(self._find, {"of_id": token_id})
        if row is None:
            return None
        refused = "was revoked" if row.revoked_at else "has expired" if row.expired else None
        scopes = check_scopes(row.scopes)
        grant = Grant(id=row.id, scopes=scopes, tenant=row.tenant, name=row.name)
        return Known(grant=grant, digest=row.digest, refused=refused)

    def any(self) -> bool:
        """
        Whether a token was ever made. One that was revoked counts: taking the last one away must
        not let everybody in.
        """
        with self.database.look() as look:
            return look.one(self._any) is not None

    def all(self) -> list[Token]:
        """All that were ever made, the oldest first."""
        with self.database.look() as look:
            return [Token(**row._mapping) for row in look.all(self._all)]

    def revoke(self, token_id: str, *, actor: str) -> bool:
        """From the next request on it is refused. False when there is none to revoke."""
        with self.database.move() as move:
            if move.one(self._revoke, {"of_id": token_id}) is None:
                return False
            move.record(_event(EventKind.TOKEN_REVOKED, token_id, actor))
        return True


def _event(kind: EventKind, token_id: str, actor: str, **detail: object) -> Event:
    return Event(kind=kind, actor=actor, detail={"token": token_id, **detail})
