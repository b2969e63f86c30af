"""Provider `modal` against a server that speaks Modal's own messages: the contract, faults, SDK."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from grpclib import Status
from modal_proto import api_pb2

from core.errors import (
    AuthFailed,
    Busy,
    ForeignConflict,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SettingsError,
    Unavailable,
    Unsupported,
)
from core.providers.base import ProviderState, SandboxInfo, SandboxRef, Spec
from core.providers.modal import ModalProvider
from tests.forks import in_child
from tests.providers.contract import ProviderContract, eventually, listed, soon
from tests.providers.fake_modal import IMAGE, FakeModal
from tests.providers.grpcs import Fault, serving

KEY = "k" * 26
NAME = f"sk-abcd1234-{KEY}"
OURS = {"sandkeeper-installation": "abcd1234", "sandkeeper-schema": "1"}
LABELS = {**OURS, "sandkeeper-key": KEY, "sandkeeper-generation": "1"}
SPEC = Spec(image=IMAGE, command=("sleep", "infinity"))
REF = SandboxRef(name=NAME)


@pytest.fixture
def modal() -> Iterator[FakeModal]:
    """A workspace of the test's own."""
    with serving(FakeModal()) as fake:
        yield fake


@pytest.fixture
def provider(modal: FakeModal) -> ModalProvider:
    """A handle of it."""
    return ModalProvider.from_env(modal.environ)


def make(
    provider: ModalProvider,
    spec: Spec = SPEC,
    *,
    ttl: float | None = None,
    key: str = KEY,
    deadline: float | None = None,
) -> SandboxInfo:
    """A sandbox."""
    labels = {**LABELS, "sandkeeper-key": key}
    name = f"sk-abcd1234-{key}"
    return provider.create(name, labels, spec, ttl=ttl, deadline=deadline or soon())


def calls_of(provider: ModalProvider, ref: SandboxRef = REF) -> list[Callable[[], object]]:
    """Everything that asks Modal."""
    return [
        provider.scope,
        lambda: make(provider),
        lambda: provider.get(ref, deadline=soon()),
        lambda: provider.destroy(ref, deadline=soon()),
        lambda: provider.list(OURS, cursor=None, deadline=soon()),
    ]


class TestContract(ProviderContract):
    """It keeps the contract."""

    provider_path = "modal"
    spec: ClassVar[Spec] = SPEC

    @pytest.fixture
    def environ(self, modal: FakeModal) -> dict[str, str]:
        """A workspace of the test's own."""
        return modal.environ


# What is made


def test_a_sandbox_is_fenced_in(provider: ModalProvider, modal: FakeModal) -> None:
    """The defaults: bounded, without a network, and with all the life that Modal gives."""
    made = make(provider, replace(SPEC, env={"GREETING": "a = b"}))

    box = modal.boxes[str(made.ref.external_id)]
    asked, resources = box.definition, box.definition.resources
    kinds = api_pb2.NetworkAccess.NetworkAccessType
    assert asked.network_access.network_access_type == kinds.BLOCKED
    assert (resources.milli_cpu, resources.milli_cpu_max) == (125, 1000)
    assert (resources.memory_mb, resources.memory_mb_max) == (128, 1024)
    assert asked.timeout_secs == 24 * 60 * 60
    assert not asked.HasField("idle_timeout_secs")
    assert (asked.name, [*asked.entrypoint_args]) == (NAME, ["sleep", "infinity"])
    assert box.tags == LABELS
    assert box.env == {"GREETING": "a = b"}


