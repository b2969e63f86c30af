"""What E2B's answers mean: sandboxes, a sandbox that is not there, errors in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..errors import (
    Busy,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from ..model import sandbox_name
from .base import LABEL_PREFIX, ProviderState, SandboxInfo, SandboxRef
from .reading import moment_if_any, text_labels
from .rest import Answer, only_looking

STATES = {"running": ProviderState.RUNNING, "paused": ProviderState.PAUSED}
# Said of a create that had no effect, although its status is that of a server in trouble.
NOTHING_MADE = {
    "sandbox_capacity_unavailable",
    "sandbox_placement_timeout",
    "sandbox_no_compatible_node",
}
# Said of a create whose key was used before: what became of that, only a look can tell.
USED_BEFORE = {"idempotency_request_mismatch", "idempotency_outcome_unknown"}
TOO_LONG = re.compile(r"Timeout cannot be greater than (\d{1,4}) hours?", re.IGNORECASE)
QUOTA = "maximum number of concurrent"
NO_ID = "invalid sandbox id"  # said of an id that E2B cannot have given


def name_of(labels: Mapping[str, str]) -> str | None:
    """
    The name of a sandbox. E2B has none of its own: it follows from two of our labels, and who
    lacks them has none.
    """
    installation = labels.get(f"{LABEL_PREFIX}installation")
    key = labels.get(f"{LABEL_PREFIX}key")
    return sandbox_name(installation, key) if installation and key else None


def info(found: object, answer: Answer) -> SandboxInfo | None:
    """
    One sandbox of an answer; None for one that has no name, which is somebody else's. Raises
    Unavailable when it is no sandbox at all.
    """
    if not isinstance(found, dict):
        raise unreadable(answer)
    external_id, state = found.get("sandboxID"), found.get("state")
    # Before its labels: what is no sandbox has none either, and would pass for somebody else's.
    if not isinstance(external_id, str) or not isinstance(state, str) or not external_id:
        raise unreadable(answer)
    labels = text_labels(found.get("metadata"))
    name = name_of(labels)
    if name is None:
        return None
    return SandboxInfo(
        ref=SandboxRef(name=name, external_id=external_id),
        state=STATES.get(state, ProviderState.UNKNOWN),
        labels=labels,
        # `startedAt` is written again at each resume: E2B does not say how old a sandbox is.
        created_at=None,
        expires_at=_expiry(found),
    )


def listed(answer: Answer) -> list[SandboxInfo]:
    """The sandboxes of a listing that have a name. Raises Unavailable when it is no listing."""
    found = _json(answer)
    if not isinstance(found, list):
        raise unreadable(answer)
    return [one for item in found if (one := info(item, answer)) is not None]


def cursor(answer: Answer) -> str | None:
    """Where the next page of a listing begins; None after the last."""
    return answer.headers.get("X-Next-Token") or None


def shown(answer: Answer, ref: SandboxRef) -> SandboxInfo | None:
    """
    The sandbox that was asked for by its id; None when it has not the name. E2B drops what comes
    after a hyphen of an id: Unavailable when it shows another than the one that was asked for.
    """
    found = _json(answer)
    if isinstance(found, dict) and found.get("sandboxID") != ref.external_id:
        raise unreadable(answer)
    one = info(found, answer)
    return one if one is not None and one.ref == ref else None


def made(answer: Answer) -> str:
    """The id in the answer to a create; OutcomeUnknown when it has none."""
    external_id = answer.fields().get("sandboxID")
    if not isinstance(external_id, str) or not external_id:
        raise OutcomeUnknown(f"cannot {answer.doing} at {answer.url}: an answer without an id")
    return external_id


def is_not_there(answer: Answer) -> bool:
    """
    Whether it is E2B's own word that there is no such sandbox. A 404 of anything else, such as a
    proxy or a server that is not E2B, says nothing of a sandbox.
    """
    message = _said(answer).get("message")
    if not isinstance(message, str):
        return False
    if answer.status == 400:
        return NO_ID in message.lower()
    return answer.status == 404 and "sandbox" in message.lower()


def longest(answer: Answer) -> int | None:
    """The seconds that a create may ask for, when it was refused because it asked for more."""
    found = TOO_LONG.search(_message(answer)) if answer.status == 400 else None
    return int(found[1]) * 3600 if found else None


def error_of_create(answer: Answer) -> ProviderError:
    """What a refused create means: by status, then by E2B's code, then by its words."""
    status, code, message = answer.status, _said(answer).get("error_code"), _message(answer)
    error = answer.error()
    if status == 429 and QUOTA in message:
        return QuotaExceeded(str(error))
    refused = status in {400, 422} and message  # a proxy has no message, and is asked again
    if refused or (status in {403, 404} and "template" in message.lower()):
        return InvalidSpec(str(error))
    if status == 409:
        return OutcomeUnknown(str(error)) if code in USED_BEFORE else Busy(str(error))
    if code == "sandbox_create_refused":
        return InvalidSpec(str(error))
    if status >= 500 and status != 503 and code not in NOTHING_MADE:
        return OutcomeUnknown(str(error))  # it failed on the way, and nobody says how far it got
    return error


def unreadable(answer: Answer) -> Unavailable:
    """The error for a look whose answer says nothing that we know."""
    return Unavailable(f"cannot {answer.doing} at {answer.url}: an answer that is no such thing")


def _json(answer: Answer) -> Any:
    with only_looking():
        return answer.json()


def _said(answer: Answer) -> Mapping[str, Any]:
    try:
        found = answer.json()
    except OutcomeUnknown:
        return {}
    return found if isinstance(found, dict) else {}


def _message(answer: Answer) -> str:
    return str(_said(answer).get("message", ""))


def _expiry(found: Mapping[str, Any]) -> datetime | None:
    """
    When it dies by itself. A paused one does not: its `endAt` is when it was paused. One that
    somebody resumed so that its timeout pauses it does not either.
    """
    lifecycle = found.get("lifecycle")
    pauses = isinstance(lifecycle, dict) and lifecycle.get("onTimeout") == "pause"
    if found.get("state") != "running" or pauses:
        return None
    return moment_if_any(found.get("endAt"))
