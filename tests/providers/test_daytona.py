"""Provider `daytona` against a fake of its API: the contract, lost answers, and its traps."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

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
)
from core.model import sandbox_labels, sandbox_name
from core.providers import daytona
from core.providers.base import Capability, ProviderState, SandboxInfo, SandboxRef, Spec
from core.providers.daytona import DaytonaProvider
from tests.apis import Api, Fault, Reply, serving
from tests.providers.contract import ProviderContract, eventually, listed, soon
from tests.providers.fake_daytona import KEY, OTHERS_KEY, OURS, SNAPSHOT, TOKEN, FakeDaytona

ROOT = Path(__file__).parents[2]
ONE_KEY, TWO_KEY = "a" * 26, "b" * 26
NAME, OTHER = sandbox_name("abcd1234", ONE_KEY), sandbox_name("abcd1234", TWO_KEY)
BORN = datetime(2026, 11, 23, tzinfo=UTC)
LABELS = sandbox_labels("abcd1234", ONE_KEY, "session", 1, BORN)
OTHER_LABELS = sandbox_labels("abcd1234", TWO_KEY, "session", 2, BORN)
ALL = {"sandkeeper-installation": "abcd1234"}
SPEC = Spec()


@dataclass(frozen=True)
class World:
    """The installation, how it is served, and a handle of it."""

    fake: FakeDaytona
    api: Api
    provider: DaytonaProvider

    def create(self, spec: Spec = SPEC, ttl: float | None = None) -> SandboxInfo:
        """The sandbox of these tests."""
        return self.provider.create(NAME, LABELS, spec, ttl=ttl, deadline=soon())

    def get(self, ref: SandboxRef) -> SandboxInfo | None:
        """Look one up."""
        return self.provider.get(ref, deadline=soon())

    def state(self, ref: SandboxRef) -> ProviderState | None:
        """What it is said to be."""
        found = self.get(ref)
        return None if found is None else found.state

    def listed(self) -> list[SandboxInfo]:
        """All pages."""
        return listed(self.provider, ALL)

    def sent(self) -> Any:
        """The body of the last create."""
        return [call.body for call in self.api.calls if call.method == "POST"][-1]


def environment(url: str, **more: str) -> dict[str, str]:
    """What a handle is made from."""
    return {"DAYTONA_API_URL": f"{url}/api", "DAYTONA_API_KEY": KEY, **more}


def calls(provider: DaytonaProvider, ref: SandboxRef) -> list[Callable[[], object]]:
    """Each of its calls."""
    return [
        provider.scope,
        lambda: provider.create(NAME, LABELS, SPEC, ttl=60.0, deadline=soon()),
        lambda: provider.get(ref, deadline=soon()),
        lambda: provider.destroy(ref, deadline=soon()),
        lambda: provider.list(ALL, cursor=None, deadline=soon()),
        lambda: provider.extend(ref, ttl=60.0, deadline=soon()),
    ]


@pytest.fixture
def world() -> Iterator[World]:
    """An empty one."""
    fake = FakeDaytona()
    with serving(fake) as api:
        yield World(fake, api, DaytonaProvider.from_env(environment(api.url)))


class TestContract(ProviderContract):
    """It keeps the contract, on pages of two and with an index that is behind."""

    provider_path = "core.providers.daytona:DaytonaProvider"
    short: ClassVar[float] = 5.0
    lag: ClassVar[float] = 5.0

    @pytest.fixture
    def environ(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[dict[str, str]]:
        """One of its own. Where a TTL has to run out, a minute is as short as we wait for it."""
        fake = FakeDaytona(page=2, lag=0.3)
        if request.node.callspec.params["check"].needs is Capability.TTL:
            fake.minute = self.short
            monkeypatch.setattr(daytona, "MINUTE", self.short)
        with serving(fake) as api:
            yield environment(api.url)


# What is made


def test_a_sandbox_is_fenced_in(world: World) -> None:
    """The defaults: no network, nobody looks in, and no clock but ours."""
    world.create(ttl=90.0)

    assert world.sent() == {
        "name": NAME,
        "labels": LABELS,
        "env": {},
        "public": False,
        "networkBlockAll": True,
        "autoStopInterval": 0,
        "autoDeleteInterval": -1,
        "ttlMinutes": 2,
    }


@pytest.mark.parametrize(
    ("spec", "sent"),
    [
        (Spec(env={"A": "b c"}), {"env": {"A": "b c"}}),
        (Spec(options={"snapshot": SNAPSHOT}), {"snapshot": SNAPSHOT}),
        (Spec(image="debian:13"), {"buildInfo": {"dockerfileContent": "FROM debian:13\n"}}),
        (
            Spec(image="a", options={"cpu": 2, "memory": 4, "disk": 8}),
            {"cpu": 2, "memory": 4, "disk": 8},
        ),
        (Spec(options={"network_block_all": False}), {"networkBlockAll": False}),
        (
            Spec(options={"network_allow_list": ["10.0.0.0/8", "1.1.1.1/32"]}),
            {"networkBlockAll": False, "networkAllowList": "10.0.0.0/8,1.1.1.1/32"},
        ),
        (
            Spec(options={"domain_allow_list": ["pypi.org"]}),
            {"networkBlockAll": False, "domainAllowList": "pypi.org"},
        ),
        (Spec(options={"target": "eu"}), {"target": "eu"}),
        (Spec(options={"user": "root", "public": True}), {"user": "root", "public": True}),
        (
            Spec(options={"auto_stop_interval": 5, "auto_delete_interval": 0}),
            {"autoStopInterval": 5, "autoDeleteInterval": 0},
        ),
        (Spec(options={"auto_archive_interval": 7}), {"autoArchiveInterval": 7}),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_an_option_is_what_it_says(world: World, spec: Spec, sent: dict[str, Any]) -> None:
    """Each one, as the API calls it."""
    made = world.create(spec)

    assert sent.items() <= world.sent().items()
    assert made.state in {ProviderState.RUNNING, ProviderState.PENDING}


def test_its_region_is_a_setting(world: World) -> None:
    """DAYTONA_TARGET, unless the spec says another."""
    provider = DaytonaProvider.from_env(environment(world.api.url, DAYTONA_TARGET="eu"))
    provider.create(NAME, LABELS, SPEC, ttl=None, deadline=soon())
    there = Spec(options={"target": "us"})
    provider.create(OTHER, OTHER_LABELS, there, ttl=None, deadline=soon())

    targets = [call.body["target"] for call in world.api.calls]
    assert targets == ["eu", "us"]


# What is refused


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(command=("sleep", "9")), "command"),
        (Spec(image=""), "image ''"),
        (Spec(image="a\nRUN evil"), "image 'a"),
        (Spec(image="a", options={"snapshot": "b"}), "options.snapshot 'b'"),
        (Spec(options={"cpu": 2}), "options.cpu 2: a snapshot has its own"),
        (Spec(image="a", options={"cpu": 0}), "options.cpu 0"),
        (Spec(image="a", options={"memory": "4g"}), "options.memory '4g'"),
        (Spec(options={"network": "none"}), "options.network 'none'.*network_block_all"),
        (
            Spec(options={"network_block_all": True, "domain_allow_list": ["a.b"]}),
            "options.network_block_all True",
        ),
        (Spec(options={"auto_stop_interval": -1}), "options.auto_stop_interval -1"),
    ],
)
def test_what_can_never_be_made_is_refused_before_anything_is_sent(
    world: World, spec: Spec, words: str
) -> None:
    """With the field and the value."""
    with pytest.raises(InvalidSpec, match=words):
        world.create(spec)

    assert world.api.calls == []


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"snapshot": "no-such"}, InvalidSpec, "no-such not found"),
        ({"snapshot": "daytona-young"}, Unavailable, "is pulling"),
        ({"target": "mars"}, InvalidSpec, "Region not found.*DAYTONA_TARGET"),
        ({"network_allow_list": ["everywhere"]}, InvalidSpec, "everywhere"),
    ],
)
def test_what_daytona_refuses_is_named(
    world: World, options: dict[str, object], kind: type[ProviderError], words: str
) -> None:
    """And made nothing."""
    with pytest.raises(kind, match=words) as refused:
        world.create(Spec(options=options))

    assert type(refused.value) is kind
    assert world.fake.boxes == {}


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (400, "Total memory limit exceeded. Maximum allowed: 10GiB.", QuotaExceeded),
        (400, "No available runners", QuotaExceeded),
        (402, "Payment Required", QuotaExceeded),
        (400, "CPU request 64 exceeds maximum allowed per sandbox (4).", InvalidSpec),
        (422, "not supported for this sandbox", InvalidSpec),
        (403, "Region eu is not available to the organization", InvalidSpec),
        (403, "Organization is suspended: unpaid", AuthFailed),
        (404, "Cannot POST /sandbox", Unavailable),
        (404, "Toolbox proxy URL not resolved for region us", OutcomeUnknown),
        (500, "An unexpected error occurred.", OutcomeUnknown),
        (504, "Gateway Timeout", OutcomeUnknown),
        (408, "Request Timeout", OutcomeUnknown),
        (418, "I'm a teapot", OutcomeUnknown),
    ],
)
def test_a_refused_create_has_its_error(
    world: World, status: int, said: str, kind: type[ProviderError]
) -> None:
    """By its status, then by its words. What may have been made is never called refused."""
    reply = Reply(status, {"statusCode": status, "message": said})
    world.api.strike("POST", "/sandbox", Fault(reply))

    with pytest.raises(ProviderError, match=str(status) if "," in said else said[:20]) as refused:
        world.create()

    assert type(refused.value) is kind


def test_a_quota_is_no_refusal_of_what_is_there(world: World) -> None:
    """It is checked before names: the retry of a create that used up the last room succeeds."""
    world.fake.room = 1
    world.api.strike("POST", "/sandbox", Fault(cut=True, after=True))
    with pytest.raises(OutcomeUnknown):
        world.create()

    adopted = world.create()
    with pytest.raises(QuotaExceeded, match="Total CPU limit"):
        world.provider.create(OTHER, OTHER_LABELS, SPEC, ttl=None, deadline=soon())

    assert adopted.ref.external_id == world.fake.one(NAME).id


def test_one_that_fails_to_start_is_refused_and_can_be_destroyed(world: World) -> None:
    """The answer is a 400, and the sandbox is there in state error."""
    world.fake.fails_to_start = True

    with pytest.raises(InvalidSpec, match="no such runtime"):
        world.create()

    assert world.state(SandboxRef(name=NAME)) is ProviderState.FAILED
    world.provider.destroy(SandboxRef(name=NAME), deadline=soon())
    assert world.fake.one(NAME).desired == "destroyed"


def test_a_refusal_that_is_not_the_api_s_refuses_no_spec(world: World) -> None:
    """A proxy on the way knows nothing of what can be made."""
    world.api.strike("POST", "/sandbox", Fault(Reply(400, b"<html>Bad Request")))

    with pytest.raises(OutcomeUnknown, match="Bad Request"):
        world.create()


def test_an_image_that_cannot_be_built_is_failed(world: World) -> None:
    """The create does not wait for it; it can be destroyed before, and after."""
    ref = world.create(Spec(image="no-such-image")).ref
    assert world.state(ref) is ProviderState.PENDING

    world.fake.put(NAME, state="build_failed", pending=False)

    assert world.state(ref) is ProviderState.FAILED
    with pytest.raises(Unavailable, match="nothing was extended"):
        world.provider.extend(ref, ttl=60.0, deadline=soon())
    world.provider.destroy(ref, deadline=soon())
    assert world.fake.one(NAME).desired == "destroyed"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "DAYTONA_API_KEY is not set"),
        ({"DAYTONA_JWT_TOKEN": TOKEN}, "DAYTONA_ORGANIZATION_ID is not set"),
        ({"DAYTONA_API_KEY": "top-secret\n"}, "DAYTONA_API_KEY has spaces or letters"),
        ({"DAYTONA_API_KEY": KEY, "DAYTONA_API_URL": "here"}, "DAYTONA_API_URL='here'"),
        ({"DAYTONA_API_KEY": KEY, "DAYTONA_SERVER_URL": "here"}, "DAYTONA_SERVER_URL='here'"),
    ],
    ids=["none", "organization", "secret", "url", "old url"],
)
def test_settings_that_are_wrong_are_refused(environ: dict[str, str], words: str) -> None:
    """With the variable; a secret is not repeated."""
    with pytest.raises(SettingsError, match=words) as refused:
        DaytonaProvider.from_env(environ)

    assert "top-secret" not in str(refused.value)


# Who we are


def test_a_key_is_asked_once_whose_it_is(world: World) -> None:
    """The scope is the organisation, not the key: keys are replaced."""
    assert world.provider.scope() == world.provider.scope() == f"daytona:{OURS}"
    assert world.api.count("GET", "push-access") == 1


def test_a_token_says_which_organisation(world: World) -> None:
    """It is sent with every call, and is the scope."""
    environ = {"DAYTONA_JWT_TOKEN": TOKEN, "DAYTONA_ORGANIZATION_ID": OURS}
    url = {"DAYTONA_API_URL": f"{world.api.url}/api"}
    provider = DaytonaProvider.from_env({**environ, **url})
    foreign = DaytonaProvider.from_env({**environ, **url, "DAYTONA_ORGANIZATION_ID": "org-no"})

    made = provider.create(NAME, LABELS, SPEC, ttl=None, deadline=soon())

    assert world.get(made.ref) is not None
    assert provider.scope() == world.provider.scope()
    with pytest.raises(AuthFailed):
        foreign.get(made.ref, deadline=soon())


def test_a_key_of_another_organisation_than_was_meant_is_refused(world: World) -> None:
    """Its "not found" would be believed."""
    more = {"DAYTONA_ORGANIZATION_ID": OURS, "DAYTONA_API_KEY": OTHERS_KEY}
    provider = DaytonaProvider.from_env(environment(world.api.url, **more))

    with pytest.raises(AuthFailed, match=r"DAYTONA_ORGANIZATION_ID=org-ours.*org-others"):
        provider.scope()


def test_an_installation_that_cannot_tell_needs_the_setting(world: World) -> None:
    """Without a store for uploads nothing names the organisation of a key."""
    world.fake.has_store = False
    told = environment(world.api.url, DAYTONA_ORGANIZATION_ID=OURS)

    with pytest.raises(Unavailable, match="set DAYTONA_ORGANIZATION_ID"):
        world.provider.scope()
    assert DaytonaProvider.from_env(told).scope().endswith(f":{OURS}")


@pytest.mark.parametrize("credentials", ["wrong", OTHERS_KEY])
def test_what_others_may_not_see_is_never_gone(world: World, credentials: str) -> None:
    """Wrong credentials raise on every call; another organisation is another scope."""
    ref = world.create().ref
    more = {"DAYTONA_API_KEY": credentials}
    stranger = DaytonaProvider.from_env(environment(world.api.url, **more))

    if credentials == OTHERS_KEY:
        assert stranger.scope() != world.provider.scope()
        return
    for call in calls(stranger, ref):
        with pytest.raises(AuthFailed, match="Unauthorized"):
            call()
    assert world.state(ref) is ProviderState.RUNNING


# Lost answers and outages


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_create_whose_answer_is_lost_is_made_once(world: World, when: str) -> None:
    """Whether it had its effect or not, the next one of the name is the one."""
    world.api.strike("POST", "/sandbox", Fault(cut=True, after=when == "after"))
    with pytest.raises(OutcomeUnknown):
        world.create()
    assert len(world.fake.boxes) == (when == "after")

    made = world.create()

    assert [made.ref.external_id] == list(world.fake.boxes)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b"{}", b'{"id": "x", "name": "somebody-else"}']
)
def test_a_create_whose_answer_cannot_be_read_is_adopted_later(
    world: World, content: bytes
) -> None:
    """Something was made: nobody knows what."""
    world.api.strike("POST", "/sandbox", Fault(Reply(200, content), after=True))
    with pytest.raises(OutcomeUnknown):
        world.create()

    assert world.create().ref.external_id == world.fake.one(NAME).id


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b"{}", b'{"items": 1}', b'{"items": []}']
)
def test_an_answer_that_cannot_be_read_is_no_answer(world: World, content: bytes) -> None:
    """A look never says None for it, and a listing is never empty."""
    ref = world.create().ref
    world.api.strike("GET", "/sandbox", Fault(Reply(200, content)), times=2)

    with pytest.raises(Unavailable):
        world.get(ref)
    with pytest.raises(Unavailable):
        world.listed()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404, b"<html>not here"),
        Reply(404, {"message": "Cannot GET /sandbox"}),
        Reply(404, {"message": f"Cannot GET /v2/sandbox/{NAME}"}),
        Reply(404, {"message": "Toolbox proxy URL not resolved for region us"}),
        Reply(500, {"message": "An unexpected error occurred."}),
        Reply(302, headers={"Location": "/login"}),
    ],
    ids=["proxy", "path", "path with its name", "region", "500", "login"],
)
def test_only_the_api_s_own_not_found_is_one(world: World, reply: Reply) -> None:
    """Every other raises, and destroys nothing."""
    world.create()
    ref = SandboxRef(name=NAME)
    world.api.strike("GET", f"/sandbox/{NAME}", Fault(reply), times=3)

    for call in (
        lambda: world.provider.get(ref, deadline=soon()),
        lambda: world.provider.destroy(ref, deadline=soon()),
        lambda: world.provider.extend(ref, ttl=60.0, deadline=soon()),
    ):
        with pytest.raises(Unavailable):
            call()
    assert world.state(ref) is ProviderState.RUNNING


@pytest.mark.parametrize("by", ["name", "id"])
def test_an_outage_that_is_called_not_found_is_not_believed(world: World, by: str) -> None:
    """Its guard says so for every error: the index knows better."""
    ref = world.create().ref if by == "id" else SandboxRef(name=world.create().ref.name)
    world.fake.is_failing = True

    assert world.state(ref) is ProviderState.UNKNOWN
    with pytest.raises(Unavailable, match="nothing was extended"):
        world.provider.extend(ref, ttl=60.0, deadline=soon())

    world.fake.is_failing = False
    assert world.state(ref) is ProviderState.RUNNING


def test_a_host_that_is_not_there_is_no_not_found() -> None:
    """Every call says where it looked."""
    nowhere = DaytonaProvider.from_env(environment("http://127.0.0.1:1"))

    for call in calls(nowhere, SandboxRef(name=NAME, external_id="x")):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            call()


def test_an_address_without_its_api_is_no_empty_account(world: World) -> None:
    """There the dashboard answers every look with a page."""
    provider = DaytonaProvider.from_env({"DAYTONA_API_URL": world.api.url, "DAYTONA_API_KEY": KEY})

    for call in calls(provider, SandboxRef(name=NAME)):
        with pytest.raises((Unavailable, OutcomeUnknown), match="no JSON"):
            call()


@pytest.mark.parametrize(
    "header",
    [
        "Retry-After",
        "Retry-After-sandbox-create",
        "Retry-After-sandbox-lifecycle",
        "Retry-After-authenticated",
    ],
)
def test_a_limit_says_how_long_to_wait(world: World, header: str) -> None:
    """Each scope has a header of its own, on every call."""
    ref = world.create().ref
    reply = Reply(429, {"message": "ThrottlerException: Too Many Requests"}, {header: "17"})
    for method in ("GET", "POST", "DELETE"):
        world.api.strike(method, "/", Fault(reply), times=9)

    for call in calls(world.provider, ref):
        with pytest.raises(RateLimited) as limited:
            call()
        assert limited.value.retry_after == 17.0


def test_a_deadline_bounds_all_requests_of_a_call(world: World) -> None:
    """A destroy is two: a slow one leaves less for the next."""
    ref = world.create().ref
    world.api.strike("GET", "/sandbox/", Fault(delay=2.0))
    world.api.strike("DELETE", "/sandbox/", Fault(delay=20.0))
    began = time.monotonic()

    with pytest.raises((OutcomeUnknown, Unavailable), match=r"Timeout|no time left"):
        world.provider.destroy(ref, deadline=time.monotonic() + 3.0)

    assert time.monotonic() - began < 4.9


# Names


def test_a_name_that_is_another_s_is_left_alone(world: World) -> None:
    """Without our labels, or with those of another row."""
    for labels in ({}, {**LABELS, "sandkeeper-generation": "2"}, None):
        world.fake.put(NAME, labels=labels)
        before = dict(world.fake.boxes)

        with pytest.raises(ForeignConflict, match="left alone"):
            world.create()

        assert world.fake.boxes == before


def test_labels_of_others_on_ours_do_no_harm(world: World) -> None:
    """The SDK adds one of its own."""
    world.fake.put(NAME, labels={**LABELS, "code-toolbox-language": "python"})

    assert world.create().ref.external_id == world.fake.one(NAME).id


def test_a_look_by_name_that_is_still_remembered_is_waited_for(world: World) -> None:
    """The server repeats for a while that nothing has the name, when something does."""
    world.fake.keeps_misses = 1.0
    assert world.get(SandboxRef(name=NAME)) is None
    made = world.fake.put(NAME, labels=LABELS)

    assert world.create().ref.external_id == made.id


def test_a_name_that_stays_taken_and_cannot_be_seen_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is concluded."""
    monkeypatch.setattr(daytona, "SETTLES_WITHIN", 0.3)
    world.fake.put(NAME, labels=LABELS)
    world.fake.is_failing = True

    with pytest.raises(Busy, match="already exists"):
        world.create()