@pytest.mark.parametrize(
    ("options", "found", "value"),
    [
        ({"cpus": 2}, lambda asked: asked.resources.milli_cpu_max, 2000),
        ({"cpus_reserved": 0.5}, lambda asked: asked.resources.milli_cpu, 500),
        ({"memory": 2048}, lambda asked: asked.resources.memory_mb_max, 2048),
        ({"memory_reserved": 512}, lambda asked: asked.resources.memory_mb, 512),
        ({"network": "open"}, lambda asked: asked.network_access.network_access_type, 1),
        ({"cidrs": ["10.0.0.0/8"]}, lambda asked: asked.network_access.network_access_type, 3),
        ({"domains": ["a.example"]}, lambda a: [*a.network_access.allowed_domains], ["a.example"]),
        ({"workdir": "/work"}, lambda asked: asked.workdir, "/work"),
        ({"regions": ["eu"]}, lambda asked: [*asked.scheduler_placement.regions], ["eu"]),
        ({"lifetime": 3600}, lambda asked: asked.timeout_secs, 3600),
        ({"idle_timeout": 7200}, lambda asked: asked.idle_timeout_secs, 7200),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_is_what_it_says(
    provider: ModalProvider,
    modal: FakeModal,
    options: dict[str, Any],
    found: Callable[[Any], object],
    value: object,
) -> None:
    """Each one, as Modal is given it."""
    made = make(provider, replace(SPEC, options=options))

    assert found(modal.boxes[str(made.ref.external_id)].definition) == value


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(), "image None"),
        (Spec(image="python:3\nRUN something"), "image 'python:3"),
        (Spec(image="no-such-image:1"), "'no-such-image:1' cannot be built: .*manifest unknown"),
        (replace(SPEC, options={"cpu": 1}), "options.cpu 1: .*known are cpus"),
        (replace(SPEC, options={"cpus": -1}), "options.cpus -1"),
        (replace(SPEC, options={"memory": "much"}), "options.memory 'much'"),
        (replace(SPEC, options={"memory_reserved": 4096}), "more is reserved"),
        (replace(SPEC, options={"network": "host"}), "options.network 'host'"),
        (replace(SPEC, options={"network": "open", "cidrs": ["10.0.0.0/8"]}), "network 'none'"),
        (replace(SPEC, options={"lifetime": 90_000}), "options.lifetime 90000"),
        (replace(SPEC, options={"workdir": "here"}), "options.workdir 'here'"),
        (replace(SPEC, env={"A=B": "c"}), "env 'A=B'"),
        (replace(SPEC, env={"A": "\0"}), "NUL"),
        (replace(SPEC, command=("a" * 70_000,)), "command"),
    ],
)
def test_what_can_never_be_made_is_refused(
    provider: ModalProvider, modal: FakeModal, spec: Spec, words: str
) -> None:
    """With the field, the value, and nothing that runs."""
    with pytest.raises(InvalidSpec, match=words):
        make(provider, spec)

    assert modal.boxes == {}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"MODAL_TOKEN_ID": ""}, "MODAL_TOKEN_ID is not set: `modal token new`"),
        ({"MODAL_TOKEN_SECRET": ""}, "MODAL_TOKEN_SECRET is not set"),
        ({"MODAL_TOKEN_SECRET": "as-hidden\n"}, "MODAL_TOKEN_SECRET has characters"),
        ({"MODAL_SERVER_URL": "api.modal.com"}, "MODAL_SERVER_URL='api.modal.com'"),
        ({"MODAL_SERVER_URL": "https://a:b"}, "MODAL_SERVER_URL='https://a:b'"),
        ({"MODAL_SERVER_URL": "http://a, ftp://b"}, "MODAL_SERVER_URL="),
        ({"MODAL_ENVIRONMENT": "a b"}, "MODAL_ENVIRONMENT='a b'"),
        ({"SANDKEEPER_MODAL_APP": "a/b"}, "SANDKEEPER_MODAL_APP='a/b'"),
        ({"SANDKEEPER_MODAL_APP": f"ap-{'a' * 22}"}, "no id of an app"),
        ({"SANDKEEPER_MODAL_APPLICATION": "a"}, "SANDKEEPER_MODAL_APPLICATION is not a setting"),
    ],
    ids=str,
)
def test_settings_that_are_wrong_are_refused(changed: dict[str, str], words: str) -> None:
    """Before anything is connected; a secret is never shown."""
    environ = {"MODAL_TOKEN_ID": "ak-1", "MODAL_TOKEN_SECRET": "as-1", **changed}

    with pytest.raises(SettingsError, match=words) as caught:
        ModalProvider.from_env(environ)

    assert "hidden" not in str(caught.value)


