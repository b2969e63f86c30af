"""Provider `e2b` against a stand-in for its API: the contract, lost answers, what E2B refuses."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
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
from core.model import new_key, sandbox_labels, sandbox_name
from core.providers import e2b
from core.providers.base import ProviderState, SandboxInfo, SandboxRef, Spec
from core.providers.e2b import E2BProvider
from tests.apis import Api, Fault, Reply
from tests.providers.contract import ProviderContract, listed, soon
from tests.providers.fake_e2b import API_KEY, Box, FakeE2B

INSTALLATION = "abcd1234"
OURS = {"sandkeeper-installation": INSTALLATION}
SPEC = Spec(image="mine")
KEY = new_key(secrets.randbits)
NAME = sandbox_name(INSTALLATION, KEY)
LABELS = sandbox_labels(INSTALLATION, KEY, "one", 1, datetime(2026, 1, 1, tzinfo=UTC))
REF = SandboxRef(name=NAME)
CREATE = ("POST", "/v2/sandboxes")


@pytest.fixture
def fake() -> FakeE2B:
    """What E2B has."""
    return FakeE2B()


@pytest.fixture
def provider(api: Api) -> E2BProvider:
    """A handle of it."""
    return E2BProvider.from_env(environ_of(api))


def environ_of(api: Api, key: str = API_KEY) -> dict[str, str]:
    """What E2B's SDK would be given."""
    return {"E2B_API_KEY": key, "E2B_API_URL": api.url}


def make(
    provider: E2BProvider, spec: Spec = SPEC, ttl: float | None = 300.0, deadline: float = 0.0
) -> SandboxInfo:
    """The sandbox."""
    return provider.create(NAME, LABELS, spec, ttl=ttl, deadline=deadline or soon())


def everything(provider: E2BProvider, ref: SandboxRef) -> list[Callable[[], object]]:
    """Each call that asks E2B."""
    return [
        lambda: make(provider),
        lambda: provider.get(ref, deadline=soon()),
        lambda: provider.get(REF, deadline=soon()),
        lambda: provider.destroy(ref, deadline=soon()),
        lambda: provider.destroy(REF, deadline=soon()),
        lambda: provider.list(OURS, cursor=None, deadline=soon()),
        lambda: provider.extend(ref, ttl=9.0, deadline=soon()),
    ]


class TestContract(ProviderContract):
    """It keeps the contract, with listings of several pages."""

    provider_path = "core.providers.e2b:E2BProvider"
    spec: ClassVar[Spec] = SPEC

    @pytest.fixture
    def environ(self, fake: FakeE2B, api: Api) -> dict[str, str]:
        """The stand-in, whose pages are short."""
        fake.largest_page = 2
        return environ_of(api)


# What is asked for


