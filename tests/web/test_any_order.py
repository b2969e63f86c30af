"""
Every call of the HTTP API, in orders that nobody thought of and with values that nobody would send:
it answers as /openapi.json says, and never with 5xx. ANY_ORDER_SEED and ANY_ORDER_EXAMPLES (how
many orders) look for more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from core.engines import make_engine
from core.host import Host
from core.lifecycle import Keeper
from core.store import Store
from core.web import create_app
from tests.factories import policy
from tests.fakes import FakeCloud, FrozenClock

SEED = int(os.environ.get("ANY_ORDER_SEED", "1"))
EXAMPLES = int(os.environ.get("ANY_ORDER_EXAMPLES", "15"))
TOKEN = f"sk_ops_{'s' * 40}"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


# Sessions also by themselves: of all calls, few orders get as far as a turn that is there.
PARTS: Mapping[str, Callable[[Any], Any]] = {
    "everything": lambda schema: schema,
    "sessions": lambda schema: schema.include(path_regex="^/v1/sessions"),
}


@contextmanager
def fresh(template: Path, folder: Path) -> Iterator[Keeper]:
    """A keeper on a database of its own: what one order does, the next one must not find."""
    clock = FrozenClock()
    engine = make_engine(f"sqlite:///{shutil.copy(template, folder / 'sandkeeper.db')}")
    store = Store(engine, policy=policy(), clock=clock)
    with Keeper(store, FakeCloud(clock=clock), host=Host(sleep=clock.advance)) as keeper:
        yield keeper
    engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.timeout(0 if "ANY_ORDER_EXAMPLES" in os.environ else 120)
def test_every_call_in_any_order_is_answered_as_described(
    keeper: Keeper, sqlite_template: Path, tmp_path: Path, part: str
) -> None:
    """Sessions and turns that are there, were there, or never were."""
    answered: set[tuple[str, int]] = set()
    app = create_app(keeper, api_tokens=f"{TOKEN}:operate")
    schema = PARTS[part](schemathesis.openapi.from_asgi("/openapi.json", app))

    class Calls(schema.as_state_machine()):  # type: ignore[misc] # it is made at run time
        """One order of calls."""

        def setup(self) -> None:
            """Nothing is there."""
            self.world = ExitStack()
            world = self.world.enter_context(TemporaryDirectory(dir=tmp_path))
            now = self.world.enter_context(fresh(sqlite_template, Path(world)))
            app.state.desk = create_app(now, api_tokens=f"{TOKEN}:operate").state.desk

        def teardown(self) -> None:
            """Nothing is left."""
            self.world.close()

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            """As somebody who may do everything."""
            return {"headers": {"Authorization": f"Bearer {TOKEN}"}}

        def before_call(self, case: Any) -> None:
            """A profile that nobody made opens nothing: most orders are to get further."""
            if isinstance(case.body, dict) and len(str(case.body.get("profile"))) % 4:
                case.body.pop("profile", None)

        def validate_response(self, response: Any, case: Any, **more: Any) -> None:
            """What is promised of every answer."""
            answered.add((case.operation.label, response.status_code))
            case.validate_response(response, checks=CHECKS, **more)

    hypothesis.seed(SEED)(Calls)
    Calls.run(
        settings=hypothesis.settings(
            max_examples=EXAMPLES,
            stateful_step_count=12,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
    )

    turns = "/v1/sessions/{session_id}/turns"
    opened = {("POST /v1/sessions", 201), (f"POST {turns}", 201)}
    of_turns = {(f"PUT {turns}/{{turn_id}}", 200), (f"DELETE {turns}/{{turn_id}}", 204)}
    if part == "everything":
        assert answered & opened
    else:
        assert opened <= answered
        assert of_turns & answered  # an order got as far as a turn that was there