# Who may be asked, and where


def test_the_wrong_credentials_are_never_a_not_found(modal: FakeModal) -> None:
    """Every call says so; none concludes anything."""
    provider = ModalProvider.from_env({**modal.environ, "MODAL_TOKEN_SECRET": "as-of-another"})

    for call in calls_of(provider):
        with pytest.raises(AuthFailed, match="MODAL_TOKEN_ID"):
            call()


def test_an_environment_that_is_not_there_is_no_not_found(modal: FakeModal) -> None:
    """It knows no names either."""
    provider = ModalProvider.from_env({**modal.environ, "MODAL_ENVIRONMENT": "mian"})

    for call in calls_of(provider):
        with pytest.raises(Unavailable, match="environment mian"):
            call()


def test_a_server_that_is_not_there_is_no_not_found(modal: FakeModal) -> None:
    """A create that was never sent has no unknown outcome."""
    environ = {**modal.environ, "MODAL_SERVER_URL": "http://127.0.0.1:1"}
    provider = ModalProvider.from_env(environ)

    for call in calls_of(provider, SandboxRef(name=NAME, external_id="sb-1")):
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1: ConnectionRefusedError"):
            call()


def test_the_second_address_is_for_when_the_first_is_not_there(modal: FakeModal) -> None:
    """As Modal's own client has two."""
    environ = {**modal.environ, "MODAL_SERVER_URL": f"http://127.0.0.1:1, {modal.url}"}

    assert make(ModalProvider.from_env(environ)).state is ProviderState.RUNNING


def test_apps_and_environments_are_scopes_of_their_own(modal: FakeModal) -> None:
    """What is in one is not in the other, and an app that was made again is another."""
    modal.environments.add("other")
    here = ModalProvider.from_env(modal.environ)
    there = ModalProvider.from_env({**modal.environ, "MODAL_ENVIRONMENT": "other"})
    make(here)

    assert there.get(REF, deadline=soon()) is None
    assert listed(there, OURS) == []
    assert there.scope() != here.scope()
    before = here.scope()
    modal.apps.clear()
    assert here.scope() != before


def test_a_token_that_was_withdrawn_is_fetched_again(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """It is kept for half of its life, and the server may forget it before."""
    make(provider)
    make(provider, key="l" * 26)
    assert modal.count("AuthTokenGet") == 1
    modal.tokens.clear()

    assert provider.get(REF, deadline=soon()) is not None
    assert modal.count("AuthTokenGet") == 2


def test_a_token_is_renewed_before_it_ends(modal: FakeModal) -> None:
    """One that has no life left is not kept at all."""
    modal.token_lives = 0.5
    provider = ModalProvider.from_env(modal.environ)
    make(provider)
    until = time.monotonic() + 0.3

    eventually(lambda: time.monotonic() > until)
    assert provider.get(REF, deadline=soon()) is not None
    assert modal.count("AuthTokenGet") >= 2


# Faults


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut=True),
        Fault(garbage=True),
        Fault(status=Status.UNAVAILABLE),
        Fault(status=Status.INTERNAL, words="out of order"),
        Fault(status=Status.DEADLINE_EXCEEDED),
        Fault(status=Status.UNKNOWN),
    ],
    ids=str,
)
def test_a_create_that_broke_off_is_adopted(
    provider: ModalProvider, modal: FakeModal, fault: Fault, *, after: bool
) -> None:
    """Whether it had its effect or not: the next create of the name makes it the one."""
    modal.strike("SandboxCreateV2", replace(fault, after=after))
    with pytest.raises(OutcomeUnknown, match=NAME):
        make(provider)
    assert len(modal.boxes) == int(after)

    made = make(provider)

    (box,) = modal.boxes
    assert made.ref == SandboxRef(name=NAME, external_id=box)
    assert made.labels == LABELS


