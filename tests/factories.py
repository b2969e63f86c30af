"""Values of the domain with everything filled in: a test says only what it is about."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import datetime
from secrets import randbits
from typing import Any

from core.model import Claim, Intent, new_key, sandbox_labels, sandbox_name
from core.policy import Policy
from core.settings import Settings
from tests.fakes import FrozenClock

INSTALLATION = "testtest"

_numbers = itertools.count(1)


def session_id(prefix: str = "conv") -> str:
    """An id that no other test of this run has."""
    return f"{prefix}-{next(_numbers)}"


def settings(**overrides: object) -> Settings:
    """Settings with their defaults. Names are those of the fields."""
    return Settings.model_validate(overrides)


def policy(**overrides: Any) -> Policy:
    """The default policy. Durations are seconds; with a frozen clock they cost nothing."""
    return Policy(**overrides)


def labels(**overrides: str) -> dict[str, str]:
    """The labels of one of our sandboxes; overrides are named without `sandkeeper_`."""
    ours = sandbox_labels(INSTALLATION, new_key(randbits), session_id(), 1, FrozenClock().now)
    named = {f"sandkeeper-{name.replace('_', '-')}": value for name, value in overrides.items()}
    return {**ours, **named}


def stray(
    installation: str = INSTALLATION, *, made_at: datetime | None = None
) -> tuple[str, dict[str, str]]:
    """Name and labels of a sandbox of that installation that no row knows."""
    key = new_key(randbits)
    moment = made_at or FrozenClock().now
    of = sandbox_labels(installation, key, session_id(), 1, moment)
    return sandbox_name(installation, key), of


def intent(**overrides: Any) -> Intent:
    """A sandbox row as a create sees it."""
    key = overrides.get("key", new_key(randbits))
    of = overrides.get("session_id", session_id())
    generation = overrides.get("generation", 1)
    given: Mapping[str, Any] = {
        "session_id": of,
        "generation": generation,
        "key": key,
        "name": sandbox_name(INSTALLATION, key),
        "labels": sandbox_labels(INSTALLATION, key, of, generation, FrozenClock().now),
        "provider": "fake",
        "scope": "test-account",
        "seconds_left": 300.0,
    }
    return Intent(**{**given, **overrides})


def claim(**overrides: Any) -> Claim:
    """A worker's right to tear one sandbox down, as a teardown sees it."""
    key = overrides.get("key", new_key(randbits))
    given: Mapping[str, Any] = {
        "key": key,
        "token": 1,
        "name": sandbox_name(INSTALLATION, key),
        "session_id": session_id(),
        "generation": 1,
        "provider": "fake",
        "scope": "test-account",
        "external_id": None,
        "attempts": 0,
    }
    return Claim(**{**given, **overrides})
