"""
An API server: `python -m tests.chaos.client <name> <journal> <seed> <threads>`.

Each thread plays one conversation after another until the file `<journal>.finish` is there. What
Lifecycle acknowledged is written down at once, what is about to be asked is written down before:
`asked` is when the call began, so an effect is between it and `at`. A turn is trusted from `begun`
until `ending` or `lost`.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from core import SandkeeperError
from core.lifecycle import Keeper
from core.model import Session
from core.turn import Turn
from core.wiring import System
from tasks import ring
from tests.chaos.journal import Journal

PULSE = 0.2  # seconds between two proofs that this process gets to run
STARVED = 0.7  # seconds that one of them may be late before it is written down
STEP = 0.1  # seconds between two looks at whether to finish
OWN, SHARED = 4, 12  # conversations of one thread, and of all clients together

Beat = Callable[[Sequence[str]], dict[str, SandkeeperError]]


class Server:
    """What the threads of one process share."""

    def __init__(self, name: str, journal: Path) -> None:
        self.name = name
        self.journal = Journal(journal)
        self._finish = Path(f"{journal}.finish")
        system = System.from_env()
        # Before the keeper is made, which hands it to its beater.
        setattr(system.store.turns, "beat", self._witnessed(system.store.turns.beat))  # noqa: B010
        self.keeper: Keeper = system.keeper(ring)
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def finishing(self) -> bool:
        return self._finish.exists()

    def rest(self, seconds: float) -> bool:
        """Let time pass; False as soon as it is time to finish."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.finishing():
                return False
            time.sleep(min(STEP, left))
        return True

    def _witnessed(self, beat: Beat) -> Beat:
        def witnessed(turn_ids: Sequence[str]) -> dict[str, SandkeeperError]:
            asked = time.monotonic()
            refused = beat(turn_ids)
            kept = [turn_id for turn_id in turn_ids if turn_id not in refused]
            self.journal.write("beat", asked=asked, turns=kept)
            return refused

        return witnessed

    def _pulse(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(PULSE)
            if time.monotonic() - before > PULSE + STARVED:
                self.journal.write("starved", since=before)


class Conversation:
    """One session in the hands of one thread. `own`: nobody else opens it or ends it."""

    def __init__(
        self, server: Server, session_id: str, chance: random.Random, *, own: bool
    ) -> None:
        self.server = server
        self.id = session_id
        self.chance = chance
        self.own = own
        self.generation = 0
        self._journal = server.journal
        self._keeper = server.keeper

    # Calls, each with what it wrote

    def open(self, max_age: float | None = None) -> Session | None:
        asked = time.monotonic()
        try:
            session = self._keeper.open(self.id, max_age=max_age)
        except SandkeeperError as error:
            self._refused("open", error)
            return None
        self.generation = session.generation
        self._journal.write(
            "open",
            asked=asked,
            id=self.id,
            generation=session.generation,
            name=session.sandbox.name,
            external_id=session.sandbox.external_id,
            max_age=session.max_age,
        )
        return session

    def touch(self) -> None:
        asked = time.monotonic()
        try:
            self._keeper.touch(self.id)
        except SandkeeperError as error:
            self._refused("touch", error)
            return
        generation = self.generation if self.own else None
        self._journal.write("touch", asked=asked, id=self.id, generation=generation)

    def extend(self, seconds: float) -> None:
        asked = time.monotonic()
        try:
            session = self._keeper.extend(self.id, seconds)
        except SandkeeperError as error:
            self._refused("extend", error)
            return
        until = session.extended_until  # bounded by the max age, if it has one
        granted = seconds if until is None else (until - session.seen_at).total_seconds()
        self._journal.write(
            "extend",
            asked=asked,
            id=self.id,
            generation=session.generation,
            seconds=min(seconds, granted),
        )

    def end(self) -> None:
        reason = f"asked by {self.server.name} at {time.monotonic():.6f}"
        self._journal.write("end_asked", id=self.id, reason=reason)
        try:
            self._keeper.end(self.id, reason=reason)
        except SandkeeperError as error:
            self._refused("end", error)
            return
        self._journal.write("end", id=self.id, reason=reason)

    def turn(self, seconds: float, *, chatty: bool) -> None:
        turn = self._keeper.turn(self.id)
        turn.lost.on(lambda error: self._lost(turn, error))
        asked = time.monotonic()
        try:
            turn.begin()
        except SandkeeperError as error:
            self._refused("turn", error)
            return
        self._journal.write(
            "begun",
            asked=asked,
            turn=turn.id,
            id=self.id,
            generation=turn.sandbox.generation,
            name=turn.sandbox.name,
            external_id=turn.sandbox.external_id,
            ceiling=turn._ceiling,
        )
        self._work(turn, seconds, chatty=chatty)
        asked = self._journal.write("ending", turn=turn.id)["at"]
        try:
            turn.end()
        except SandkeeperError as error:
            self._refused("end of turn", error)
            return
        self._journal.write("ended", asked=asked, turn=turn.id)

    def _work(self, turn: Turn, seconds: float, *, chatty: bool) -> None:
        """Silent work says nothing at all: only the heartbeats of the process keep it alive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not turn.lost.is_set() and self.server.rest(STEP):
            if chatty:
                try:
                    turn.check()
                except SandkeeperError:
                    return

    def _lost(self, turn: Turn, error: SandkeeperError) -> None:
        self._journal.write("lost", turn=turn.id, error=type(error).__name__)

    def _refused(self, call: str, error: SandkeeperError) -> None:
        self._journal.write("refused", call=call, id=self.id, error=type(error).__name__)

    # Ways to talk. `ttl` is the idle TTL

    def short_turns(self, ttl: float) -> None:
        if self.open():
            for _ in range(self.chance.randint(1, 4)):
                self.turn(self.chance.uniform(0.02, 0.6), chatty=False)

    def long_silent_turn(self, ttl: float) -> None:
        if self.open():
            self.turn(ttl * self.chance.uniform(1.5, 4.0), chatty=False)

    def long_chatty_turn(self, ttl: float) -> None:
        if self.open():
            self.turn(ttl * self.chance.uniform(1.0, 2.5), chatty=True)

    def at_the_edge(self, ttl: float) -> None:
        """Come back just when the reaper does: either is refused, or waits for the other."""
        if self.open():
            for _ in range(2):
                if self.server.rest(ttl + self.chance.uniform(-0.3, 2.2)):
                    how = self.chance.choice([self.touch, self._extend_a_little, self._brief_turn])
                    how()

    def extended(self, ttl: float) -> None:
        """Ask to be kept, then be silent beyond it."""
        if self.open():
            seconds = ttl * self.chance.uniform(1.3, 2.2)
            self.extend(seconds)
            self.server.rest(seconds * 0.8)

    def ended(self, ttl: float) -> None:
        if self.open():
            self.turn(self.chance.uniform(0.02, 0.5), chatty=False)
            self.end()

    def aged(self, ttl: float) -> None:
        if self.open(max_age=ttl * self.chance.uniform(0.8, 2.0)):
            self.turn(ttl * self.chance.uniform(0.5, 3.0), chatty=self.chance.random() < 0.5)

    def forgotten(self, ttl: float) -> None:
        self.open()
        self.server.rest(self.chance.uniform(0.1, 1.0))

    def _brief_turn(self) -> None:
        self.turn(self.chance.uniform(0.05, 1.0), chatty=False)

    def _extend_a_little(self) -> None:
        self.extend(self.chance.uniform(1.0, 5.0))


WAYS = {
    Conversation.short_turns: 3,
    Conversation.long_silent_turn: 5,
    Conversation.long_chatty_turn: 2,
    Conversation.at_the_edge: 4,
    Conversation.extended: 2,
    Conversation.ended: 2,
    Conversation.aged: 1,
    Conversation.forgotten: 2,
}


def talk(server: Server, number: int, seed: str) -> None:
    """One thread: conversations until it is time to finish."""
    chance = random.Random(f"{seed}/{number}")
    ttl = server.keeper.policy.idle_ttl
    own = [f"{server.name}-{number}-{n}" for n in range(OWN)]
    shared = [f"shared-{n}" for n in range(SHARED)]
    while not server.finishing():
        mine = chance.random() < 0.75
        session_id = chance.choice(own if mine else shared)
        way = chance.choices(list(WAYS), list(WAYS.values()))[0]
        try:
            way(Conversation(server, session_id, chance, own=mine), ttl)
        except Exception as error:
            server.journal.write("crashed", error=repr(error))
            raise
        time.sleep(chance.uniform(0.02, 0.3))


def main(name: str, journal: Path, seed: str, threads: int) -> None:
    """Talk until told to finish, and say that all threads did."""
    server = Server(name, journal)
    server.journal.write("ready")
    talking = [
        threading.Thread(target=talk, args=(server, number, seed), name=f"talk-{number}")
        for number in range(threads)
    ]
    for thread in talking:
        thread.start()
    for thread in talking:
        thread.join()
    server.journal.write("finished")
    server.keeper.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
