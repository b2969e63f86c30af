"""What decides when: the limits of a session and the rhythm of the system, both checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from .errors import InvalidArgument, SettingsError
from .settings import LONGEST, Settings, check_rhythm


@dataclass(frozen=True, kw_only=True)
class Policy:
    """
    Durations in seconds. The first four are defaults that layers.py and open() may override; the
    rest is the rhythm that every process of an installation must share.
    """

    idle_ttl: float = 1800.0
    max_age: float | None = None
    max_turn: float = 21600.0
    never_used_ttl: float | None = None
    heartbeat: float = 15.0
    confirm_interval: float = 60.0
    create_deadline: float = 300.0
    claim_ttl: float = 120.0
    publish_lease: float = 60.0
    retry_base: float = 5.0
    retry_max: float = 300.0
    quarantine_after: int = 8
    quarantine_retry: float = 900.0
    retention: float = 2592000.0
    reconcile_interval: float = 300.0
    orphan_grace: float = 600.0
    breaker_min: int = 25
    breaker_ratio: float = 0.2
    late_after: float = 180.0
    backstop: float | None = 4.0
    longest_pin: float = 604800.0
    batch: int = 500
    in_flight: int = 1000
    provider_concurrency: int | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Policy:
        """The policy that these settings describe."""
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    def check(self) -> None:
        """SettingsError when its parts do not fit each other, as when settings do not."""
        try:
            check_rhythm(self)
        except ValueError as error:
            raise SettingsError(f"policy: {error}") from error

    @property
    def longest_look(self) -> float:
        """
        No look at an active session is further away than this. The sweep re-arms in steps of at
        most `idle_ttl`, so a date beyond it can only come from a clock that stepped back.
        """
        return max(self.idle_ttl, self.create_deadline, self.confirm_interval)

    @property
    def longest_pause(self) -> float:
        """No look at a closing sandbox is further away than this, a Retry-After included."""
        return max(
            self.create_deadline,
            self.claim_ttl,
            self.publish_lease,
            self.retry_max,
            self.quarantine_retry,
        )

    @property
    def in_flight_bound(self) -> int:
        """
        Teardowns of one provider that may be published and not done. What cannot be called anyway
        is of no use in the broker.
        """
        return min(self.in_flight, self.provider_concurrency or self.in_flight)

    @property
    def attempt_budget(self) -> float:
        """Seconds that the calls of one teardown may take: the rest of its claim is for the row."""
        return 0.8 * self.claim_ttl

    @property
    def reconcile_budget(self) -> float:
        """Seconds that one comparison with a provider may take, its calls included."""
        return 0.8 * max(60.0, self.reconcile_interval)

    def backstop_ttl(self, idle_ttl: float) -> float | None:
        """
        The TTL that a provider is asked for. After the last heartbeat at least three quarters of
        it are left, which outlast the idle TTL, the confirmation and the teardown.
        """
        if self.backstop is None:
            return None
        return self.backstop * (max(idle_ttl, self.confirm_interval) + self.confirm_interval)

    @property
    def extend_interval(self) -> float:
        """Seconds between two looks for TTLs that have to be extended."""
        return max(self.heartbeat, (self.backstop or 0.0) * self.confirm_interval / 8)

    @property
    def extend_claim(self) -> float:
        """Seconds that one process has to extend one TTL, before another may."""
        return min(30.0, (self.backstop or 0.0) * self.confirm_interval / 8)

    def pin_length(self, wished: timedelta | float) -> float:
        """Seconds that a pin lasts; InvalidArgument when they make no sense, or are too many."""
        seconds = duration("for", wished)
        if seconds > self.longest_pin:
            raise InvalidArgument(
                f"for {wished!r}: a pin is at most {self.longest_pin:g} seconds long "
                "(LONGEST_PIN): pin it again before it is over"
            )
        return seconds

    def pause(self, attempts: int, *, spread: float) -> float:
        """
        Seconds until the next attempt of a teardown that has failed `attempts` times. `spread` in
        [0, 1) is the jitter: it takes off up to half, so that a herd of failures thins out.
        """
        if attempts >= self.quarantine_after:
            longest = self.quarantine_retry
        else:
            longest = min(self.retry_max, self.retry_base * 2.0 ** min(attempts - 1, 32))
        return longest * (1.0 - spread / 2.0)

    def limit_pause(self, wished: float | None, *, spread: float) -> float:
        """Seconds without calls after a rate limit: the Retry-After, if it is one, in bounds."""
        if wished is None or math.isnan(wished):
            wished = self.pause(1, spread=spread)
        return min(max(wished, self.retry_base), self.longest_pause)

    def outage_pause(self, failures: int, *, spread: float) -> float:
        """Seconds that a circuit stays open after so many failures in a row; jittered."""
        longest = min(self.retry_max, self.retry_base * 2.0 ** min(max(0, failures - 5), 32))
        return longest * (1.0 - spread / 2.0)


def duration(name: str, value: timedelta | float) -> float:
    """Seconds from a timedelta or a number; InvalidArgument unless it is a sane limit."""
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"{name} {value!r}: give a timedelta or seconds") from error
    if isinstance(value, bool) or not math.isfinite(seconds) or not 0 < seconds <= LONGEST:
        raise InvalidArgument(f"{name} {value!r}: must be more than 0 and at most ten years")
    return seconds