def test_a_create_that_lands_late_is_adopted(provider: ModalProvider, modal: FakeModal) -> None:
    """The caller's time was over before it had its effect."""
    modal.strike("SandboxCreateV2", Fault(delay=3))
    with pytest.raises(OutcomeUnknown, match="no answer in time"):
        make(provider, deadline=time.monotonic() + 2)
    eventually(lambda: len(modal.boxes) == 1)

    assert make(provider).ref.external_id in modal.boxes
    assert len(modal.boxes) == 1


@pytest.mark.parametrize("rpc", ["AppGetOrCreate", "ImageGetOrCreate", "AuthTokenGet"])
@pytest.mark.parametrize("fault", [Fault(cut=True), Fault(garbage=True)], ids=["cut", "garbage"])
def test_what_breaks_off_before_a_create_is_known(
    provider: ModalProvider, modal: FakeModal, rpc: str, fault: Fault
) -> None:
    """No sandbox can have been made: the caller need not look for one."""
    modal.strike(rpc, fault)

    with pytest.raises(Unavailable):
        make(provider)


ANY = [
    (Fault(cut=True), Unavailable),
    (Fault(garbage=True), Unavailable),
    (Fault(status=Status.UNAVAILABLE), Unavailable),
    (Fault(status=Status.INTERNAL), Unavailable),
    (Fault(status=Status.UNIMPLEMENTED), Unavailable),
    (Fault(status=Status.INVALID_ARGUMENT), Unavailable),
    (Fault(status=Status.PERMISSION_DENIED), AuthFailed),
    (Fault(status=Status.FAILED_PRECONDITION), Busy),
    (Fault(status=Status.ABORTED), Busy),
    (Fault(status=Status.RESOURCE_EXHAUSTED), RateLimited),
]


@pytest.mark.parametrize("struck", ANY, ids=lambda struck: str(struck[0]))
@pytest.mark.parametrize(
    ("rpc", "which"),
    [
        ("SandboxWaitV2", 2),
        ("SandboxTagsGetV2", 2),
        ("SandboxTerminateV2", 3),
        ("SandboxListV2", 4),
    ],
)
def test_an_error_is_never_a_not_found(
    provider: ModalProvider,
    modal: FakeModal,
    rpc: str,
    which: int,
    struck: tuple[Fault, type[ProviderError]],
) -> None:
    """Get, destroy and list fail, in the words of errors.py; what was there still is."""
    fault, error = struck
    ref = make(provider).ref
    modal.strike(rpc, fault, times=2)  # a refused token is tried twice

    with pytest.raises(error) as caught:
        calls_of(provider, ref)[which]()

    assert type(caught.value) is error
    assert len(modal.running()) == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=Status.RESOURCE_EXHAUSTED, words="limit of sandboxes"), QuotaExceeded),
        (Fault(status=Status.RESOURCE_EXHAUSTED, words="Rate limit"), RateLimited),
        (Fault(status=Status.INVALID_ARGUMENT, words="bad region"), InvalidSpec),
        (Fault(status=Status.FAILED_PRECONDITION, words="app is stopped"), Busy),
        (Fault(status=Status.UNAUTHENTICATED, words="revoked"), AuthFailed),
    ],
    ids=str,
)
def test_a_create_that_was_refused_says_why(
    provider: ModalProvider, modal: FakeModal, fault: Fault, error: type[ProviderError]
) -> None:
    """Refused is refused: nothing was made."""
    modal.strike("SandboxCreateV2", fault, times=2)

    with pytest.raises(error, match=fault.words) as caught:
        make(provider)

    assert type(caught.value) is error
    assert modal.boxes == {}


