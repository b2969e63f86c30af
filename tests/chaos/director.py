"""The director: a shuffled deck of faults, dealt again and again, and what has to follow later."""

from __future__ import annotations

import heapq
import itertools
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from core.model import KEY_ALPHABET, KEY_LENGTH, sandbox_labels, sandbox_name
from tests.chaos.crew import Crew
from tests.chaos.faults import CALM, FAILING, LIMITING, Chances
from tests.chaos.journal import Journal
from tests.chaos.stacks import Outage, Stack
from tests.chaos.timings import Timings

# Of the deck: in each round every card that takes one process, and every other of those that take
# something from all; or the database would be away for most of the time, and nothing be done that
# a fault could hit.
ROUNDS_IN_TEN_MINUTES = 23
SHORTEST_PAUSE, LONGEST_PAUSE = 0.6, 2.5  # seconds between two cards
GLANCE = 0.05
VANISHES_EVERY = (6.0, 18.0)  # seconds
PLANTS_EVERY = (4.0, 12.0)
MOST_ORPHANS = 3


@dataclass(frozen=True, kw_only=True)
class Card:
    """One fault. Two cards of one area are not in play at the same time."""

    kind: str
    area: str
    play: Callable[[], float]  # how many seconds it lasts
    hits_all: bool = False


