"""Savings over HTTP."""

from __future__ import annotations

from typing import Any

from core.access import Scope
from core.lifecycle import Keeper
from core.prices import Prices
from tests.fakes import FrozenClock
from tests.web.callers import Api, Desk, problem


def test_savings_are_by_tenant_and_provider(keeper: Keeper, clock: FrozenClock) -> None:
    """Seconds and money, and what other idle TTLs would have saved."""
    api = Api(keeper, prices=Prices(currency="EUR", default=3.6))
    keeper.open("conv", tenant="acme", idle_ttl=9000)
    clock.advance(1000)
    keeper.touch("conv")

    found = api.call("GET", "/v1/savings", params={"ttl": [600, 2000], "since": 86400}).json()

    (line,) = found["lines"]
    assert (line["tenant"], line["provider"], line["billed"]) == ("acme", "fake", 1000)
    assert (line["billed_cost"], found["currency"]) == (1.0, "EUR")
    assert [(one["ttl"], one["saved"], one["resets"]) for one in line["what_if"]] == [
        (600, 400, 1),
        (2000, 0, 0),
    ]
    assert (found["total"]["billed"], found["read"], found["next_cursor"]) == (1000, 1, None)


def test_pages_of_one_span_add_up(api: Api, keeper: Keeper, clock: FrozenClock) -> None:
    """Each of so many sandboxes, and all up to the moment at which the first was asked for."""
    for number in range(5):
        keeper.open(f"conv-{number}", idle_ttl=9000)
    clock.advance(1000)
    pages: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while not pages or cursor:
        pages.append(api.call("GET", "/v1/savings", params={"limit": 2, **cursor}).json())
        following = pages[-1]["next_cursor"]
        cursor = {} if following is None else {"cursor": following}
        clock.advance(60)

    assert [page["read"] for page in pages] == [2, 2, 1]
    assert {page["until"] for page in pages} == {pages[0]["until"]}
    assert sum(page["total"]["billed"] for page in pages) == 5000


def test_a_tenant_s_token_sees_that_tenant_s_alone(api: Api, keeper: Keeper, desk: Desk) -> None:
    """And cannot ask for another one's."""
    keeper.open("mine", tenant="acme")
    keeper.open("theirs", tenant="globex")
    bound, free = desk.token(Scope.READ, tenant="acme"), desk.token(Scope.READ)

    mine = api.call("GET", "/v1/savings", token=bound).json()
    every = api.call("GET", "/v1/savings", token=free).json()
    theirs = api.call("GET", "/v1/savings", token=free, params={"tenant": "globex"}).json()

    assert [line["tenant"] for line in mine["lines"]] == ["acme"]
    assert (mine["read"], every["read"], theirs["read"]) == (1, 2, 1)
    refused = api.call("GET", "/v1/savings", token=bound, params={"tenant": "globex"})
    assert (refused.status_code, problem(refused)) == (404, "not-found")


def test_nonsense_is_a_problem(api: Api) -> None:
    """Each field with what would be right."""
    for wrong in ("ttl=0", "ttl=nan", "ttl=x", "since=-1", "limit=0", "cursor=x", "days=7"):
        answer = api.call("GET", f"/v1/savings?{wrong}")
        assert (answer.status_code, problem(answer)) == (422, "invalid-request"), wrong
    many = "&".join(f"ttl={number}" for number in range(1, 12))
    assert api.call("GET", f"/v1/savings?{many}").status_code == 422
