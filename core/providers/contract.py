"""
The contract of every provider, as checks that need nothing but the provider and its backend.

`tests/providers/contract.py` makes a test of each, `sandkeeper providers check` runs them against a
real account. Each makes sandboxes of its own; whoever runs it closes the trial.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from ..errors import ForeignConflict, InvalidSpec, ProviderError
from .base import Capability, ProviderState, SandboxInfo, SandboxProvider, SandboxRef
from .checks import CHECKS, Check, check, expect
from .trial import LONG, NotKept, Subject, Trial, in_processes

ALIVE = {ProviderState.PENDING, ProviderState.RUNNING}
AT_ONCE = 2.0  # seconds within which a call without any time left has to return
GIVEN_UP_AFTER = (0.0, 0.01, 0.1)  # seconds

__all__ = ["CHECKS", "Check"]  # all of them, once this module is imported


@check()
def is_a_provider(trial: Trial) -> None:
    """It has all that the protocol asks for, and claims only what there is."""
    expect(isinstance(trial.provider, SandboxProvider), "a member of SandboxProvider is missing")
    unknown = trial.provider.capabilities - set(Capability)
    expect(not unknown, f"it claims {unknown}, which is no Capability")


@check()
def scope_is_the_backend(trial: Trial) -> None:
    """Every handle of one backend names it alike, and always."""
    scopes = {trial.provider.scope(), trial.other.scope(), trial.provider.scope()}
    expect(len(scopes) == 1 and "" not in scopes, f"one backend, and its scopes are {scopes}")


@check()
def create_makes_it(trial: Trial) -> None:
    """What create returns is what any handle gets: name, id, labels, an aware date."""
    made = trial.create(trial.name())

    found = trial.present(SandboxRef(name=made.ref.name), by=trial.other)
    expect(found.ref == made.ref, f"create says {made.ref}, get says {found.ref}")
    expect(made.ref.external_id, "create gives no id")
    expect(made.state in ALIVE, f"it is {made.state} when create returns")
    missing = trial.labels_of(made.ref.name).items() - found.labels.items()
    expect(not missing, f"labels that were given and are not there: {missing}")
    dated = found.created_at is None or found.created_at.tzinfo is UTC
    expect(dated, f"created_at {found.created_at!r} is not in UTC")


@check()
def create_again_adopts(trial: Trial) -> None:
    """A retry from anywhere gets the same sandbox."""
    made = trial.create(trial.name())

    again = trial.create(made.ref.name, by=trial.other)

    expect(again.ref == made.ref, f"the first create made {made.ref}, the second {again.ref}")


@check(needs=Capability.IDEMPOTENT_CREATE)
def many_creates_of_one_name_make_one(trial: Trial) -> None:
    """Thirty creates at once, from six processes, and all return the one sandbox."""
    name = trial.name()

    answers = in_processes(6, _create_many, trial.subject, name, trial.labels_of(name), 5)

    ids = {external_id for answer in answers for external_id in answer}
    found = trial.present(SandboxRef(name=name))
    expect(ids == {found.ref.external_id}, f"the creates returned {ids}, get says {found.ref}")


def _create_many(subject: Subject, name: str, labels: dict[str, str], times: int) -> list[str]:
    provider, barrier = subject.handle(), threading.Barrier(times)

    def create(_: int) -> str:
        barrier.wait()
        deadline = time.monotonic() + subject.patience
        made = provider.create(name, labels, subject.spec, ttl=LONG, deadline=deadline)
        return str(made.ref.external_id)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(create, range(times)))


@check(needs=Capability.IDEMPOTENT_CREATE)
def a_create_that_was_given_up_is_adopted(trial: Trial) -> None:
    """Whether it had its effect or not, and when: the next create of the name makes it the one."""
    for seconds in GIVEN_UP_AFTER:
        name = trial.name()
        labels, spec = trial.labels_of(name), trial.subject.spec
        with suppress(ProviderError):
            deadline = time.monotonic() + seconds
            trial.provider.create(name, labels, spec, ttl=LONG, deadline=deadline)

        made: list[SandboxInfo] = []
        trial.waits_for(partial(_made, trial, name, made), f"{name} can never be made")

        found = trial.present(SandboxRef(name=name))
        expect(found.ref == made[0].ref, f"create says {made[0].ref}, get says {found.ref}")


def _made(trial: Trial, name: str, made: list[SandboxInfo]) -> bool:
    try:
        made.append(trial.create(name, by=trial.other))
    except ProviderError as error:
        if not error.retryable:
            raise
    return bool(made)


@check()
def create_leaves_a_foreign_one_alone(trial: Trial) -> None:
    """A name with other labels is somebody else's: refused, and nothing about it changed."""
    made = trial.create(trial.name())
    labels = {**trial.labels_of(made.ref.name), "sandkeeper-generation": "2"}

    with suppress(ForeignConflict):
        trial.provider.create(
            made.ref.name, labels, trial.subject.spec, ttl=LONG, deadline=trial.soon()
        )
        raise NotKept("a create with other labels took it, and did not raise ForeignConflict")

    found = trial.present(made.ref)
    expect(found.labels == made.labels, f"its labels were {made.labels}, and are {found.labels}")


