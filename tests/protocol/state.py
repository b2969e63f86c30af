"""
What one state of the protocol's model holds: the store, the provider, and every process between
two of its instructions. Time is not counted: `moves of time` say which date has come.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from core.model import MOVES, SandboxState

NOBODY = 0  # no key, no external id: both are counted from 1
FOREIGN = -1  # the name of a sandbox that somebody else runs in the same account


class Due(IntEnum):
    """When the sweep looks at a sandbox's row: `due_at` and `not_before` in one."""

    NEVER = 0
    LATER = 1  # before the create's deadline, or published under a lease
    PAUSED = 2  # a failed attempt: later, and only an early retry may claim it before
    CLAIMED = 3  # a claim is running
    NOW = 4


class Noticed(IntEnum):
    """How far the two looks at an idle session have come; any activity takes it back."""

    NOT = 0
    ONCE = 1
    LONG_AGO = 2  # the confirm interval has passed since


class Row(NamedTuple):
    """One sandbox in the store. `external_id` is the number of the provider's sandbox."""

    key: int
    state: SandboxState = SandboxState.CREATING
    due: Due = Due.LATER
    external_id: int = NOBODY


class Session(NamedTuple):
    """The session's row. `is_idle`: the idle TTL has passed since the last activity."""

    is_active: bool = True
    is_idle: bool = False
    noticed: Noticed = Noticed.NOT
    is_due: bool = False
    is_extended: bool = False
    is_too_old: bool = False


class Store(NamedTuple):
    """The database: what a backup brings back. `rows` by generation, `turns` by holder."""

    session: Session | None = None
    rows: tuple[Row, ...] = ()
    turns: tuple[int, ...] = ()  # the key on which each holder's turn is open, or NOBODY


class Fate(IntEnum):
    """What became of a sandbox at the provider."""

    THERE = 0
    DESTROYED = 1  # because we said so
    VANISHED = 2  # by itself


class Box(NamedTuple):
    """A sandbox at the provider. `born` is the key that it was made for, whatever its name."""

    name: int
    born: int
    fate: Fate = Fate.THERE
    sighted: int = 0  # without a row: 1 seen once, 2 and the grace has passed since

    @property
    def is_there(self) -> bool:
        return self.fate is Fate.THERE


class At(IntEnum):
    """Between which two instructions a process is."""

    REST = 0
    # An API process.
    ASKING = 1  # the intent is written, the provider is to be asked, or asked again
    MADE = 2  # the provider has answered, and it is not recorded yet
    TURN = 3  # it runs a turn
    CLEANING = 4  # naive: it destroys what it made, because recording it failed
    # A worker.
    CLAIMED = 5
    LOOKING = 6  # destroy was answered, absence is to be confirmed
    ABSENT = 7  # confirmed
    FAILED = 8
    # A reconcile.
    READ = 9  # naive: the store was read first
    LISTED = 10  # the provider was listed, the store is read next
    KILLING = 11  # an orphan is to be destroyed


class Api(NamedTuple):
    """
    A thread of an API server. `trusts`: it was told that its turn is live, and nothing since
    told it, or it knows of itself, that it is not.
    """

    at: At = At.REST
    key: int = NOBODY
    generation: int = 0
    box: int = NOBODY
    trusts: bool = False
    is_paused: bool = False
    is_hung: bool = False  # its turn never ends, while its heartbeats go on
    is_capped: bool = False  # the turn's hard ceiling has come
    is_heard: bool = True  # it has beaten since a restore


class Worker(NamedTuple):
    """One teardown. `has_token`: the claim's token is still the row's."""

    at: At = At.REST
    key: int = NOBODY
    generation: int = 0
    external_id: int = NOBODY
    has_token: bool = False


class Patrol(NamedTuple):
    """The one reconcile. `seen` and `rows` are what it has read, and may be old by now."""

    at: At = At.REST
    seen: frozenset[int] = frozenset()
    is_stale: bool = False
    target: int = NOBODY
    rows: tuple[Row, ...] = ()


class Wire(NamedTuple):
    """A request whose caller gave up: the provider carries it out later."""

    verb: str  # "create" or "destroy" by name, "kill" by external id
    of: int
    born: int = NOBODY


class World(NamedTuple):
    """All of it. The last three are ghosts: what was promised, which no code looks at."""

    store: Store
    apis: tuple[Api, ...]
    workers: tuple[Worker, ...]
    calls: int  # how many more wishes callers have
    faults: int  # how much more may go wrong
    boxes: tuple[Box, ...] = ()
    wires: frozenset[Wire] = frozenset()
    bells: frozenset[int] = frozenset()  # generations for which a message is waiting
    patrol: Patrol = Patrol()
    keys: int = 0  # random in the code, so never given twice, whatever is restored
    backup: Store | None = None
    is_restored: bool = False
    is_held: bool = False
    is_pardoned: bool = False  # since the restore
    approved: bool = False  # an operator has looked at what no row explains
    kept: int = NOBODY  # the key whose extension was acknowledged and has not run out
    looked: bool = False  # the sweep saw it idle, and no activity since
    over: frozenset[int] = frozenset()  # keys that were confirmed gone


def current(store: Store) -> Row | None:
    """The row of the session's generation."""
    return store.rows[-1] if store.rows else None


def with_key(rows: tuple[Row, ...], key: int) -> Row | None:
    """The row of a key, None when the store has lost or forgotten it."""
    for row in rows:
        if row.key == key:
            return row
    return None


def with_row(world: World, row: Row) -> World:
    """The same world with this row in the place of the one that has its key."""
    store = world.store
    rows = tuple(row if other.key == row.key else other for other in store.rows)
    return world._replace(store=store._replace(rows=rows))


def with_session(world: World, **changes: object) -> World:
    """The same world with a changed session."""
    session = world.store.session
    assert session is not None
    changed = session._replace(**changes)  # type: ignore[arg-type]
    return world._replace(store=world.store._replace(session=changed))


def with_api(world: World, number: int, api: Api) -> World:
    """The same world with another thread in this place."""
    apis = world.apis
    return world._replace(apis=(*apis[:number], api, *apis[number + 1 :]))


def with_worker(world: World, number: int, worker: Worker) -> World:
    """The same world with another worker in this place."""
    workers = world.workers
    return world._replace(workers=(*workers[:number], worker, *workers[number + 1 :]))


def with_box(world: World, number: int, **changes: object) -> World:
    """The same world with a changed sandbox; numbers are external ids, from 1."""
    boxes = world.boxes
    changed = boxes[number - 1]._replace(**changes)  # type: ignore[arg-type]
    return world._replace(boxes=(*boxes[: number - 1], changed, *boxes[number:]))


def may_move(before: SandboxState, after: SandboxState) -> bool:
    """Whether the domain has this move; staying is none."""
    return before is after or after in MOVES[before]
