"""What the answers of all providers have in common: labels and dates."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from .base import LABEL_PREFIX


def text_labels(found: object) -> dict[str, str]:
    """The labels of an answer, as far as they are text; none when it has none."""
    if not isinstance(found, Mapping):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def our_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Those that we write: an image, a provider and its users add their own."""
    return {key: value for key, value in labels.items() if key.startswith(LABEL_PREFIX)}


def moment(text: object) -> datetime:
    """A date of ISO 8601, in UTC; one without a zone is in it. Raises ValueError."""
    found = datetime.fromisoformat(str(text))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def moment_if_any(text: object) -> datetime | None:
    """The same; None when there is none, or none that can be read."""
    try:
        return moment(text)
    except (OverflowError, ValueError):
        return None