@check()
def options_that_it_does_not_know_are_refused(trial: Trial) -> None:
    """A spec that cannot be met is refused as such, and leaves nothing."""
    name = trial.name()
    spec = replace(trial.subject.spec, options={"no-such-option": 1})

    with suppress(InvalidSpec):
        labels = trial.labels_of(name)
        trial.provider.create(name, labels, spec, ttl=LONG, deadline=trial.soon())
        raise NotKept("options {'no-such-option': 1} were taken: InvalidSpec was expected")

    expect(trial.get(SandboxRef(name=name)) is None, "it was refused, and is there all the same")


@check()
def get_finds_nothing_where_nothing_is(trial: Trial) -> None:
    """A name that was never used is None, whatever id is believed to be its."""
    found = trial.get(SandboxRef(name=trial.name(), external_id="no-such-id"))

    expect(found is None, f"get of a name that was never used says {found}")


@check(needs=Capability.LIST)
def list_is_complete_and_filtered(trial: Trial) -> None:
    """All pages together hold each of ours exactly once, and nobody else's."""
    ours = sorted(trial.create(trial.name()).ref.name for _ in range(trial.subject.several))
    foreign = {**trial.labels, "sandkeeper-installation": "otherone"}
    other = trial.create(trial.name("otherone")).ref.name

    _lists(trial, trial.labels, ours)

    def of_another() -> set[str]:
        return {item.ref.name for item in trial.listed(foreign)}

    missing = f"of another installation it does not list {other}"
    trial.waits_for(lambda: other in of_another(), missing, patience=trial.subject.lag)
    expect(not of_another() & {*ours}, "of another installation it lists ours")


def _lists(trial: Trial, labels: dict[str, str], names: list[str]) -> None:
    trial.waits_for(
        lambda: sorted(item.ref.name for item in trial.listed(labels)) == names,
        f"the pages together are not {names}",
        patience=trial.subject.lag,
    )


@check(lacks=Capability.LIST)
def list_is_refused_where_it_is_not_claimed(trial: Trial) -> None:
    """Nobody takes half a listing for a whole one."""
    with suppress(ProviderError):
        raise NotKept(f"LIST is not claimed, and list returned {trial.listed(trial.labels)}")


@check()
def destroy_is_confirmed(trial: Trial) -> None:
    """After destroy every handle says, before long, that it is gone; listings too."""
    made = trial.create(trial.name())

    trial.destroy(made.ref, by=trial.other)

    trial.waits_for(lambda: trial.get(made.ref) is None, f"{made.ref} is not gone in time")
    if Capability.LIST in trial.provider.capabilities:
        _lists(trial, trial.labels, [])


@check()
def destroy_of_what_is_gone_succeeds(trial: Trial) -> None:
    """Twice, or of a name that never was: success, for a retry cannot know."""
    made = trial.create(trial.name())

    trial.destroy(made.ref)
    trial.waits_for(lambda: trial.get(made.ref) is None, f"{made.ref} is not gone in time")
    for ref in (made.ref, SandboxRef(name=made.ref.name), SandboxRef(name=trial.name())):
        trial.destroy(ref)


@check()
def an_id_means_that_sandbox_and_no_other(trial: Trial) -> None:
    """What another create made under the same name is neither found nor touched by an id (S3)."""
    made = trial.create(trial.name())

    _is_not_meant(trial, made, replace(made.ref, external_id=f"not-{made.ref.external_id}"))


@check()
def an_id_alone_is_not_enough(trial: Trial) -> None:
    """Ids may be given again: one under another name is somebody else's (S2)."""
    made = trial.create(trial.name())

    _is_not_meant(trial, made, replace(made.ref, name=trial.name()))


