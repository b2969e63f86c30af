"""What one seed decides beforehand: the policy, who takes part, and which faults are in focus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from core.policy import Policy
from tests.simulation.faults import Fault

# An hour of a real installation takes two minutes here: the same order of lengths, shorter.
POLICY = Policy(
    idle_ttl=40.0,
    max_turn=70.0,
    heartbeat=9.0,
    confirm_interval=20.0,
    create_deadline=40.0,
    claim_ttl=20.0,
    publish_lease=20.0,
    retry_base=3.0,
    retry_max=20.0,
    quarantine_after=3,
    quarantine_retry=30.0,
    retention=90.0,
    batch=50,
    reconcile_interval=40.0,
    orphan_grace=50.0,
    late_after=50.0,
    backstop=3.0,  # the least that settings allow
    in_flight=6,  # less than waits now and then
    provider_concurrency=3,  # of four that would call
)
SMALL_BATCHES = replace(POLICY, batch=2)
# Between two heartbeats there is time for a few sweeps, and for what happens to the clock there.
RESTLESS = replace(POLICY, heartbeat=20.0, confirm_interval=40.0, batch=2)
PATIENT = replace(POLICY, confirm_interval=40.0)
CAREFUL = replace(POLICY, breaker_min=1, breaker_ratio=0.3)
POLICIES = (POLICY, SMALL_BATCHES, PATIENT, CAREFUL, RESTLESS)
SWEEP = 20.0
CHAOS = 200.0
EXTENSIONS = (5.0, 80.0, 130.0)
LONG_EXTENSIONS = (80.0, 130.0, 200.0)  # the clock goes ahead and back while they last


class Flavour(StrEnum):
    """How the database waits: the two that the product runs on, as far as one SQLite can show."""

    SQLITE = "sqlite"  # a transaction has the write lock from BEGIN on; now() is the statement's
    POSTGRESQL = "postgresql"  # the lock is taken by the first statement, after its now()


class Focus(StrEnum):
    """What a world is about: the faults of the others stay rare in it."""

    CALM = "calm"
    CRASHES = "crashes"
    STOPS = "stops"
    OUTAGES = "outages"
    COMMITS = "commits"
    CLOCK = "clock"
    JUMPS = "jumps of the clock in sweeps"
    PROVIDER = "provider"
    STUBBORN = "stubborn sandboxes"
    CREATES = "creates"
    ACCOUNTS = "accounts"
    MESSAGES = "messages"
    LIMITS = "limits"
    ROLLOUT = "rollout"
    ORPHANS = "orphans"
    ABANDONED = "abandoned"
    BREAKER = "breaker"


RARE: Mapping[Fault, float] = {
    Fault.STATEMENT_FAILED: 0.001,
    Fault.COMMIT_FAILED: 0.002,
    Fault.COMMIT_UNKNOWN: 0.004,
    Fault.REFUSED: 0.02,
    Fault.LIMITED: 0.02,
    Fault.DOUBT: 0.02,
    Fault.LATE: 0.02,
    Fault.SLOW: 0.03,
    Fault.STOP_IN_CALL: 0.01,
    Fault.DESTROY_LATER: 0.03,
    Fault.DESTROY_LIE: 0.02,
    Fault.STALE_LIST: 0.1,
    Fault.BROKEN_LIST: 0.05,
    Fault.LOST: 0.05,
    Fault.DOUBLED: 0.05,
    Fault.DELAYED: 0.1,
}
OFTEN: Mapping[Focus, Mapping[Fault, float]] = {
    Focus.OUTAGES: {Fault.STATEMENT_FAILED: 0.01},
    Focus.COMMITS: {
        Fault.STATEMENT_FAILED: 0.01,
        Fault.COMMIT_FAILED: 0.04,
        Fault.COMMIT_UNKNOWN: 0.08,
    },
    Focus.JUMPS: {Fault.JUMP_IN_SWEEP: 0.02, Fault.STATEMENT_FAILED: 0.01},
    Focus.PROVIDER: {
        Fault.REFUSED: 0.1,
        Fault.LIMITED: 0.1,
        Fault.DOUBT: 0.1,
        Fault.LATE: 0.12,
        Fault.SLOW: 0.2,
        Fault.STOP_IN_CALL: 0.1,
        Fault.DESTROY_LATER: 0.2,
        Fault.DESTROY_LIE: 0.2,
    },
    Focus.STUBBORN: {
        Fault.REFUSED: 0.2,
        Fault.DENIED: 0.15,
        Fault.DESTROY_LIE: 0.4,
        Fault.POISON: 0.1,
        Fault.SLOW: 0.3,
        Fault.STOP_IN_CALL: 0.1,
    },
    Focus.CREATES: {
        Fault.DENIED: 0.15,
        Fault.DOUBT: 0.15,
        Fault.LATE: 0.2,
        Fault.SLOW: 0.4,
        Fault.IMPOSSIBLE: 0.1,
    },
    Focus.ORPHANS: {
        Fault.LATE: 0.3,
        Fault.DOUBT: 0.1,
        Fault.STALE_LIST: 0.5,
        Fault.BROKEN_LIST: 0.3,
    },
    # While a create takes its time, others join it.
    Focus.ACCOUNTS: {Fault.DOUBT: 0.1, Fault.SLOW: 0.5},
    Focus.MESSAGES: {Fault.LOST: 0.3, Fault.DOUBLED: 0.5, Fault.DELAYED: 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One world before it begins."""

    seed: int
    foci: tuple[Focus, ...]
    flavour: Flavour
    policy: Policy
    rates: Mapping[Fault, float]
    crash_rate: float
    stop_rate: float
    sessions: int
    users: int
    sweep: float  # between two of one process
    extends: int  # how often users ask for that, where a turn is 10
    extensions: tuple[float, ...]
    pause: float  # a user's, between two things that he does, on average

    def has(self, focus: Focus) -> bool:
        """Whether the world is about this."""
        return focus in self.foci


def plan(seed: int) -> Plan:
    """The world of a seed."""
    random = Random(f"plan {seed}")
    foci = tuple(random.sample(list(Focus), k=random.choice((1, 2, 2, 3))))
    rates = {} if foci == (Focus.CALM,) else dict(RARE)
    for focus in foci:
        for fault, rate in OFTEN.get(focus, {}).items():
            rates[fault] = max(rate, rates.get(fault, 0.0))
    crowded = random.random() < 0.7 and bool({Focus.CREATES, Focus.ACCOUNTS}.intersection(foci))
    return Plan(
        seed=seed,
        foci=foci,
        flavour=random.choice(tuple(Flavour)),
        policy=_policy(foci, random),
        rates=rates,
        crash_rate=0.004 if Focus.CRASHES in foci else 0.0005,
        stop_rate=0.004 if Focus.STOPS in foci else 0.0005,
        # Where creates are joined, everybody wants the same.
        sessions=1 if crowded else random.choice((2, 3, 4)),
        users=4 if crowded else random.choice((2, 3, 4)),
        sweep=5.0 if Focus.JUMPS in foci else SWEEP,
        extends=6 if Focus.JUMPS in foci else 1,
        extensions=LONG_EXTENSIONS if Focus.JUMPS in foci else EXTENSIONS,
        pause=6.0 if crowded else random.choice((6.0, 15.0, 30.0)),
    )


def _policy(foci: tuple[Focus, ...], random: Random) -> Policy:
    if Focus.BREAKER in foci:
        return CAREFUL
    return RESTLESS if Focus.JUMPS in foci else random.choice((POLICY, SMALL_BATCHES))