def test_another_s_name_that_begins_like_ours_is_not_touched(world: World) -> None:
    """Its filter for names takes beginnings, in any case: it is never used."""
    longer, shouted = world.fake.put(f"{NAME}-2"), world.fake.put(NAME.upper())

    world.provider.destroy(SandboxRef(name=NAME), deadline=soon())

    assert world.get(SandboxRef(name=NAME)) is None
    assert set(world.fake.boxes) == {longer.id, shouted.id}
    assert world.api.count("DELETE") == 0


# What is deleted


@pytest.mark.parametrize("by", ["name", "id"])
def test_what_is_being_deleted_is_not_gone(world: World, by: str) -> None:
    """A delete frees the name at once, and the sandbox runs on: by either it is STOPPING."""
    world.fake.destroys_within = 100.0
    made = world.create()
    ref = made.ref if by == "id" else SandboxRef(name=NAME)

    world.provider.destroy(ref, deadline=soon())
    world.provider.destroy(ref, deadline=soon())

    for ahead in (0.0, 60.0):
        world.fake.ahead = ahead
        found = world.get(ref)
        assert found is not None
        assert (found.ref, found.state) == (made.ref, ProviderState.STOPPING)
        assert [item.ref for item in world.listed()] == [made.ref]
    world.fake.ahead = 101.0
    assert world.get(ref) is None
    assert world.listed() == []
    assert world.api.count("DELETE") == 1


