"""The policy: how far a look may be away, how long a pause is, what a duration may be."""

from __future__ import annotations

import math
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidArgument
from core.policy import Policy, duration
from core.settings import LONGEST
from tests import factories

seconds = st.floats(min_value=0.001, max_value=100_000, allow_nan=False)


def test_the_defaults_are_those_of_the_settings() -> None:
    """A Lifecycle without settings behaves as one with the default settings."""
    assert Policy() == Policy.from_settings(factories.settings())


def test_every_limit_comes_from_the_setting_of_its_name() -> None:
    """None is forgotten when the settings are read."""
    wanted = {
        "idle_ttl": 10.0,
        "max_age": 11.0,
        "max_turn": 12.0,
        "never_used_ttl": 12.5,
        "heartbeat": 0.5,
        "confirm_interval": 1.0,
        "create_deadline": 13.0,
        "claim_ttl": 14.0,
        "publish_lease": 15.0,
        "retry_base": 16.0,
        "retry_max": 17.0,
        "quarantine_after": 18,
        "quarantine_retry": 19.0,
        "retention": 100.0,
        "reconcile_interval": 21.0,
        "orphan_grace": 22.0,
        "breaker_min": 23,
        "breaker_ratio": 0.24,
        "late_after": 250.0,
        "longest_pin": 251.0,
        "backstop": 26.0,
        "batch": 20,
        "in_flight": 27,
        "provider_concurrency": 28,
    }

    found = Policy.from_settings(factories.settings(**wanted))

    assert {field.name: getattr(found, field.name) for field in fields(Policy)} == wanted


@given(idle=seconds, create=seconds, confirm=seconds, claim=seconds, lease=seconds, longest=seconds)
def test_no_date_that_we_write_is_further_away_than_the_longest(
    *, idle: float, create: float, confirm: float, claim: float, lease: float, longest: float
) -> None:
    """L1: what is further away was written by a clock that stepped back; the sweep clamps it."""
    policy = Policy(
        idle_ttl=idle,
        create_deadline=create,
        confirm_interval=confirm,
        claim_ttl=claim,
        publish_lease=lease,
        retry_max=longest,
    )

    assert policy.longest_look >= max(idle, create, confirm)
    assert policy.longest_pause >= max(claim, lease, longest, policy.quarantine_retry)
    for attempts in (1, 2, 7, 8, 1000):
        assert policy.pause(attempts, spread=0.0) <= policy.longest_pause


@given(attempts=st.integers(1, 10_000), spread=st.floats(0, 1, exclude_max=True))
def test_a_pause_is_jittered_downwards_and_never_nothing(*, attempts: int, spread: float) -> None:
    """F20: a herd of failures thins out; L3: and no row is ever retried in a hot loop."""
    policy = Policy()
    longest = policy.pause(attempts, spread=0.0)

    pause = policy.pause(attempts, spread=spread)

    assert longest / 2 <= pause <= longest
    assert pause >= policy.retry_base / 2


@given(failures=st.integers(0, 10_000), spread=st.floats(0, 1, exclude_max=True))
def test_an_outage_is_looked_at_again_within_a_limit(*, failures: int, spread: float) -> None:
    """L1: however long it lasts, what is due is torn down soon after its end."""
    policy = Policy()

    pause = policy.outage_pause(failures, spread=spread)

    assert policy.retry_base / 2 <= pause <= policy.retry_max


@given(idle=seconds, confirm=seconds, multiple=st.floats(min_value=3, max_value=1000))
def test_the_backstop_outlasts_the_session(idle: float, confirm: float, multiple: float) -> None:
    """S1: three quarters of it are left after the last activity; the session ends before that."""
    policy = Policy(confirm_interval=confirm, backstop=multiple)
    ttl = policy.backstop_ttl(idle)

    assert ttl is not None
    assert 0.75 * ttl >= idle + confirm
    assert Policy(backstop=None).backstop_ttl(idle) is None


def test_pauses_double_up_to_their_limit() -> None:
    """Then quarantine has its own."""
    policy = Policy(retry_base=1, retry_max=10, quarantine_after=6, quarantine_retry=50)

    pauses = [policy.pause(attempts, spread=0.0) for attempts in range(1, 8)]

    assert pauses == [1, 2, 4, 8, 10, 50, 50]


@pytest.mark.parametrize(("value", "found"), [(1, 1.0), (0.25, 0.25), (timedelta(hours=1), 3600.0)])
def test_a_duration_is_seconds(value: Any, found: float) -> None:
    """As a number or as a timedelta."""
    assert duration("idle_ttl", value) == found


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, True, None, "x", [], LONGEST + 1, timedelta.max]
)
def test_a_duration_that_makes_no_sense_is_refused(value: Any) -> None:
    """F24: with the name of what it was for."""
    with pytest.raises(InvalidArgument, match="idle_ttl"):
        duration("idle_ttl", value)
