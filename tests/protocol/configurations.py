"""The configurations: each explores a few features together, as far as is done in seconds."""

from __future__ import annotations

from collections.abc import Mapping

from .setup import Call, Fault, Setup

ALL_CALLS = frozenset({Call.TOUCH, Call.EXTEND, Call.END})
OPENING = frozenset({Fault.API_CRASH, Fault.CREATE_LATE, Fault.CREATE_REFUSED, Fault.ANSWER_LOST})

CONFIGURATIONS: Mapping[str, Setup] = {
    # Two threads on one session: begin, beat, end, touch, extend and end against the two looks.
    "turns": Setup(
        apis=2,
        calls=4,
        faults=3,
        wishes=ALL_CALLS,
        accidents=frozenset({Fault.API_CRASH, Fault.HOLDER_PAUSED}),
    ),
    # Two threads open one session, and are killed, answered late, or not at all.
    "opening": Setup(
        apis=2,
        calls=3,
        faults=3,
        accidents=OPENING,
    ),
    # The same across generations: who opened the last one may still be at it.
    "reopening": Setup(
        apis=2,
        keys=2,
        boxes=3,
        calls=2,
        faults=1,
        accidents=OPENING,
    ),
    # Two workers on one sandbox, with every accident that a teardown knows.
    "teardown": Setup(
        workers=2,
        calls=3,
        faults=4,
        wishes=frozenset({Call.END}),
        accidents=frozenset(
            {
                Fault.WORKER_CRASH,
                Fault.SWEEP_CRASH,
                Fault.MESSAGE_LOST,
                Fault.MESSAGE_DOUBLED,
                Fault.DESTROY_LATE,
                Fault.DESTROY_FAILS,
                Fault.GET_FAILS,
                Fault.CLAIM_OUTLIVED,
                Fault.CLOCK_STEPS_BACK,
            }
        ),
    ),
    # A session that is opened again, while somebody is still at its last generation.
    "generations": Setup(
        workers=2,
        keys=2,
        boxes=3,
        calls=4,
        faults=1,
        wishes=frozenset({Call.END}),
        accidents=frozenset({Fault.MESSAGE_DOUBLED, Fault.DESTROY_LATE, Fault.CLAIM_OUTLIVED}),
    ),
    # Turns that never end, while somebody else goes on and opens again.
    "hangs": Setup(
        apis=2,
        calls=3,
        faults=2,
        wishes=frozenset({Call.EXTEND}),
        accidents=frozenset({Fault.TURN_HANGS, Fault.HOLDER_PAUSED}),
    ),
    # Sessions that grow old, in a turn or out of one, and are opened again.
    "ages": Setup(
        keys=2,
        calls=4,
        faults=1,
        wishes=frozenset({Call.EXTEND}),
        accidents=frozenset({Fault.HOLDER_PAUSED}),
        has_max_age=True,
    ),
    # Sandboxes that come twice or late, or go by themselves, and lists that lack them.
    "reconcile": Setup(
        boxes=3,
        calls=3,
        faults=2,
        accidents=frozenset(
            {
                Fault.API_CRASH,
                Fault.CREATE_LATE,
                Fault.CREATE_TWICE,
                Fault.VANISHES,
                Fault.LIST_STALE,
                Fault.LIST_TRUNCATED,
            }
        ),
        reconciles_at_once=False,
    ),
    # A neighbour in the same account, and rows that were forgotten before a create landed.
    "rowless": Setup(
        keys=1,
        boxes=3,
        calls=3,
        faults=1,
        wishes=frozenset({Call.END, Call.PURGE}),
        accidents=frozenset({Fault.CREATE_LATE}),
        reconciles_at_once=False,
        has_neighbour=True,
    ),
    # The breaker, at any instant.
    "held": Setup(
        keys=1,
        calls=2,
        faults=2,
        wishes=frozenset({Call.END}),
        accidents=frozenset({Fault.BREAKER_TRIPS, Fault.CREATE_LATE, Fault.VANISHES}),
        reconciles_at_once=False,
    ),
    # The database comes back from a backup that was taken at any instant, at any instant.
    "restore": Setup(
        keys=2,
        calls=2,
        faults=1,
        wishes=frozenset({Call.EXTEND}),
        accidents=frozenset({Fault.RESTORED}),
    ),
}
