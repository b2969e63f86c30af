"""What the objects of a cluster say, whatever their kind. Nothing of it is believed to be there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Found = Mapping[str, Any]


def part(found: Found, name: str) -> Mapping[str, Any]:
    """Its metadata, spec or status; empty when it has none."""
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def metadata(found: Found) -> Mapping[str, Any]:
    """Its name, id, labels and dates."""
    return part(found, "metadata")


def is_named(found: Found, name: str) -> bool:
    """Whether it is an object of this name; an answer of something else is not."""
    return metadata(found).get("name") == name and bool(metadata(found).get("uid"))


def labels_of(found: Found) -> dict[str, str]:
    """Those that are text."""
    labels = metadata(found).get("labels")
    if not isinstance(labels, dict):
        return {}
    return {key: value for key, value in labels.items() if isinstance(value, str)}


def is_going(found: Found) -> bool:
    """Whether its deletion has begun."""
    return bool(metadata(found).get("deletionTimestamp"))


def condition_of(found: Found, kind: str) -> Mapping[str, Any]:
    """One of its conditions; empty when it has none of this kind."""
    for condition in part(found, "status").get("conditions") or ():
        if isinstance(condition, dict) and condition.get("type") == kind:
            return condition
    return {}


def moment(text: object) -> datetime | None:
    """A date of the API, aware; None when there is none, or none that can be read."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC) if text else None
    except ValueError:
        return None
