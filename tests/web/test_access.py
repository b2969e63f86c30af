"""Who may call what: every route, every scope, another tenant; and who has no token at all."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI

from core.access import Scope
from core.layers import parse_scope
from core.lifecycle import Keeper
from core.web import create_app
from core.web.gate import FOR_ALL, RULES
from tests.fakes import FakeCloud, FrozenClock
from tests.web.callers import Api, Desk, problem

SECRET = "s" * 40
TURN = "0199c0de-7a11-7000-8000-2f6b1c0a9d3e"


class Expected(NamedTuple):
    """What a route needs, and what it says to a token that sees another tenant."""

    scope: Scope
    status: int  # to who may
    elsewhere: int  # to who may, but for another tenant
    body: dict[str, Any] | None = None


WINDOW = {"from": "2040-01-01T00:00:00Z", "until": "2040-01-02T00:00:00Z", "reason": "upgrade"}
# Written down once more, by hand: a route that is not here fails, and so does a changed scope.
EXPECTED = {
    "POST /v1/sessions": Expected(Scope.TURNS, 200, 409, {"id": "conv", "tenant": None}),
    "GET /v1/sessions": Expected(Scope.READ, 200, 200),
    "GET /v1/sessions/{session_id}": Expected(Scope.READ, 200, 404),
    "GET /v1/sessions/{session_id}/events": Expected(Scope.READ, 200, 404),
    "GET /v1/sessions/{session_id}/explain": Expected(Scope.READ, 200, 404),
    "POST /v1/sessions/{session_id}/extend": Expected(Scope.OPERATE, 200, 404, {"by": 60}),
    "POST /v1/sessions/{session_id}/pin": Expected(
        Scope.OPERATE, 200, 404, {"for": 60, "reason": "debugging"}
    ),
    "DELETE /v1/sessions/{session_id}/pin": Expected(Scope.OPERATE, 200, 404),
    "DELETE /v1/sessions/{session_id}": Expected(Scope.OPERATE, 202, 404),
    "POST /v1/sessions/{session_id}/turns": Expected(Scope.TURNS, 201, 404),
    "PUT /v1/sessions/{session_id}/turns/{turn_id}": Expected(Scope.TURNS, 200, 404),
    "DELETE /v1/sessions/{session_id}/turns/{turn_id}": Expected(Scope.TURNS, 204, 404),
    "GET /v1/sandboxes": Expected(Scope.READ, 200, 200),
    "GET /v1/orphans": Expected(Scope.READ, 200, 404),
    "GET /v1/quarantine": Expected(Scope.READ, 200, 200),
    "POST /v1/quarantine/{session_id}/retry": Expected(Scope.OPERATE, 200, 404),
    "GET /v1/sweeps": Expected(Scope.READ, 200, 404),
    "POST /v1/sweeps": Expected(Scope.OPERATE, 200, 404),
    "GET /v1/policies": Expected(Scope.READ, 200, 404),
    "GET /v1/policies/{scope}": Expected(Scope.READ, 200, 404),
    "PATCH /v1/policies/{scope}": Expected(Scope.OPERATE, 200, 404, {"idle_ttl": 900}),
    "DELETE /v1/policies/{scope}": Expected(Scope.OPERATE, 200, 404),
    "GET /v1/windows": Expected(Scope.READ, 200, 404),
    "PUT /v1/windows/{name}": Expected(Scope.OPERATE, 200, 404, WINDOW),
    "DELETE /v1/windows/{name}": Expected(Scope.OPERATE, 200, 404),
    "GET /v1/savings": Expected(Scope.READ, 200, 200),
    "GET /metrics": Expected(Scope.READ, 200, 404),
}
OF_THE_INSTALLATION = {
    "/metrics",
    "/v1/orphans",
    "/v1/policies",
    "/v1/policies/{scope}",
    "/v1/sweeps",
    "/v1/windows",
    "/v1/windows/{name}",
}
WITHOUT_TOKEN = {"GET /healthz", "GET /readyz"}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One kind is enough: what is asked here is not asked of the database."""
    return sqlite_url


