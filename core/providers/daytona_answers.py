"""What Daytona's answers say: sandboxes, their states, and why one was refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from ..errors import Busy, InvalidSpec, OutcomeUnknown, ProviderError, QuotaExceeded, Unavailable
from .base import ProviderState, SandboxInfo, SandboxRef
from .reading import moment_if_any, text_labels
from .rest import Answer

STATES = {
    "creating": ProviderState.PENDING,
    "pending_build": ProviderState.PENDING,
    "building_snapshot": ProviderState.PENDING,
    "pulling_snapshot": ProviderState.PENDING,
    "restoring": ProviderState.PENDING,
    "starting": ProviderState.PENDING,
    "resuming": ProviderState.PENDING,
    "started": ProviderState.RUNNING,
    "resizing": ProviderState.RUNNING,
    "snapshotting": ProviderState.RUNNING,
    "forking": ProviderState.RUNNING,
    "stopping": ProviderState.PAUSED,  # its disk stays, and it can be started again
    "stopped": ProviderState.PAUSED,
    "pausing": ProviderState.PAUSED,
    "paused": ProviderState.PAUSED,
    "archiving": ProviderState.PAUSED,
    "archived": ProviderState.PAUSED,
    "destroying": ProviderState.STOPPING,
    "destroyed": ProviderState.GONE,
    "error": ProviderState.FAILED,
    "build_failed": ProviderState.FAILED,
}
# What a delete makes of a name, so that it is free at once: DESTROYED_<name>_<milliseconds>.
RENAMED = re.compile(r"DESTROYED_(?P<name>.+)_[0-9]+")
NO_ROOM = re.compile(r"limit exceeded|no available runners", re.IGNORECASE)
NOT_YET = re.compile(r"snapshot .* is (pending|pulling|building|validating)", re.IGNORECASE)
REFUSED = {400, 422}
NO_REGION = re.compile(r"region .*not (found|available)", re.IGNORECASE)
UNDERSTOOD = {401, 402, 403, 429}  # a create that was answered by one of them made nothing


@dataclass(frozen=True)
class Sandbox:
    """One, as an answer shows it. `name` is the one that it was made with."""

    id: str
    name: str
    labels: Mapping[str, str]
    state: ProviderState
    created_at: datetime | None
    expires_at: datetime | None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """
        Only what we need is read: other fields come and go between versions. Raises ValueError
        when it has no id or no name.
        """
        found, name = fields.get("id"), fields.get("name")
        if not (isinstance(found, str) and found and isinstance(name, str) and name):
            raise ValueError(f"a sandbox without id or name: {found!r}, {name!r}")
        renamed = RENAMED.fullmatch(name)
        return cls(
            id=found,
            name=renamed["name"] if renamed else name,
            labels=text_labels(fields.get("labels")),
            state=_state(fields, renamed=renamed is not None),
            created_at=moment_if_any(fields.get("createdAt")),
            expires_at=moment_if_any(fields.get("autoDestroyAt")),
        )

    @property
    def is_leaving(self) -> bool:
        """Whether somebody has deleted it."""
        return self.state in {ProviderState.STOPPING, ProviderState.GONE}

    def is_meant(self, ref: SandboxRef) -> bool:
        """Whether it has this name, and this id where that is known."""
        return self.name == ref.name and ref.external_id in {None, self.id}

    def info(self) -> SandboxInfo:
        """The same, as every provider says it."""
        return SandboxInfo(
            ref=SandboxRef(name=self.name, external_id=self.id),
            state=self.state,
            labels=self.labels,
            created_at=self.created_at,
            expires_at=self.expires_at,
        )


def sandbox(answer: Answer) -> Sandbox:
    """The one that it shows; OutcomeUnknown when it shows none."""
    try:
        return Sandbox.of(answer.fields())
    except ValueError as error:
        raise OutcomeUnknown(f"cannot {answer.doing} at {answer.url}: {error}") from error


def page(answer: Answer, labels: Mapping[str, str]) -> tuple[tuple[Sandbox, ...], str | None]:
    """
    Those of a listing that carry these labels, and the cursor. Other people's are not read any
    further. Raises OutcomeUnknown when it is no page: an empty one would be a claim.
    """
    fields = answer.fields()
    # Without a cursor, not even null, it is another call's page: of what follows nothing is known.
    items, cursor = fields.get("items"), fields.get("nextCursor", False)
    if not isinstance(items, list) or not (cursor is None or isinstance(cursor, str)):
        raise OutcomeUnknown(f"cannot {answer.doing} at {answer.url}: an answer that is no page")
    try:
        found = tuple(Sandbox.of(item) for item in items if _carries(item, labels))
    except ValueError as error:
        raise OutcomeUnknown(f"cannot {answer.doing} at {answer.url}: {error}") from error
    return found, cursor or None


def is_not_found(answer: Answer, which: str) -> bool:
    """
    Whether the API itself says that there is no such sandbox. A proxy, a wrong path and a region
    without an address are 404 too, but do not name it.
    """
    if answer.status not in {404, 410}:
        return False
    said = message(answer)
    return which in said and not said.startswith("Cannot ")


def message(answer: Answer) -> str:
    """What an error says; empty when it says nothing in the API's way."""
    try:
        said = answer.fields().get("message")
    except OutcomeUnknown:
        return ""
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said or "")


def refusal(answer: Answer, name: str) -> ProviderError:
    """Why a create made nothing that can be seen; OutcomeUnknown when it may have made it."""
    said = message(answer)
    told = f"sandbox {name} cannot be made: {said or answer.status}"
    if answer.status in REFUSED and said:
        return _refusal(said, told)
    if answer.status in {403, 404} and NO_REGION.search(said):
        return InvalidSpec(f"{told}; see options.target and DAYTONA_TARGET")
    if answer.status == 409:
        return Busy(f"{told}; whoever has the name cannot be seen yet")
    # Of a 404 the API itself is only the author when it has words for it: it looks for more than
    # the region after it made the sandbox. A path that nobody knows made none.
    nobody = answer.status == 404 and (not said or said.startswith("Cannot "))
    if nobody or answer.status in UNDERSTOOD:
        return answer.error()
    return OutcomeUnknown(str(answer.error()))


def _refusal(said: str, told: str) -> ProviderError:
    if NO_ROOM.search(said):
        return QuotaExceeded(told)
    return Unavailable(told) if NOT_YET.search(said) else InvalidSpec(told)


def _carries(item: object, labels: Mapping[str, str]) -> bool:
    if not isinstance(item, dict):
        return False
    return labels.items() <= text_labels(item.get("labels")).items()


def _state(fields: Mapping[str, Any], *, renamed: bool) -> ProviderState:
    said = STATES.get(str(fields.get("state")), ProviderState.UNKNOWN)
    # A delete is believed from its first moment, when it still "runs"; not that it succeeded.
    deleted = renamed or fields.get("desiredState") == "destroyed"
    if deleted and said not in {ProviderState.GONE, ProviderState.FAILED}:
        return ProviderState.STOPPING
    return said
