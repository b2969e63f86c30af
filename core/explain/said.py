"""How moments and durations are said to people: an absolute time in UTC, and how far away it is."""

from __future__ import annotations

from datetime import UTC, datetime

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def moment(at: datetime, now: datetime) -> str:
    """`2026-03-01 12:03:00 UTC (in 3 min)`, with `now` by the same clock."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({distance(at, now)})"


def distance(at: datetime, now: datetime) -> str:
    """`in 3 min`, `2 h 5 min ago`, or `now` for less than a second."""
    seconds = (at - now).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {span(seconds)}" if seconds > 0 else f"{span(-seconds)} ago"


def span(seconds: float) -> str:
    """`1 h 30 min`: the two largest units that there are some of, rounded down."""
    if seconds < 1:
        return f"{seconds:g} s"
    left, said = int(seconds), list[str]()
    for size, unit in UNITS:
        count, left = divmod(left, size)
        if count:
            said.append(f"{count} {unit}")
        elif said:
            break
    return " ".join(said[:2])