def described(api: Api) -> set[str]:
    """Every call of openapi.json."""
    paths = api.app.openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def asked(api: Api, route: str, token: str | None) -> int:
    """The status of a call to a fresh session of tenant acme, with an open turn."""
    if api.keeper.store.history.lines():
        api.keeper.end("conv")
    api.keeper.open("conv", tenant="acme")
    turn = api.keeper.remote.begin("conv", holder="tests")
    policies, windows = api.keeper.store.policies, api.keeper.store.windows
    policies.set(parse_scope("tenant:acme"), {"idle_ttl": 600}, actor="tests")
    span = (datetime.fromisoformat(WINDOW[name]) for name in ("from", "until"))
    windows.add("upgrade", *span, reason="upgrade", actor="tests")
    method, path = route.split(" ")
    path = path.format(session_id="conv", turn_id=turn.turn_id, scope="tenant:acme", name="upgrade")
    body = EXPECTED[route].body
    sent = None if body is None else {k: v for k, v in body.items() if v is not None}
    if route == "POST /v1/sessions" and token is not None and "-unbound-" in token:
        sent = {"id": "conv", "tenant": "acme"}
    return api.call(method, path, token=token, json=sent).status_code


def test_every_route_is_expected(api: Api) -> None:
    """One that was added without a word here, or in the table of the gate, fails."""
    assert described(api) == EXPECTED.keys() | WITHOUT_TOKEN
    assert {f"{method} {path}" for method, path in RULES} == EXPECTED.keys()
    assert {f"{method} {path}" for method, path in FOR_ALL} == WITHOUT_TOKEN


@pytest.mark.parametrize("route", sorted(EXPECTED))
def test_a_route_lets_in_whom_it_should(keeper: Keeper, route: str) -> None:
    """Every scope, without a tenant, with the right one, with another one, and no token."""
    expected = EXPECTED[route]
    bounds = {"unbound": "", "acme": "@acme", "other": "@other"}
    tokens = {
        (scope, name): f"sk_{scope.value}{name}_-{name}-{SECRET}:{scope.value}{bound}"
        for scope in Scope
        for name, bound in bounds.items()
    }
    api = Api(keeper, api_tokens=" ".join(tokens.values()))

    found = {which: asked(api, route, entry.partition(":")[0]) for which, entry in tokens.items()}

    inside = 404 if route.split(" ")[1] in OF_THE_INSTALLATION else expected.status
    allowed = {"unbound": expected.status, "acme": inside, "other": expected.elsewhere}
    may = {expected.scope, Scope.OPERATE}
    assert found == {
        (scope, name): allowed[name] if scope in may else 403 for scope, name in tokens
    }
    assert asked(api, route, None) == 401
    assert asked(api, route, f"sk_nobody_{SECRET}") == 401
    assert asked(api, route, f"sk_operateunbound_{SECRET}") == 401


def test_lists_have_nothing_of_another_tenant(
    keeper: Keeper, desk: Desk, provider: FakeCloud
) -> None:
    """Neither sessions nor sandboxes nor what is in quarantine, on any page."""
    api = Api(keeper)
    for name in ("a-1", "b-1", "b-2", "c-1"):
        keeper.open(name, tenant="acme" if name.startswith("b") else "other")
        keeper.end(name)
        claim = keeper.store.teardowns.claim(name, 1, "w")
        assert claim is not None
        keeper.store.teardowns.release(claim, "401", 900, actor="w", quarantine=True)
    token = desk.token(Scope.READ, tenant="acme")

    for path, key in (
        ("/v1/sessions", "id"),
        ("/v1/sandboxes", "session_id"),
        ("/v1/quarantine", "session_id"),
    ):
        first = api.call("GET", path, token=token, params={"limit": 1}).json()
        cursor = {"limit": 1, "cursor": first["next_cursor"]}
        second = api.call("GET", path, token=token, params=cursor).json()
        assert [item[key] for item in first["items"] + second["items"]] == ["b-1", "b-2"]
        assert second["next_cursor"] is None


def test_another_tenant_cannot_be_named(keeper: Keeper, desk: Desk) -> None:
    """Neither to list nor to open for: it looks as if it were not there."""
    api = Api(keeper)
    token = desk.token(Scope.READ, Scope.TURNS, tenant="acme")

    listed = api.call("GET", "/v1/sessions", token=token, params={"tenant": "other"})
    opened = api.call("POST", "/v1/sessions", token=token, json={"tenant": "other"})
    own = api.call("POST", "/v1/sessions", token=token, json={"id": "mine"})

    assert (listed.status_code, opened.status_code) == (404, 404)
    assert own.json()["tenant"] == "acme"


