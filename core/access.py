"""Who may call the HTTP API: what a token looks like, and what its holder may do."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from .errors import InvalidArgument
from .model import KEY_ALPHABET, check_tenant

TOKEN = re.compile(r"sk_([a-z0-9]{1,24})_([A-Za-z0-9_-]{32,128})")
ENTRY = "sk_<id>_<secret>:<scope>[+<scope>][@<tenant>]"
ID_LENGTH = 10


class Scope(StrEnum):
    """What a token is for. docs/http.md has the scope of every call."""

    READ = "read"  # look at sessions, sandboxes, sweeps and metrics
    TURNS = "turns"  # open sessions and run turns on them
    OPERATE = "operate"  # everything


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What the holder of one token may do. Without a tenant it may do so for all of them."""

    id: str
    scopes: frozenset[Scope]
    tenant: str | None = None
    name: str = ""  # as its maker called it

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.OPERATE in self.scopes

    def sees(self, tenant: str) -> bool:
        return self.tenant is None or self.tenant == tenant


@dataclass(frozen=True, kw_only=True)
class Known:
    """A token as we keep it: the digest of its secret, and why it is refused all the same."""

    grant: Grant
    digest: str
    refused: str | None = None

    def fits(self, secret: str) -> bool:
        """Whether this is the secret, in a time that tells nothing of how much of it is right."""
        return hmac.compare_digest(digest(secret), self.digest)


def digest(secret: str) -> str:
    """
    What is kept of a secret. One round of SHA-256 is enough for 256 random bits: there is no
    dictionary to try, and every heartbeat would pay for a slow hash.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def minted(randbits: Callable[[int], int]) -> tuple[str, str]:
    """The id and the secret of a new token; `sk_<id>_<secret>` is what its holder sends."""
    bits = randbits(5 * ID_LENGTH)
    name = "".join(KEY_ALPHABET[bits >> 5 * place & 31] for place in range(ID_LENGTH))
    return name, f"{randbits(256):064x}"


def taken_apart(token: str) -> tuple[str, str] | None:
    """Id and secret of what somebody sent, None when it is no token of ours."""
    found = TOKEN.fullmatch(token)
    return None if found is None else (found[1], found[2])


def check_scopes(scopes: Iterable[str]) -> frozenset[Scope]:
    """The scopes, or InvalidArgument that says which there are."""
    given = list(scopes)
    try:
        found = frozenset(Scope(scope) for scope in given)
    except ValueError as error:
        raise InvalidArgument(f"scope {given!r}: use {', '.join(Scope)}") from error
    if not found:
        raise InvalidArgument(f"a token needs a scope: {', '.join(Scope)}")
    return found


def configured(text: str | None) -> Mapping[str, Known]:
    """
    Tokens by id, from a setting: entries with spaces or line breaks between them. InvalidArgument
    says which entry is wrong by its number, because any part of it may be the secret.
    """
    known: dict[str, Known] = {}
    for number, entry in enumerate((text or "").split(), start=1):
        token, _, rights = entry.partition(":")
        parts = taken_apart(token)
        if parts is None or not rights:
            raise InvalidArgument(f"entry {number}: write {ENTRY}, the secret 32 to 128 characters")
        scopes, bound, tenant = rights.partition("@")
        try:
            grant = Grant(
                id=parts[0],
                scopes=check_scopes(scopes.split("+")),
                tenant=check_tenant(tenant) if bound else None,
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"entry {number}: {error}") from error
        if grant.id in known:
            raise InvalidArgument(f"entry {number}: the id {grant.id!r} is there twice; keep one")
        known[grant.id] = Known(grant=grant, digest=digest(parts[1]))
    return known


def check_configured(text: str) -> str:
    """The setting as it was given, if `configured` can read it."""
    configured(text)
    return text
