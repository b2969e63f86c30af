"""Sessions over HTTP: open, list, look, extend, end, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import InvalidSpec, QuotaExceeded, RateLimited
from core.lifecycle import Keeper
from core.model import SessionStatus
from tests.fakes import FakeCloud, FrozenClock
from tests.web.callers import Api, problem

SESSIONS = "/v1/sessions"


def test_opening_says_what_became_of_it(api: Api) -> None:
    """201 created, 200 existing, 201 reopened with the next generation."""
    created = api.call("POST", SESSIONS, json={"id": "conv", "metadata": {"user": "ada"}})
    existing = api.call("POST", SESSIONS, json={"id": "conv"})
    api.call("DELETE", f"{SESSIONS}/conv", params={"reason": "user left"})
    reopened = api.call("POST", SESSIONS, json={"id": "conv"})

    assert [one.status_code for one in (created, existing, reopened)] == [201, 200, 201]
    assert [one.json()["outcome"] for one in (created, existing, reopened)] == [
        "created",
        "existing",
        "reopened",
    ]
    assert created.headers["Location"] == "sessions/conv"
    assert reopened.json()["generation"] == 2
    assert reopened.json()["reset_reason"] == "user left"
    assert reopened.json()["metadata"] == {"user": "ada"}


def test_of_calls_at_once_one_has_created_it(api: Api, provider: FakeCloud) -> None:
    """All get the same session with one sandbox, and one of them is told that it is new."""
    calls = [api.send("POST", SESSIONS, json={"id": "conv"}) for _ in range(8)]

    answers = api.at_once(*calls)

    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["sandbox"]["external_id"] for answer in answers}) == 1
    assert len(provider.boxes) == 1


def test_an_id_is_generated(api: Api) -> None:
    """Without one each call opens another session."""
    first, second = (api.call("POST", SESSIONS, json={}) for _ in range(2))

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]


def test_limits_are_those_that_were_asked_for(api: Api, keeper: Keeper) -> None:
    """idle_ttl, max_age and max_turn, in seconds."""
    limits = {"idle_ttl": 60, "max_age": 3600.5, "max_turn": 30}

    api.call("POST", SESSIONS, json={"id": "conv", "tenant": "acme", **limits})

    session = keeper.get("conv")
    assert (session.idle_ttl, session.max_age, session.max_turn) == (60, 3600.5, 30)
    assert session.tenant == "acme"


def test_what_a_sandbox_is_given_is_not_shown(api: Api, keeper: Keeper) -> None:
    """A spec holds keys and passwords: no answer has it."""
    keeper.spec = {"image": "x", "env": {"API_KEY": "hunter2"}}

    opened = api.call("POST", SESSIONS, json={"id": "conv"})
    answers = [opened, *(api.call("GET", path) for path in (f"{SESSIONS}/conv", "/v1/sandboxes"))]

    assert opened.status_code == 201
    assert not any("hunter2" in answer.text for answer in answers)


@pytest.mark.parametrize(
    ("body", "field", "fix"),
    [
        ({"id": "two words"}, "id", "use 1 to 128 characters"),
        ({"id": ""}, "id", "use 1 to 128 characters"),
        ({"tenant": "a/b"}, "tenant", "use 1 to 64 characters"),
        ({"idle_ttl": 0}, "idle_ttl", "greater than 0"),
        ({"idle_ttl": "60"}, "idle_ttl", "valid number"),
        ({"idle_ttl": True}, "idle_ttl", "valid number"),
        ({"max_age": 1e12}, "max_age", "less than or equal to"),
        ({"metadata": [1]}, "metadata", "valid dictionary"),
        ({"idle_tll": 60}, "idle_tll", "there is no such field: leave it out"),
    ],
)
def test_a_malformed_field_is_named(api: Api, body: dict[str, Any], field: str, fix: str) -> None:
    """With its value and with what would be right; nothing is opened."""
    answer = api.call("POST", SESSIONS, json=body)

    (mistake,) = answer.json()["errors"]
    assert (answer.status_code, problem(answer)) == (422, "invalid-request")
    assert (mistake["in"], mistake["field"]) == ("body", field)
    assert fix in mistake["fix"]
    assert mistake["value"] in answer.json()["detail"]
    assert api.call("GET", SESSIONS).json()["items"] == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[" * 30_000, 400),
        (b'{"metadata": {"a": NaN}}', 422),
        (b'{"idle_ttl": 1e999}', 422),
        (b'{"metadata": {"a": "\\ud800"}}', 422),
        (b'{"metadata": ' + b'{"a":' * 150 + b"1" + b"}" * 150 + b"}", 422),
        (b'{"metadata": {"a": "' + b"x" * 20_000 + b'"}}', 422),
        (b" " * 70_000, 413),
    ],
)
def test_a_body_that_nobody_should_send_is_refused(api: Api, content: bytes, status: int) -> None:
    """In words, and never with a 500."""
    answer = api.call(
        "POST", SESSIONS, content=content, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == status, answer.text


def test_a_body_without_its_length_is_bounded_too(api: Api) -> None:
    """Chunks are counted as they come."""

    async def chunks() -> Any:
        for _ in range(70):
            yield b" " * 1024

    answer = api.call("POST", SESSIONS, content=chunks())

    assert (answer.status_code, problem(answer)) == (413, "body-too-large")


def test_metadata_of_a_python_program_never_breaks_an_answer(api: Api, keeper: Keeper) -> None:
    """What JSON can say and HTTP cannot: half a surrogate pair, and more levels than fit."""
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    keeper.open("half", metadata={"a": "\ud800"})
    keeper.open("deep", metadata=deep)

    half, deeper = (api.call("GET", f"{SESSIONS}/{name}") for name in ("half", "deep"))

    assert half.json()["metadata"] == {"a": "?"}
    assert "nested" in str(deeper.json()["metadata"])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidSpec("no such image"), 422, "invalid-spec"),
        (RateLimited("429", retry_after=7.0), 503, "provider-rate-limited"),
        (QuotaExceeded("full"), 503, "provider-quota-exceeded"),
    ],
)
def test_what_the_provider_says_is_said(
    api: Api, provider: FakeCloud, error: Exception, status: int, kind: str
) -> None:
    """Its words, and when to come back."""
    provider.fail("create", error, times=5)

    answer = api.call("POST", SESSIONS, json={"id": "conv"})

    assert (answer.status_code, problem(answer)) == (status, kind)
    assert str(error) in answer.json()["detail"]
    if isinstance(error, RateLimited):
        assert answer.headers["Retry-After"] == "7"


def test_a_list_goes_on_where_it_stopped(api: Api, keeper: Keeper) -> None:
    """Page by page, each session once, also while others come and go."""
    for number in range(5):
        keeper.open(f"s-{number}")

    first = api.call("GET", SESSIONS, params={"limit": 2}).json()
    keeper.open("s-0a")  # on a page that was shown already
    keeper.end("s-1")
    second = api.call("GET", SESSIONS, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    third = api.call("GET", SESSIONS, params={"limit": 2, "cursor": second["next_cursor"]}).json()

    pages = [[item["id"] for item in page["items"]] for page in (first, second, third)]
    assert pages == [["s-0", "s-1"], ["s-2", "s-3"], ["s-4"]]
    assert third["next_cursor"] is None


def test_a_list_is_filtered(api: Api, keeper: Keeper) -> None:
    """By status and by tenant."""
    keeper.open("a", tenant="acme")
    keeper.open("b", tenant="acme")
    keeper.open("c")
    keeper.end("b")

    ended = api.call("GET", SESSIONS, params={"status": "ended"}).json()["items"]
    acme = api.call("GET", SESSIONS, params={"tenant": "acme"}).json()["items"]
    both = api.call("GET", SESSIONS, params={"tenant": "acme", "status": "active"}).json()["items"]

    assert [[item["id"] for item in items] for items in (ended, acme, both)] == [
        ["b"],
        ["a", "b"],
        ["a"],
    ]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "status=idle",
        "offset=3",
        "cursor=x",
        "cursor=WzFd",
        "cursor=WyJcdTAwMDAiXQ",
    ],
)
def test_a_malformed_query_is_named(api: Api, query: str) -> None:
    """A cursor of another list is as wrong as one that somebody made up."""
    answer = api.call("GET", f"{SESSIONS}?{query}")

    (mistake,) = answer.json()["errors"]
    assert answer.status_code == 422
    assert (mistake["in"], mistake["field"]) == ("query", query.partition("=")[0])


def test_the_history_has_pages(api: Api, keeper: Keeper) -> None:
    """In order, and of this session alone."""
    keeper.open("conv")
    keeper.open("other")
    keeper.end("conv", reason="done")
    path = f"{SESSIONS}/conv/events"

    first = api.call("GET", path, params={"limit": 2}).json()
    rest = api.call("GET", path, params={"cursor": first["next_cursor"]}).json()

    kinds = [item["kind"] for item in first["items"] + rest["items"]]
    assert kinds == ["session_opened", "sandbox_running", "session_ended"]
    assert rest["items"][0]["detail"] == {"reason": "done"}


def test_the_ledger_says_which_request_it_was(api: Api) -> None:
    """The id of the answer is beside what it did."""
    opened = api.call("POST", SESSIONS, json={"id": "conv"})

    event = api.call("GET", f"{SESSIONS}/conv/events").json()["items"][0]

    assert event["actor"] == f"nobody, request {opened.headers['X-Request-Id']}"


def test_an_extension_says_what_was_granted(api: Api, keeper: Keeper, clock: FrozenClock) -> None:
    """Never beyond max age."""
    keeper.open("conv", max_age=600)

    answer = api.call("POST", f"{SESSIONS}/conv/extend", json={"by": 3600})

    granted = keeper.get("conv").extended_until
    assert granted is not None
    assert (granted - clock.now).total_seconds() == 600
    assert answer.json()["extended_until"] == granted.isoformat().replace("+00:00", "Z")


def test_ending_rings_and_can_be_repeated(
    api: Api, keeper: Keeper, rung: list[tuple[str, int]]
) -> None:
    """202: the teardown is under way, not done."""
    keeper.open("conv")

    first = api.call("DELETE", f"{SESSIONS}/conv", params={"reason": "user left"})
    second = api.call("DELETE", f"{SESSIONS}/conv", params={"reason": "again"})

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["sandbox"]["state"] == "closing"
    assert second.json()["end_reason"] == "user left"
    assert keeper.get("conv").status is SessionStatus.ENDED
    assert ("conv", 1) in rung


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{SESSIONS}/nobody"),
        ("GET", f"{SESSIONS}/nobody/events"),
        ("DELETE", f"{SESSIONS}/nobody"),
        ("POST", f"{SESSIONS}/nobody/turns"),
        ("POST", "/v1/quarantine/nobody/retry"),
    ],
)
def test_a_session_that_nobody_opened_is_not_found(api: Api, method: str, path: str) -> None:
    """With its id, and with what to do."""
    answer = api.call(method, path)

    assert (answer.status_code, problem(answer)) == (404, "session-not-found")
    assert answer.json()["session_id"] == "nobody"
    assert "open it first" in answer.json()["detail"]


def test_an_address_that_is_none_is_a_problem_too(api: Api) -> None:
    """What the framework refuses has the one form; a wrong method is told all the right ones."""
    nowhere = api.call("GET", "/v1/nowhere")
    wrong = api.call("PUT", SESSIONS)
    turn = api.call("PATCH", f"{SESSIONS}/conv/turns/x")

    assert (nowhere.status_code, wrong.status_code) == (404, 405)
    assert wrong.headers["Allow"] == "GET, POST"
    assert turn.headers["Allow"] == "DELETE, PUT"


def test_a_session_is_explained(api: Api, keeper: Keeper, clock: FrozenClock) -> None:
    """Raw values and sentences, as the keeper explains it; it does not count as activity."""
    keeper.open("conv")
    clock.advance(60)

    answer = api.call("GET", f"{SESSIONS}/conv/explain")

    found = answer.json()
    assert answer.status_code == 200
    assert (found["state"], found["sandbox"]) == ("active", "running")
    assert found["sentence"] == keeper.explain("conv").sentence
    assert [step["kind"] for step in found["next"]] == ["notice", "end"]
    assert [line["kind"] for line in found["history"]] == ["session_opened", "sandbox_running"]
    assert keeper.get("conv").last_activity_at < clock.now


def test_a_session_is_pinned_and_unpinned(api: Api, keeper: Keeper, clock: FrozenClock) -> None:
    """Its owner is who asked; without a reason or for too long there is none."""
    keeper.open("conv")
    path = f"{SESSIONS}/conv/pin"

    pinned = api.call("POST", path, json={"for": 3600, "reason": "debugging"})
    without = api.call("POST", path, json={"for": 3600})
    too_long = api.call("POST", path, json={"for": 1e8, "reason": "debugging"})
    lifted = api.call("DELETE", path)

    assert pinned.json()["pinned_by"] == "nobody"
    assert pinned.json()["pin_reason"] == "debugging"
    assert keeper.store.history.of_session("conv")[-2].detail["owner"] == "nobody"
    assert (without.status_code, without.json()["errors"][0]["field"]) == (422, "reason")
    assert (too_long.status_code, problem(too_long)) == (422, "invalid-argument")
    assert (lifted.status_code, lifted.json()["pinned_until"]) == (200, None)
