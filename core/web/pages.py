"""Cursors: where a list goes on, in a form that nobody is tempted to read or to make."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .problems import INVALID, Problem

T = TypeVar("T")


def cursor(*place: object) -> str:
    """The cursor for what comes behind this place."""
    text = json.dumps(place, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place(given: str | None, first: tuple[Any, ...]) -> tuple[Any, ...]:
    """The place that a cursor means, `first` without one. Problem when it is none of ours."""
    if given is None:
        return first
    try:
        padded = given + "=" * (-len(given) % 4)
        found = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        right = [type(one) for one in found] == [type(one) for one in first]
        fits = right and all(_is_storable(one) for one in found)
    except (ValueError, TypeError, RecursionError, binascii.Error):
        fits = False
    if not fits:
        fix = "send the next_cursor of a page of this list, or leave it out"
        value = json.dumps(given[:100])
        mistake = {"in": "query", "field": "cursor", "value": value, "fix": fix}
        raise Problem(INVALID, f"cursor={value}: {fix}", errors=[mistake])
    return tuple(found)


def page(
    items: Sequence[T], limit: int, place_of: Callable[[T], tuple[object, ...]]
) -> dict[str, Any]:
    """A page of at most `limit` of the items; one more than that tells that it goes on."""
    shown = items[:limit]
    more = len(items) > limit
    return {"items": shown, "next_cursor": cursor(*place_of(shown[-1])) if more else None}


def _is_storable(one: object) -> bool:
    """Whether a database takes it as a value to compare with."""
    if isinstance(one, str):
        return one.isprintable() and len(one) <= 500
    return isinstance(one, int) and 0 <= one < 1 << 62
