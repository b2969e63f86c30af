"""What can go wrong in a world, how often in this one, and how often it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from random import Random


class Fault(StrEnum):
    """Everything that a world can do to the system. Each must have happened in the test run."""

    # Processes
    CRASH = "process killed"
    STOP = "process stopped"
    STOP_IN_TRANSACTION = "stopped in a transaction"
    STOP_IN_CALL = "stopped in a provider's call"
    # The database
    OUTAGE = "database outage"
    LONG_OUTAGE = "outage longer than the TTL"
    FLAPPING = "database comes and goes"
    STATEMENT_FAILED = "statement failed"
    COMMIT_FAILED = "commit failed"
    COMMIT_UNKNOWN = "answer to COMMIT lost"
    LOCK_TIMEOUT = "lock timeout"
    CLOCK_FORWARD = "clock steps forward"
    CLOCK_BACK = "clock steps back"
    JUMP_IN_SWEEP = "clock steps in a sweep"
    # The provider
    REFUSED = "5xx"
    LIMITED = "429"
    DENIED = "403"
    DOUBT = "done, answer lost"
    LATE = "lands late"
    LATE_CREATE = "create lands after its teardown"
    SLOW = "slow call"
    STALE_LIST = "stale listing"
    BROKEN_LIST = "listing breaks off"
    DESTROY_LATER = "destroy accepted, done later"
    DESTROY_LIE = "destroy accepted, never done"
    VANISHED = "sandbox vanishes"
    FOREIGN = "foreign sandbox"
    ROWLESS = "sandbox of a lost row"
    IMPOSSIBLE = "sandbox that cannot be made"
    POISON = "sandbox that kills its worker"
    WRONG_ACCOUNT = "process in another account"
    # Messages
    LOST = "message lost"
    DOUBLED = "message doubled"
    DELAYED = "message late or reordered"
    FORGED = "message forged"
    BROKER_DOWN = "broker down"
    BROKER_WIPED = "broker wiped"
    # People
    WEDGED = "wedged turn"
    ROLLOUT = "policy changed under way"
    ABANDONED = "no beat and no sweep"
    HELD = "held for an operator"


class Faults:
    """Chance for one world. `on` is taken away when the quiet time begins."""

    def __init__(self, random: Random, rates: Mapping[Fault, float]) -> None:
        self.random = random
        self.rates = rates
        self.on = True
        self.count: Counter[Fault] = Counter()

    def hit(self, fault: Fault) -> bool:
        """Whether it happens here and now; counted when it does."""
        rate = self.rates.get(fault, 0.0) if self.on else 0.0
        if rate == 0.0 or self.random.random() >= rate:
            return False
        self.count[fault] += 1
        return True

    def happened(self, fault: Fault) -> None:
        """Count what was decided elsewhere."""
        self.count[fault] += 1
