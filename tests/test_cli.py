"""The command line: what operators see, and what they see when they are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from core.lifecycle import Keeper
from core.providers.base import Capability
from core.wiring import System
from tasks.cli import main
from tests.fakes import FakeCloud


class Operator:
    """Somebody at a terminal, with an installation of their own."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ

    def types(self, *words: str) -> Result:
        return CliRunner(env=self.environ).invoke(main, words)


@pytest.fixture
def operator(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator of a migrated database, with a sandbox provider of its own."""
    environ = {
        "SANDKEEPER_DATABASE_URL": database_url,
        "SANDKEEPER_BROKER_URL": "memory://",
        "SANDKEEPER_LOCAL_ROOT": str(tmp_path / "sandboxes"),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Operator(environ)


@pytest.fixture
def keeper(operator: Operator, provider: FakeCloud, store: object) -> Iterator[Keeper]:
    """An API server's keeper on the operator's database, with the clock of the database."""
    system = System.from_env(operator.environ)
    provider.capabilities -= {Capability.TTL}
    keeper = Keeper(system.store, provider)
    yield keeper
    keeper.close()
    system.close()


def test_sessions_are_listed_by_id(operator: Operator, keeper: Keeper) -> None:
    """`sessions ls` shows every session with its sandbox's state, as a table and as JSON."""
    keeper.open("b-2")
    keeper.open("a-1")

    table = operator.types("sessions", "ls")
    lines = json.loads(operator.types("sessions", "ls", "--json").stdout)

    assert table.exit_code == 0
    assert table.stdout.index("a-1") < table.stdout.index("b-2")
    assert [(line["id"], line["sandbox"]) for line in lines] == [
        ("a-1", "running"),
        ("b-2", "running"),
    ]


def test_a_list_goes_on_where_it_stopped(operator: Operator, keeper: Keeper) -> None:
    """`--limit` and `--after` page through any number of sessions; `--status` filters them."""
    for number in range(3):
        keeper.open(f"s-{number}")
    keeper.end("s-2")

    rest = operator.types("sessions", "ls", "--after", "s-0", "--limit", "1", "--json")
    ended = operator.types("sessions", "ls", "--status", "ended", "--json")

    assert [line["id"] for line in json.loads(rest.stdout)] == ["s-1"]
    assert [line["id"] for line in json.loads(ended.stdout)] == ["s-2"]


def test_one_session_is_shown_with_its_history(operator: Operator, keeper: Keeper) -> None:
    """`sessions show` has the row and the ledger."""
    keeper.open("conv", metadata={"user": "ada"})

    text = operator.types("sessions", "show", "conv")
    found = json.loads(operator.types("sessions", "show", "conv", "--json").stdout)

    assert "sandbox_running" in text.stdout
    assert found["metadata"] == {"user": "ada"}
    assert [line["kind"] for line in found["history"]] == ["session_opened", "sandbox_running"]


def test_an_operator_ends_and_extends(operator: Operator, keeper: Keeper) -> None:
    """Both acts are in the ledger with who did them."""
    keeper.open("conv")  # on a cloud without a TTL: the operator's process could not extend it

    extended = operator.types("sessions", "extend", "conv", "3600")
    ended = operator.types("sessions", "end", "conv", "--reason", "too dear")

    history = keeper.store.history.of_session("conv")
    assert (extended.exit_code, ended.exit_code) == (0, 0)
    assert keeper.get("conv").end_reason == "too dear"
    assert [line.actor.split()[0] for line in history[-2:]] == ["operator", "operator"]


def test_a_session_is_explained(operator: Operator, keeper: Keeper) -> None:
    """In sentences under headings, and as JSON with the raw values beside them."""
    keeper.open("conv", idle_ttl=600)

    text = operator.types("sessions", "explain", "conv")
    found = json.loads(operator.types("sessions", "explain", "conv", "--json").stdout)

    assert text.exit_code == 0
    assert "conv, generation 1: active" in text.stdout
    assert "idle_ttl is 10 min, set by its own open()." in text.stdout
    assert "session_opened" in text.stdout
    assert (found["state"], found["limits"][0]["layer"]) == ("active", "open")
    assert [step["kind"] for step in found["next"]] == ["notice", "end"]
    assert found["next"][0]["at"].endswith("+00:00")


def test_an_operator_pins_and_unpins(operator: Operator, keeper: Keeper) -> None:
    """With a reason, which is not left out; the owner is who typed it, or who is named."""
    keeper.open("conv")  # on a cloud without a TTL: the operator's process could not extend it

    pinned = operator.types("sessions", "pin", "conv", "3600", "--reason", "debugging")
    of_operator = keeper.get("conv")
    named = ("--reason", "demo", "--owner", "bob")
    operator.types("sessions", "pin", "conv", "60", *named)
    of_bob = keeper.get("conv")
    lifted = operator.types("sessions", "unpin", "conv")

    assert (pinned.exit_code, lifted.exit_code) == (0, 0)
    assert (of_operator.pinned_by or "").startswith("operator ")
    assert (of_bob.pinned_by, of_bob.pin_reason) == ("bob", "demo")
    assert of_bob.pinned_until == of_operator.pinned_until
    assert keeper.get("conv").pinned_until is None


def test_an_operator_sets_policies_and_unsets_them(operator: Operator, keeper: Keeper) -> None:
    """By layer and name; a slip of the pen is said, and changes nothing."""
    made = operator.types("policies", "set", "tenant:acme", "idle_ttl=600", "max_live=2")
    wrong = operator.types("policies", "set", "tenant:acme", "idle_tll=600")
    none = operator.types("policies", "set", "tenant:acme", "idle_ttl")
    twice = operator.types("policies", "set", "tenant:acme", "idle_ttl=60", "idle_ttl=70")
    shown = operator.types("policies", "show", "tenant:acme").stdout
    (listed,) = json.loads(operator.types("policies", "ls", "--json").stdout)
    unset = operator.types("policies", "unset", "tenant:acme", "max_live")

    assert (made.exit_code, unset.exit_code) == (0, 0)
    assert (listed["scope"], listed["idle_ttl"], listed["followed"]) == ("tenant:acme", 600, False)
    assert "max_live" in shown
    for refused, said in (
        (wrong, "did you mean idle_ttl"),
        (none, "FIELD=VALUE"),
        (twice, "twice"),
    ):
        assert (refused.exit_code, said in refused.output) == (1, True)
    assert keeper.store.policies.all()[0].max_live is None


def test_an_operator_adds_windows_and_removes_them(operator: Operator, keeper: Keeper) -> None:
    """With a zone and a reason."""
    span = ("2126-12-24T18:00:00+01:00", "2126-12-25T06:00:00+01:00")
    added = operator.types("windows", "add", "night", *span, "--reason", "upgrade")
    wrong = operator.types("windows", "add", "x", "tonight", span[1], "--reason", "upgrade")
    (listed,) = json.loads(operator.types("windows", "ls", "--json").stdout)
    removed = operator.types("windows", "rm", "night")

    assert (added.exit_code, removed.exit_code) == (0, 0)
    assert (listed["name"], listed["from_at"]) == ("night", "2126-12-24T17:00:00+00:00")
    assert (wrong.exit_code, "from 'tonight': write it as in" in wrong.output) == (1, True)
    assert keeper.store.windows.all() == []


def test_a_dry_run_says_what_a_sweep_would_do(operator: Operator, keeper: Keeper) -> None:
    """Counts, events and teardowns; nothing is published, and the row stays due."""
    keeper.open("conv")
    keeper.end("conv")
    due = keeper.get("conv").sandbox.due_at

    text = operator.types("sweep", "--dry-run")
    found = json.loads(operator.types("sweep", "--dry-run", "--json").stdout)

    assert text.exit_code == 0, text.output
    assert "nothing was changed" in text.stdout
    assert found["report"]["published"] == 1
    assert found["rung"] == [["conv", 1]]
    assert keeper.get("conv").sandbox.due_at == due
    assert keeper.store.history.swept_at() is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("sessions", "explain", "nobody"), 1, "no session 'nobody': open it first"),
        (("sessions", "pin", "conv", "60"), 2, "Missing option '--reason'"),
        (("sessions", "pin", "conv", "1e7", "--reason", "x"), 1, "LONGEST_PIN"),
        (("sessions", "unpin", "nobody"), 1, "no session 'nobody': open it first"),
        (("sessions", "show", "nobody"), 1, "no session 'nobody': open it first"),
        (("sessions", "show", "not an id"), 1, "use 1 to 128 characters"),
        (("sessions", "extend", "conv", "--", "-5"), 1, "more than 0"),
        (("sessions", "extend", "conv", "soon"), 2, "not a valid float"),
        (("sessions", "ls", "--limit", "0"), 2, "0 is not in the range"),
        (("quarantine", "retry"), 2, "give a session id, or --all"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_a_mistake_is_one_line(
    operator: Operator, words: tuple[str, ...], code: int, said: str
) -> None:
    """Refused is 1, usage is 2; the line says what is wrong, and there is no traceback."""
    result = operator.types(*words)

    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_database_that_was_never_migrated_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that needs the tables names the command that makes them; then it works."""
    monkeypatch.setenv("SANDKEEPER_LOCAL_ROOT", str(tmp_path / "sandboxes"))
    operator = Operator({"SANDKEEPER_DATABASE_URL": f"sqlite:///{tmp_path}/new.db"})

    before = operator.types("sessions", "ls")
    check = operator.types("db", "check")
    upgrade = operator.types("db", "upgrade")
    after = operator.types("sessions", "ls", "--json")

    assert (before.exit_code, check.exit_code) == (1, 1)
    assert "run `sandkeeper db upgrade`" in before.output
    assert upgrade.exit_code == 0
    assert json.loads(after.stdout) == []


def test_a_sweep_by_hand_says_what_it_did(operator: Operator, keeper: Keeper) -> None:
    """`sweep` runs the sweep in this process and prints its counts."""
    keeper.open("conv")

    result = operator.types("sweep", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["noticed"] == 0


def test_a_quarantined_teardown_is_listed_and_tried_again(
    operator: Operator, keeper: Keeper
) -> None:
    """`quarantine ls` shows the provider's words; `retry` ends the pause."""
    session = keeper.open("conv")
    keeper.end("conv")
    claim = keeper.store.teardowns.claim("conv", session.generation, "w")
    assert claim is not None
    keeper.store.teardowns.release(claim, "AuthFailed: 401", 900, actor="w", quarantine=True)

    listed = json.loads(operator.types("quarantine", "ls", "--json").stdout)
    retried = operator.types("quarantine", "retry", "conv")

    assert [(row["session_id"], row["last_error"]) for row in listed] == [
        ("conv", "AuthFailed: 401")
    ]
    assert "1 to be tried again" in retried.output
    assert keeper.store.publications.failing(10) == (1, [("conv", session.generation)])


def test_help_names_every_command(operator: Operator) -> None:
    """Somebody who knows nothing finds out from --help."""
    result = operator.types("--help")

    assert all(name in result.stdout for name in main.commands)


def test_what_others_wrote_is_shown_as_it_is(operator: Operator, keeper: Keeper) -> None:
    """A reason with brackets is no markup: it neither vanishes nor breaks the page."""
    keeper.open("victim")
    keeper.end("victim", reason="user clicked [/stop] [red]now")

    listed = operator.types("sessions", "ls")
    shown = operator.types("sessions", "show", "victim")

    assert (listed.exit_code, shown.exit_code) == (0, 0)
    assert "[/stop] [red]now" in listed.output
    assert "[/stop] [red]now" in shown.output


@pytest.mark.parametrize(
    "words", [("sessions", "ls", "--after", "\udcff"), ("quarantine", "retry", "\udcff")]
)
def test_bytes_that_are_no_text_are_refused(operator: Operator, words: tuple[str, ...]) -> None:
    """One line that says what an id looks like."""
    result = operator.types(*words)

    assert result.exit_code == 1
    assert "session id" in result.output


def test_an_operator_of_any_name_can_hold(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever $USER is, the hold is set and can be read."""
    operator.environ["USER"] = "\udcff" * 300

    result = operator.types("breaker", "hold", "an incident")

    assert result.exit_code == 0, result.output
    assert "an incident" in operator.types("breaker", "status").output


def test_a_sweep_says_when_the_broker_is_away(
    operator: Operator, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report with nothing published must not look as if there had been nothing to do."""

    def away(*_: object) -> None:
        raise ConnectionRefusedError("no broker")

    monkeypatch.setattr("tasks.doorbell.FanOut.__call__", away)
    keeper.open("conv")
    keeper.end("conv")

    result = operator.types("sweep")

    assert "no broker" in result.stderr


def completed(operator: Operator, *words: str) -> list[str]:
    """What Tab offers behind these words, of which the last is not whole."""
    shell = {"COMP_WORDS": " ".join(["sandkeeper", *words]), "COMP_CWORD": str(len(words))}
    environ = {**operator.environ, **shell, "_SANDKEEPER_COMPLETE": "bash_complete"}
    result = CliRunner(env=environ).invoke(main, prog_name="sandkeeper")
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_session_ids_are_completed(operator: Operator, keeper: Keeper) -> None:
    """What was typed is their beginning; the others are not offered."""
    for name in ("conv-1", "conv-2", "other"):
        keeper.open(name)

    assert completed(operator, "sessions", "end", "conv") == ["conv-1", "conv-2"]
    assert completed(operator, "sessions", "end", "nobody") == []
    assert completed(operator, "sessions", "exp") == ["explain"]


def test_completion_without_a_database_offers_nothing(operator: Operator, tmp_path: Path) -> None:
    """A keystroke is no place for a traceback, and makes no database."""
    missing = tmp_path / "missing.db"
    operator.environ["SANDKEEPER_DATABASE_URL"] = f"sqlite:///{missing}"

    assert completed(operator, "sessions", "end", "conv") == []
    assert not missing.exists()


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_the_script_of_a_shell_is_printed(operator: Operator, shell: str) -> None:
    """It is what the shell evaluates, for the command as it was called."""
    printed = operator.types("completion", shell)

    assert printed.exit_code == 0
    assert "_SANDKEEPER_COMPLETE" in printed.stdout


def test_savings_are_told_in_hours_and_in_money(
    operator: Operator, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table by tenant and provider, one of TTLs, a sentence each; without a price in hours."""
    keeper.open("conv", tenant="acme")

    hours = operator.types("savings", "--ttl", "900", "--ttl", "60")
    operator.environ["SANDKEEPER_PRICES"] = '{"currency": "EUR", "default": 0.5}'
    money = operator.types("savings", "--since", "1d", "--ttl", "900")
    found = json.loads(operator.types("savings", "--ttl", "900", "--json").stdout)

    assert (hours.exit_code, hours.stderr) == (0, "")
    assert "A TTL of 15 min would have saved 0.0 h and reset 0 sessions" in hours.stdout
    assert "A TTL of 1 min would have saved 0.0 h" in hours.stdout
    assert "EUR" not in hours.stdout
    assert "would have saved 0.00 EUR (0.0 h)" in money.stdout
    assert (found["lines"][0]["tenant"], found["currency"]) == ("acme", "EUR")
    assert found["total"]["what_if"][0]["ttl"] == 900
    assert "no sandbox was there" in operator.types("savings", "--tenant", "nobody").stdout


def test_savings_of_all_are_read_a_stretch_at_a_time(
    operator: Operator, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, each is counted once."""
    for number in range(5):
        keeper.open(f"conv-{number}")
    monkeypatch.setattr("tasks.savings.AT_A_TIME", 2)

    found = json.loads(operator.types("savings", "--json").stdout)

    assert found["total"]["sandboxes"] == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "a week"), "since 'a week': write it as 7d"),
        (("--ttl", "0"), "ttl 0: give seconds"),
        (("--tenant", "a b"), "tenant 'a b'"),
    ],
)
def test_nonsense_for_savings_is_refused(
    operator: Operator, words: tuple[str, ...], said: str
) -> None:
    """Field, value and fix, in one line."""
    refused = operator.types("savings", *words)

    assert refused.exit_code == 1
    assert said in refused.stderr
