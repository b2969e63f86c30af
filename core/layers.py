"""
The limits of a session in layers: installation < tenant < profile < what open() was given. Each may
leave a limit open, and then the one below it decides; at the bottom are the settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .errors import InvalidArgument
from .model import TENANT
from .policy import Policy, duration

OPEN: Final = "open"  # the layer of what open() was given: no policy changes it
LIMITS: Final = ("idle_ttl", "max_age", "max_turn", "never_used_ttl")
QUOTA: Final = ("max_live", "when_full")
FIELDS: Final = (*LIMITS, *QUOTA)
MOST_LIVE: Final = 1_000_000

Value = float | int | str


class Layer(StrEnum):
    """Who a policy is for. The later ones win."""

    INSTALLATION = "installation"  # everybody; where it leaves a limit open, the settings decide
    TENANT = "tenant"  # the sessions of one tenant
    PROFILE = "profile"  # the sessions that were opened with this profile


class WhenFull(StrEnum):
    """What open() does where a tenant has as many live sandboxes as it may have."""

    REFUSE = "refuse"  # TenantFull; the default
    EVICT = "evict-oldest-idle"  # end the one that was idle for longest, if one may be ended


@dataclass(frozen=True, kw_only=True)
class Scope:
    """One layer's policy by its name; the installation's has none."""

    layer: Layer
    name: str = ""

    def __str__(self) -> str:
        return f"{self.layer}:{self.name}" if self.name else self.layer.value


def parse_scope(text: str) -> Scope:
    """`installation`, `tenant:NAME` or `profile:NAME`; InvalidArgument for anything else."""
    layer, colon, name = text.partition(":")
    if layer == Layer.INSTALLATION and not colon:
        return Scope(layer=Layer.INSTALLATION)
    if layer not in {Layer.TENANT, Layer.PROFILE} or not TENANT.fullmatch(name):
        raise InvalidArgument(
            f"policy {text!r}: write installation, tenant:NAME or profile:NAME, the name 1 to 64 "
            "characters of A-Z a-z 0-9 . _ : -"
        )
    return Scope(layer=Layer(layer), name=name)


def check_profile(profile: object) -> str:
    """The profile as it was given, or InvalidArgument that says what one looks like."""
    if isinstance(profile, str) and TENANT.fullmatch(profile):
        return profile
    raise InvalidArgument(
        f"profile {str(profile)[:60]!r}: use 1 to 64 characters of A-Z a-z 0-9 . _ : -"
    )


def check_fields(names: Sequence[str], scope: Scope) -> None:
    """InvalidArgument unless a policy of this scope has all of these fields."""
    for name in names:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InvalidArgument(f"{name} is no limit: {hint}there are {', '.join(FIELDS)}")
        if name in QUOTA and scope.layer is Layer.PROFILE:
            raise InvalidArgument(
                f"{name} of {scope}: a quota is the tenant's, whatever profile its sessions have; "
                "set it for tenant:NAME or for the installation"
            )


def check_values(values: Mapping[str, object], scope: Scope, policy: Policy) -> dict[str, Value]:
    """
    The values in their types, seconds for the limits. InvalidArgument names the field, the value
    and what would be right, as the settings do.
    """
    check_fields(tuple(values), scope)
    found = {name: _checked(name, value) for name, value in values.items()}
    shortest = policy.confirm_interval
    for name in ("idle_ttl", "never_used_ttl"):
        seconds = found.get(name, shortest)
        # HEARTBEAT is at most half of CONFIRM_INTERVAL: a live turn always beats in time.
        if isinstance(seconds, float) and seconds < shortest:
            raise InvalidArgument(
                f"{name} {seconds:g} of {scope}: must be at least CONFIRM_INTERVAL {shortest:g}, "
                f"which is twice HEARTBEAT {policy.heartbeat:g} or more: a live turn would be "
                f"idle between two heartbeats; set it to {shortest:g} or more"
            )
    return found


def _checked(name: str, value: object) -> Value:
    if name in LIMITS:
        return duration(name, value)  # type: ignore[arg-type] # it refuses what is no number
    if name == "when_full":
        try:
            return WhenFull(str(value)).value
        except ValueError as error:
            raise InvalidArgument(f"when_full {value!r}: use {' or '.join(WhenFull)}") from error
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if isinstance(value, bool) or not 1 <= number <= MOST_LIVE:
        raise InvalidArgument(f"max_live {value!r}: give a whole number from 1 to {MOST_LIVE}")
    return number