def test_a_sandbox_is_fenced_in_and_dies(provider: E2BProvider, fake: FakeE2B, api: Api) -> None:
    """No network either way, and nothing is left to defaults that a project can change."""
    fake.pauses_by_default = True
    make(provider, spec=replace(SPEC, env={"B": "2", "A": "1 = 1"}))

    (call,) = [call for call in api.calls if call.method == "POST"]
    assert call.body == {
        "templateID": "mine",
        "timeout": 300,
        "autoPause": False,
        "autoResume": {"enabled": False},
        "allow_internet_access": False,
        "network": {"allowPublicTraffic": False},
        "metadata": LABELS,
        "envVars": {"A": "1 = 1", "B": "2"},
    }
    assert call.headers["idempotency-key"] == NAME


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"internet": True}, {"allow_internet_access": True}),
        ({"public_traffic": True}, {"network": {"allowPublicTraffic": True}}),
        (
            {"allow_out": ["pypi.org"]},
            {
                "allow_internet_access": False,
                "network": {
                    "allowPublicTraffic": False,
                    "allowOut": ["pypi.org"],
                    "denyOut": ["0.0.0.0/0"],
                },
            },
        ),
        (
            {"internet": True, "deny_out": ["10.0.0.0/8"]},
            {"network": {"allowPublicTraffic": False, "denyOut": ["10.0.0.0/8"]}},
        ),
    ],
)
def test_an_option_is_what_it_says(
    provider: E2BProvider, fake: FakeE2B, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Each one, as E2B has it."""
    made = make(provider, spec=replace(SPEC, options=options))

    body = fake.boxes[made.ref.external_id or ""].body
    assert expected.items() <= body.items()


def test_a_retry_sends_the_same_bytes(provider: E2BProvider, api: Api) -> None:
    """E2B compares them: another order of the same labels would be another create."""
    make(provider, spec=replace(SPEC, env={"A": "1", "B": "2"}))
    turned = dict(reversed(LABELS.items()))
    spec = replace(SPEC, env={"B": "2", "A": "1"})
    provider.create(NAME, turned, spec, ttl=300.0, deadline=soon())

    first, second = [call.content for call in api.calls if call.method == "POST"]
    assert first == second


# What is refused


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec(image="no-such"), "template 'no-such' not found"),
        (Spec(image=""), "image ''"),
        (replace(SPEC, command=("sleep", "9")), "start command"),
        (replace(SPEC, options={"internet": "yes"}), "options.internet 'yes'"),
        (replace(SPEC, options={"allow_out": [1]}), "options.allow_out.0 1"),
        (replace(SPEC, options={"secure": False}), "options.secure False"),
        (replace(SPEC, options={"deny_out": ["pypi.org", ""]}), "options.deny_out.1 ''"),
        (replace(SPEC, env={"A=B": "c"}), "A=B"),
        (replace(SPEC, env={"A": "\0"}), "NUL"),
    ],
)
def test_what_can_never_be_made_is_refused(
    provider: E2BProvider, fake: FakeE2B, spec: Spec, words: str
) -> None:
    """With the field, the value, and nothing that was made."""
    with pytest.raises(InvalidSpec, match=words.replace(".", r"\.")):
        make(provider, spec=spec)

    assert fake.boxes == {}


def test_without_an_image_it_is_e2b_s_own(provider: E2BProvider, fake: FakeE2B) -> None:
    """As with its SDK."""
    made = make(provider, spec=Spec())

    assert fake.boxes[made.ref.external_id or ""].body["templateID"] == "base"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "E2B_API_KEY is not set"),
        ({"E2B_API_KEY": "e2b secret"}, "E2B_API_KEY has a space"),
        ({"E2B_API_KEY": "secret\n"}, "E2B_API_KEY has a space"),
        ({"E2B_API_KEY": "k", "E2B_DOMAIN": "https://e2b.app"}, "E2B_DOMAIN='https://e2b.app'"),
        ({"E2B_API_KEY": "k", "E2B_API_URL": "e2b.app"}, "E2B_API_URL='e2b.app'"),
        ({"E2B_API_KEY": "k", "SANDKEEPER_E2B_KEY": "k"}, "SANDKEEPER_E2B_KEY is not a setting"),
    ],
)
def test_settings_that_are_wrong_are_refused(environ: dict[str, str], words: str) -> None:
    """With the variable and what to do, and never with a secret; nothing is connected."""
    with pytest.raises(SettingsError) as refused:
        E2BProvider.from_env(environ)

    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "api.e2b.app"),
        ({"E2B_DOMAIN": "e2b.example"}, "api.e2b.example"),
        ({"E2B_DEBUG": "true"}, "localhost:3000"),
        ({"E2B_DOMAIN": "e2b.example", "E2B_API_URL": "http://a.example:80/x/"}, "a.example/x"),
    ],
)
def test_the_scope_is_the_address_and_the_key(environ: dict[str, str], address: str) -> None:
    """Another team's not-found is never believed; the key itself is not shown."""
    one = E2BProvider.from_env({"E2B_API_KEY": "secret-1", **environ}).scope()
    two = E2BProvider.from_env({"E2B_API_KEY": "secret-2", **environ}).scope()

    assert one.startswith(f"e2b:{address}:")
    assert one != two
    assert "secret" not in one


# Answers that are lost


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_create_that_was_cut_is_finished_by_the_next(
    provider: E2BProvider, fake: FakeE2B, api: Api, *, after: bool
) -> None:
    """Whether it had its effect or not: one sandbox."""
    api.strike(*CREATE, Fault(cut=True, after=after))
    with pytest.raises(OutcomeUnknown):
        make(provider)

    made = make(provider)

    assert [made.ref.external_id] == list(fake.boxes)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(201, b"<html>"),
        Reply(201, {}),
        Reply(201, {"sandboxID": 7}),
        Reply(201),
        Reply(500, b"<html>"),
        Reply(502, b""),
        Reply(504, {"code": 504, "message": "timeout"}),
    ],
    ids=lambda reply: f"{reply.status} {reply.body!r}",
)
def test_an_unclear_answer_to_a_create_is_adopted_later(
    provider: E2BProvider, fake: FakeE2B, api: Api, reply: Reply
) -> None:
    """It was made, and its answer says nothing."""
    api.strike(*CREATE, Fault(reply, after=True))
    with pytest.raises(OutcomeUnknown):
        make(provider)

    made = make(provider)

    assert [made.ref.external_id] == list(fake.boxes)


