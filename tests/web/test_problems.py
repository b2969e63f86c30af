"""Every error has one line in one table, one answer, and one row on the page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from core import errors
from core.errors import SandkeeperError, StoreUnavailable
from core.lifecycle import Keeper
from core.web.description import TYPES
from core.web.problems import KINDS, OF_HTTP, kind_of
from tests.test_errors import EXAMPLES
from tests.web.callers import Api, problem

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One kind is enough: what is asked here is not asked of the database."""
    return sqlite_url


def test_every_error_has_a_line() -> None:
    """None falls back on its parent's, and no line is of a class that is gone."""
    classes = {
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, SandkeeperError)
    }

    assert classes == KINDS.keys()


def test_types_are_stable_names() -> None:
    """Each is one kind's own; clients compare them."""
    kinds = [*KINDS.values(), *OF_HTTP]

    assert len({kind.type for kind in kinds}) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.type) for kind in kinds)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_is_answered(api: Api, error: SandkeeperError) -> None:
    """With its status and type; whether it may be tried again is in a header."""

    async def raises() -> None:
        raise error

    api.app.add_api_route("/raises", raises)

    answer = api.call("GET", "/raises")

    kind = KINDS[type(error)]
    assert (answer.status_code, problem(answer)) == (kind.status, kind.type)
    assert answer.json()["title"] == kind.title
    assert ("Retry-After" in answer.headers) == (kind.retry_after is not None)
    assert answer.json().get("session_id") == getattr(error, "session_id", None)


def test_what_a_provider_refines_is_answered_as_what_it_refines() -> None:
    """The nearest class that has a line."""

    class OfAVendor(errors.Busy):
        pass

    assert kind_of(OfAVendor()) is KINDS[errors.Busy]


def test_words_about_our_own_house_stay_in_the_log(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """Who calls is told that the database is away, not where it is."""

    async def raises() -> None:
        raise StoreUnavailable("connection to db-3.internal refused")

    api.app.add_api_route("/raises", raises)

    answer = api.call("GET", "/raises")

    assert "db-3" not in answer.text
    assert "db-3.internal" in caplog.text


def test_what_nobody_foresaw_is_a_problem_too(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """500 without a word of it, which the log has."""

    async def raises() -> None:
        raise ZeroDivisionError("secret")

    api.app.add_api_route("/raises", raises)

    answer = api.call("GET", "/raises")

    assert (answer.status_code, problem(answer)) == (500, "internal")
    assert "secret" not in answer.text
    assert "ApiFailed" in caplog.text


def test_the_page_has_every_problem() -> None:
    """docs/http.md: type, status and what it means, in the words of the code."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)

    kinds = {kind.type: (str(kind.status), kind.title) for kind in (*KINDS.values(), *OF_HTTP)}
    assert {name: (status, title) for name, status, title in rows} == kinds


def test_the_page_has_every_call() -> None:
    """docs/http.md: method, address and scope."""
    from core.web.gate import RULES

    rows = re.findall(r"^\| `([A-Z]+) (/\S+)` \| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)

    assert {(method, path): scope for method, path, scope in rows} == {
        which: rule.scope.value for which, rule in RULES.items()
    }


# The description


def schemas(api: Api) -> dict[str, Any]:
    """The components of openapi.json."""
    found: dict[str, Any] = api.call("GET", "/openapi.json").json()["components"]["schemas"]
    return found


def test_the_description_is_openapi_3_1(api: Api) -> None:
    """With the scheme of tokens, and the scope of each call."""
    found = api.call("GET", "/openapi.json").json()

    assert found["openapi"].startswith("3.1.")
    assert found["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert found["paths"]["/v1/sweeps"]["post"]["x-scope"] == "operate"
    assert found["components"]["schemas"]["Problem"]["properties"]["type"]["examples"] == TYPES


def test_every_call_may_answer_with_a_problem(api: Api) -> None:
    """And none with the framework's own errors."""
    found = api.call("GET", "/openapi.json").json()

    for operations in found["paths"].values():
        for operation in operations.values():
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            assert operation["description"]
    assert "HTTPValidationError" not in str(found)


def test_what_is_sent_and_got_has_examples(api: Api) -> None:
    """Whoever reads the description sees what a value looks like."""
    found = schemas(api)

    for name in ("OpenRequest", "TurnRequest", "ExtendRequest", "SessionAnswer", "TurnAnswer"):
        fields = found[name]["properties"].values()
        plain = [field for field in fields if "$ref" not in field and "allOf" not in field]
        shown = [field for field in plain if "examples" in field or field.get("type") == "boolean"]
        assert len(shown) == len(plain), name


def test_the_description_has_the_shape_of_an_id(api: Api) -> None:
    """A client that is generated from it refuses what the server would."""
    found = api.call("GET", "/openapi.json").json()

    (of_path,) = found["paths"]["/v1/sessions/{session_id}"]["get"]["parameters"]
    of_body = found["components"]["schemas"]["OpenRequest"]["properties"]
    assert of_path["schema"]["pattern"] == "^[A-Za-z0-9._:-]{1,128}$"
    assert of_body["id"]["anyOf"][0]["pattern"] == "^[A-Za-z0-9._:-]{1,128}$"
    assert of_body["tenant"]["anyOf"][0]["pattern"] == "^[A-Za-z0-9._:-]{1,64}$"


def test_the_example_of_opening_is_accepted(api: Api) -> None:
    """The examples of the description, sent as they stand."""
    fields = schemas(api)["OpenRequest"]["properties"]
    body = {name: field["examples"][0] for name, field in fields.items()}

    assert api.call("POST", "/v1/sessions", json=body).status_code == 201


def test_two_apps_in_one_process_share_nothing(keeper: Keeper, api: Api) -> None:
    """Each has its own keeper and tokens."""
    other = Api(keeper, api_tokens=f"sk_ops_{'s' * 40}:read")

    assert isinstance(other.app, FastAPI)
    assert api.call("GET", "/v1/sessions").status_code == 200
    assert other.call("GET", "/v1/sessions").status_code == 401
