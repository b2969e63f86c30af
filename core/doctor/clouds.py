"""Whether the providers let us in, and are those that the rows speak of."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ..errors import AuthFailed, RateLimited, words
from ..providers.base import Capability, SandboxProvider
from ..store.checkup import Place
from .findings import Answer, Examination, failure, note, ok, together
from .patient import Patient
from .rounds import bounded

WORST_IDS = 5  # scopes or names that one finding lists


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """One provider, asked by calls that change nothing."""

    name: str
    can_list: bool
    has_ttl: bool
    scope: str
    error: Exception | None  # of the listing


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """The providers that the settings name, and those that rows do."""

    asked: list[Cloud]
    failed: Mapping[str, Exception]  # could not even say which account it is
    places: list[Place]
    backstop: bool
    settings: str


def _ask_all(patient: Patient) -> Clouds:
    asked: list[Cloud] = []
    failed: dict[str, Exception] = {}
    installation = _installation(patient)
    share = 0.8 * patient.within / max(1, len(patient.providers))
    for provider in patient.providers:
        try:
            # Together they have the time of one look; one that hangs has its part of it.
            asked.append(bounded(partial(_ask, provider, installation, share), share))
        except Exception as error:  # noqa: BLE001 - whatever its library raises
            failed[provider.name] = error
    return Clouds(
        asked=asked,
        failed=failed,
        places=patient.checkup.places(),
        backstop=patient.policy.backstop is not None,
        settings=patient.settings.provider,
    )


def _installation(patient: Patient) -> str:
    return patient.checkup.installation() or "none"


def _ask(provider: SandboxProvider, installation: str, share: float) -> Cloud:
    can_list = Capability.LIST in provider.capabilities
    error: Exception | None = None
    if can_list:
        wanted = {"sandkeeper-installation": installation}
        try:
            provider.list(wanted, cursor=None, deadline=time.monotonic() + 0.9 * share)
        except Exception as caught:  # noqa: BLE001 - judged below
            error = caught
    return Cloud(
        name=provider.name,
        can_list=can_list,
        has_ttl=Capability.TTL in provider.capabilities,
        scope=provider.scope(),
        error=error,
    )


def provider_login(found: Clouds) -> Answer:
    """
    Each provider says which account it is, and lists what carries our labels: one page, for which
    nothing is changed. A wrong or expired key is a failure by that name.
    """
    said = [_refused(name, error) for name, error in found.failed.items()]
    said += [_refused(cloud.name, cloud.error) for cloud in found.asked if cloud.error is not None]
    said += [
        note(
            f"{cloud.name} cannot list: nothing finds a sandbox whose row was lost",
            "see that its account is empty from time to time",
        )
        for cloud in found.asked
        if not cloud.can_list
    ]
    return together(said, ", ".join(f"{cloud.name} ({cloud.scope})" for cloud in found.asked))


def _refused(name: str, error: Exception) -> Answer:
    says = f"{name}: {words(error)}"
    if isinstance(error, AuthFailed):
        return failure(
            f"{name} does not let us in: {words(error)}",
            f"give it a key that may list, create and destroy: docs/providers/{name}.md",
        )
    if isinstance(error, RateLimited):
        return note(f"{says}: it asks for fewer calls")
    return failure(says, f"look at {name}'s status page, and at its address in the settings")


def provider_scope(found: Clouds) -> Answer:
    """
    Every sandbox that is not gone is in the account that we are logged in to: from another one a
    "not found" is never believed, and its teardown never ends.
    """
    scopes = {cloud.name: cloud.scope for cloud in found.asked}
    said = [
        failure(
            f"{place.sandboxes} sandboxes of {place.provider} are in {place.scope}, and we are "
            f"logged in to {scopes[place.provider]}",
            f"give {place.provider} the credentials of the account that they are in, until "
            "they are gone",
        )
        for place in found.places
        if place.provider in scopes and place.scope != scopes[place.provider]
    ]
    return together(said[:WORST_IDS], "all sandboxes are where we are logged in")


def provider_missing(found: Clouds) -> Answer:
    """Every provider that still has sandboxes is in the settings: else nobody tears them down."""
    known = {cloud.name for cloud in found.asked} | set(found.failed)
    missing = {place.provider: place for place in found.places if place.provider not in known}
    said = [
        failure(
            f"{place.provider} has sandboxes of ours, and is not in SANDKEEPER_PROVIDER",
            f"SANDKEEPER_PROVIDER={found.settings},{place.provider}, for API servers and "
            "workers, until they are gone",
        )
        for place in missing.values()
    ]
    return together(said[:WORST_IDS], "all are in the settings")


def provider_backstop(found: Clouds) -> Answer:
    """Each provider ends sandboxes by itself when all of us are dead (BACKSTOP). A note if not."""
    without = [cloud.name for cloud in found.asked if not cloud.has_ttl]
    if not found.backstop:
        return note("BACKSTOP is none: when all of us are dead, sandboxes run on")
    if without:
        return note(f"{', '.join(without)} has no TTL: when all of us are dead, sandboxes run on")
    return ok("is set")


CLOUDS = Examination(
    name="providers",
    look=_ask_all,
    checks=(provider_login, provider_scope, provider_missing, provider_backstop),
    fix="see docs/providers.md for what it needs",
    needs=("migrations",),
)