def test_a_create_whose_key_has_other_bytes_adopts_what_is_ours(
    provider: E2BProvider, fake: FakeE2B
) -> None:
    """The plan's words for a timeout may have changed since; the labels have not."""
    made = make(provider)

    again = make(provider, ttl=600.0)

    assert again.ref == made.ref
    assert list(fake.boxes) == [made.ref.external_id]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another is creating is hardly waited for."""
    monkeypatch.setattr(e2b, "STARTS_WITHIN", 0.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("idempotency_in_progress", Busy),
        ("idempotency_outcome_unknown", OutcomeUnknown),
        ("idempotency_request_mismatch", OutcomeUnknown),
        ("", Busy),
    ],
)
def test_a_conflict_is_what_its_code_says(
    provider: E2BProvider, fake: FakeE2B, api: Api, code: str, kind: type[ProviderError]
) -> None:
    """While nothing of the name is there; and when there is, that is what was wanted."""
    reply = Reply(409, {"code": 409, "message": "no", "error_code": code})
    api.strike(*CREATE, Fault(reply))
    with pytest.raises(kind) as refused:
        make(provider)
    api.strike(*CREATE, Fault(reply, after=True))

    made = make(provider)

    assert type(refused.value) is kind
    assert [made.ref.external_id] == list(fake.boxes)


def test_a_create_that_another_began_is_waited_for(
    provider: E2BProvider, fake: FakeE2B, api: Api
) -> None:
    """E2B refuses the second while the first is under way, and it is not sent again."""
    fake.start = 1.0
    made = make(provider)

    again = make(provider)

    assert again.ref == made.ref
    assert api.count(*CREATE) == 2


def test_a_replayed_create_of_what_has_ended_is_no_sandbox(
    provider: E2BProvider, fake: FakeE2B
) -> None:
    """E2B repeats its answer of then: the sandbox of it is not there any more."""
    make(provider)
    fake.boxes.clear()

    with pytest.raises(Unavailable, match="not there any more"):
        make(provider)


def test_a_name_that_another_has_is_left_alone(provider: E2BProvider, fake: FakeE2B) -> None:
    """Its labels are not ours, whoever wrote them."""
    foreign = {**LABELS, "sandkeeper-session": "0" * 40}
    provider.create(NAME, foreign, SPEC, ttl=300.0, deadline=soon())

    with pytest.raises(ForeignConflict, match="other labels"):
        make(provider)

    assert [box.metadata for box in fake.boxes.values()] == [foreign]


def test_labels_that_do_not_make_the_name_are_refused(provider: E2BProvider, fake: FakeE2B) -> None:
    """Nobody would find it by its name."""
    with pytest.raises(InvalidSpec, match="do not make the name"):
        provider.create(f"{NAME}x", LABELS, SPEC, ttl=9.0, deadline=soon())

    assert fake.boxes == {}


# What the status says


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(400, {"code": 400, "message": "Invalid template reference"}), InvalidSpec),
        (Reply(422, {"code": 422, "message": "no"}), InvalidSpec),
        (
            Reply(403, {"code": 403, "message": "you don't have access to template 'x'"}),
            InvalidSpec,
        ),
        (Reply(403, {"code": 403, "message": "team is blocked"}), AuthFailed),
        (Reply(404, {"code": 404, "message": "no matching operation was found"}), Unavailable),
        (Reply(404, b"<html>"), Unavailable),
        (Reply(400, b"<html>Bad Request"), Unavailable),
        (Reply(402, {"code": 402, "message": "pay"}), QuotaExceeded),
        (Reply(429, {"code": 429, "message": "Rate limit exceeded"}), RateLimited),
        (Reply(503, {"code": 503, "message": "busy"}), Unavailable),
        (Reply(500, {"code": 500, "message": "Failed to create sandbox"}), OutcomeUnknown),
        (
            Reply(500, {"code": 500, "message": "x", "error_code": "sandbox_create_refused"}),
            InvalidSpec,
        ),
        (
            Reply(500, {"code": 500, "message": "x", "error_code": "sandbox_no_compatible_node"}),
            Unavailable,
        ),
    ],
    ids=lambda value: f"{value.status} {value.body}" if isinstance(value, Reply) else "",
)
def test_a_refused_create_is_what_its_answer_says(
    provider: E2BProvider, api: Api, reply: Reply, kind: type[ProviderError]
) -> None:
    """By status, then code, then words; once, for whoever retries is not us."""
    api.strike(*CREATE, Fault(reply))

    with pytest.raises(kind) as refused:
        make(provider)

    assert type(refused.value) is kind
    assert api.count(*CREATE) == 1


def test_a_full_team_is_a_quota_and_no_rate(provider: E2BProvider, fake: FakeE2B) -> None:
    """Both are 429."""
    fake.concurrent = 0

    with pytest.raises(QuotaExceeded, match="maximum number of concurrent"):
        make(provider)


@pytest.mark.parametrize("index", range(7))
def test_a_rate_limit_says_how_long(provider: E2BProvider, api: Api, index: int) -> None:
    """Of every call, by the header that E2B sends."""
    call = everything(provider, make(provider).ref)[index]
    headers = {"Retry-After": "7", "RateLimit-Limit": "5", "RateLimit-Reset": "30"}
    reply = Reply(429, {"code": 429, "message": "Rate limit exceeded"}, headers)
    for method in ("GET", "POST", "DELETE"):
        api.strike(method, "/sandboxes", Fault(reply))

    with pytest.raises(RateLimited) as refused:
        call()

    assert refused.value.retry_after == 7.0


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_never_means_gone(
    provider: E2BProvider, api: Api, index: int, status: int
) -> None:
    """Of every call: no None, no empty page, no success."""
    call = everything(provider, make(provider).ref)[index]
    reply = Reply(status, {"code": status, "message": "Cannot get the team for the given API key"})
    for method in ("GET", "POST", "DELETE"):
        api.strike(method, "/sandboxes", Fault(reply))

    with pytest.raises(AuthFailed):
        call()


def test_a_wrong_key_is_refused_everywhere(api: Api, provider: E2BProvider) -> None:
    """By E2B itself; the key is in no message."""
    ref = make(provider).ref
    stranger = E2BProvider.from_env(environ_of(api, key="e2b_secret"))

    for call in everything(stranger, ref):
        with pytest.raises(AuthFailed) as refused:
            call()
        assert "e2b_secret" not in str(refused.value)


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, {"code": 500, "message": "Error when getting sandboxes"}),
        Reply(503),
        Reply(404, b"<html>not found</html>"),
        Reply(404, {"code": 404, "message": "no matching operation was found"}),
        Reply(200, b"<html>"),
        Reply(200, {}),
        Reply(200, {"message": "back soon"}),
        Reply(200, {"state": "running", "metadata": LABELS}),
        Reply(200, {"sandboxID": "i0000000000000000000", "metadata": LABELS}),
        Reply(200, {"sandboxID": "iother", "state": "running"}),
        Reply(200, [1]),
        Reply(200, "sandbox"),
    ],
    ids=lambda reply: f"{reply.status} {reply.body!r:.20}",
)
def test_an_answer_that_says_nothing_concludes_nothing(
    provider: E2BProvider, api: Api, index: int, reply: Reply
) -> None:
    """A proxy's page, a server that is not E2B, half an answer: an error that is retried."""
    call = everything(provider, make(provider).ref)[index]
    for method in ("GET", "POST"):
        api.strike(method, "/sandboxes", Fault(reply))

    with pytest.raises(ProviderError) as refused:
        call()

    assert isinstance(refused.value, Unavailable | OutcomeUnknown)
    assert index == 0 or isinstance(refused.value, Unavailable)