def test_a_delete_that_failed_is_seen(world: World) -> None:
    """Daytona hides it as "not found"; a listing leaves it out, for nothing can be done there."""
    world.fake.fails_to_destroy = True
    ref = world.create().ref
    world.provider.destroy(ref, deadline=soon())
    world.fake.ahead = 10.0

    assert world.fake.one(NAME).is_hidden
    assert world.state(ref) is ProviderState.FAILED
    assert world.state(SandboxRef(name=NAME)) is ProviderState.FAILED
    assert world.listed() == []
    world.provider.destroy(ref, deadline=soon())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pending": True, "state": "starting"}, "state change in progress"),
        ({"forks": 1}, "active fork children"),
    ],
    ids=["change", "forks"],
)
def test_one_that_is_busy_is_asked_again(world: World, changes: dict[str, Any], words: str) -> None:
    """Not destroyed, and not taken for destroyed."""
    ref = world.create().ref
    world.fake.put(NAME, **changes)

    with pytest.raises(Busy, match=words):
        world.provider.destroy(ref, deadline=soon())

    assert world.get(ref) is not None


def test_a_delete_that_another_was_faster_with_is_a_success(world: World) -> None:
    """The two looked at it at once; the second is told of a change in progress."""
    ref = world.create().ref
    refused = Reply(409, {"message": "Sandbox was modified by another operation"})
    world.api.strike("DELETE", "/sandbox/", Fault(refused, after=True))

    world.provider.destroy(ref, deadline=soon())

    assert world.fake.one(NAME).desired == "destroyed"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_delete_whose_answer_is_lost_is_repeated(world: World, when: str) -> None:
    """Nobody knows; the second time it is a success either way."""
    ref = world.create().ref
    world.api.strike("DELETE", "/sandbox/", Fault(cut=True, after=when == "after"))
    with pytest.raises(OutcomeUnknown):
        world.provider.destroy(ref, deadline=soon())

    world.provider.destroy(ref, deadline=soon())

    eventually(lambda: world.get(ref) is None)


