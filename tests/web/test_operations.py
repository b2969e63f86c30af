"""What operators see and do over HTTP, and what probes and Prometheus are told."""

from __future__ import annotations

import re
from secrets import randbits

import pytest
from sqlalchemy import Engine

from core.lifecycle import Keeper
from core.model import SandboxState, new_key
from core.reaper import Reaper
from tests.fakes import FrozenClock
from tests.web.callers import Api, problem


def quarantine(keeper: Keeper, name: str) -> None:
    """End a session whose teardown failed too often."""
    keeper.open(name)
    keeper.end(name)
    claim = keeper.store.teardowns.claim(name, 1, "w")
    assert claim is not None
    keeper.store.teardowns.release(claim, "AuthFailed: 401", 900, actor="w", quarantine=True)


def test_sandboxes_are_listed_by_state(api: Api, keeper: Keeper, reaper: Reaper) -> None:
    """Each in the one state that it has, and all of them without a filter, page by page."""
    for name in ("a", "b", "c"):
        keeper.open(name)
    keeper.end("a")
    keeper.end("b")
    reaper.teardown("b", 1, worker="w")

    found = {
        state: [
            item["session_id"]
            for item in api.call("GET", "/v1/sandboxes", params={"state": state}).json()["items"]
        ]
        for state in SandboxState
    }
    first = api.call("GET", "/v1/sandboxes", params={"limit": 2}).json()
    rest = api.call("GET", "/v1/sandboxes", params={"cursor": first["next_cursor"]}).json()

    assert found == {"creating": [], "running": ["c"], "closing": ["a"], "gone": ["b"]}
    assert [item["session_id"] for item in first["items"] + rest["items"]] == ["a", "b", "c"]


def test_what_is_in_quarantine_is_listed_and_tried_again(api: Api, keeper: Keeper) -> None:
    """With the provider's words; a retry makes it due now."""
    quarantine(keeper, "conv")
    keeper.open("well")

    listed = api.call("GET", "/v1/quarantine").json()["items"]
    retried = api.call("POST", "/v1/quarantine/conv/retry").json()
    not_there = api.call("POST", "/v1/quarantine/well/retry").json()

    assert [(item["session_id"], item["last_error"]) for item in listed] == [
        ("conv", "AuthFailed: 401")
    ]
    assert (retried, not_there) == ({"retried": 1}, {"retried": 0})
    assert keeper.store.publications.failing(10) == (1, [("conv", 1)])


def test_orphans_have_pages(api: Api, keeper: Keeper) -> None:
    """By provider and id."""
    keeper.store.orphans.sight(
        [
            {
                "of_provider": "fake",
                "of_external_id": f"box-{number}",
                "of_key": new_key(randbits),
                "of_scope": "s",
                "of_kind": "rowless",
            }
            for number in range(3)
        ]
    )

    first = api.call("GET", "/v1/orphans", params={"limit": 2}).json()
    rest = api.call("GET", "/v1/orphans", params={"cursor": first["next_cursor"]}).json()

    items = first["items"] + rest["items"]
    assert [item["external_id"] for item in items] == ["box-0", "box-1", "box-2"]
    assert items[0]["name"].startswith(f"sk-{keeper.store.installation}-")


def test_a_sweep_by_hand_does_what_a_sweep_does(
    api: Api, keeper: Keeper, clock: FrozenClock, rung: list[tuple[str, int]]
) -> None:
    """It notices, ends, rings, and leaves the pulse."""
    keeper.open("conv")
    clock.advance(keeper.policy.idle_ttl)
    before = api.call("GET", "/v1/sweeps").json()

    noticed = api.call("POST", "/v1/sweeps").json()
    clock.advance(keeper.policy.confirm_interval)
    ended = api.call("POST", "/v1/sweeps").json()
    clock.advance(5)
    after = api.call("GET", "/v1/sweeps").json()

    assert (before["swept_at"], before["late"]) == (None, True)
    assert (noticed["noticed"], ended["ended"], ended["published"]) == (1, 1, 1)
    assert rung == [("conv", 1)]
    assert (after["age"], after["late"]) == (5.0, False)


def test_numbers_are_what_is_there(api: Api, keeper: Keeper, reaper: Reaper) -> None:
    """Prometheus' text format: each name once with help and type, and the figures of the rows."""
    reaper.sweep()
    for name in ("a", "b", "c"):
        keeper.open(name)
    keeper.end("a")
    quarantine(keeper, "q")

    answer = api.call("GET", "/metrics")

    lines = answer.text.splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    names = {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")}
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert samples["sandkeeper_sessions_active"] == "2"
    assert samples['sandkeeper_sandboxes{state="running"}'] == "2"
    assert samples['sandkeeper_sandboxes{state="closing"}'] == "2"
    assert samples["sandkeeper_quarantined"] == "1"
    assert samples["sandkeeper_sweep_age_seconds"] == "0"
    assert {"sandkeeper_events_total", "sandkeeper_sweep_duration_seconds_bucket"} < names


def test_a_process_that_answers_is_healthy(api: Api) -> None:
    """Whatever becomes of the database."""
    api.keeper.store.database.engine.dispose()

    assert api.call("GET", "/healthz").json() == {"status": "ok"}


def test_it_is_ready_when_all_is_there(keeper: Keeper, reaper: Reaper) -> None:
    """Database, schema, broker and pulse."""
    reaper.sweep()

    answer = Api(keeper, broker=lambda: None).call("GET", "/readyz")

    assert (answer.status_code, answer.json()) == (
        200,
        {
            "ready": True,
            "checks": {"database": "ok", "schema": "ok", "pulse": "ok", "broker": "ok"},
        },
    )


def test_it_is_not_ready_without_a_sweep(
    keeper: Keeper, reaper: Reaper, clock: FrozenClock
) -> None:
    """H2: 503, and what to start or to look at."""
    clock.advance(keeper.policy.late_after + 1)
    never = Api(keeper).call("GET", "/readyz")
    reaper.sweep()
    clock.advance(keeper.policy.late_after + 1)
    late = Api(keeper).call("GET", "/readyz")

    assert (never.status_code, late.status_code) == (503, 503)
    assert "start a worker and a beat" in never.json()["checks"]["pulse"]
    assert "181 s ago" in late.json()["checks"]["pulse"]


def test_it_is_not_ready_without_its_broker_or_its_tables(keeper: Keeper, engine: Engine) -> None:
    """503 with a reason that names no host."""

    def away() -> None:
        raise ConnectionRefusedError("broker-3.internal")

    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")

    answer = Api(keeper, broker=away).call("GET", "/readyz")

    assert answer.status_code == 503
    assert answer.json()["checks"]["broker"] == "it cannot be reached"
    assert "db upgrade" in answer.json()["checks"]["schema"]
    assert "internal" not in answer.text


def test_it_is_not_ready_without_its_database(keeper: Keeper, engine: Engine) -> None:
    """And every other call says 503 too, with when to come back."""
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE installation RENAME TO away")
        connection.exec_driver_sql("ALTER TABLE api_tokens RENAME TO tokens_away")
    api = Api(keeper)

    ready, listed = api.call("GET", "/readyz"), api.call("GET", "/v1/sessions")

    assert ready.status_code == 503
    assert ready.json()["checks"]["database"] == "it cannot be used now"
    assert (listed.status_code, problem(listed)) == (503, "schema-outdated")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_token(keeper: Keeper, path: str) -> None:
    """They come from anywhere, and say nothing of any session."""
    api = Api(keeper, api_tokens=f"sk_ops_{'s' * 40}:operate")

    assert api.call("GET", path, client="192.0.2.7").status_code == 200