def test_an_api_that_is_not_there_is_no_not_found() -> None:
    """Every call says where it looked."""
    environ = {"E2B_API_KEY": API_KEY, "E2B_API_URL": "http://127.0.0.1:1"}
    nowhere = E2BProvider.from_env(environ)

    for call in everything(nowhere, SandboxRef(name=NAME, external_id="i1")):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            call()


def test_a_slow_api_is_left_when_the_time_is_over(provider: E2BProvider, api: Api) -> None:
    """Also by a call that takes several requests: the create, and what it granted."""
    api.strike("GET", "/sandboxes/", Fault(delay=5.0))
    began = time.monotonic()

    with pytest.raises(Unavailable):
        make(provider, deadline=began + 0.5)

    assert time.monotonic() - began < 4


# Ids and names


def test_the_beginning_of_an_id_is_no_id(provider: E2BProvider, fake: FakeE2B) -> None:
    """E2B drops what comes after a hyphen, and shows what is there under the rest."""
    made = make(provider)
    other = replace(made.ref, external_id=f"{made.ref.external_id}-6532622b")

    with pytest.raises(Unavailable):
        provider.destroy(other, deadline=soon())
    with pytest.raises(Unavailable):
        provider.get(other, deadline=soon())

    assert list(fake.boxes) == [made.ref.external_id]


