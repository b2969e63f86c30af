"""
API servers for the tests: `python -m tests.acceptance.api <role> <journal> <arguments>`.

What they were told by Lifecycle they write into a journal, one JSON line each, before anybody
kills them. `steps` makes a crash happen at one instruction: it hands Keeper a provider and a store
that kill their own process there.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from sqlalchemy import event

from core import Lifecycle, SandkeeperError, SessionEnded, StoreUnavailable, TurnExpired
from core.errors import ProviderError
from core.lifecycle import Keeper
from core.providers import local
from core.providers.base import SandboxInfo, Spec
from core.providers.local import LocalProvider
from core.wiring import System
from tests.acceptance.journal import Journal

TRIES = 20


# Servers


def crowd(journal: Journal, *, ids: list[str], threads: int, seed: int) -> None:
    """Open all of these sessions, several at once, then run turns on them until we are killed."""
    chance = random.Random(seed)
    with Lifecycle.from_env() as keeper, ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda of: _open(keeper, journal, of), ids))
        journal.write("all_open")
        turns = (chance.choice(ids) for _ in iter(int, 1))
        pool.submit(_turns, keeper, journal, turns)
        _turns(keeper, journal, iter(chance.sample(ids, len(ids))))
        journal.wait_until_told("killed")


def _open(keeper: Keeper, journal: Journal, session_id: str) -> None:
    for _ in range(TRIES):
        try:
            session = keeper.open(session_id)
        except (ProviderError, SessionEnded, StoreUnavailable) as error:
            journal.write("refused", id=session_id, error=repr(error))
        else:
            journal.write("open", id=session_id, generation=session.generation)
            return
    raise AssertionError(f"{session_id} could not be opened {TRIES} times")


def _turns(keeper: Keeper, journal: Journal, ids: Iterator[str]) -> None:
    for session_id in ids:
        try:
            with keeper.turn(session_id) as turn:
                journal.write("turn", id=session_id, generation=turn.sandbox.generation)
                time.sleep(0.02)
        except SessionEnded as error:  # more sessions than we can keep busy: these went idle
            journal.write("ended", id=session_id, error=repr(error))


def hold(journal: Journal, *, silent: list[str], chatty: list[str]) -> None:
    """
    Hold turns until told to end: on `silent` sessions one long turn that says nothing, on
    `chatty` ones a turn after another. Afterwards live on, without any turn, until killed.
    """
    with Lifecycle.from_env() as keeper:
        holders = [(of, _one_long_turn) for of in silent] + [(of, _short_turns) for of in chatty]
        threads = [
            threading.Thread(target=_held, args=(keeper, journal, of, how)) for of, how in holders
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        journal.write("all_ended")
        journal.wait_until_told("killed")


def _held(
    keeper: Keeper,
    journal: Journal,
    session_id: str,
    how: Callable[[Keeper, Journal, str], None],
) -> None:
    keeper.open(session_id)
    try:
        how(keeper, journal, session_id)
    except SandkeeperError as error:
        journal.write("lost", id=session_id, error=repr(error))


def _one_long_turn(keeper: Keeper, journal: Journal, session_id: str) -> None:
    with keeper.turn(session_id) as turn:
        turn.lost.on(lambda error: journal.write("lost", id=session_id, error=repr(error)))
        journal.write("begun", id=session_id, generation=turn.sandbox.generation)
        journal.wait_until_told("end")
        journal.write("ending", id=session_id)
    journal.write("ended", id=session_id)


def _short_turns(keeper: Keeper, journal: Journal, session_id: str) -> None:
    journal.write("begun", id=session_id, generation=1)
    while not journal.told("end"):
        with keeper.turn(session_id) as turn:
            if turn.sandbox.generation != 1:
                journal.write("lost", id=session_id, error=f"generation {turn.sandbox.generation}")
            time.sleep(0.3)
    journal.write("ending", id=session_id)
    journal.write("ended", id=session_id)


def sleeper(journal: Journal, *, id: str) -> None:  # noqa: A002 - the test's word for it
    """Wake up in a turn that may be over; then open anew and hold a turn on that until told."""
    with Lifecycle.from_env() as keeper:
        keeper.open(id)
        try:
            with keeper.turn(id) as turn:
                journal.write("begun", generation=turn.sandbox.generation)
                while True:
                    turn.check()
                    time.sleep(0.05)
        except (SessionEnded, TurnExpired) as error:
            journal.write("refused", type=type(error).__name__, error=str(error))
        session = keeper.open(id)
        journal.write("open", generation=session.generation, reset_reason=session.reset_reason)
        with keeper.turn(id) as turn:
            journal.write("again", generation=turn.sandbox.generation, fresh=turn.session.fresh)
            journal.wait_until_told("end")
        journal.write("ended")


def eager(journal: Journal, *, ids: list[str]) -> None:
    """Celery without a worker: tasks run where they are called, by whoever calls them."""
    from tasks import app, reap_idle_sessions, ring

    app.conf.task_always_eager = True
    with Lifecycle.from_env(doorbell=ring) as keeper:
        for of in ids:
            keeper.open(of)
        journal.write("all_open")
        keeper.end(ids[0])
        journal.write("ended_one", state=keeper.get(ids[0]).sandbox.state.value)
        while any(keeper.get(of).sandbox.state.value != "gone" for of in ids):
            report = reap_idle_sessions.delay().get()
            if any(report.values()):
                journal.write("swept", report=report)
            time.sleep(0.2)
    journal.write("all_gone")


# Crashes at one instruction


def die() -> NoReturn:
    """kill -9 of ourselves: no handler, no finally, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Dying:
    """Stands before another object and kills the process when one of its methods has returned."""

    def __init__(self, real: object, method: str) -> None:
        self._real = real
        self._method = method

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return _and_die(found) if name == self._method else found


