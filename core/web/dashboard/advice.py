"""What to do about an answer of a provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...errors import (
    AuthFailed,
    Busy,
    ForeignConflict,
    InvalidSpec,
    OutcomeUnknown,
    QuotaExceeded,
    RateLimited,
    Unavailable,
    Unsupported,
)
from ...store.quarantine import kind_of

_AWAY: Final = (
    "The workers do not get through to the provider: look at its status page, at the address and "
    "the proxy in the workers' environment, and at the network between."
)
_REFUSED: Final = (
    "Trying again does not help: look at this sandbox in the provider's own console. Nothing "
    "counts as gone before the provider says so."
)
ADVICE: Final[Mapping[str, str]] = {
    AuthFailed.__name__: "Credentials were changed, or the workers are logged in to another "
    "account: give the workers the right ones, and restart them.",
    Unavailable.__name__: _AWAY,
    OutcomeUnknown.__name__: _AWAY,
    RateLimited.__name__: "Wait, or ask the provider for more calls: no attempt is counted.",
    QuotaExceeded.__name__: "Ask the provider for more room, or end what is not needed.",
    Busy.__name__: "Wait: the provider is at work on it.",
    InvalidSpec.__name__: _REFUSED,
    ForeignConflict.__name__: _REFUSED,
    Unsupported.__name__: _REFUSED,
}
UNKNOWN: Final = (
    "No provider is known to answer so, it may be a bug: the log of the worker that tried has "
    "the traceback."
)


def advice(error: str | None) -> str:
    """What puts right what this error says, as rows keep it; empty when there was none."""
    return "" if not error else ADVICE.get(kind_of(error), UNKNOWN)