@pytest.mark.parametrize("status", [400, 410, 500, 503])
def test_a_delete_that_is_refused_is_no_success(world: World, status: int) -> None:
    """Whatever else is said: it has to be asked again."""
    ref = world.create().ref
    world.api.strike("DELETE", "/sandbox/", Fault(Reply(status, {"message": "no"})))

    with pytest.raises(Unavailable):
        world.provider.destroy(ref, deadline=soon())


# Listings


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("stopped", ProviderState.PAUSED),
        ("paused", ProviderState.PAUSED),
        ("archived", ProviderState.PAUSED),
        ("stopping", ProviderState.PAUSED),
        ("pulling_snapshot", ProviderState.PENDING),
        ("resizing", ProviderState.RUNNING),
        ("destroying", ProviderState.STOPPING),
        ("error", ProviderState.FAILED),
        ("build_failed", ProviderState.FAILED),
        ("unknown", ProviderState.UNKNOWN),
        ("a_new_one", ProviderState.UNKNOWN),
    ],
)
def test_whatever_occupies_is_listed(world: World, state: str, shown: ProviderState) -> None:
    """Stopped ones too: their disk bills, and nothing deletes them."""
    ref = world.create().ref
    world.fake.put(NAME, state=state)

    (item,) = world.listed()

    assert (item.ref, item.state) == (ref, shown)
    assert world.state(ref) is shown