@pytest.mark.parametrize("rpc", ["SandboxCreateV2", "AppGetOrCreate", "ImageGetOrCreate"])
def test_a_wait_that_is_asked_for_is_told(
    provider: ModalProvider, modal: FakeModal, rpc: str
) -> None:
    """Modal says it in the details of the error; nobody here waits, or asks again."""
    policy = api_pb2.RPCRetryPolicy(retry_after_secs=7.5)
    modal.strike(rpc, Fault(status=Status.RESOURCE_EXHAUSTED, words="slow down", details=policy))

    with pytest.raises(RateLimited) as caught:
        make(provider)

    assert caught.value.retry_after == 7.5
    assert modal.count(rpc) == 1


def test_a_quota_is_told(provider: ModalProvider, modal: FakeModal) -> None:
    """The workspace has no room."""
    modal.quota = 0

    with pytest.raises(QuotaExceeded, match="limit reached"):
        make(provider)


def test_a_slow_server_does_not_hold_anybody(provider: ModalProvider, modal: FakeModal) -> None:
    """Whatever is asked: the caller has its answer, an error that can be retried, in time."""
    ref = make(provider).ref
    slow = ("AppGetOrCreate", "SandboxWaitV2", "SandboxListV2", "SandboxTerminateV2")
    for rpc in slow:
        modal.strike(rpc, Fault(delay=20), times=3)

    began = time.monotonic()
    for call in (
        lambda: provider.get(ref, deadline=time.monotonic() + 0.5),
        lambda: provider.destroy(ref, deadline=time.monotonic() + 0.5),
        lambda: provider.list(OURS, cursor=None, deadline=time.monotonic() + 0.5),
        lambda: make(provider, deadline=time.monotonic() + 0.5),
    ):
        with pytest.raises(Unavailable, match="in time"):
            call()
    assert time.monotonic() - began < 15


