"""The commands for a bad day: what an operator types, sees, and sees when they are wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from core.host import Host
from core.lifecycle import Keeper
from core.schema import installation
from core.store.guard import HoldReason
from core.wiring import System
from tasks import reap, safety
from tasks.app import app
from tasks.cli import main
from tasks.runtime import runtime
from tests.factories import stray
from tests.fakes import FakeCloud, Idle

HERE = "tests.test_safety_cli"
cloud = FakeCloud()


class Shared(FakeCloud):
    """The one cloud of this test, in whatever process of ours asks for it."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        return cloud  # type: ignore[return-value]  # every system has the same


class Operator:
    """Somebody at a terminal, with an installation of their own."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ

    def types(self, *words: str, says: str | None = None) -> Result:
        return CliRunner(env=self.environ).invoke(main, words, input=says)

    def reads(self, *words: str) -> Any:
        """What a command prints as JSON."""
        result = self.types(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def operator(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator of a migrated database and a cloud, in which nothing has happened yet."""
    monkeypatch.setattr(f"{HERE}.cloud", FakeCloud())
    environ = {
        "SANDKEEPER_DATABASE_URL": database_url,
        "SANDKEEPER_BROKER_URL": "memory://",
        "SANDKEEPER_PROVIDER": f"{HERE}:Shared",
        "SANDKEEPER_CLAIM_TTL": "1",
        "SANDKEEPER_BREAKER_MIN": "2",
        "USER": "ada",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Operator(environ)


@pytest.fixture
def system(operator: Operator) -> Iterator[System]:
    """A process of the operator's installation."""
    system = System.from_env(operator.environ)
    yield system
    system.close()


@pytest.fixture
def keeper(system: System) -> Keeper:
    """An API server's keeper."""
    return Keeper(system.store, cloud, host=Host(loop=Idle))


@pytest.fixture
def nobody_works(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any] | None], None]:
    """What workers answer when they are asked whether they are there: nobody, until told."""
    answers: dict[str, Any] = {}

    def say(answer: dict[str, Any] | None) -> None:
        answers.update(answer or {})

    class Inspect:
        def ping(self) -> dict[str, Any] | None:
            return answers or None

    monkeypatch.setattr(app.control, "inspect", lambda timeout: Inspect())
    return say


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a command would have waited."""
    waited: list[float] = []
    watch = SimpleNamespace(sleep=waited.append, monotonic=lambda: sum(waited))
    monkeypatch.setattr("tasks.safety.time", watch)
    return waited


# The breaker


def test_nothing_is_held_at_first(operator: Operator) -> None:
    """The status says so in words, and as an empty list."""
    text = operator.types("breaker", "status")

    assert text.exit_code == 0
    assert "nothing is held" in text.output
    assert operator.reads("breaker", "status") == []


def test_an_operator_holds_everything_and_lets_it_go_on(operator: Operator, keeper: Keeper) -> None:
    """`hold` with a reason; `approve operator` ends it; both are theirs."""
    keeper.open("conv")
    keeper.end("conv")

    held = operator.types("breaker", "hold", "the bill looks odd")
    (shown,) = operator.reads("breaker", "status")
    claimed = keeper.store.teardowns.claim("conv", 1, "w")
    approved = operator.types("breaker", "approve", "operator")

    assert (held.exit_code, approved.exit_code) == (0, 0)
    assert "breaker approve operator" in held.output
    assert (shown["reason"], shown["open"], shown["detail"]) == (
        "operator",
        True,
        {"why": "the bill looks odd"},
    )
    assert claimed is None
    assert keeper.store.teardowns.claim("conv", 1, "w") is not None
    assert operator.reads("breaker", "status") == []


def test_a_question_is_shown_and_answered(operator: Operator, system: System) -> None:
    """With its numbers; the answer shows who gave it and how long it holds."""
    system.store.guard.hold(HoldReason.MASS_END, {"ending": 30, "active": 40}, actor="sweep")

    asked = operator.types("breaker", "status")
    denied = operator.types("breaker", "deny", "mass_end", "--for", "60")
    (answer,) = operator.reads("breaker", "status")
    text = operator.types("breaker", "status")

    assert "'ending': 30" in asked.output
    assert "nothing is held" not in asked.output
    assert denied.exit_code == 0
    assert (answer["decision"], answer["decided_by"], answer["open"]) == (
        "denied",
        "operator ada",
        False,
    )
    assert answer["until"] is not None
    assert "nothing is held" in text.output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("breaker", "approve", "mass_end"), 1, "nothing is held for mass_end"),
        (("breaker", "deny", "database"), 1, "nothing is held for database"),
        (("breaker", "approve", "everything"), 2, "'everything' is not one of"),
        (("breaker", "approve"), 2, "Missing argument"),
        (("breaker", "approve", "mass_end", "--for", "0"), 2, "0.0 is not in the range"),
        (("breaker", "approve", "mass_end", "--for", "nan"), 2, "nan"),
        (("breaker", "approve", "mass_end", "--for", "inf"), 2, "inf"),
        (("breaker", "hold"), 2, "Missing argument"),
        (("orphans", "--limit", "0"), 2, "0 is not in the range"),
        (("reconcile", "everything"), 2, "unexpected extra argument"),
    ],
)
def test_a_mistake_is_one_line(
    operator: Operator, words: tuple[str, ...], code: int, said: str
) -> None:
    """Refused is 1, usage is 2; the line says what is wrong, and there is no traceback."""
    result = operator.types(*words)

    assert (result.exit_code, result.exception.__class__) == (code, SystemExit)
    assert said in result.output
    assert "Traceback" not in result.output


def test_an_answer_for_longer_than_any_date_is_refused(operator: Operator, system: System) -> None:
    """A typo in the number of seconds is a usage error, not a database's."""
    system.store.guard.hold(HoldReason.MASS_END, {}, actor="sweep")

    result = operator.types("breaker", "approve", "mass_end", "--for", "1e18")

    assert result.exit_code == 2
    assert system.store.guard.is_held()