def test_what_is_not_ours_is_not_listed(world: World) -> None:
    """Labels are compared again, and odd ones are nobody's."""
    ref = world.create().ref
    odd: list[Any] = [None, [], "text", {}, {"sandkeeper-installation": 1}]
    dressed = [{"id": str(i), "name": f"n{i}", "labels": labels} for i, labels in enumerate(odd)]
    ours = {"id": ref.external_id, "name": NAME, "labels": {**LABELS, "odd": 1}}
    page = Reply(200, {"items": [*dressed, {}, None, ours], "nextCursor": None})
    world.api.strike("GET", "/sandbox", Fault(page))

    assert [item.ref for item in world.listed()] == [ref]


def test_one_of_ours_without_a_name_is_no_page(world: World) -> None:
    """It would be missing, and nobody would know."""
    page = Reply(200, {"items": [{"id": "x", "labels": LABELS}], "nextCursor": None})
    world.api.strike("GET", "/sandbox", Fault(page))

    with pytest.raises(Unavailable, match="without id or name"):
        world.listed()


def test_half_a_listing_is_none(world: World) -> None:
    """The second page fails: an error, not the first page alone."""
    world.fake.page = 1
    world.create()
    world.provider.create(OTHER, OTHER_LABELS, SPEC, ttl=None, deadline=soon())
    assert [item.ref.name for item in world.listed()] == [NAME, OTHER]
    first = world.provider.list(ALL, cursor=None, deadline=soon())
    world.api.strike("GET", "/sandbox", Fault(Reply(503, {"message": "busy"})))

    with pytest.raises(Unavailable, match="busy"):
        world.provider.list(ALL, cursor=first.cursor, deadline=soon())

    assert len(first.items) == 1


