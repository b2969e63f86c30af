"""Numbers, durations and moments as a person reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

NONE: Final = "\N{EN DASH}"
UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def span(seconds: float | None) -> str:
    """`3 min 20 s`: the two largest units of a duration."""
    if seconds is None:
        return NONE
    left = round(abs(seconds))
    parts: list[str] = []
    for size, unit in UNITS:
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
        if len(parts) == 2 or (parts and not left):
            break
    return " ".join(parts)


def ago(moment: datetime | None, now: datetime) -> str:
    """`3 min 20 s ago`, or `in 5 s`."""
    if moment is None:
        return "never"
    passed = (now - moment).total_seconds()
    if abs(passed) < 1:
        return "now"
    return f"{span(passed)} ago" if passed > 0 else f"in {span(passed)}"


def clock(moment: datetime | None) -> str:
    """`12:04:05`, UTC."""
    return NONE if moment is None else moment.astimezone(UTC).strftime("%H:%M:%S")


def day(moment: datetime | None) -> str:
    """`2026-03-01`, UTC."""
    return NONE if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d")


def iso(moment: datetime | None) -> str:
    """For machines, and for whoever wants to know exactly."""
    return "" if moment is None else moment.astimezone(UTC).isoformat(" ", "seconds")


def count(number: int, most: int | None = None) -> str:
    """`12,345`; `10,000+` where only so many were counted."""
    return f"{number:,}{'+' if most is not None and number >= most else ''}"


def times(number: int) -> str:
    """`once`, `3 times`."""
    return "once" if number == 1 else f"{number:,} times"


def label(name: str) -> str:
    """`session ended` for `session_ended`."""
    return name.replace("_", " ")
