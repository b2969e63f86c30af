"""What the answers of an OpenSandbox server say: sandboxes, pages, and why it refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from ..errors import (
    AuthFailed,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    Unavailable,
    words,
)
from ..model import sandbox_name
from .base import LABEL_PREFIX, ProviderState, SandboxInfo, SandboxRef
from .reading import moment, text_labels
from .rest import Answer, only_looking

Read = TypeVar("Read")
STATES = {
    "Pending": ProviderState.PENDING,
    "Allocated": ProviderState.PENDING,  # it has a pod, and no address yet
    "Resuming": ProviderState.PENDING,
    "Running": ProviderState.RUNNING,
    "Pausing": ProviderState.PAUSED,
    "Paused": ProviderState.PAUSED,
    "Stopping": ProviderState.STOPPING,
    "Failed": ProviderState.FAILED,
    # Its command ended well, or its pod did: the server still has it, with its disk.
    "Terminated": ProviderState.FAILED,
}
# What engines say of an image that is not there or not for us. Whatever else goes wrong with one,
# such as a registry that cannot be reached, may be well the next time.
NO_SUCH_IMAGE = re.compile("manifest unknown|not found|does not exist|access denied|invalid ref")


def read(answer: Answer, parse: Callable[[dict[str, Any]], Read]) -> Read:
    """What a success says. OutcomeUnknown when it cannot be read: it had its effect."""
    try:
        return parse(answer.fields())
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise OutcomeUnknown(
            f"cannot {answer.doing} at {answer.url}: an answer of another shape: {words(error)}"
        ) from error


def looked(answer: Answer, parse: Callable[[dict[str, Any]], Read]) -> Read:
    """The same of a call that changes nothing: what cannot be read is Unavailable."""
    if not answer.is_success:
        raise failure(answer)
    with only_looking():
        return read(answer, parse)


def sandbox(said: Mapping[str, Any]) -> SandboxInfo:
    """One sandbox. Its name is what its labels make of it."""
    external_id, expires = said["id"], said.get("expiresAt")
    if not (isinstance(external_id, str) and external_id):
        raise ValueError(f"id {external_id!r}")
    labels = labels_of(said)
    return SandboxInfo(
        ref=SandboxRef(name=name_of(labels), external_id=external_id),
        state=STATES.get(said["status"]["state"], ProviderState.UNKNOWN),
        labels=labels,
        created_at=moment(said["createdAt"]),
        expires_at=None if expires is None else moment(expires),
    )


def page(
    said: Mapping[str, Any], labels: Mapping[str, str]
) -> tuple[dict[str, SandboxInfo | None], bool]:
    """
    One page by id, and whether more follow. What lacks one of the labels is None: the server
    filters too, but strangers' sandboxes are not to be guessed at.
    """
    items, goes_on = said["items"], said["pagination"]["hasNextPage"]
    if not (isinstance(items, list) and isinstance(goes_on, bool)):
        raise TypeError(f"items {type(items).__name__}, hasNextPage {goes_on!r}")
    found = {
        str(item["id"]): sandbox(item) if labels.items() <= labels_of(item).items() else None
        for item in items
    }
    return found, goes_on


def labels_of(said: Mapping[str, Any]) -> dict[str, str]:
    """Its metadata, as far as it is text."""
    return text_labels(said.get("metadata"))


def name_of(labels: Mapping[str, str]) -> str:
    """The name that these labels make: there is no other."""
    said = (labels.get(f"{LABEL_PREFIX}{label}", "") for label in ("installation", "key"))
    return sandbox_name(*said)


def now_there(answer: Answer) -> datetime:
    """The server's clock, to the second: dates that it is given are held against that one."""
    try:
        return parsedate_to_datetime(answer.headers.get("Date", "")).astimezone(UTC)
    except ValueError:  # something between us took it away
        return datetime.now(UTC)


def is_missing(answer: Answer) -> bool:
    """
    Whether the server itself says that there is no such sandbox. A 404 without its code comes from
    a wrong path, or from something between us, and says nothing.
    """
    return answer.status == 404 and code_of(answer).endswith("::SANDBOX_NOT_FOUND")


def code_of(answer: Answer) -> str:
    """Its machine code, such as DOCKER::SANDBOX_NOT_FOUND; empty when it has none."""
    return _field(answer, "code")


def _field(answer: Answer, name: str) -> str:
    try:
        return str(answer.fields().get(name, ""))
    except OutcomeUnknown:
        return ""


def failure(answer: Answer) -> ProviderError:
    """What an error means, whatever was attempted."""
    error = answer.error()
    if isinstance(error, AuthFailed):
        return AuthFailed(f"{error}: OPEN_SANDBOX_API_KEY is not a key for this")
    return error


def refusal(answer: Answer) -> ProviderError:
    """What the error of a create means: by its status, then its code, then its words."""
    status, code, error = answer.status, code_of(answer), failure(answer)
    if status in {403, 429} and code.endswith(("::QUOTA_EXCEEDED", "::POOL_CAPACITY_EXHAUSTED")):
        return QuotaExceeded(str(error))
    if status in {400, 422} or (status == 404 and code.endswith("NOT_FOUND")):
        return InvalidSpec(str(error))
    if code.endswith("::SANDBOX_IMAGE_PULL_FAILED"):  # before anything was made
        lasting = NO_SUCH_IMAGE.search(_field(answer, "message").lower())
        return InvalidSpec(str(error)) if lasting else Unavailable(str(error))
    if status >= 500:
        return OutcomeUnknown(str(error))
    return error