def test_a_connection_that_was_lost_is_made_again(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """The next call does not pay for it."""
    make(provider)
    modal.hang_up()

    def found() -> bool:
        try:
            return provider.get(REF, deadline=soon()) is not None
        except Unavailable:  # it was lost under this very call
            return False

    eventually(found)


# Images


def test_an_image_that_is_being_built_is_waited_for(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """As long as there is time; then the next create goes on with the same build."""
    modal.building = 3.0
    with pytest.raises(Unavailable, match=f"prepare image {IMAGE}"):
        make(provider, deadline=time.monotonic() + 1)
    assert modal.boxes == {}

    assert make(provider).state is ProviderState.RUNNING
    assert len(modal.built) == 1


def test_a_look_at_a_build_may_end_before_the_build(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """Without a word of how it went: then there is another."""
    modal.building = 0.5
    modal.instead["ImageJoinStreaming"] = lambda _: [api_pb2.ImageJoinStreamingResponse()]
    done: list[SandboxInfo] = []
    waiting = threading.Thread(target=lambda: done.append(make(provider)))
    waiting.start()
    eventually(lambda: modal.count("ImageJoinStreaming") > 1)
    del modal.instead["ImageJoinStreaming"]
    waiting.join(timeout=60)

    assert done[0].state is ProviderState.RUNNING


def test_a_build_that_was_ended_is_tried_again(provider: ModalProvider, modal: FakeModal) -> None:
    """By Modal, not by what is in it."""
    ended = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT)
    answer = api_pb2.ImageGetOrCreateResponse(image_id="im-1", result=ended)
    modal.instead["ImageGetOrCreate"] = lambda _: answer

    with pytest.raises(Unavailable, match="its build ended with status 4"):
        make(provider)


# Names and tags


def test_a_name_that_somebody_else_has_is_left_alone(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """Without our tags it is neither adopted, nor found, nor destroyed."""
    ref = make(provider).ref
    modal.boxes[str(ref.external_id)].tags.clear()

    with pytest.raises(ForeignConflict, match=NAME):
        make(provider)
    assert provider.get(REF, deadline=soon()) is None
    provider.destroy(REF, deadline=soon())
    assert listed(provider, OURS) == []
    assert len(modal.running()) == 1


def test_what_has_our_name_and_our_id_is_ours_without_tags(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """Somebody cleared them: it still bills, and is never taken for gone."""
    ref = make(provider).ref
    modal.boxes[str(ref.external_id)].tags.clear()

    assert provider.get(ref, deadline=soon()) is not None
    provider.destroy(ref, deadline=soon())
    assert modal.running() == []


@pytest.mark.parametrize("which", ["sb-01of-another", "sb-" + "a" * 22, "no-id-of-theirs"])
def test_an_id_that_nobody_has_is_gone(
    provider: ModalProvider, modal: FakeModal, which: str
) -> None:
    """Of either backend, and of none: what is not there may be destroyed, too."""
    make(provider)
    ref = SandboxRef(name=NAME, external_id=which)

    assert provider.get(ref, deadline=soon()) is None
    provider.destroy(ref, deadline=soon())
    assert len(modal.running()) == 1


def test_tags_of_somebody_else_do_no_harm(provider: ModalProvider, modal: FakeModal) -> None:
    """More tags than ours are still ours, and are handed on."""
    ref = make(provider).ref
    modal.boxes[str(ref.external_id)].tags["team"] = "a"

    assert make(provider).ref == ref
    assert listed(provider, OURS)[0].labels == {**LABELS, "team": "a"}


def test_a_name_that_cannot_be_found_yet_is_waited_for(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """Another create of it is under way; and when it never comes, it is Busy, not another's."""
    ref = make(provider).ref
    modal.strike("SandboxGetFromNameV2", Fault(status=Status.NOT_FOUND), times=2)
    assert make(provider).ref == ref

    modal.strike("SandboxGetFromNameV2", Fault(status=Status.NOT_FOUND), times=1000)
    with pytest.raises(Busy, match="cannot be found"):
        make(provider)


def test_an_answer_without_an_id_is_no_answer(provider: ModalProvider, modal: FakeModal) -> None:
    """An empty message is a message: what it lacks has to be missed."""
    ref = make(provider).ref
    modal.instead["SandboxGetFromNameV2"] = lambda _: api_pb2.SandboxGetFromNameResponse()
    with pytest.raises(Unavailable, match="no id"):
        provider.get(REF, deadline=soon())

    modal.instead["SandboxCreateV2"] = lambda _: api_pb2.SandboxCreateV2Response()
    with pytest.raises(OutcomeUnknown, match="no id"):
        make(provider, key="l" * 26)

    modal.instead["AppGetOrCreate"] = lambda _: api_pb2.AppGetOrCreateResponse()
    with pytest.raises(Unavailable, match="no id"):
        provider.list(OURS, cursor=None, deadline=soon())
    modal.instead["AuthTokenGet"] = lambda _: api_pb2.AuthTokenGetResponse()
    with pytest.raises(Unavailable, match="no token"):
        ModalProvider.from_env(modal.environ).get(ref, deadline=soon())
    assert provider.get(ref, deadline=soon()) is not None


# Life and death


def test_what_is_being_terminated_is_there_until_it_is_not(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """Accepted is not gone; a second destroy meanwhile is accepted too."""
    modal.ending = 3600.0
    ref = make(provider).ref

    provider.destroy(ref, deadline=soon())
    provider.destroy(REF, deadline=soon())
    assert provider.get(ref, deadline=soon()) is not None

    modal.boxes[str(ref.external_id)].ends_at = time.time()
    assert provider.get(ref, deadline=soon()) is None
    assert listed(provider, OURS) == []


def test_one_that_ended_frees_its_name(provider: ModalProvider, modal: FakeModal) -> None:
    """A later create of it makes another; the first id stays gone, the name means the second."""
    first = make(provider).ref
    provider.destroy(first, deadline=soon())

    second = make(provider).ref

    found = provider.get(REF, deadline=soon())
    assert found is not None
    assert found.ref == second != first
    assert provider.get(first, deadline=soon()) is None


def test_a_life_is_fixed_when_it_begins(provider: ModalProvider, modal: FakeModal) -> None:
    """The TTL is passed on, as whole seconds, and never more than `lifetime`; nothing extends."""
    short, long = {"lifetime": 60}, {"lifetime": 86_400}
    cases = [(short, None, 60), (short, 3600.0, 60), (long, 3600.2, 3601), (long, 1e9, 86_400)]
    for place, (options, ttl, _) in enumerate(cases):
        make(provider, replace(SPEC, options=options), ttl=ttl, key="abcd"[place] * 26)

    lives = [box.definition.timeout_secs for box in modal.boxes.values()]
    assert lives == [expected for *_, expected in cases]
    with pytest.raises(Unsupported, match="cannot extend"):
        provider.extend(REF, ttl=9.0, deadline=soon())


def test_a_listing_says_until_when(provider: ModalProvider, modal: FakeModal) -> None:
    """As far as Modal does: its date and its life. Once that is over it is gone."""
    ref = make(provider, ttl=3600.0).ref

    (item,) = listed(provider, OURS)
    assert (item.ref, item.state) == (ref, ProviderState.RUNNING)
    assert item.created_at is not None
    assert abs(item.created_at - datetime.now(UTC)) < timedelta(minutes=2)
    assert item.expires_at == item.created_at + timedelta(hours=1)
    modal.clock = lambda: time.time() + 3601
    assert provider.get(ref, deadline=soon()) is None
    assert listed(provider, OURS) == []


# Listings


def keys(count: int) -> list[str]:
    """So many, all of them different."""
    return [chr(ord("a") + place) * 26 for place in range(count)]


@pytest.mark.parametrize("step", [1e-6, 0.5], ids=["microseconds", "apart"])
def test_all_pages_together_hold_each_once(modal: FakeModal, step: float) -> None:
    """Modal lists what is older than a moment: those of one moment may be on two pages."""
    modal.page = 5
    provider = ModalProvider.from_env(modal.environ)
    made = [make(provider, key=key).ref.name for key in keys(12)]
    for place, box in enumerate(modal.boxes.values()):
        box.created_at = 1_795_600_000.1 + step * (place // 2)  # pairs of the same moment

    assert sorted(item.ref.name for item in listed(provider, OURS)) == made


def test_half_a_listing_is_an_error(provider: ModalProvider, modal: FakeModal) -> None:
    """The second page fails: nobody takes the first for all."""
    for key in keys(4):
        make(provider, key=key)
    first = provider.list(OURS, cursor=None, deadline=soon())
    modal.strike("SandboxListV2", Fault(status=Status.INTERNAL))

    assert len(first.items) == modal.page < 4
    with pytest.raises(Unavailable):
        provider.list(OURS, cursor=first.cursor, deadline=soon())


def test_a_listing_that_is_behind_hides_nothing_from_get(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """It may show what ended, and not yet what was made: get knows better, and create adopts."""
    old = make(provider).ref
    modal.freeze()
    provider.destroy(old, deadline=soon())
    new = make(provider, key="l" * 26).ref

    assert [item.ref for item in listed(provider, OURS)] == [old]
    assert provider.get(old, deadline=soon()) is None
    assert provider.get(SandboxRef(name=new.name), deadline=soon()) is not None
    assert make(provider, key="l" * 26).ref == new


def test_what_a_server_does_not_filter_is_filtered_here(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """Its filter is believed by nobody; nor is what it lists of the dead."""
    ours = make(provider).ref
    modal.freeze()
    assert modal.stale is not None
    (item,) = modal.stale
    other, dead = api_pb2.SandboxInfo(), api_pb2.SandboxInfo()
    other.CopyFrom(item)
    other.id = "sb-other"
    del other.tags[:]
    dead.CopyFrom(item)
    dead.id = "sb-dead"
    dead.task_info.result.status = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
    answers = [[item, other, dead], [], []]
    modal.instead["SandboxListV2"] = lambda _: api_pb2.SandboxListResponse(sandboxes=answers.pop(0))

    assert [found.ref for found in listed(provider, OURS)] == [ours]


# Processes


def test_a_forked_child_connects_for_itself(provider: ModalProvider, modal: FakeModal) -> None:
    """Two processes on one connection, or one event loop, would ruin both."""
    ref = make(provider).ref

    def finds_it() -> bool:
        gc.collect()
        return provider.get(ref, deadline=time.monotonic() + 15) is not None

    assert in_child(finds_it)
    assert provider.get(ref, deadline=soon()) is not None


def test_a_child_that_drops_its_handle_leaves_its_parents_alone(modal: FakeModal) -> None:
    """To collect what it inherited would unregister the parent's connection in their epoll."""
    handles = [ModalProvider.from_env(modal.environ)]
    ref = make(handles[0]).ref

    def drops_it() -> bool:
        handles.clear()
        return gc.collect() >= 0

    assert in_child(drops_it)
    assert handles[0].get(ref, deadline=time.monotonic() + 20) is not None


def test_a_handle_that_is_dropped_hangs_up(modal: FakeModal) -> None:
    """A provider has no close: its thread and its connection end with it."""
    provider = ModalProvider.from_env(modal.environ)
    provider.scope()
    assert "sandkeeper-modal" in {thread.name for thread in threading.enumerate()}

    del provider
    gc.collect()

    eventually(lambda: "sandkeeper-modal" not in {t.name for t in threading.enumerate()})


def test_nothing_of_modal_is_imported_before_it_is_asked_for() -> None:
    """Whoever uses another provider need not have it."""
    program = """
import sys
import core.wiring
import core.providers.registry
print(sorted({name.split(".")[0] for name in sys.modules} & {"modal", "modal_proto", "grpclib"}))
"""
    done = run(program, {})

    assert done == "[]"


# Modal's own SDK on the same server


def run(program: str, environ: dict[str, str]) -> str:
    """Run it in a process of its own, with no settings of anybody's."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"], "MODAL_CONFIG_PATH": "/none", **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_the_sdk_makes_is_ignored_or_found_by_its_tags(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """Without our tags it is nobody's business; with them it is ours, and we can end it."""
    program = f"""
import modal
app = modal.App.lookup("sandkeeper", create_if_missing=True)
image = modal.Image.from_registry({IMAGE!r})
stranger = modal.Sandbox.create("sleep", "9", app=app, image=image, name="stranger")
ours = modal.Sandbox.create("sleep", "9", app=app, image=image, name={NAME!r}, tags={LABELS!r})
print(stranger.object_id, ours.object_id)
"""
    stranger, ours = run(program, modal.environ).split()

    assert [item.ref.external_id for item in listed(provider, OURS)] == [ours]
    assert make(provider).ref.external_id == ours
    provider.destroy(REF, deadline=soon())
    assert [box.id for box in modal.running()] == [stranger]
    assert len(modal.built) == 1  # the SDK builds the very image that we do


def test_what_is_made_here_the_sdk_finds_and_ends(
    provider: ModalProvider, modal: FakeModal
) -> None:
    """By name, by id, by tags; and then we say that it is gone."""
    ref = make(provider).ref
    program = f"""
import json, modal
app = modal.App.lookup("sandkeeper")
by_name = modal.Sandbox.from_name("sandkeeper", {NAME!r})
by_tags = [box.object_id for box in modal.Sandbox.list(app_id=app.app_id, tags={OURS!r})]
running = by_name.poll() is None
by_name.terminate()
print(json.dumps([by_name.object_id, by_tags, running, by_name.get_tags(), by_name.poll()]))
"""
    found, by_tags, running, tags, code = json.loads(run(program, modal.environ))

    assert (found, by_tags, running) == (ref.external_id, [ref.external_id], True)
    assert (tags, code) == (LABELS, 137)
    assert provider.get(ref, deadline=soon()) is None
    assert listed(provider, OURS) == []
