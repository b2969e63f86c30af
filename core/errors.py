"""
Every error that Sandkeeper raises, in one tree. Nothing here decides: retry is decided by type.

    SandkeeperError
      SettingsError              a setting is missing, unknown or nonsense
      InvalidArgument            an argument is malformed (also a ValueError)
      SessionNotFound            no session has this id
      SessionNotReady            its sandbox is still being created
      SessionEnded               the session was ended, or this generation of it is over
      TurnExpired                the turn passed its hard ceiling, or was ended already
      TenantFull                 the tenant has as many live sandboxes as its quota allows
      StoreError                 the database refused or cannot be used as it is
        StoreUnavailable           it cannot be reached, is locked, full or read-only; try again
          RowLocked                  somebody holds one of its rows for longer than we wait
        SchemaOutdated             its tables are not the ones this version needs
      ProviderError              the sandbox provider said no, or said nothing
        RateLimited                429: wait retry_after            (retried, costs no attempt)
        QuotaExceeded              no room for another sandbox      (retried)
        Unavailable                5xx, refused, no route           (retried)
        OutcomeUnknown             it may have happened, or not     (retried; a create adopts)
        Busy                       another change is under way      (retried)
        AuthFailed                 login refused; never means gone  (an operator is told)
        InvalidSpec                this sandbox can never be made   (an operator is told)
        ForeignConflict            the name belongs to somebody else (an operator is told)
        Unsupported                this provider cannot do that     (an operator is told)
"""

from __future__ import annotations

import copyreg


class SandkeeperError(Exception):
    """Something in Sandkeeper went wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())

    def __reduce__(self) -> tuple[object, ...]:
        # Pickled whole, between the processes of a pool too: most classes below are not made from
        # their message, so calling them with it would fail or say it twice.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class SettingsError(SandkeeperError):
    """A setting is missing, unknown or nonsense."""


class InvalidArgument(SandkeeperError, ValueError):
    """An argument is malformed."""


class SessionNotFound(SandkeeperError):
    """No session has this id."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"no session {session_id!r}: open it first")
        self.session_id = session_id


class SessionNotReady(SandkeeperError):
    """The sandbox of this session is still being created."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"the sandbox of session {session_id!r} is still being created: "
            "wait for open() to return, or call open() to join it"
        )
        self.session_id = session_id


class SessionEnded(SandkeeperError):
    """
    The session was ended, or the generation that the caller holds is over. `reason` says why
    (idle, max_age, lost, create_failed, create_expired, or what end() was given).
    """

    def __init__(self, session_id: str, *, reason: str) -> None:
        super().__init__(
            f"session {session_id!r} was ended ({reason}): call open() for a fresh sandbox"
        )
        self.session_id = session_id
        self.reason = reason


class TurnExpired(SandkeeperError):
    """The turn passed its hard ceiling, or was ended already."""

    def __init__(self, session_id: str, turn_id: str, *, reason: str) -> None:
        super().__init__(
            f"turn {turn_id} of session {session_id!r} may not go on ({reason}): begin a new turn"
        )
        self.session_id = session_id
        self.turn_id = turn_id
        self.reason = reason


class TenantFull(SandkeeperError):
    """The tenant has as many live sandboxes as its quota allows, and none of them may be ended."""


class StoreError(SandkeeperError):
    """The database refused, or cannot be used as it is."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, is locked, full or read-only."""


class RowLocked(StoreUnavailable):
    """Somebody holds a row for longer than we wait."""


class SchemaOutdated(StoreError):
    """The tables in the database are not the ones that this version needs."""


class ProviderError(SandkeeperError):
    """The sandbox provider said no, or said nothing."""

    retryable = True


class RateLimited(ProviderError):
    """The provider asks for fewer calls. `retry_after` is in seconds, None when it did not say."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaExceeded(ProviderError):
    """The provider has no room for another sandbox."""


class Unavailable(ProviderError):
    """The provider cannot be reached, or failed by itself."""


class OutcomeUnknown(ProviderError):
    """The call may have had its effect, or not: only a later look can tell."""


class Busy(ProviderError):
    """Another change of this sandbox is under way."""


class AuthFailed(ProviderError):
    """The provider refused our credentials. This never means that a sandbox is gone."""

    retryable = False


class InvalidSpec(ProviderError):
    """The provider can never make a sandbox of this description."""

    retryable = False


class ForeignConflict(ProviderError):
    """A sandbox of this name exists and is not ours."""

    retryable = False


class Unsupported(ProviderError):
    """This provider, or this machine, cannot do that."""

    retryable = False


def words(error: Exception) -> str:
    """An error of any kind in one line, for events and rows."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
