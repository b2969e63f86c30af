"""The evidence of one run, sorted for the questions that are asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from core.model import EndReason
from tests.chaos.evidence import (
    Box,
    Evidence,
    Key,
    Pause,
    Trust,
    boxes,
    clock_steps,
    database_back,
    pauses,
    trusts,
)
from tests.chaos.journal import Line


class Case:
    """What was found, each thing worked out once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.timings = evidence.timings

    @cached_property
    def boxes(self) -> list[Box]:
        return boxes(self.evidence.cloud)

    @cached_property
    def trusts(self) -> list[Trust]:
        return trusts(self.evidence)

    @cached_property
    def pauses(self) -> Mapping[str, Sequence[Pause]]:
        return pauses(self.evidence)

    @cached_property
    def names(self) -> Mapping[str, Key]:
        return self.evidence.names()

    @cached_property
    def kills(self) -> list[tuple[Box, float]]:
        """Sandboxes that were destroyed by a call, and when."""
        return [(b, b.died) for b in self.boxes if b.why == "destroyed" and b.died is not None]

    @cached_property
    def ids(self) -> Mapping[Key, str | None]:
        """The cloud's id of each generation's sandbox, None where it was never recorded."""
        return {
            (row["session_id"], row["generation"]): row["external_id"]
            for row in self.evidence.sandboxes
        }

    def key(self, box: Box) -> Key | None:
        """
        Whose sandbox it is. None for one that no row explains: also for a second one of the same
        name, which a create that landed late has made.
        """
        key = self.names.get(box.name)
        return key if key is not None and self.ids[key] in {None, box.id} else None

    @cached_property
    def reasons(self) -> Mapping[Key, str]:
        """Why each generation ended, by the ledger."""
        return {
            (event["session_id"], event["generation"]): event["detail"]["reason"]
            for event in self.evidence.events
            if event["kind"] == "session_ended"
        }

    @cached_property
    def requests(self) -> Mapping[str, float]:
        """Every reason that a caller gave to end(), and since when."""
        return {
            line["reason"]: line["at"]
            for line in self.evidence.all_clients()
            if line["what"] == "end_asked"
        }

    @cached_property
    def by_key(self) -> Mapping[Key, Sequence[Line]]:
        """What was acknowledged to callers about each generation."""
        found: dict[Key, list[Line]] = {}
        turns = {trust.turn: trust.key for trust in self.trusts}
        for line in self.evidence.all_clients():
            if line["what"] in {"open", "touch", "begun", "extend"}:
                if line["generation"] is not None:
                    found.setdefault((line["id"], line["generation"]), []).append(line)
            elif line["what"] == "ended" and line["turn"] in turns:
                found.setdefault(turns[line["turn"]], []).append(line)
        return found

    @cached_property
    def steps(self) -> Sequence[float]:
        faults = (line["kind"] for line in self.evidence.director if line["what"] == "fault")
        return clock_steps(self.evidence) if any(f.startswith("clock") for f in faults) else ()

    @cached_property
    def healed(self) -> float:
        moments = [line["at"] for line in self.evidence.director if line["what"] == "healed"]
        return float(moments[0]) if moments else float("inf")

    def stepped(self, since: float, until: float) -> bool:
        return any(since <= step <= until for step in self.steps)

    def asked_for(self, key: Key, moment: float) -> bool:
        """Whether a caller had asked for exactly this end."""
        return self.requests.get(self.reasons.get(key, ""), float("inf")) <= moment

    @cached_property
    def deaths_in_turns(self) -> list[tuple[Box, Trust]]:
        """Sandboxes that were destroyed or that expired, each with a turn that relied on it."""
        held: dict[str, list[Trust]] = {}
        for trust in self.trusts:
            held.setdefault(trust.external_id, []).append(trust)
        return [
            (box, trust)
            for box in self.boxes
            for trust in held.get(box.id, ())
            if box.died is not None and box.why != "vanished" and self._harmed(trust, box.died)
        ]

    def _harmed(self, trust: Trust, moment: float) -> bool:
        if not trust.begun <= moment < trust.until:
            return False
        excused = self.asked_for(trust.key, moment) or self.too_old(trust.key, moment)
        return not excused and not self._suspended(trust, moment)

    def _suspended(self, trust: Trust, moment: float) -> bool:
        """Whether its holder was kept from living for so long that it does not count as alive."""
        confirm = self.timings.confirm
        for pause in self.pauses.get(trust.client, ()):
            if pause.since > moment:
                break
            proof = trust.last_proof(pause.since)
            awake_again = any(
                asked >= pause.until + confirm and at <= moment for asked, at in trust.beats
            )
            if self._asleep(trust.client, proof, moment) and not awake_again:
                return True
        return False

    def _asleep(self, client: str, proof: float, moment: float) -> bool:
        """For an idle TTL, or since a step of the clock for all of the time between two looks."""
        pauses = self.pauses[client]
        stepped = [step for step in self.steps if proof <= step <= moment]
        if stepped and sum(p.within(stepped[-1], moment) for p in pauses) >= self.timings.confirm:
            return True
        if moment < proof + self.timings.silence:
            return False
        asleep = sum(p.within(proof, moment) for p in pauses)
        return asleep >= self.timings["IDLE_TTL"] or self._missed(client, proof, moment)

    def _missed(self, client: str, proof: float, moment: float) -> bool:
        """
        It was silent because the database was away, and asleep when it came back: from before its
        first heartbeat was due, for all of the time between two looks.
        """
        return any(
            pause.since <= back + self.timings["HEARTBEAT"]
            and pause.within(back, moment) >= self.timings.confirm
            for back in database_back(self.evidence)
            if proof <= back <= moment
            for pause in self.pauses[client]
        )

    def too_old(self, key: Key, moment: float) -> bool:
        """Whether it ended for its max age, and that had come by our clock or by a stepped one."""
        if self.reasons.get(key) != EndReason.MAX_AGE:
            return False
        for line in self.by_key.get(key, ()):
            if line["what"] == "open" and line["max_age"] is not None:
                old = line["asked"] + line["max_age"] <= moment
                return old or self.stepped(line["asked"], moment)
        return True  # a caller whose open was never acknowledged had asked for a max age