def test_an_index_that_is_behind_hides_nothing_from_a_look(world: World) -> None:
    """A fresh one is found by its name before it is listed."""
    world.fake.lag = 100.0
    ref = world.create().ref

    assert world.listed() == []
    assert world.state(SandboxRef(name=NAME)) is ProviderState.RUNNING

    world.fake.ahead = 101.0
    assert [item.ref for item in world.listed()] == [ref]


# TTL


def test_what_was_granted_is_told(world: World) -> None:
    """A region may allow less than was asked for, also where nothing was."""
    world.fake.longest = 10
    soon_gone = datetime.now(UTC) + timedelta(minutes=11)

    made = world.create(ttl=7200.0)
    granted = world.provider.extend(made.ref, ttl=7200.0, deadline=soon())
    other = world.provider.create(OTHER, OTHER_LABELS, SPEC, ttl=None, deadline=soon())

    for moment in (made.expires_at, granted, other.expires_at):
        assert moment is not None
        assert moment < soon_gone
    assert "ttlMinutes" not in world.sent()


def test_a_ttl_destroys_what_is_stopped(world: World) -> None:
    """By the wall clock, in every state: a stopped one would bill its disk for ever."""
    ref = world.create(ttl=600.0).ref
    world.fake.put(NAME, state="stopped")

    world.fake.ahead = 500.0
    assert world.state(ref) is ProviderState.PAUSED
    world.fake.ahead = 700.0
    assert world.get(ref) is None