@pytest.mark.parametrize("suffix", ["-a-b", "/../x", "?x", ""])
def test_what_can_be_no_id_is_not_there(
    provider: E2BProvider, fake: FakeE2B, api: Api, suffix: str
) -> None:
    """It leads to no other sandbox, and to no other call."""
    made = make(provider)
    other = replace(made.ref, external_id=f"{made.ref.external_id}{suffix}" if suffix else "")

    provider.destroy(other, deadline=soon())

    assert provider.get(other, deadline=soon()) is None
    assert list(fake.boxes) == [made.ref.external_id]
    assert all(re.fullmatch("(/v2)?/sandboxes(/[a-z0-9-]+)?", call.path) for call in api.calls)


def test_a_fork_has_the_labels_too(provider: E2BProvider, fake: FakeE2B) -> None:
    """With an id only that one is meant; without one, all go."""
    first = make(provider)
    fork = fake.fork(fake.boxes[first.ref.external_id or ""])

    provider.destroy(first.ref, deadline=soon())
    left = provider.get(REF, deadline=soon())
    provider.destroy(REF, deadline=soon())

    assert left is not None
    assert left.ref.external_id == fork.id
    assert fake.boxes == {}


def test_without_an_id_all_pages_are_looked_at(provider: E2BProvider, fake: FakeE2B) -> None:
    """A server that ignored the filter would have ours on its last page."""
    fake.forgets_filter, fake.largest_page = True, 1
    for key in ("a", "b", "c"):
        fake.make({**LABELS, "sandkeeper-key": key})
    made = make(provider)

    found = provider.get(REF, deadline=soon())
    provider.destroy(REF, deadline=soon())

    assert found is not None
    assert found.ref == made.ref
    assert len(fake.boxes) == 3


def test_a_kill_that_failed_is_told(provider: E2BProvider, fake: FakeE2B) -> None:
    """E2B has dropped the record when it says so: the next try is told that it is gone."""
    made = make(provider)
    fake.fails_to_kill = True

    with pytest.raises(Unavailable, match="Error killing sandbox"):
        provider.destroy(made.ref, deadline=soon())

    provider.destroy(made.ref, deadline=soon())


def test_one_that_another_kills_first_is_gone(
    provider: E2BProvider, fake: FakeE2B, api: Api
) -> None:
    """Between the look and the kill."""
    made = make(provider)
    gone = Reply(404, {"code": 404, "message": f"Sandbox {made.ref.external_id} doesn't exist"})
    api.strike("DELETE", "/sandboxes/", Fault(gone))

    provider.destroy(made.ref, deadline=soon())

    assert api.count("DELETE") == 1


def test_a_kill_that_leads_to_no_e2b_is_not_believed(provider: E2BProvider, api: Api) -> None:
    """A 404 of a proxy."""
    made = make(provider)
    api.strike("DELETE", "/sandboxes/", Fault(Reply(404, b"<html>")))

    with pytest.raises(Unavailable):
        provider.destroy(made.ref, deadline=soon())


# Listings


def test_what_is_not_ours_is_passed_over(provider: E2BProvider, fake: FakeE2B) -> None:
    """Without labels, with half of them, with odd ones: ignored, and nothing fails."""
    fake.forgets_filter = True
    strange: list[Any] = [None, "text", {**LABELS, "sandkeeper-key": 7}, {}, {**OURS}]
    for metadata in strange:
        fake.make().body["metadata"] = metadata if isinstance(metadata, dict) else {}
    fake.make({**LABELS, "sandkeeper-installation": "otherone"})
    made = make(provider)

    assert [item.ref for item in listed(provider, OURS)] == [made.ref]


