"""Who may call the HTTP API: whether anybody can, and whether somebody soon cannot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..store.tokens import Token
from .findings import Answer, Examination, note, ok, warning
from .patient import Patient

SOON = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Doors:
    """The tokens that were made, and whether the environment has some."""

    now: datetime
    made: list[Token]
    configured: bool


def _doors(patient: Patient) -> Doors:
    return Doors(
        now=patient.checkup.now(),
        made=patient.checkup.tokens(),
        configured=patient.settings.api_tokens is not None,
    )


def api_tokens(found: Doors) -> Answer:
    """
    Somebody may call the HTTP API. Without any token it listens on loopback only, a note; when all
    were revoked or have expired nobody may call it; one that expires within a week is a warning.
    """
    if not found.made and not found.configured:
        return note(
            "none: the HTTP API listens on loopback only",
            "`sandkeeper tokens create NAME --scope turns`, when others are to call it",
        )
    usable = [token for token in found.made if _is_usable(token, found.now)]
    if not usable and not found.configured:
        return warning(
            f"all {len(found.made)} have expired or were revoked: nobody may call the HTTP API",
            "`sandkeeper tokens create NAME --scope turns`",
        )
    soon = [
        token
        for token in usable
        if token.expires_at is not None and token.expires_at - found.now < SOON
    ]
    if soon:
        named = ", ".join(f"{token.id} ({token.name})" for token in soon)
        return warning(
            f"will expire within a week: {named}",
            "make new ones with `sandkeeper tokens create`, and give them to who has these",
        )
    return _how_many(found, usable)


def _how_many(found: Doors, usable: list[Token]) -> Answer:
    expired = [token.id for token in found.made if _has_expired(token, found.now)]
    if expired:
        return note(
            f"expired: {', '.join(expired)}", "`sandkeeper tokens revoke ID` says that it is meant"
        )
    environment = ", and those of SANDKEEPER_API_TOKENS" if found.configured else ""
    return ok(f"{len(usable)} in the database{environment}")


def _has_expired(token: Token, now: datetime) -> bool:
    return token.revoked_at is None and token.expires_at is not None and token.expires_at <= now


def _is_usable(token: Token, now: datetime) -> bool:
    return token.revoked_at is None and not _has_expired(token, now)


DOORS = Examination(
    name="tokens",
    look=_doors,
    checks=(api_tokens,),
    fix="look at the database's log",
    needs=("migrations",),
)
