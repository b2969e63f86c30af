"""What the objects of a cluster say, whatever their kind. Nothing of it is believed to be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .reading import text_labels

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
    return text_labels(metadata(found).get("labels"))


def is_going(found: Found) -> bool:
    """Whether its deletion has begun."""
    return bool(metadata(found).get("deletionTimestamp"))


def condition_of(found: Found, kind: str) -> Mapping[str, Any]:
    """One of its conditions; empty when it has none of this kind."""
    for condition in part(found, "status").get("conditions") or ():
        if isinstance(condition, dict) and condition.get("type") == kind:
            return condition
    return {}