def _is_not_meant(trial: Trial, made: SandboxInfo, other: SandboxRef) -> None:
    trial.destroy(other)

    expect(trial.get(other) is None, f"get of {other} finds {made.ref}")
    state = trial.present(made.ref).state
    expect(state in ALIVE, f"destroy of {other} left {made.ref} {state}")


@check()
def destroy_from_everywhere_at_once(trial: Trial) -> None:
    """Workers in several processes destroy the same one: all succeed, and it is gone."""
    made = trial.create(trial.name())

    in_processes(4, _destroy, trial.subject, made.ref.name)

    trial.waits_for(lambda: trial.get(made.ref) is None, f"{made.ref} is not gone in time")


def _destroy(subject: Subject, name: str) -> None:
    deadline = time.monotonic() + subject.patience
    subject.handle().destroy(SandboxRef(name=name), deadline=deadline)


@check(needs=Capability.TTL)
def a_ttl_ends_it(trial: Trial) -> None:
    """The expiry that was asked for can be read back, and nobody is needed to carry it out."""
    short = timedelta(seconds=trial.subject.short)
    made = trial.create(trial.name(), ttl=trial.subject.short)

    if made.expires_at is None:
        raise NotKept("create with a TTL says no expires_at")
    off = abs(made.expires_at - datetime.now(UTC) - short)
    expect(off < short, f"a TTL of {short} gave an expiry that is off by {off}")
    patience = trial.subject.short + trial.subject.patience
    trial.waits_for(lambda: trial.get(made.ref) is None, "it outlives its TTL", patience)


@check(needs=Capability.TTL)
def extend_moves_the_expiry(trial: Trial) -> None:
    """An extended sandbox outlives its first TTL, and says until when."""
    made = trial.create(trial.name(), ttl=trial.subject.short)

    granted = trial.extend(made.ref, LONG)

    found = trial.present(made.ref)
    if granted is None:
        raise NotKept("extend does not say what it granted")
    expect(granted > datetime.now(UTC) + timedelta(seconds=LONG - 10), f"it granted {granted}")
    expect(found.expires_at == granted, f"extend says {granted}, get says {found.expires_at}")
    time.sleep(trial.subject.short + 0.5)  # nothing must happen: there is nothing to wait for
    state = trial.present(made.ref).state
    expect(state in ALIVE, f"it was extended, and is {state} after its first TTL")


@check(needs=Capability.TTL)
def extend_of_what_is_gone_fails(trial: Trial) -> None:
    """A lost sandbox never looks extended."""
    with suppress(ProviderError):
        granted = trial.extend(SandboxRef(name=trial.name()), 60.0)
        raise NotKept(f"extend of a name that never was returned {granted}")


@check(lacks=Capability.TTL)
def extend_is_refused_where_no_ttl_is_claimed(trial: Trial) -> None:
    """Nobody takes for extended what ends, or stays, as it likes."""
    made = trial.create(trial.name())

    with suppress(ProviderError):
        raise NotKept(f"TTL is not claimed, and extend returned {trial.extend(made.ref, 60.0)}")


@check()
def a_deadline_bounds_every_call(trial: Trial) -> None:
    """With no time left a call returns at once, done or with an error that can be retried."""
    made = trial.create(trial.name())
    provider, ref, past = trial.provider, made.ref, time.monotonic() - 1
    name, spec = trial.name(), trial.subject.spec
    calls: list[Callable[[], object]] = [
        lambda: provider.create(name, trial.labels_of(name), spec, ttl=9.0, deadline=past),
        lambda: provider.get(ref, deadline=past),
        lambda: provider.list(trial.labels, cursor=None, deadline=past),
        lambda: provider.extend(ref, ttl=9.0, deadline=past),
        lambda: provider.destroy(ref, deadline=past),
    ]
    if Capability.LIST not in provider.capabilities:
        del calls[2]
    if Capability.TTL not in provider.capabilities:
        del calls[-2]
    for call in calls:
        _returns_at_once(call)


def _returns_at_once(call: Callable[[], object]) -> None:
    began = time.monotonic()
    try:
        call()
    except ProviderError as error:
        expect(error.retryable, f"no time was left, and it raised {type(error).__name__}: {error}")
    took = time.monotonic() - began
    expect(took < AT_ONCE, f"no time was left, and it returned after {took:.1f} s")