# Reconcile


def test_orphans_are_listed_with_what_is_known_of_them(
    operator: Operator, system: System, keeper: Keeper
) -> None:
    """`reconcile` looks once, `orphans` shows what it found; as a table and as JSON."""
    keeper.open("known")
    name, labels = stray(system.store.installation)
    cloud.plant(name, {**labels, "sandkeeper-created-at": "99999999999"})

    (dry,) = operator.reads("reconcile", "--dry-run")
    none = operator.reads("orphans")
    (report,) = operator.reads("reconcile")
    (orphan,) = operator.reads("orphans")
    table = operator.types("orphans")

    assert (dry["provider"], dry["rowless"], none) == ("fake", 1, [])
    assert (report["rowless"], report["explained"], report["killed"]) == (1, 1, 0)
    assert (orphan["name"], orphan["kind"], orphan["sightings"]) == (name, "rowless", 1)
    assert name in table.output


def test_a_comparison_is_shown_rule_by_rule(operator: Operator, keeper: Keeper) -> None:
    """Also why nothing was concluded."""
    keeper.open("conv")
    well = operator.types("reconcile")
    cloud.fail("list", OSError("no route to host"))
    ill = operator.types("reconcile")

    assert "explained" in well.output
    assert "skipped" not in well.output
    assert "OSError: no route to host" in ill.output
    assert (well.exit_code, ill.exit_code) == (0, 0)