def _and_die(method: Callable[..., object]) -> Callable[..., NoReturn]:
    def call(*args: object, **kwargs: object) -> NoReturn:
        method(*args, **kwargs)
        die()

    return call


def _dies_before_launch(system: System, session_id: str) -> None:
    """Its folder is there, its process is not."""
    vars(local)["launch"] = lambda *_: die()
    _with(LocalProvider)(system, session_id)


def _dies_after_launch(system: System, session_id: str) -> None:
    """Its process runs, create() has not returned and holds its lock."""
    vars(local)["launch"] = _and_die(vars(local)["launch"])
    _with(LocalProvider)(system, session_id)


class DiesAfterCreate(LocalProvider):
    """Everything is done, and nobody hears of it."""

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        super().create(name, labels, spec, ttl=ttl, deadline=deadline)
        die()


def _with(provider: type[LocalProvider]) -> Callable[[System, str], None]:
    def act(system: System, session_id: str) -> None:
        made = provider.from_env(os.environ)
        Keeper(system.store, made).open(session_id)

    return act


def _store_dies(part: str, method: str) -> Callable[[System, str], None]:
    def act(system: System, session_id: str) -> None:
        setattr(system.store, part, Dying(getattr(system.store, part), method))
        keeper = system.keeper()
        keeper.open(session_id)
        keeper.turn(session_id).begin()

    return act


def _in_the_intents_transaction(system: System, session_id: str) -> None:
    with _dying_commit(system):
        system.keeper().open(session_id)


def _in_the_begins_transaction(system: System, session_id: str) -> None:
    keeper = system.keeper()
    keeper.open(session_id)
    # As one statement it is committed or it is not; the steps have a moment in between.
    system.store.turns._at_once = False
    with _dying_commit(system):
        keeper.turn(session_id).begin()


def _in_a_turn(system: System, session_id: str) -> None:
    with system.keeper() as keeper:
        keeper.open(session_id)
        with keeper.turn(session_id):
            begun = keeper.get(session_id).last_activity_at
            while keeper.get(session_id).last_activity_at == begun:
                time.sleep(0.05)
            die()  # a heartbeat was written: we were in the middle


@contextmanager
def _dying_commit(system: System) -> Iterator[None]:
    event.listen(system.engine, "commit", lambda _connection: die())
    yield


STEPS: Mapping[str, Callable[[System, str], None]] = {
    "before the intent is committed": _in_the_intents_transaction,
    "after the intent is committed": _store_dies("openings", "open"),
    "in create, before its process": _dies_before_launch,
    "in create, after its process": _dies_after_launch,
    "after create": _with(DiesAfterCreate),
    "after the record is committed": _store_dies("openings", "record"),
    "before the begin of a turn is committed": _in_the_begins_transaction,
    "after the begin of a turn is committed": _store_dies("turns", "begin"),
    "in a turn": _in_a_turn,
}


def _dies_before_start(system: System, session_id: str) -> None:
    """The engine has made its container, and nobody has started it."""
    setattr(import_module("docker").APIClient, "start", lambda *_, **__: die())  # noqa: B010
    system.keeper().open(session_id)


DOCKER_STEPS: Mapping[str, Callable[[System, str], None]] = {
    "between create and start": _dies_before_start,
}


def steps(journal: Journal, *, victims: Mapping[str, str], adopt: list[str]) -> None:
    """
    One process per victim (session id: step) dies at its step. Those in `adopt` are opened again
    at once by a process that outlives it. All are forked from here, because starting Python
    anew takes longer than a create deadline in these tests.
    """
    children = {_fork(journal, _victim, step, of): ("victim", of) for of, step in victims.items()}
    while children:
        pid, status = os.wait()
        kind, of = children.pop(pid)
        journal.write(kind, id=of, exit=os.waitstatus_to_exitcode(status))
        if kind == "victim" and of in adopt:
            children[_fork(journal, _adopter, journal, of)] = ("adopter", of)
    journal.write("all_dead")


def _fork(journal: Journal, child: Callable[..., None], *args: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            child(*args)
        except Exception as error:  # noqa: BLE001 - shown by the test that finds the exit code
            journal.write("failed", error=repr(error))
        finally:
            os._exit(7)  # a victim that got here was not killed
    return pid


def _victim(step: str, session_id: str) -> None:
    {**STEPS, **DOCKER_STEPS}[step](System.from_env(), session_id)


def _adopter(journal: Journal, session_id: str) -> None:
    session = System.from_env().keeper().open(session_id)
    journal.write(
        "adopted",
        id=session_id,
        generation=session.generation,
        fresh=session.fresh,
        name=session.sandbox.name,
        external_id=session.sandbox.external_id,
    )
    os._exit(0)


ROLES: Mapping[str, Callable[..., None]] = {
    "crowd": crowd,
    "hold": hold,
    "sleeper": sleeper,
    "eager": eager,
    "steps": steps,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](Journal(sys.argv[2]), **json.loads(sys.argv[3]))
