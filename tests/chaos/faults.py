"""What the cloud does wrong: the kinds of fault, and how likely each is for each call."""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import StrEnum


class Fault(StrEnum):
    """One way in which a call to the cloud goes wrong. `No effect` means: ever."""

    UNAVAILABLE = "unavailable"  # 503, no effect
    LIMITED = "limited"  # 429 with Retry-After, no effect
    FORBIDDEN = "forbidden"  # 403, no effect: a login that is refused for a moment
    QUOTA = "quota"  # 402, no effect
    BUSY = "busy"  # 409, no effect: another change is under way
    LOST_ANSWER = "lost_answer"  # the effect at once, and no answer
    LATE = "late"  # no answer, and the effect seconds later, whatever was answered meanwhile
    ACCEPTED = "accepted"  # answered yes, and the effect seconds later
    IGNORED = "ignored"  # answered yes, no effect
    SLOW = "slow"  # all is well, a second or two later
    STUCK = "stuck"  # the effect and its answer long after the caller's deadline
    SQUATTED = "squatted"  # somebody else made a sandbox of this very name a moment ago
    STALE = "stale"  # a complete list, of some seconds ago
    PAGE_FAILS = "page_fails"  # 503 for a page that is not the first
    TRUNCATED = "truncated"  # the connection ends in the middle of the list


Chances = Mapping[str, Mapping[str, float]]
"""operation: {fault: how likely}. `page` is every page of a list but its first."""

CALM: Chances = {}
# Moods of the whole cloud, for some seconds.
CALLS = ("create", "get", "destroy", "list", "page", "extend")
# What is refused while it looks or destroys slows the whole fleet down, which recovers in tens of
# seconds: in this world, where a second stands for a minute, that is most of an hour.
LIMITING: Chances = {
    call: {Fault.LIMITED: 0.2 if call in {"get", "destroy"} else 0.8} for call in CALLS
}
FAILING: Chances = {call: {Fault.UNAVAILABLE: 0.9} for call in CALLS}

STORM: Chances = {
    "create": {
        Fault.UNAVAILABLE: 0.06,
        Fault.LIMITED: 0.02,
        Fault.QUOTA: 0.01,
        Fault.FORBIDDEN: 0.01,
        Fault.LOST_ANSWER: 0.05,
        Fault.LATE: 0.05,
        Fault.SLOW: 0.06,
        Fault.STUCK: 0.01,
        Fault.SQUATTED: 0.01,
    },
    # No rate limits, which would slow all of our workers down: they come in moods, see above. No
    # provider refuses by chance, whatever the rate of the calls.
    "get": {
        Fault.UNAVAILABLE: 0.05,
        Fault.LOST_ANSWER: 0.03,
        Fault.SLOW: 0.04,
    },
    "destroy": {
        Fault.UNAVAILABLE: 0.08,
        Fault.FORBIDDEN: 0.02,
        Fault.BUSY: 0.08,
        Fault.LOST_ANSWER: 0.06,
        Fault.LATE: 0.06,
        Fault.ACCEPTED: 0.08,
        Fault.IGNORED: 0.04,
        Fault.SLOW: 0.08,
        Fault.STUCK: 0.02,
    },
    "list": {
        Fault.UNAVAILABLE: 0.06,
        Fault.LIMITED: 0.02,
        Fault.STALE: 0.35,
        Fault.TRUNCATED: 0.1,
        Fault.SLOW: 0.1,
    },
    "page": {Fault.PAGE_FAILS: 0.08, Fault.TRUNCATED: 0.05, Fault.SLOW: 0.05},
    "extend": {
        Fault.UNAVAILABLE: 0.08,
        Fault.LIMITED: 0.01,
        Fault.BUSY: 0.05,
        Fault.LOST_ANSWER: 0.05,
        Fault.SLOW: 0.05,
    },
}


def draw(chances: Chances, operation: str, chance: random.Random) -> Fault | None:
    """What happens to this call; None when nothing does."""
    roll = chance.random()
    for name, likely in chances.get(operation, {}).items():
        roll -= likely
        if roll < 0:
            return Fault(name)
    return None