def test_metadata_that_is_no_object_is_passed_over(provider: E2BProvider, api: Api) -> None:
    """Somebody else's, whatever it is."""
    items = [{"sandboxID": "i1", "state": "running", "metadata": odd} for odd in (None, "a", [1])]
    api.strike("GET", "/v2/sandboxes", Fault(Reply(200, items)))

    assert provider.list(OURS, cursor=None, deadline=soon()).items == ()


def test_half_a_listing_is_an_error(provider: E2BProvider, fake: FakeE2B, api: Api) -> None:
    """Page 1 comes, page 2 does not."""
    fake.largest_page = 1
    make(provider)
    fake.make({**LABELS})
    first = provider.list(OURS, cursor=None, deadline=soon())
    api.strike("GET", "/v2/sandboxes", Fault(Reply(500, {"code": 500, "message": "no"})))

    with pytest.raises(Unavailable):
        provider.list(OURS, cursor=first.cursor, deadline=soon())

    assert first.cursor is not None
    with pytest.raises(Unavailable, match="Invalid next token"):
        provider.list(OURS, cursor="nonsense", deadline=soon())


def test_one_that_is_resumed_between_two_pages_is_not_missed(
    provider: E2BProvider, fake: FakeE2B
) -> None:
    """It begins anew: from the newest on, it would have moved to the page that was read."""
    fake.largest_page = 1
    boxes = [fake.make({**LABELS}) for _ in range(3)]
    page = provider.list(OURS, cursor=None, deadline=soon())
    seen = [item.ref.external_id for item in page.items]
    unseen = next(box for box in boxes if box.id not in seen)
    unseen.started_at = fake.now()

    while page.cursor is not None:
        page = provider.list(OURS, cursor=page.cursor, deadline=soon())
        seen += [item.ref.external_id for item in page.items]

    assert {*seen} == {box.id for box in boxes}


def test_a_stale_listing_is_not_asked_for_what_has_an_id(
    provider: E2BProvider, fake: FakeE2B
) -> None:
    """One that is being snapshotted is on no listing, and lives."""
    made = make(provider)
    fake.boxes[made.ref.external_id or ""].state = "snapshotting"

    found = provider.get(made.ref, deadline=soon())

    assert listed(provider, OURS) == []
    assert found is not None
    assert found.state is ProviderState.RUNNING


def test_a_create_is_not_misled_by_a_stale_listing(provider: E2BProvider, fake: FakeE2B) -> None:
    """It goes by the key, not by what is listed."""
    fake.shown = []
    made = make(provider)

    assert make(provider).ref == made.ref
    assert len(fake.boxes) == 1


# Timeouts


def test_a_paused_one_is_listed_has_no_expiry_and_can_be_destroyed(
    provider: E2BProvider, fake: FakeE2B
) -> None:
    """F23: its disk is kept, and billed; the end that E2B shows is when it was paused."""
    made = make(provider)
    box = fake.boxes[made.ref.external_id or ""]
    pause(fake, box)

    (item,) = listed(provider, OURS)
    with pytest.raises(Unavailable, match="does not run"):
        provider.extend(made.ref, ttl=9.0, deadline=soon())
    provider.destroy(made.ref, deadline=soon())

    assert item.state is ProviderState.PAUSED
    assert item.expires_at is None
    assert fake.boxes == {}


def test_one_that_is_paused_at_its_timeout_has_no_expiry(
    provider: E2BProvider, fake: FakeE2B
) -> None:
    """Somebody resumed it like that: its end would not be its end."""
    made = make(provider)
    fake.boxes[made.ref.external_id or ""].body["autoPause"] = True

    found = provider.get(made.ref, deadline=soon())

    assert made.expires_at is not None
    assert found is not None
    assert found.expires_at is None
    assert provider.extend(made.ref, ttl=9.0, deadline=soon()) is None


def pause(fake: FakeE2B, box: Box) -> None:
    """As its user may."""
    box.state, box.end_at = "paused", fake.now() - 1


