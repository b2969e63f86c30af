"""The settings of the system under test, in the order of a second, and the bounds that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SETTINGS: Mapping[str, float] = {
    "IDLE_TTL": 4.0,
    "SWEEP_INTERVAL": 1.0,
    "CONFIRM_INTERVAL": 1.0,
    "HEARTBEAT": 0.4,
    "CREATE_DEADLINE": 6.0,
    "CLAIM_TTL": 4.0,
    "PUBLISH_LEASE": 1.5,
    "RETRY_BASE": 0.5,
    "RETRY_MAX": 3.0,
    "QUARANTINE_AFTER": 6,
    "QUARANTINE_RETRY": 3.0,
    "RECONCILE_INTERVAL": 3.0,
    "ORPHAN_GRACE": 8.0,
    # Mass faults make mass ends, which no operator is here to approve.
    "BREAKER_MIN": 10_000,
}


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What the run and its judge know of time. Seconds."""

    settings: Mapping[str, float]
    longest_extension: float = 9.0  # that a client asks for
    slack: float = 15.0  # a machine that others keep busy: process starts, reconnections

    @classmethod
    def of(cls, overrides: Mapping[str, float]) -> Timings:
        """The usual ones, with these changes."""
        return cls(settings={**SETTINGS, **overrides})

    def __getitem__(self, name: str) -> float:
        return self.settings[name]

    @property
    def confirm(self) -> float:
        """Between two looks at a session that shows no activity."""
        return self["CONFIRM_INTERVAL"]

    @property
    def silence(self) -> float:
        """Without activity for so long, and not sooner, a session may be ended for idleness."""
        return self["IDLE_TTL"] + self["CONFIRM_INTERVAL"]

    @property
    def teardown(self) -> float:
        """One teardown: a claim and a pause that were taken at the last moment, and an attempt."""
        pause = max(self["RETRY_MAX"], self["QUARANTINE_RETRY"])
        return self["CLAIM_TTL"] + pause + self["PUBLISH_LEASE"]

    @property
    def bound(self) -> float:
        """L1 and L4: when everything is gone, counted from the end of the faults."""
        kept = max(self["IDLE_TTL"], self["CREATE_DEADLINE"], self.longest_extension)
        sweeps = 3 * self["SWEEP_INTERVAL"] + self["CONFIRM_INTERVAL"]
        # Seen twice, and a pass that fails in between.
        orphans = self["ORPHAN_GRACE"] + 3 * self["RECONCILE_INTERVAL"]
        return max(kept, orphans) + sweeps + self.teardown + self.slack
