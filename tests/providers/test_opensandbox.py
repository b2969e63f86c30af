"""
Provider `opensandbox` against a server that can be made to fail: the contract, and each fault.

`test_opensandbox_server.py` has what the real server does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import httpx2
import pytest

from core.engines import make_engine
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
from core.host import Host
from core.lifecycle import Keeper
from core.model import new_key, sandbox_labels, sandbox_name
from core.providers import opensandbox
from core.providers.base import Capability, ProviderState, SandboxInfo, SandboxRef, Spec
from core.providers.opensandbox import OpenSandboxProvider
from core.providers.opensandbox_answers import now_there
from core.providers.opensandbox_pages import everything, window
from core.providers.rest import Answer
from core.reconcile import Reconciler
from core.store import Store
from tests.apis import Api, Fault, Reply, serving
from tests.factories import policy
from tests.fakes import FrozenClock, Idle
from tests.providers.contract import ProviderContract, soon
from tests.providers.fake_opensandbox import KEY, FakeOpenSandbox, refused

NAME = sandbox_name("abcd1234", new_key(lambda _: 7))
OTHER = sandbox_name("abcd1234", new_key(lambda _: 8))
SPEC = Spec(image="python:3.13-slim", command=("sleep", "infinity"))
AGO = timedelta(days=1)
OURS = {"sandkeeper-installation": "abcd1234", "sandkeeper-schema": "1"}


def labels_of(name: str, generation: int = 1) -> dict[str, str]:
    """What its row gives a sandbox."""
    _, installation, key = name.split("-")
    return sandbox_labels(installation, key, "a-session", generation, datetime.now(UTC) - AGO)


LABELS = {NAME: labels_of(NAME), OTHER: labels_of(OTHER)}


@pytest.fixture
def fake() -> FakeOpenSandbox:
    """The server's state."""
    return FakeOpenSandbox()


@pytest.fixture
def environ(api: Api) -> dict[str, str]:
    """What finds it."""
    return {"OPEN_SANDBOX_DOMAIN": api.url, "OPEN_SANDBOX_API_KEY": KEY}


@pytest.fixture
def provider(environ: Mapping[str, str]) -> OpenSandboxProvider:
    """A handle of it."""
    return OpenSandboxProvider.from_env(environ)


def make(
    provider: OpenSandboxProvider, name: str = NAME, spec: Spec = SPEC, ttl: float | None = 600.0
) -> SandboxInfo:
    """A sandbox."""
    return provider.create(name, LABELS[name], spec, ttl=ttl, deadline=soon())


def get(provider: OpenSandboxProvider, ref: SandboxRef) -> SandboxInfo | None:
    """A look."""
    return provider.get(ref, deadline=soon())


def listed(provider: OpenSandboxProvider) -> set[str | None]:
    """The ids of all that the installation has."""
    page = provider.list(OURS, cursor=None, deadline=soon())
    assert page.cursor is None
    ids = [item.ref.external_id for item in page.items]
    assert len({*ids}) == len(ids)
    return {*ids}


def every_call(provider: OpenSandboxProvider, ref: SandboxRef) -> dict[str, Callable[[], object]]:
    """Each thing that can be asked, of a sandbox that is there."""
    return {
        "create": lambda: make(provider, OTHER),
        "get": lambda: get(provider, ref),
        "get by name": lambda: get(provider, SandboxRef(name=ref.name)),
        "list": lambda: listed(provider),
        "extend": lambda: provider.extend(ref, ttl=60.0, deadline=soon()),
        "destroy": lambda: provider.destroy(ref, deadline=soon()),
        "destroy by name": lambda: provider.destroy(SandboxRef(name=ref.name), deadline=soon()),
    }


class TestContract(ProviderContract):
    """It keeps the contract, with pages of five."""

    provider_path = "opensandbox"
    spec: ClassVar[Spec] = SPEC
    several: ClassVar[int] = 12

    @pytest.fixture(autouse=True)
    def _small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(opensandbox, "LARGEST_PAGE", 5)


# What is asked for


