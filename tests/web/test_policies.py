"""Policies, quotas and windows over HTTP."""

from __future__ import annotations

from datetime import timedelta

from core.lifecycle import Keeper
from core.reaper import Reaper
from tests.fakes import FrozenClock
from tests.web.callers import Api, problem


def test_a_policy_is_set_looked_at_and_unset(api: Api, keeper: Keeper, reaper: Reaper) -> None:
    """Null leaves one field to the layer below, DELETE all of them."""
    keeper.open("conv", tenant="acme")

    made = api.call("PATCH", "/v1/policies/tenant:acme", json={"idle_ttl": 600, "max_turn": 60})
    reaper.sweep()
    followed = keeper.get("conv").idle_ttl
    less = api.call("PATCH", "/v1/policies/tenant:acme", json={"max_turn": None}).json()
    none = api.call("DELETE", "/v1/policies/tenant:acme").json()

    assert (made.status_code, made.json()["followed"], followed) == (200, False, 600)
    assert (less["idle_ttl"], less["max_turn"], none["idle_ttl"]) == (600, None, None)
    assert api.call("GET", "/v1/policies").json()["items"][0]["scope"] == "tenant:acme"
    assert api.call("GET", "/v1/policies/tenant:acme").status_code == 200


def test_nonsense_is_a_problem_with_field_and_fix(api: Api) -> None:
    """Unknown fields, limits below the heartbeat's rhythm, scopes and names that are none."""
    calls = [
        ("/v1/policies/tenant:acme", {"idle_tll": 600}, "invalid-request"),
        ("/v1/policies/tenant:acme", {"idle_ttl": 0.001}, "invalid-argument"),
        ("/v1/policies/tenant:acme", {}, "invalid-argument"),
        ("/v1/policies/team:acme", {"idle_ttl": 600}, "invalid-argument"),
    ]
    for path, body, kind in calls:
        assert problem(api.call("PATCH", path, json=body)) == kind
    assert problem(api.call("GET", "/v1/policies/tenant:acme")) == "invalid-argument"


def test_a_full_tenant_is_429(api: Api, keeper: Keeper) -> None:
    """With how long to wait before the same call may succeed."""
    api.call("PATCH", "/v1/policies/installation", json={"max_live": 1})
    keeper.open("a", tenant="acme")

    answer = api.call("POST", "/v1/sessions", json={"id": "b", "tenant": "acme"})

    assert (answer.status_code, problem(answer)) == (429, "tenant-full")
    assert answer.headers["Retry-After"] == "30"


def test_a_profile_is_opened_with(api: Api) -> None:
    """Its limits and its name are in the answer."""
    api.call("PATCH", "/v1/policies/profile:batch", json={"idle_ttl": 600})

    found = api.call("POST", "/v1/sessions", json={"profile": "batch"}).json()

    assert (found["profile"], found["idle_ttl"]) == ("batch", 600)


def test_a_window_is_put_and_taken_away(api: Api, clock: FrozenClock) -> None:
    """The pulse shows the one that is open."""
    until = clock.now + timedelta(hours=1)
    span = {"from": clock.now.isoformat(), "until": until.isoformat(), "reason": "upgrade"}

    made = api.call("PUT", "/v1/windows/night", json=span).json()
    shown = api.call("GET", "/v1/sweeps").json()["window"]
    removed = api.call("DELETE", "/v1/windows/night")

    assert (made["name"], made["open"], shown) == ("night", True, "night")
    assert removed.status_code == 200
    assert api.call("GET", "/v1/windows").json()["items"] == []
    assert problem(api.call("DELETE", "/v1/windows/night")) == "invalid-argument"