def test_a_server_that_knows_no_ttl_grants_none(world: World) -> None:
    """An old one ignores what it does not know; nobody counts on it then."""
    answer = {"id": "x", "name": NAME, "labels": LABELS, "state": "started"}
    world.api.strike("POST", "/sandbox", Fault(Reply(200, answer)))

    assert world.create(ttl=600.0).expires_at is None


def test_a_fraction_of_a_minute_is_never_for_ever(world: World) -> None:
    """0 minutes would mean no TTL."""
    assert world.create(ttl=0.001).expires_at is not None
    assert world.sent()["ttlMinutes"] == 1


@pytest.mark.parametrize(
    "answer",
    [{"state": "started"}, {"state": "destroying", "autoDestroyAt": "2030-01-01T00:00:00Z"}],
    ids=["without a TTL", "leaving"],
)
def test_an_extension_that_granted_nothing_is_none(world: World, answer: dict[str, str]) -> None:
    """An old server takes it and says nothing; one that is deleted has no time left."""
    ref = world.create(ttl=600.0).ref
    reply = Reply(200, {"id": ref.external_id, "name": NAME, "labels": LABELS, **answer})
    world.api.strike("POST", "/ttl/", Fault(reply))

    with pytest.raises(Unavailable, match="no TTL"):
        world.provider.extend(ref, ttl=600.0, deadline=soon())