def test_what_is_sent_is_what_the_spec_says(api: Api, provider: OpenSandboxProvider) -> None:
    """Byte by byte the same for a retry, and nothing that nobody asked for."""
    options = {"cpus": 0.5, "memory": "512Mi", "egress": ["pypi.org"]}
    spec = replace(SPEC, env={"A": "b"}, options=options)

    make(provider, spec=spec, ttl=600.2)

    (sent,) = [call.body for call in api.calls if call.method == "POST"]
    assert sent == {
        "image": {"uri": "python:3.13-slim"},
        "entrypoint": ["sleep", "infinity"],
        "env": {"A": "b"},
        "metadata": LABELS[NAME],
        "timeout": 601,
        "resourceLimits": {"cpu": "0.5", "memory": "512Mi"},
        "networkPolicy": {
            "defaultAction": "deny",
            "egress": [{"action": "allow", "target": "pypi.org"}],
        },
    }


def test_the_least_that_can_be_asked_for(api: Api, provider: OpenSandboxProvider) -> None:
    """Bounded by default, and idle; without a TTL none is sent."""
    made = make(provider, spec=Spec(image="a"), ttl=None)

    (sent,) = [call.body for call in api.calls if call.method == "POST"]
    assert sent == {
        "image": {"uri": "a"},
        "entrypoint": ["tail", "-f", "/dev/null"],
        "metadata": LABELS[NAME],
        "resourceLimits": {"cpu": "1", "memory": "1Gi"},
    }
    assert made.expires_at is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(), "image: provider `opensandbox` needs one"),
        (replace(SPEC, options={"cpu": 1}), "options.cpu 1"),
        (replace(SPEC, options={"cpus": 0}), "options.cpus 0"),
        (replace(SPEC, options={"memory": "1g"}), "options.memory '1g'"),
        (replace(SPEC, options={"memory": 1}), "options.memory 1"),
        (replace(SPEC, options={"egress": "pypi.org"}), "options.egress 'pypi.org'"),
        (replace(SPEC, options={"egress": [""]}), "options.egress.0 ''"),
        (replace(SPEC, options={"snapshot": "s"}), "not with options.snapshot"),
        (Spec(options={"snapshot": "s", "pool": "p"}), "not with options.pool"),
        (Spec(options={"snapshot": "no-such"}), "Snapshot no-such not found"),
        (Spec(options={"pool": "p"}), "poolRef is not supported"),
        (replace(SPEC, env={"A=B": "c"}), "A=B"),
        (replace(SPEC, command=("a\0",)), "NUL"),
        (replace(SPEC, image="no-such:1"), "pull access denied for no-such"),
    ],
)
def test_what_can_never_be_made_is_refused(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider, spec: Spec, words: str
) -> None:
    """By us or by the server, with the field and the value, and nothing is there."""
    with pytest.raises(InvalidSpec, match=words.replace(".", r"\.")):
        make(provider, spec=spec)

    assert fake.sandboxes == {}


def test_a_ttl_that_the_server_does_not_allow_is_refused(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """Its own words name its limit."""
    fake.longest = 300

    with pytest.raises(InvalidSpec, match="600s exceeds configured maximum of 300s"):
        make(provider)


def test_labels_of_another_name_are_refused(api: Api, provider: OpenSandboxProvider) -> None:
    """It would never be found again."""
    with pytest.raises(InvalidSpec, match=f"{OTHER} by its labels"):
        provider.create(NAME, LABELS[OTHER], SPEC, ttl=None, deadline=soon())

    assert api.calls == []


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OPEN_SANDBOX_DOMAIN": "http://"}, "OPEN_SANDBOX_DOMAIN='http:"),
        ({"OPEN_SANDBOX_DOMAIN": "me:secret@here"}, "OPEN_SANDBOX_DOMAIN holds a user"),
        ({"OPEN_SANDBOX_API_KEY": "secret\n"}, "OPEN_SANDBOX_API_KEY has characters"),
        ({"OPEN_SANDBOX_API_KEY": "secrét"}, "OPEN_SANDBOX_API_KEY has characters"),
        ({"SANDKEEPER_OPENSANDBOX_SCOPE": "a\n"}, r"OPENSANDBOX_SCOPE='a\\n'"),
        ({"SANDKEEPER_OPENSANDBOX_KEY": "secret"}, "OPENSANDBOX_KEY is not a setting"),
    ],
    ids=["domain", "password", "line break", "accent", "scope", "name"],
)
def test_settings_that_are_wrong_are_refused(environ: dict[str, str], words: str) -> None:
    """Before anything is connected, and no secret is repeated."""
    with pytest.raises(SettingsError, match=words) as refused:
        OpenSandboxProvider.from_env(environ)

    assert "secr" not in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "scope"),
    [
        ({}, "opensandbox:http://localhost:8080"),
        ({"OPEN_SANDBOX_DOMAIN": "a.example"}, "opensandbox:http://a.example"),
        ({"OPEN_SANDBOX_DOMAIN": "https://A.example/os/"}, "opensandbox:https://a.example/os"),
        ({"SANDKEEPER_OPENSANDBOX_SCOPE": "team-1"}, "opensandbox:team-1"),
    ],
)
def test_the_scope_is_the_address_or_what_it_is_called(environ: dict[str, str], scope: str) -> None:
    """As the vendor's SDK reads its variables; a key that is changed changes no scope."""
    assert OpenSandboxProvider.from_env(environ).scope() == scope