class Director:
    """Plays for so many seconds, then heals. One thread: everything is in one order."""

    def __init__(
        self,
        crew: Crew,
        stack: Stack,
        timings: Timings,
        journal: Journal,
        *,
        installation: str,
        chances: Chances,
        chance: random.Random,
        only: Sequence[str] = (),
    ) -> None:
        self.crew = crew
        self.stack = stack
        self.timings = timings
        self.journal = journal
        self.installation = installation
        self.chances = chances
        self.chance = chance
        self._busy: dict[str, float] = {}
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._likeness = itertools.count()
        self._played = 0
        self._cards = [card for card in self._all_cards() if not only or card.kind in only]
        self._hitting_all = [card for card in self._cards if card.hits_all]
        self._other_half: list[Card] | None = None

    def play(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Faults, for so long."""
        end = time.monotonic() + seconds
        rounds = max(1, round(ROUNDS_IN_TEN_MINUTES * seconds / 600))
        pause = seconds / (rounds * (len(self._cards) - len(self._hitting_all) / 2))
        pause = min(max(SHORTEST_PAUSE, pause), LONGEST_PAUSE)
        self.crew.cloud("chances", **self.chances)
        self._soon(0.0, self._plant)
        self._soon(self._between(*VANISHES_EVERY) / 3, self._vanish)
        self._soon(0.0, lambda: self._deal([], pause))
        self._soon(5.0, lambda: self._say(seconds - (end - time.monotonic()), tell))
        while time.monotonic() < end:
            self._do_what_is_due()
            time.sleep(GLANCE)

    def heal(self) -> None:
        """No more faults: everything that was taken away is there again."""
        self._later.clear()
        self.journal.write("commits_cut", count=self.stack.commits_cut())
        self.stack.heal()
        for member in list(self.crew.members.values()):
            self.crew.resume(member)
        self.crew.refill()
        self.crew.wait_for_cloud()
        self.crew.cloud("chances", **CALM)
        self.crew.finish()
        self.journal.write("healed")

    def _say(self, since: float, tell: Callable[[str], None]) -> None:
        alive = sum(member.runs for member in self.crew.members.values())
        tell(f"{since:5.0f} s  {alive} processes, {self._played} faults besides the cloud's")
        self._soon(10.0, lambda: self._say(since + 10, tell))

    # The deck

    def _deal(self, deck: list[Card], pause: float) -> None:
        """Play the first card whose area is free, and come back."""
        if not deck:
            deck = self._next_round()
        now = time.monotonic()
        for card in list(deck):
            if self._busy.get(card.area, 0.0) <= now and self._play(card):
                deck.remove(card)
                break
        self._soon(pause * self.chance.uniform(0.6, 1.4), lambda: self._deal(deck, pause))

    def _next_round(self) -> list[Card]:
        half, self._other_half = self._other_half, None
        if half is None:
            all_of_them = self.chance.sample(self._hitting_all, len(self._hitting_all))
            middle = len(all_of_them) // 2
            half, self._other_half = all_of_them[:middle], all_of_them[middle:]
        deck = [card for card in self._cards if not card.hits_all] + half
        return self.chance.sample(deck, len(deck))

    def _play(self, card: Card) -> bool:
        """False when there was nobody to play it on: another card, then."""
        began = time.monotonic()
        try:
            lasts = card.play()
        except LookupError:
            return False
        except Exception as error:  # noqa: BLE001 - a fault that could not be made is no fault
            self.journal.write("fault_failed", kind=card.kind, error=repr(error))
            return True
        self._played += 1
        self._busy[card.area] = time.monotonic() + lasts
        self.journal.write("fault", kind=card.kind, since=began, seconds=lasts)
        return True

    def _all_cards(self) -> list[Card]:
        stopped = self.timings.silence
        cards = [
            Card(
                kind=f"{role}_killed",
                area=role,
                play=partial(self._kill, role),
                hits_all=role == "cloud",
            )
            for role in ("worker", "beat", "client", "cloud")
        ]
        cards += [
            Card(kind="all_killed", area="all", play=self._kill_all, hits_all=True),
            Card(
                kind="client_stopped_past_ttl",
                area="stop",
                play=lambda: self._stop("client", stopped + 1.5, stopped + 3.0),
            ),
            Card(
                kind="client_stopped_briefly",
                area="stop",
                play=lambda: self._stop("client", 0.5, 0.5 * self.timings["IDLE_TTL"]),
            ),
            Card(
                kind="worker_stopped_past_claim",
                area="stop",
                play=lambda: self._stop(
                    "worker", self.timings["CLAIM_TTL"] + 0.5, self.timings["CLAIM_TTL"] + 3.0
                ),
            ),
            Card(kind="beat_stopped", area="stop", play=lambda: self._stop("beat", 2.0, 5.0)),
        ]
        if self.chances:
            # Each refusal halves the pace of the fleet, which recovers in tens of seconds: so many
            # of them as an hour has would stop all teardowns in a world where a minute is one.
            cards += [
                self._mood("cloud_limits", LIMITING, 0.5, 1.5),
                self._mood("cloud_fails", FAILING, 2.0, self.timings["CLAIM_TTL"] + 2.0),
            ]
        return cards + [self._outage(outage) for outage in self.stack.outages()]

    def _mood(self, kind: str, mood: Chances, low: float, high: float) -> Card:
        """The whole cloud has trouble for some seconds."""

        def play() -> float:
            lasts = self._between(low, high)
            self._become(mood)
            self._soon(lasts, lambda: self._become(self.chances))
            return lasts

        return Card(kind=kind, area="mood", play=play, hits_all=True)

    def _become(self, chances: Chances) -> None:
        try:
            self.crew.cloud("chances", **chances)
        except OSError:  # it is down: it will be as it was, and hear of it then
            self._soon(0.5, lambda: self._become(chances))

    def _outage(self, outage: Outage) -> Card:
        area = outage.kind.partition("_")[0].replace("commit", "database")

        def play() -> float:
            low, high = outage.seconds
            extra = self.timings.silence if outage.past_ttl else 0.0
            lasts = self._between(low, high) + extra
            if area == "clock":
                self.journal.write("clock_stepped", by=outage.kind)
            outage.begin()
            if lasts:
                self._soon(lasts, lambda: self._over(outage))
            return lasts

        return Card(kind=outage.kind, area=area, play=play, hits_all=True)

    def _over(self, outage: Outage) -> None:
        try:
            outage.end()
        except Exception:  # again until it is over, or heal() ends everything
            self._soon(1.0, lambda: self._over(outage))
            raise
        self.journal.write("fault_over", kind=outage.kind)

    # Processes

    def _kill(self, role: str) -> float:
        there = self.crew.of(role)
        if not there:
            raise LookupError(f"no {role} runs")
        member = self.chance.choice(there)
        self.crew.kill(member)
        away = self._between(0.0, 1.5)
        self._soon(away, lambda: self.crew.fill(member.role, member.place))
        return away

    def _kill_all(self) -> float:
        """Everybody, at once as far as that goes; the database too where it is ours alone."""
        killed = [member for member in self.crew.members.values() if member.runs]
        for member in killed:
            self.crew.kill(member)
            member.stopped = False
        away = self._between(0.2, self.timings.silence + 1.0)
        for member in killed:
            self._soon(away, partial(self.crew.fill, member.role, member.place))
        for outage in self.stack.outages():
            if outage.kind == "database_kill" and self._busy.get("database", 0) < time.monotonic():
                outage.begin()
                self._busy["database"] = time.monotonic() + away
                self._soon(away / 2, partial(self._over, outage))
        return away + 10.0  # not again before they have done some work

    def _stop(self, role: str, low: float, high: float) -> float:
        there = self.crew.of(role)
        if not there:
            raise LookupError(f"no {role} runs")
        member = self.chance.choice(there)
        self.crew.stop(member)
        lasts = self._between(low, high)
        self._soon(lasts, lambda: self.crew.resume(member))
        return lasts

    # At the cloud

    def _vanish(self) -> None:
        """A sandbox dies by itself: no turn that holds it has been harmed by us."""
        with suppress(OSError):  # the cloud may be down
            name = self.crew.cloud("vanish", **{"sandkeeper-installation": self.installation})
            if name is not None:
                self.journal.write("fault", kind="vanished", name=name)
        self._soon(self._between(*VANISHES_EVERY), self._vanish)

    def _plant(self) -> None:
        """Sandboxes that are not ours, and some that are ours and have no row."""
        with suppress(OSError):  # the cloud may be down
            there = [box for box in self.crew.cloud("boxes") if box["planted"] == "orphan"]
            kinds = ["foreign", "foreign"]
            # A few at a time: many at once mean that rows were lost, and wait for an operator.
            if len(there) < MOST_ORPHANS:
                kinds.append("orphan")
            for kind in kinds:
                name, labels = self._rowless() if kind == "orphan" else self._foreign()
                self.crew.cloud("plant", name=name, labels=labels, kind=kind)
                self.journal.write("fault", kind=f"planted_{kind}", name=name)
        self._soon(self._between(*PLANTS_EVERY), self._plant)

    def _rowless(self) -> tuple[str, dict[str, str]]:
        """Ours to the letter, and no row has this key: the row was lost."""
        key = self._key()
        labels = sandbox_labels(self.installation, key, "lost", 1, datetime.now(UTC))
        return sandbox_name(self.installation, key), labels

    def _key(self) -> str:
        return "".join(self.chance.choices(KEY_ALPHABET, k=KEY_LENGTH))

    def _foreign(self) -> tuple[str, dict[str, str]]:
        """Somebody else's, and often very like ours."""
        name, labels = self._rowless()
        other = self.installation[::-1] + "x"
        likenesses: list[tuple[str, dict[str, str]]] = [
            (f"web-{next(self._numbers)}", {}),
            (name, {}),
            (name, {"team": "search"}),
            (
                sandbox_name(other[:8], self._key()),
                {**labels, "sandkeeper-installation": other[:8]},
            ),
            (name, {**labels, "sandkeeper-installation": f"{self.installation}2"}),
            (name, {**labels, "sandkeeper-schema": "2"}),
            (name, {k: v for k, v in labels.items() if k != "sandkeeper-key"}),
            (name, {k: v for k, v in labels.items() if k != "sandkeeper-generation"}),
            (name, {"sandkeeper-installation": self.installation}),
        ]
        return likenesses[next(self._likeness) % len(likenesses)]

    # Time

    def _between(self, low: float, high: float) -> float:
        return self.chance.uniform(low, high)

    def _soon(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), act))

    def _do_what_is_due(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            _, _, act = heapq.heappop(self._later)
            try:
                act()
            except Exception as error:  # noqa: BLE001 - the rest of the play goes on
                self.journal.write("fault_failed", kind="later", error=repr(error))
        self._replace_the_dead()

    def _replace_the_dead(self) -> None:
        """
        Who ended without having been killed, because it found no database when it started. Those
        that were killed come back when their time has come: until then their place is empty.
        """
        for member in list(self.crew.members.values()):
            code = member.program.exit_code
            if code not in (None, -signal.SIGKILL):
                self.journal.write("exited", name=member.program.name, code=code)
                self.crew.fill(member.role, member.place)