def test_what_is_being_deleted_is_not_extended(world: World) -> None:
    """It is found by its id, and would take a TTL."""
    world.fake.destroys_within = 100.0
    ref = world.create(ttl=600.0).ref
    world.provider.destroy(ref, deadline=soon())

    with pytest.raises(Unavailable, match="nothing was extended"):
        world.provider.extend(ref, ttl=600.0, deadline=soon())


# The vendor's own SDK

SDK = """
import json, sys
from daytona import CreateSandboxFromSnapshotParams, Daytona, DaytonaConfig, ListSandboxesQuery

client = Daytona(DaytonaConfig(api_key=sys.argv[1], api_url=sys.argv[2], target="us"))
do, name, labels = sys.argv[3], sys.argv[4], json.loads(sys.argv[5])
if do == "create":
    made = client.create(CreateSandboxFromSnapshotParams(name=name, labels=labels, ttl_minutes=5))
    print(made.id)
elif do == "list":
    print(*(item.id for item in client.list(ListSandboxesQuery(labels=labels))))
else:
    client.get(name).delete()
"""


def sdk(python: Path, url: str, do: str, name: str, labels: dict[str, str]) -> list[str]:
    """Let it do something, and give what it printed."""
    run = subprocess.run(
        [str(python), "-W", "ignore", "-c", SDK, KEY, f"{url}/api", do, name, json.dumps(labels)],
        env={"DAYTONA_USE_DEPRECATED_POLLING": "true", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_what_the_sdk_made_is_seen_as_it_is(world: World, vendors: Path) -> None:
    """With our labels it is ours, and without them nobody's."""
    (ours,) = sdk(vendors, world.api.url, "create", NAME, LABELS)
    sdk(vendors, world.api.url, "create", "somebody-elses", {"a": "b"})

    (item,) = world.listed()
    adopted = world.create()

    assert item.ref == adopted.ref == SandboxRef(name=NAME, external_id=ours)
    assert item.expires_at is not None


def test_what_we_made_is_what_the_sdk_sees_and_kills(world: World, vendors: Path) -> None:
    """And then it is gone for us."""
    ref = world.create(ttl=600.0).ref
    world.provider.create(OTHER, OTHER_LABELS, SPEC, ttl=None, deadline=soon())

    seen = sdk(vendors, world.api.url, "list", "", {"sandkeeper-key": ONE_KEY})
    sdk(vendors, world.api.url, "delete", NAME, {})

    assert seen == [ref.external_id]
    eventually(lambda: world.get(ref) is None)
    assert [item.ref.name for item in world.listed()] == [OTHER]


def test_no_sdk_is_imported() -> None:
    """It would bring sixty packages, and threads."""
    script = (
        "import sys; from core.providers.registry import load_provider; "
        f"load_provider('daytona', {{'DAYTONA_API_KEY': '{KEY}'}}); "
        "print('core.providers.daytona' in sys.modules, 'daytona' in sys.modules)"
    )

    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert run.stdout.split() == ["True", "False"], run.stderr
