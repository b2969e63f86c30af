"""
What a refusal of an API server means: by its status, then its machine-readable reason, then its
words. One status has many meanings here: 409 alone has four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import (
    AuthFailed,
    Busy,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from .rest import Answer, only_looking

# Said by the API server itself of who may do what; its other 403s are of what was to be made.
LOGIN = " cannot "
QUOTA = "exceeded quota"
TERMINATING = "because it is being terminated"


@dataclass(frozen=True)
class Status:
    """The API's own words for a refusal. An answer of something in between has none."""

    reason: str = ""
    message: str = ""
    kind: str = ""
    name: str = ""

    @classmethod
    def of(cls, answer: Answer) -> Status:
        """What the answer says of itself; empty when it is no `Status` of Kubernetes."""
        try:
            found = answer.fields()
        except OutcomeUnknown:
            return cls()
        if found.get("kind") != "Status":
            return cls()
        details = found.get("details")
        details = details if isinstance(details, dict) else {}
        texts = (found.get("reason"), found.get("message"), details.get("kind"))
        return cls(*(str(text or "") for text in (*texts, details.get("name"))))


def is_not_there(answer: Answer, plural: str, name: str) -> bool:
    """
    Whether this object does not exist, by who can know it. A 404 is also the answer of a cluster
    that has no such kind, of a proxy, or for a path that is wrong: those conclude nothing.
    """
    if answer.status != 404:
        return False
    status = Status.of(answer)
    return status.reason == "NotFound" and (status.kind, status.name) == (plural, name)


def has_conflict(answer: Answer, reason: str) -> bool:
    """AlreadyExists: the name is taken. Conflict: another version of it than was meant."""
    return answer.status == 409 and Status.of(answer).reason == reason


def refused(answer: Answer, plural: str, name: str) -> ProviderError:
    """Why something was not made. What may have been made all the same is OutcomeUnknown."""
    status = Status.of(answer)
    said = f"sandbox {name} cannot be made: {status.message}"
    if answer.status == 404:
        if status.kind == "namespaces":
            return Unavailable(f"{said}; make the namespace first")
        return Unavailable(f"{answer.error()}; does the cluster have {plural}?")
    if answer.status in {400, 413, 422} and status.reason:
        return InvalidSpec(said)
    if answer.status == 403:
        return _forbidden(answer, status, said)
    if 500 <= answer.status < 600:  # also what was kept before the answer was lost on its way
        return OutcomeUnknown(str(answer.error()))
    return failed(answer)


def _forbidden(answer: Answer, status: Status, said: str) -> ProviderError:
    if QUOTA in status.message:
        return QuotaExceeded(said)
    if TERMINATING in status.message:
        return Unavailable(said)
    if status.reason != "Forbidden" or LOGIN in status.message:
        return AuthFailed(str(answer.error()))
    return InvalidSpec(said)  # admission: limits, Pod Security, a runtime class that is not there


def failed(answer: Answer) -> ProviderError:
    """Why a look, a listing, a removal or a change was refused."""
    if answer.status == 409:
        return Busy(str(answer.error()))
    if answer.status == 403 and TERMINATING in Status.of(answer).message:
        return Unavailable(str(answer.error()))
    if answer.is_success:
        return Unavailable(str(answer.error()))
    return answer.error()


def fields(answer: Answer) -> dict[str, Any]:
    """What a look or a listing found; Unavailable when it cannot be read: it is never nothing."""
    with only_looking():
        return answer.fields()