@pytest.mark.parametrize("ttl", [7200.0, None], ids=["2 h", "no limit"])
def test_what_the_plan_allows_is_granted_and_told(
    provider: E2BProvider, fake: FakeE2B, api: Api, ttl: float | None
) -> None:
    """An hour where two were asked for; the retry of it is the same two requests."""
    fake.hours = 1
    made = make(provider, ttl=ttl)
    again = make(provider, ttl=ttl)

    assert again.ref == made.ref
    assert list(fake.boxes) == [made.ref.external_id]
    assert made.expires_at is not None
    assert 3500 < (made.expires_at - datetime.now(UTC)).total_seconds() <= 3600
    keys = [call.headers.get("idempotency-key") for call in api.calls if call.method == "POST"]
    assert keys == [NAME, f"{NAME}-3600"] * 2


def test_a_capped_create_whose_answer_was_lost_is_adopted(
    provider: E2BProvider, fake: FakeE2B, api: Api
) -> None:
    """With one key for both bodies the retry would be refused for ever."""
    fake.hours = 1
    api.strike(*CREATE, Fault(Reply(400, {"message": "Timeout cannot be greater than 1 hours"})))
    api.strike(*CREATE, Fault(cut=True, after=True))
    with pytest.raises(OutcomeUnknown):
        make(provider, ttl=7200.0)

    made = make(provider, ttl=7200.0)

    assert list(fake.boxes) == [made.ref.external_id]


def test_an_extension_says_what_was_granted(provider: E2BProvider, fake: FakeE2B) -> None:
    """The plan counts from the start: what is beyond is dropped without a word."""
    fake.hours = 1
    made = make(provider)
    fake.boxes[made.ref.external_id or ""].started_at -= 3000

    granted = provider.extend(made.ref, ttl=7200.0, deadline=soon())

    assert granted is not None
    assert 500 < (granted - datetime.now(UTC)).total_seconds() <= 600


def test_an_extension_beyond_the_plan_s_end_fails(provider: E2BProvider, fake: FakeE2B) -> None:
    """It is as old as it may become."""
    fake.hours = 1
    made = make(provider)
    fake.boxes[made.ref.external_id or ""].started_at -= 4000

    with pytest.raises(Unavailable, match="Max instance length exceeded"):
        provider.extend(made.ref, ttl=60.0, deadline=soon())


def test_an_extension_while_it_is_snapshotted_is_tried_again(
    provider: E2BProvider, fake: FakeE2B
) -> None:
    """It shows as running, and refuses."""
    made = make(provider)
    fake.boxes[made.ref.external_id or ""].state = "snapshotting"

    with pytest.raises(Busy):
        provider.extend(made.ref, ttl=60.0, deadline=soon())


# The vendor's own SDK


SDK = """
import json, sys
from e2b import Sandbox, SandboxQuery
wanted, ours = json.loads(sys.argv[1]), sys.argv[2]
own = Sandbox.create("base", metadata={"a": "b c"}, timeout=60)
listed = Sandbox.list(SandboxQuery(metadata=wanted)).next_items()
info = Sandbox.get_info(ours)
print(json.dumps({
    "own": own.sandbox_id,
    "listed": [box.sandbox_id for box in listed],
    "end_at": info.end_at.timestamp(),
    "lifecycle": info.lifecycle,
    "paused": [Sandbox.pause(ours), Sandbox.get_info(ours).state.value],
    "resumed": Sandbox.connect(ours, timeout=60).get_info().state.value,
    "killed": [Sandbox.kill(ours), Sandbox.kill(ours)],
}))
"""


def test_e2b_s_own_sdk_sees_what_we_made_and_the_other_way_round(
    vendors: Path, provider: E2BProvider, fake: FakeE2B, api: Api
) -> None:
    """Through one and the same API: so the stand-in is not only what we think that E2B is."""
    made = make(provider)

    run = subprocess.run(
        [str(vendors), "-c", SDK, json.dumps(OURS), made.ref.external_id or ""],
        env=environ_of(api),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert made.expires_at is not None
    assert said["listed"] == [made.ref.external_id]
    assert said["end_at"] == pytest.approx(made.expires_at.timestamp(), abs=0.001)
    assert said["lifecycle"] == {"on_timeout": "kill", "auto_resume": False}
    assert said["paused"] == [True, "paused"]
    assert said["resumed"] == "running"
    assert said["killed"] == [True, False]
    assert provider.get(made.ref, deadline=soon()) is None
    assert list(fake.boxes) == [said["own"]]
    assert listed(provider, OURS) == []
    assert provider.get(replace(REF, external_id=said["own"]), deadline=soon()) is None