# A create that is not answered


def test_a_create_that_was_cut_off_is_adopted(
    fake: FakeOpenSandbox, api: Api, provider: OpenSandboxProvider
) -> None:
    """The sandbox is there, and only the answer was lost."""
    api.strike("POST", "/sandboxes", Fault(cut=True, after=True))

    with pytest.raises(OutcomeUnknown):
        make(provider)
    made = make(provider)

    assert [*fake.sandboxes] == [made.ref.external_id]


def test_a_create_that_never_arrived_is_made(
    fake: FakeOpenSandbox, api: Api, provider: OpenSandboxProvider
) -> None:
    """Nothing is there to be adopted."""
    api.strike("POST", "/sandboxes", Fault(cut=True))

    with pytest.raises(OutcomeUnknown):
        make(provider)
    made = make(provider)

    assert [*fake.sandboxes] == [made.ref.external_id]


UNREADABLE = {
    "html": b"<html>",
    "nothing": b"",
    "no object": b"[]",
    "no id": {"status": {"state": "Running"}, "createdAt": "2026-01-01T00:00:00Z"},
    "a number": {"id": 7, "status": {"state": "Running"}, "createdAt": "2026-01-01T00:00:00Z"},
    "no state": {"id": "a", "status": "Running", "createdAt": "2026-01-01T00:00:00Z"},
    "no date": {"id": "a", "status": {"state": "Running"}, "createdAt": "yesterday"},
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=[*UNREADABLE])
def test_a_create_whose_answer_cannot_be_read_is_adopted(
    fake: FakeOpenSandbox, api: Api, provider: OpenSandboxProvider, body: object
) -> None:
    """It had its effect."""
    api.strike("POST", "/sandboxes", Fault(Reply(202, body), after=True))

    with pytest.raises(OutcomeUnknown):
        make(provider)
    made = make(provider)

    assert [*fake.sandboxes] == [made.ref.external_id]


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=[*UNREADABLE])
def test_a_look_that_cannot_be_read_finds_nothing_out(
    api: Api, provider: OpenSandboxProvider, body: object
) -> None:
    """Neither "gone" nor an empty listing."""
    ref = make(provider).ref
    api.strike("GET", "/sandboxes", Fault(Reply(200, body)), times=3)

    for call in ("get", "get by name", "list"):
        with pytest.raises(Unavailable):
            every_call(provider, ref)[call]()


