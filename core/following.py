"""How open sessions come to follow the policies that were changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .errors import RowLocked, SchemaOutdated, StoreError, StoreUnavailable
from .events import Event, EventKind
from .policy import Policy
from .store import Store
from .timekeeper import Watched

ACTOR = "sweep"


def follow_policies(
    store: Store, policy: Policy, monotonic: Callable[[], float], *, watched: Watched
) -> int:
    """
    Settle open sessions, a batch at a time and no longer than the lease; the next sweep goes on
    where this one stopped. Returns how many were looked at.
    """
    total, behind, end = 0, None, monotonic() + policy.publish_lease
    while monotonic() < end:
        change = store.policies.change(behind)
        if change is None:
            break
        ids = store.settling.members(change, policy.batch)
        missed = _misses_some(store, ids)
        watched.latest()  # each batch is a step: all of them together are no hold-up
        total += len(ids)
        short = len(ids) < policy.batch
        store.policies.advance(change, None if short else ids[-1], missed=missed)
        if missed:  # not again and again in one sweep; and the changes behind it have their turn
            behind = change
    return total


def _misses_some(store: Store, ids: Sequence[str]) -> bool:
    """Whether some of these could not be moved, and have to be looked for again."""
    try:
        left = store.settling.follow(ids)
    except (StoreUnavailable, SchemaOutdated):
        raise
    except StoreError:  # some row makes its batch fail: the others without it
        left = list(ids)
    missed = False
    for session_id in left:
        try:
            store.settling.follow_one(session_id)
        except RowLocked:  # nobody waits for two of them
            return True
        except (StoreUnavailable, SchemaOutdated):
            raise
        except StoreError as error:
            _tell(store, session_id, error)
            missed = True
    return missed


def _tell(store: Store, session_id: str, error: StoreError) -> None:
    detail = {"step": "follow policies", "error": str(error)}
    store.database.tell(
        Event(kind=EventKind.ROW_POISONED, actor=ACTOR, session_id=session_id, detail=detail)
    )
