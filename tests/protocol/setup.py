"""What is explored: how many of everything, what callers wish, what goes wrong, what is naive."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .state import Api, Store, Worker, World


class Call(StrEnum):
    """What a caller may wish. Opening and turns are always among it."""

    TOUCH = "touch"
    EXTEND = "extend"
    END = "end"
    PURGE = "purge"  # not a caller's: the retention has passed


class Fault(StrEnum):
    """What may go wrong, at any instant, as often as the setup's budget allows."""

    API_CRASH = "an API process is killed"
    WORKER_CRASH = "a worker is killed"
    SWEEP_CRASH = "a sweep is killed between commit and publication"
    CREATE_LATE = "a create answers nothing, and is carried out later or never"
    CREATE_TWICE = "a late create does not adopt what has its name"
    CREATE_REFUSED = "the provider can never make it"
    ANSWER_LOST = "a COMMIT is done, and its answer is lost"
    HOLDER_PAUSED = "a turn's holder is stopped, or cannot reach the database"
    TURN_HANGS = "a turn never ends, while its heartbeats go on"
    MESSAGE_LOST = "a message is lost"
    MESSAGE_DOUBLED = "a message is delivered, and is delivered again later"
    DESTROY_LATE = "a destroy is accepted, and carried out later"
    DESTROY_FAILS = "a destroy fails"
    GET_FAILS = "the provider cannot be asked"
    CLAIM_OUTLIVED = "a worker is paused past its claim"
    CLOCK_STEPS_BACK = "the database's clock steps back"
    LIST_STALE = "a listing omits what is there"
    LIST_TRUNCATED = "a listing breaks off"
    VANISHES = "a sandbox dies by itself"
    BREAKER_TRIPS = "something looks like a mass kill"
    RESTORED = "the database is brought back from a backup"


class Naive(StrEnum):
    """One safeguard less each: how the protocol would have been written at first."""

    RECORD_AFTER_CREATE = "the row is written when the provider has answered"
    NO_GRACE = "what no row explains is destroyed at first sight"
    STORE_FIRST = "the store is read before the provider is listed"
    NO_HEARTBEATS = "last_activity_at moves when a turn begins and ends, and not between"
    ENQUEUE_BLINDLY = "the sweep enqueues idle ids, and the task tears down"
    ENQUEUE_AND_LOOK = "the task looks once more whether it is idle, and tears down"
    NAME_WITHOUT_GENERATION = "the provider's name follows from the session alone"
    NAMES_REUSED = "the provider's name follows from session and generation"
    WRITES_WITHOUT_TOKEN = "a worker writes its result whoever has the claim"  # noqa: S105
    NO_REPUBLICATION = "the message is published once, by the end"
    NEVER_RETRIED = "a teardown that failed has no date for another attempt"
    LOST_FROM_A_LIST = "what a listing lacks is lost, however it was read"
    NO_CEILING = "a turn that beats may go on for ever"
    NO_AMNESTY = "after a restore the old dates are believed"
    WORKERS_RUNNING = "workers go on during a restore"
    ROWLESS_BREAKER_OFF = "after a restore nobody is asked about what no row explains"
    FIRST_SIGHT = "what is found idle is ended"
    CLEANS_UP_AFTER_ITSELF = "who gets an error from recording destroys what it made"
    HOLD_IGNORED = "sweeps and workers do not look whether they are held"
    OWNERSHIP_UNCHECKED = "whatever is listed is taken for ours"
    FAILED_LOOK_IS_ABSENCE = "a provider that cannot be asked is taken for a not-found"
    ROWLESS_IGNORED = "only what a row explains is ever destroyed"
    ORPHANS_IGNORED = "what was confirmed gone is never looked for again"
    MISSING_DUE = "a teardown is published without a date for the next look"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """
    One configuration. `keys` bounds generations and `boxes` what the provider has room for;
    `calls` and `faults` are how many wishes and accidents there are in one run.
    """

    apis: int = 1
    workers: int = 1
    keys: int = 1
    boxes: int = 2
    calls: int = 2
    faults: int = 1
    wishes: frozenset[Call] = frozenset()
    accidents: frozenset[Fault] = frozenset()
    reconciles_at_once: bool = True  # or: in steps that others come between
    has_max_age: bool = False
    has_neighbour: bool = False
    naive: frozenset[Naive] = frozenset()

    @property
    def start(self) -> World:
        """Nothing has happened."""
        return World(
            store=Store(turns=(0,) * self.apis),
            apis=(Api(),) * self.apis,
            workers=(Worker(),) * self.workers,
            calls=self.calls,
            faults=self.faults,
        )

    def may(self, world: World, fault: Fault) -> bool:
        """Whether this may go wrong now."""
        return world.faults > 0 and fault in self.accidents

    def name(self, key: int, generation: int) -> int:
        """The provider's name of a sandbox."""
        if Naive.NAME_WITHOUT_GENERATION in self.naive:
            return 1
        return generation if Naive.NAMES_REUSED in self.naive else key


def faulted(world: World) -> World:
    """One accident less to come."""
    return world._replace(faults=world.faults - 1)