def test_two_of_one_name_are_both_left_and_the_oldest_is_meant(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """One of them is on the row, and nobody here knows which; by its id each can be had."""
    made = make(provider)
    older = fake.add(LABELS[NAME], age=60)

    again = make(provider)

    assert again.ref.external_id == older
    assert get(provider, SandboxRef(name=NAME)) == again
    assert get(provider, made.ref) is not None
    assert listed(provider) == {older, made.ref.external_id}


def test_a_destroy_by_name_destroys_all_of_the_name(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """An unknown outcome left two, and the row has no id; by id only that one goes."""
    made = make(provider)
    other = make(provider, OTHER)
    fake.add(LABELS[NAME], age=60)
    spare = fake.add(LABELS[NAME], age=30)

    provider.destroy(SandboxRef(name=NAME, external_id=spare), deadline=soon())
    left = len(fake.sandboxes)
    provider.destroy(SandboxRef(name=NAME), deadline=soon())

    assert left == 3
    assert [*fake.sandboxes] == [other.ref.external_id]
    assert get(provider, made.ref) is None


def test_a_create_that_a_late_listing_hides_is_made_again_and_nothing_is_removed(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """A cache may lag: two are there, and both are found by label for who removes the other."""
    first = make(provider)
    fake.hidden.add(str(first.ref.external_id))

    second = make(provider)
    fake.hidden.clear()

    assert second.ref != first.ref
    assert listed(provider) == {first.ref.external_id, second.ref.external_id}


def test_of_two_the_row_keeps_one_and_reconciliation_removes_the_other(
    fake: FakeOpenSandbox, api: Api, environ: dict[str, str], sqlite_url: str, clock: FrozenClock
) -> None:
    """An answer that was lost, a listing that was late: both are there, until somebody looks."""
    fake.clock = lambda: clock.now
    fake.late = 1
    api.strike("POST", "/sandboxes", Fault(cut=True, after=True))
    provider, engine = OpenSandboxProvider.from_env(environ), make_engine(sqlite_url)
    store = Store(engine, policy=policy(), clock=clock)
    reconciler = Reconciler(store, {provider.name: provider}, host=Host(spread=lambda: 0.0))
    host = Host(sleep=clock.advance, loop=Idle)

    with Keeper(store, provider, spec={"image": "a"}, host=host) as keeper:
        session = keeper.open("conversation")
    made = len(fake.sandboxes)
    fake.hidden.clear()
    for _ in range(4):
        reconciler.reconcile()
        clock.advance(store.policy.reconcile_interval)

    assert made == 2
    assert [*fake.sandboxes] == [session.sandbox.external_id]
    engine.dispose()


def test_one_that_the_listing_hides_is_found_by_its_id(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """What a listing leaves out is not gone."""
    made = make(provider)
    fake.hidden.add(str(made.ref.external_id))

    assert get(provider, made.ref) == made


# Whose it is


def test_one_with_other_labels_is_left_alone(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """Our name, and another generation."""
    other = labels_of(NAME, generation=2)
    which = fake.add(other)

    with pytest.raises(ForeignConflict, match=NAME):
        make(provider)

    assert fake.sandboxes[which].metadata == other
    assert len(fake.sandboxes) == 1


@pytest.mark.parametrize(
    "labels",
    [
        {**LABELS[NAME], "sandkeeper-schema": "2"},
        {key: value for key, value in LABELS[NAME].items() if key != "sandkeeper-session"},
        {**LABELS[NAME], "sandkeeper-generation": 1},
    ],
    ids=["schema", "no session", "no text"],
)
def test_one_that_has_not_all_of_our_labels_is_a_strangers(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider, labels: dict[str, Any]
) -> None:
    """Whoever copied the key: it is neither found by name, nor adopted, nor destroyed."""
    stranger = fake.add(labels, age=60)

    made = make(provider)
    provider.destroy(SandboxRef(name=NAME), deadline=soon())

    assert made.ref.external_id != stranger
    assert [*fake.sandboxes] == [stranger]


def test_an_image_may_have_labels_of_its_own(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """The server shows them among the others."""
    made = make(provider)
    fake.sandboxes[str(made.ref.external_id)].metadata["maintainer"] = "somebody"

    assert make(provider).ref == made.ref


def test_one_that_is_being_removed_is_not_adopted(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """On Kubernetes it is still shown."""
    fake.add(LABELS[NAME], state="Stopping")

    with pytest.raises(Busy):
        make(provider)


@pytest.mark.parametrize(
    "odd", [None, [], "text", {"sandkeeper-schema": 1}, {"a": None}, {"sandkeeper-schema": "1"}]
)
def test_what_others_have_is_ignored(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider, odd: Any
) -> None:
    """Also when a server gives what was not asked for, or labels that are none."""
    fake.filters = False
    made = make(provider)
    fake.add({**LABELS[OTHER], "sandkeeper-installation": "otherone"})
    fake.sandboxes[fake.add({})].metadata = odd

    assert listed(provider) == {made.ref.external_id}


# States


@pytest.mark.parametrize(
    ("state", "meant"),
    [
        ("Pending", ProviderState.PENDING),
        ("Allocated", ProviderState.PENDING),
        ("Pausing", ProviderState.PAUSED),
        ("Paused", ProviderState.PAUSED),
        ("Resuming", ProviderState.PENDING),
        ("Stopping", ProviderState.STOPPING),
        ("Failed", ProviderState.FAILED),
        ("Terminated", ProviderState.FAILED),
        ("Unheard", ProviderState.UNKNOWN),
    ],
)
def test_every_state_is_shown_and_none_is_gone(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider, state: str, meant: ProviderState
) -> None:
    """It is there for as long as the server has it: listed, found, and it can be destroyed."""
    made = make(provider)
    fake.sandboxes[str(made.ref.external_id)].state = state

    found = get(provider, made.ref)

    assert found is not None
    assert found.state is meant
    assert listed(provider) == {made.ref.external_id}
    provider.destroy(made.ref, deadline=soon())
    assert fake.sandboxes == {}


# Time


def test_a_short_ttl_is_asked_for_twice(api: Api, provider: OpenSandboxProvider) -> None:
    """The server creates for no less than a minute, and renews for less."""
    made = make(provider, ttl=20.0)

    assert made.expires_at is not None
    assert made.expires_at < datetime.now(UTC) + timedelta(seconds=21)
    assert get(provider, made.ref) == made
    assert api.count("POST", "/renew-expiration") == 1


def test_a_short_ttl_that_is_not_granted_is_a_minute(
    api: Api, provider: OpenSandboxProvider
) -> None:
    """It is there, and says when it ends."""
    api.strike("POST", "/renew-expiration", Fault(cut=True))

    made = make(provider, ttl=20.0)

    assert made.expires_at is not None
    assert made.expires_at > datetime.now(UTC) + timedelta(seconds=50)
    assert get(provider, made.ref) == made


@pytest.mark.parametrize("hours", [-5, 5])
def test_an_extension_counts_by_the_servers_clock(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider, hours: int
) -> None:
    """The API takes a date: by ours, a clock that is behind would end it at once."""
    off = timedelta(hours=hours)
    fake.clock = lambda: datetime.now(UTC) + off
    ref = make(provider).ref

    granted = provider.extend(ref, ttl=1800.0, deadline=soon())

    assert granted is not None
    assert abs(granted - fake.clock() - timedelta(minutes=30)) < timedelta(seconds=60)
    assert fake.sandboxes[str(ref.external_id)].expires == granted


@pytest.mark.parametrize("date", [{}, {"Date": "soon"}], ids=["none", "nonsense"])
def test_without_the_servers_clock_ours_counts(date: dict[str, str]) -> None:
    """Something between us may take its date away."""
    answer = Answer(200, httpx2.Headers(date), b"", "extend", "http://a.example")

    assert abs(now_there(answer) - datetime.now(UTC)) < timedelta(seconds=60)


def test_what_was_granted_is_what_the_server_says(api: Api, provider: OpenSandboxProvider) -> None:
    """Not what was asked for."""
    ref = make(provider).ref
    less = Reply(200, {"expiresAt": "2031-02-03T04:05:06Z"})
    api.strike("POST", "/renew-expiration", Fault(less))

    granted = provider.extend(ref, ttl=1800.0, deadline=soon())

    assert granted == datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_a_paused_one_is_extended_and_one_that_ended_is_not(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """A lost sandbox never looks extended."""
    ref = make(provider).ref
    sandbox = fake.sandboxes[str(ref.external_id)]
    sandbox.state = "Paused"
    granted = provider.extend(SandboxRef(name=NAME), ttl=1800.0, deadline=soon())
    sandbox.state = "Failed"

    with pytest.raises(Unavailable, match="nothing was extended"):
        provider.extend(ref, ttl=60.0, deadline=soon())

    assert granted == sandbox.expires


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (refused(404, "DOCKER::SANDBOX_NOT_FOUND", "gone"), "is gone"),
        (refused(409, "DOCKER::INVALID_EXPIRATION", "none"), "without a TTL"),
        (refused(500, "KUBERNETES::API_ERROR", "oh"), "oh"),
    ],
    ids=["gone", "no TTL", "error"],
)
def test_an_extension_that_is_refused_is_an_error(
    api: Api, provider: OpenSandboxProvider, fault: Reply, words: str
) -> None:
    """It went in between, was made without a TTL, or the server failed."""
    ref = make(provider).ref
    api.strike("POST", "/renew-expiration", Fault(fault))

    with pytest.raises(Unavailable, match=words):
        provider.extend(ref, ttl=60.0, deadline=soon())


# Listings


def test_a_listing_whose_second_page_fails_is_an_error(
    fake: FakeOpenSandbox, api: Api, provider: OpenSandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never half of it."""
    monkeypatch.setattr(opensandbox, "LARGEST_PAGE", 10)
    for age in range(15):
        fake.add({**LABELS[NAME], "sandkeeper-generation": f"{age + 1}"}, age=age)
    pages = itertools.count(1)
    serve, count = api.answer, len(fake.sandboxes)

    def second_fails(call: Any) -> Reply | None:
        return Reply(503) if next(pages) == 2 else serve(call)

    monkeypatch.setattr(api, "answer", second_fails)

    with pytest.raises(Unavailable):
        listed(provider)
    assert len(listed(provider)) == count


@pytest.mark.parametrize("gone", [0, 1, 2, 9])
def test_what_goes_during_a_listing_hides_nothing(
    fake: FakeOpenSandbox,
    api: Api,
    provider: OpenSandboxProvider,
    monkeypatch: pytest.MonkeyPatch,
    gone: int,
) -> None:
    """The pages behind move up: all that stayed are listed, or it is an error."""
    monkeypatch.setattr(opensandbox, "LARGEST_PAGE", 20)
    ids = [fake.add(LABELS[NAME], age=age) for age in range(50)]
    serve, pages = api.answer, itertools.count(1)

    def some_go(call: Any) -> Reply | None:
        reply = serve(call)
        if next(pages) == 1:
            for which in ids[:gone]:
                del fake.sandboxes[which]
        return reply

    monkeypatch.setattr(api, "answer", some_go)
    if gone >= 2:  # as many as two pages have in common
        with pytest.raises(Unavailable, match="ask again"):
            listed(provider)

    assert {*fake.sandboxes} <= listed(provider) <= {*ids}
    assert len(fake.sandboxes) == 50 - gone


def test_what_comes_during_a_listing_is_listed_once(
    fake: FakeOpenSandbox,
    api: Api,
    provider: OpenSandboxProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pages behind move down, and show some again."""
    monkeypatch.setattr(opensandbox, "LARGEST_PAGE", 10)
    ids = {fake.add(LABELS[NAME], age=age + 1) for age in range(25)}
    serve = api.answer

    def some_come(call: Any) -> Reply | None:
        reply = serve(call)
        for _ in range(3):
            if len(fake.sandboxes) < 40:
                fake.add(LABELS[NAME])
        return reply

    monkeypatch.setattr(api, "answer", some_come)

    assert listed(provider) >= ids


@pytest.mark.parametrize("largest", [20, 200])
def test_pages_overlap_and_lead_on(largest: int) -> None:
    """From wherever they have come to, as far as anybody's sandboxes go."""
    reached = 0
    for _ in range(500):
        number, size = window(reached, largest)
        begin, end = (number - 1) * size, number * size

        assert 1 <= size <= largest
        assert begin == 0 or begin <= reached - largest // 10
        assert end > reached
        reached = end
    assert reached > 100 * largest


def test_a_page_that_begins_with_nothing_known_is_refused() -> None:
    """Whatever lies between may have been left out."""
    pages = iter([({str(n): n for n in range(10)}, True), ({"20": 20}, False)])

    with pytest.raises(Unavailable, match="after 10"):
        everything(lambda *_: next(pages), 10)


# Errors


def test_wrong_credentials_never_mean_gone(environ: dict[str, str], api: Api) -> None:
    """Every call says so, and which variable; none concludes anything."""
    ref = make(OpenSandboxProvider.from_env(environ)).ref
    wrong = OpenSandboxProvider.from_env({**environ, "OPEN_SANDBOX_API_KEY": "wrong"})
    none = OpenSandboxProvider.from_env({"OPEN_SANDBOX_DOMAIN": api.url})

    for call in (*every_call(wrong, ref).values(), *every_call(none, ref).values()):
        with pytest.raises(AuthFailed, match="OPEN_SANDBOX_API_KEY"):
            call()


def test_a_server_that_is_not_there_is_no_not_found() -> None:
    """Every call says where it looked."""
    nowhere = OpenSandboxProvider.from_env({"OPEN_SANDBOX_DOMAIN": "127.0.0.1:1"})

    for call in every_call(nowhere, SandboxRef(name=NAME, external_id="a")).values():
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            call()


def test_an_address_that_is_another_servers_is_no_not_found(environ: dict[str, str]) -> None:
    """It says 404 to everything, but not that there is no such sandbox."""
    with serving(lambda _: Reply(404, {"detail": "Not Found"})) as other:
        elsewhere = OpenSandboxProvider.from_env({**environ, "OPEN_SANDBOX_DOMAIN": other.url})

        for call in every_call(elsewhere, SandboxRef(name=NAME, external_id="a")).values():
            with pytest.raises(Unavailable, match="404"):
                call()


def test_an_id_is_one_part_of_a_path(api: Api, provider: OpenSandboxProvider) -> None:
    """Whatever a row has there: it cannot become another call."""
    odd = SandboxRef(name=NAME, external_id="../pools?a=b#c")

    assert get(provider, odd) is None

    assert [call.path for call in api.calls] == ["/v1/sandboxes/..%2Fpools%3Fa%3Db%23c"]


POST = "POST"
POOL = refused(
    429, "KUBERNETES::POOL_CAPACITY_EXHAUSTED", "No Pool capacity.", **{"Retry-After": "30"}
)
REFUSALS: list[tuple[str, str, Reply, type[ProviderError]]] = [
    ("create", POST, refused(400, "SANDBOX::INVALID_PARAMETER", ""), InvalidSpec),
    ("create", POST, refused(403, "KUBERNETES::QUOTA_EXCEEDED", ""), QuotaExceeded),
    ("create", POST, POOL, QuotaExceeded),
    ("create", POST, refused(403, "OTHER", ""), AuthFailed),
    ("create", POST, refused(404, "KUBERNETES::POOL_NOT_FOUND", ""), InvalidSpec),
    ("create", POST, Reply(404, {"detail": "Not Found"}), Unavailable),
    ("create", POST, refused(409, "SANDBOX::INVALID_PARAMETER", ""), Busy),
    ("create", POST, refused(500, "DOCKER::SANDBOX_START_FAILED", ""), OutcomeUnknown),
    ("create", POST, refused(504, "KUBERNETES::POD_READY_TIMEOUT", ""), OutcomeUnknown),
    ("create", POST, Reply(502, b"<html>"), OutcomeUnknown),
    ("create", "GET", Reply(502, b"<html>"), Unavailable),
    ("get", "GET", Reply(503, b"<html>"), Unavailable),
    ("get", "GET", refused(500, "DOCKER::SANDBOX_NOT_FOUND", ""), Unavailable),
    ("get", "GET", Reply(301, None, {"Location": "https://a.example"}), Unavailable),
    ("list", "GET", Reply(500), Unavailable),
    ("destroy", "DELETE", Reply(503), Unavailable),
    ("destroy", "DELETE", Reply(404, {"detail": "Not Found"}), Unavailable),
    ("destroy", "DELETE", refused(403, "OTHER", ""), AuthFailed),
    ("extend", POST, refused(400, "DOCKER::INVALID_EXPIRATION", ""), Unavailable),
]


@pytest.mark.parametrize(
    "refusal",
    REFUSALS,
    ids=[f"{call} {reply.status} {kind.__name__}" for call, _, reply, kind in REFUSALS],
)
def test_a_refusal_has_its_error(
    api: Api, provider: OpenSandboxProvider, refusal: tuple[str, str, Reply, type[ProviderError]]
) -> None:
    """By what was asked, the status, then the code; nothing is asked twice."""
    call, method, reply, kind = refusal
    ref = make(provider).ref
    asked = api.count(method)
    api.strike(method, "/sandboxes", Fault(reply))

    with pytest.raises(ProviderError) as raised:
        every_call(provider, ref)[call]()

    assert type(raised.value) is kind
    assert api.count(method) == asked + 1


@pytest.mark.parametrize("call", ["create", "get", "list", "extend", "destroy"])
def test_too_many_calls_are_a_wait(api: Api, provider: OpenSandboxProvider, call: str) -> None:
    """Whatever was asked, with the seconds that the server wants."""
    ref = make(provider).ref
    for method in ("GET", "POST", "DELETE"):
        api.strike(method, "/", Fault(Reply(429, None, {"Retry-After": "7"})))

    with pytest.raises(RateLimited) as limited:
        every_call(provider, ref)[call]()

    assert limited.value.retry_after == 7.0


def test_a_registry_that_cannot_be_reached_may_be_there_later(
    fake: FakeOpenSandbox, provider: OpenSandboxProvider
) -> None:
    """It is no fault of the image."""
    with pytest.raises(Unavailable, match="no such host"):
        make(provider, spec=replace(SPEC, image="far-away:1"))

    assert fake.sandboxes == {}


# Removals


REMOVED_ELSEWHERE = refused(
    500,
    "DOCKER::SANDBOX_DELETE_FAILED",
    'Failed to delete sandbox container: 409 Conflict ("removal of container is in progress")',
)


def test_one_that_another_call_removes_is_removed(
    fake: FakeOpenSandbox, api: Api, provider: OpenSandboxProvider
) -> None:
    """All but one of those who remove it at once are told that it failed."""
    ref = make(provider).ref
    api.strike("DELETE", "/", Fault(REMOVED_ELSEWHERE, after=True))

    provider.destroy(ref, deadline=soon())

    assert fake.sandboxes == {}


def test_one_that_cannot_be_removed_is_not_taken_for_removed(
    fake: FakeOpenSandbox, api: Api, provider: OpenSandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, and it stays: the worker has to come again."""
    monkeypatch.setattr(opensandbox, "LEAVES_WITHIN", 0.3)
    ref = make(provider).ref
    api.strike("DELETE", "/", Fault(REMOVED_ELSEWHERE))

    with pytest.raises(Unavailable, match="removal of container"):
        provider.destroy(ref, deadline=soon())

    assert len(fake.sandboxes) == 1


def test_a_removal_that_was_cut_off_is_asked_again(
    fake: FakeOpenSandbox, api: Api, provider: OpenSandboxProvider
) -> None:
    """It may have happened, or not."""
    ref = make(provider).ref
    api.strike("DELETE", "/", Fault(cut=True, after=True))

    with pytest.raises(OutcomeUnknown):
        provider.destroy(ref, deadline=soon())
    provider.destroy(ref, deadline=soon())

    assert fake.sandboxes == {}


# Deadlines


@pytest.mark.parametrize(
    ("call", "method"),
    [
        ("create", "GET"),
        ("create", "POST"),
        ("get", "GET"),
        ("list", "GET"),
        ("extend", "POST"),
        ("destroy", "DELETE"),
    ],
)
def test_a_slow_server_is_not_waited_for(
    api: Api,
    provider: OpenSandboxProvider,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    method: str,
) -> None:
    """All requests of a call together end by its deadline; what was sent may have its effect."""
    ref = make(provider).ref
    api.strike(method, "/", Fault(delay=20.0))
    monkeypatch.setitem(globals(), "soon", lambda: time.monotonic() + 2)
    began = time.monotonic()

    with pytest.raises(OutcomeUnknown):
        every_call(provider, ref)[call]()

    assert time.monotonic() - began < 10


def test_it_claims_no_more_than_it_keeps() -> None:
    """Two creates at once make two: nothing at the server holds the name."""
    assert OpenSandboxProvider.capabilities == {Capability.LIST, Capability.TTL}