def test_what_is_another_tenant_s_looks_as_if_it_were_not_there(keeper: Keeper, desk: Desk) -> None:
    """The same answer, but for the id and the request."""
    api = Api(keeper)
    keeper.open("theirs", tenant="other")
    token = desk.token(Scope.OPERATE, tenant="acme")

    for method, path, body in (
        ("GET", "/v1/sessions/{}", None),
        ("GET", "/v1/sessions/{}/events", None),
        ("GET", "/v1/sessions/{}/explain", None),
        ("DELETE", "/v1/sessions/{}", None),
        ("POST", "/v1/sessions/{}/turns", None),
        ("POST", "/v1/sessions/{}/extend", {"by": 5}),
        ("POST", "/v1/sessions/{}/pin", {"for": 5, "reason": "debugging"}),
        ("DELETE", "/v1/sessions/{}/pin", None),
        ("PUT", "/v1/sessions/{}/turns/" + TURN, None),
        ("POST", "/v1/quarantine/{}/retry", None),
    ):
        theirs, nobody = (
            api.call(method, path.format(name), token=token, json=body)
            for name in ("theirs", "nobody")
        )
        assert theirs.text.replace("theirs", "nobody") == nobody.text


def test_the_first_token_closes_the_door(keeper: Keeper, desk: Desk) -> None:
    """Without one this machine may do everything; from the first one on it needs it."""
    api = Api(keeper)
    before = api.call("GET", "/v1/sessions")
    token = desk.token(Scope.READ)

    without, with_it = api.call("GET", "/v1/sessions"), api.call("GET", "/v1/sessions", token=token)

    assert [one.status_code for one in (before, without, with_it)] == [200, 401, 200]
    assert without.headers["WWW-Authenticate"].startswith("Bearer")


def test_taking_the_last_token_away_opens_nothing(keeper: Keeper, desk: Desk) -> None:
    """A revoked token is refused from the next request on, and nobody is let in instead."""
    api = Api(keeper)
    token = desk.token(Scope.OPERATE)
    before = api.call("GET", "/v1/sessions", token=token)

    revoked = desk.tokens.revoke(token.split("_")[1], actor="tests")
    after = api.call("GET", "/v1/sessions", token=token)

    assert (before.status_code, revoked, after.status_code) == (200, True, 401)
    assert "was revoked" in after.json()["detail"]
    assert api.call("GET", "/v1/sessions").status_code == 401
    assert not desk.tokens.revoke(token.split("_")[1], actor="tests")


def test_a_token_expires(keeper: Keeper, desk: Desk, clock: FrozenClock) -> None:
    """By the database's clock, to the second."""
    api = Api(keeper)
    token = desk.token(Scope.READ, seconds=60)

    clock.advance(59)
    before = api.call("GET", "/v1/sessions", token=token)
    clock.advance(1)
    after = api.call("GET", "/v1/sessions", token=token)

    assert (before.status_code, after.status_code) == (200, 401)
    assert "has expired" in after.json()["detail"]


@pytest.mark.parametrize(
    "header", ["x", "Basic abc", "Bearer", "Bearer sk_a_b", "Bearer \xff", "Bearer  ", "bearer sk_"]
)
def test_nonsense_for_a_token_is_refused(api: Api, header: str) -> None:
    """Also where no token would be needed."""
    answer = api.call("GET", "/v1/sessions", headers={"Authorization": header.encode("latin-1")})

    assert (answer.status_code, problem(answer)) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("192.0.2.7", {}),
        ("127.0.0.1", {"Host": "rebound.example"}),
        ("127.0.0.1", {"Origin": "https://evil.example"}),
        ("127.0.0.1", {"Origin": "null"}),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}),
    ],
)
def test_without_tokens_only_this_machine_is_served(
    api: Api, client: str, headers: dict[str, str]
) -> None:
    """Not another one, not a page whose name was made to lead here, not a proxy for others."""
    answer = api.call("POST", "/v1/sweeps", client=client, headers=headers)

    assert (answer.status_code, problem(answer)) == (401, "unauthorized")
    assert "sandkeeper tokens create" in answer.json()["detail"]
    assert api.call("POST", "/v1/sweeps").status_code == 200


def test_it_can_be_mounted(keeper: Keeper, desk: Desk) -> None:
    """Under a prefix of somebody's own app, without a lifespan, with the same rules."""
    outer = FastAPI()
    outer.mount("/sandkeeper", create_app(keeper))
    api = Api(keeper)
    token = desk.token(Scope.TURNS)

    opened, turn, listed = (
        api.call(method, f"/sandkeeper/v1/sessions{path}", token=token, app=outer, json=body)
        for method, path, body in (
            ("POST", "", {"id": "conv"}),
            ("POST", "/conv/turns", {}),
            ("GET", "", None),
        )
    )

    wrong = api.call("PUT", "/sandkeeper/v1/sessions", token=token, app=outer)

    assert [one.status_code for one in (opened, turn, listed)] == [201, 201, 403]
    assert wrong.headers["Allow"] == "GET, POST"