def test_a_task_refuses_a_provider_that_it_does_not_know(
    operator: Operator, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged or an old message: nothing is compared, and nothing fails."""
    monkeypatch.setattr(runtime, "system", lambda: system)

    assert reap.reconcile_sandboxes("nobody") == []
    assert cloud.count("list") == 0


def test_a_task_compares_what_there_is(
    system: System, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is JSON, for whoever keeps results."""
    monkeypatch.setattr(runtime, "system", lambda: system)
    keeper.open("conv")

    (report,) = reap.reconcile_sandboxes()

    assert json.loads(json.dumps(report))["explained"] == 1


# A restored backup


def test_a_restore_is_said_and_everything_goes_on(
    *,
    operator: Operator,
    system: System,
    keeper: Keeper,
    nobody_works: Callable[[dict[str, Any] | None], None],
    waits: list[float],
) -> None:
    """Held, waited for one claim, amnesty, fences, trust: and the sandboxes nobody knows stay."""
    keeper.open("a")
    keeper.open("b")
    keeper.end("b")
    with system.engine.begin() as connection:
        connection.execute(update(installation).values(identity="before:1"))

    result = operator.types("db", "restored", says="y\n")

    (hold,) = operator.reads("breaker", "status")
    assert result.exit_code == 0, result.output
    assert "1 active sessions have a full idle TTL" in result.output
    assert sum(waits) == pytest.approx(system.policy.claim_ttl)
    assert (hold["reason"], hold["decision"], hold["decided_by"]) == (
        "mass_orphans",
        "denied",
        "operator ada",
    )
    claim = system.store.teardowns.claim("b", 1, "w")
    assert claim is not None
    assert claim.token > 1_000_000


def test_a_restore_is_refused_while_workers_run(
    operator: Operator,
    system: System,
    nobody_works: Callable[[dict[str, Any] | None], None],
    waits: list[float],
) -> None:
    """S3: what they began before would end on older rows. What was held stays held."""
    nobody_works({"worker@host": {"ok": "pong"}})

    refused = operator.types("db", "restored", "--yes")

    assert refused.exit_code == 1
    assert "workers are running: worker@host" in refused.output
    assert waits == []
    assert system.store.guard.is_held()
    assert operator.types("db", "restored", "--yes", "--workers-stopped").exit_code == 0
    assert not system.store.guard.is_held()


def test_a_restore_that_is_not_confirmed_changes_nothing_but_holds(
    operator: Operator,
    system: System,
    keeper: Keeper,
    nobody_works: Callable[[dict[str, Any] | None], None],
    waits: list[float],
) -> None:
    """S5: until somebody knows, everything destructive waits, and the status shows why."""
    before = keeper.open("a").last_activity_at

    result = operator.types("db", "restored", says="n\n")

    assert result.exit_code == 1
    assert waits == []
    assert keeper.get("a").last_activity_at == before
    (hold,) = operator.reads("breaker", "status")
    assert (hold["reason"], hold["detail"]) == ("restore", {"why": "restore from backup"})
    assert "everything destructive is held" in result.output


def test_a_restore_says_when_nobody_can_tell_whether_workers_run(
    operator: Operator, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is away: one line, what to do, and everything held until then."""

    def away(**_: object) -> None:
        raise ConnectionRefusedError("no broker")

    monkeypatch.setattr(app.control, "inspect", away)

    result = operator.types("db", "restored", "--yes")

    assert result.exit_code == 1
    assert "--workers-stopped" in result.output
    assert "Traceback" not in result.output
    assert system.store.guard.is_held()


def test_a_restore_says_what_is_still_held(
    operator: Operator,
    system: System,
    nobody_works: Callable[[dict[str, Any] | None], None],
    waits: list[float],
) -> None:
    """What somebody else asked for goes on."""
    system.store.guard.hold(HoldReason.OPERATOR, {"why": "an incident"}, actor="ada")

    result = operator.types("db", "restored", "--yes")

    assert result.exit_code == 0
    assert "still held: operator" in result.output
    assert system.store.guard.is_held()


def test_during_a_restore_nothing_is_destroyed(
    operator: Operator,
    system: System,
    keeper: Keeper,
    nobody_works: Callable[[dict[str, Any] | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S5: also by a worker that somebody forgot, while the claims of before run out."""
    keeper.open("a")
    keeper.end("a")
    waiting, go_on = threading.Event(), threading.Event()

    def wait(seconds: float, show_progress: object) -> None:
        waiting.set()
        assert go_on.wait(30)

    monkeypatch.setattr(safety, "_wait", wait)
    with ThreadPoolExecutor(1) as thread:
        restoring = thread.submit(operator.types, "db", "restored", "--yes")
        assert waiting.wait(30)
        claimed = system.store.teardowns.claim("a", 1, "forgotten")
        go_on.set()
        result = restoring.result(60)

    assert claimed is None
    assert result.exit_code == 0
    assert system.store.teardowns.claim("a", 1, "w") is not None


def test_help_says_what_each_command_is_for(operator: Operator) -> None:
    """Somebody who knows nothing finds out from --help."""
    for words in (("breaker",), ("reconcile",), ("orphans",), ("db", "restored")):
        result = operator.types(*words, "--help")

        assert result.exit_code == 0
        assert "Usage:" in result.output
        assert len(result.output.splitlines()) > 4


def test_a_system_without_a_witness_of_its_own_is_not_held(
    operator: Operator, system: System, tmp_path: Path
) -> None:
    """The first command on a new database makes it known; the next one finds it known."""
    assert not system.store.guard.is_held()
    assert operator.types("sweep").exit_code == 0
    assert operator.reads("breaker", "status") == []
