"""The contract's checks see what a provider does not keep, and operators can run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from core.errors import SettingsError
from core.providers.contract import CHECKS, Check
from core.providers.trial import Subject, Trial
from core.providers.verdict import verdict, verdicts
from tasks.cli import main

BY_NAME = {check.name: check for check in CHECKS}
HONEST = "examples.own_provider:Folders"

BROKEN = [
    ("ScopeOfHandle", "scope_is_the_backend", "its scopes are"),
    ("WithoutId", "create_makes_it", "create gives no id"),
    ("ForgetsLabels", "create_makes_it", "sandkeeper-schema"),
    ("LocalTime", "create_makes_it", "is not in UTC"),
    ("MakesAnother", "create_again_adopts", "the second"),
    ("LooksAndMakes", "many_creates_of_one_name_make_one", "the creates returned"),
    ("RefusesAfterGivingUp", "a_create_that_was_given_up_is_adopted", "can never be made"),
    ("TakesEverything", "create_leaves_a_foreign_one_alone", "ForeignConflict"),
    ("MakesAnother", "create_leaves_a_foreign_one_alone", "ForeignConflict"),
    ("IgnoresOptions", "options_that_it_does_not_know_are_refused", "no-such-option"),
    ("FindsAlways", "an_id_alone_is_not_enough", "finds"),
    ("IgnoresId", "an_id_means_that_sandbox_and_no_other", "does not find"),
    ("IgnoresName", "an_id_alone_is_not_enough", "does not find"),
    ("ListsHalf", "list_is_complete_and_filtered", "the pages together"),
    ("ListsAll", "list_is_complete_and_filtered", "the pages together"),
    ("ListsTheDead", "destroy_is_confirmed", "the pages together"),
    ("DestroysNothing", "destroy_is_confirmed", "is not gone"),
    ("NotFoundIsAnError", "destroy_of_what_is_gone_succeeds", "Unavailable"),
    ("OneAtATime", "destroy_from_everywhere_at_once", "one at a time"),
    ("ClaimsTtl", "a_ttl_ends_it", "outlives"),
    ("ClaimsTtl", "extend_moves_the_expiry", "get says None"),
    ("ClaimsTtl", "extend_of_what_is_gone_fails", "returned"),
    ("ExtendsNothing", "extend_is_refused_where_no_ttl_is_claimed", "returned None"),
    ("ListsNothing", "list_is_refused_where_it_is_not_claimed", "returned []"),
    ("Slow", "a_deadline_bounds_every_call", "it returned after"),
    ("GivesUpForGood", "a_deadline_bounds_every_call", "AuthFailed"),
    ("Raises", "get_finds_nothing_where_nothing_is", "ZeroDivisionError: by zero"),
]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A root of its own."""
    return {"FOLDERS_ROOT": str(tmp_path / "folders")}


@pytest.mark.parametrize(("kind", "name", "words"), BROKEN)
def test_a_broken_promise_is_seen(
    environ: dict[str, str], kind: str, name: str, words: str
) -> None:
    """By the check that is about it, in words that say what was seen."""
    provider = f"tests.providers.broken:{kind}"
    subject = Subject(provider=provider, environ=environ, short=0.3, patience=1.0)

    found = verdict(BY_NAME[name], subject)

    assert found.kept is False
    assert words in found.said


def test_every_check_is_seen_to_fail() -> None:
    """But one: what is no provider cannot even be loaded."""
    seen = {name for _, name, _ in BROKEN}

    assert {check.name for check in CHECKS} - seen == {"is_a_provider"}


def test_what_cannot_be_made_to_go_is_told(environ: dict[str, str]) -> None:
    """A check that is kept, and leaves something behind, is not."""
    subject = Subject(
        provider="tests.providers.broken:DestroysNothing", environ=environ, patience=0.3
    )

    found = verdict(BY_NAME["create_makes_it"], subject)

    assert found.kept is False
    assert "cannot be destroyed" in found.said


def test_a_check_leaves_nothing(environ: dict[str, str]) -> None:
    """Whatever it found."""
    for name in ("create_makes_it", "list_is_complete_and_filtered"):
        assert verdict(BY_NAME[name], Subject(provider=HONEST, environ=environ)).kept is True

    assert list(Path(environ["FOLDERS_ROOT"]).glob("[!.]*")) == []


def test_a_provider_that_cannot_be_made_is_refused_at_once() -> None:
    """Before any check."""
    with pytest.raises(SettingsError, match="FOLDERS_ROOT"):
        next(verdicts(Subject(provider=HONEST)))


def test_what_was_made_goes_also_when_somebody_loses_patience(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a check: nobody else knows the name."""

    def impatient(trial: Trial) -> None:
        trial.create(trial.name())
        raise KeyboardInterrupt

    check = Check("impatient", "", impatient)
    with pytest.raises(KeyboardInterrupt):
        verdict(check, Subject(provider=HONEST, environ=environ))

    assert list(Path(environ["FOLDERS_ROOT"]).glob("[!.]*")) == []


# By hand


def types(environ: dict[str, str], *words: str) -> Result:
    """What an operator gets to see."""
    return CliRunner(env=environ).invoke(main, ["providers", "check", *words])


def test_an_operator_sees_each_promise_and_the_calls(environ: dict[str, str]) -> None:
    """In a table; exit code 0."""
    result = types(environ, HONEST)

    assert result.exit_code == 0, result.output
    for check in CHECKS:
        assert check.name.replace("_", " ") in result.output
    assert "NOT KEPT" not in result.output
    assert "not claimed" in result.output
    assert "median ms" in result.output


def test_an_operator_sees_what_is_not_kept(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, and exit code 1."""
    monkeypatch.setattr("core.providers.verdict.CHECKS", CHECKS[:3])
    result = types(environ, "tests.providers.broken:ScopeOfHandle", "--json")

    assert result.exit_code == 1
    assert "ScopeOfHandle does not keep 1 of 3 promises" in result.output
    found = json.loads(result.stdout)
    (broken,) = [line for line in found["checks"] if line["kept"] is False]
    assert broken["check"] == "scope_is_the_backend"
    assert "its scopes are" in broken["said"]
    assert {call["call"] for call in found["calls"]} == {"create", "get"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such"], "SANDKEEPER_PROVIDER=no-such is not known"),
        ([HONEST, "--spec", "{"], "is no JSON"),
        ([HONEST, "--spec", '{"images": 1}'], "'images' is unknown"),
        ([HONEST, "--short", "0"], "--short"),
    ],
    ids=["name", "no-json", "no-spec", "short"],
)
def test_a_mistake_is_told(environ: dict[str, str], words: list[str], said: str) -> None:
    """In one line, with nothing made."""
    result = types(environ, *words)

    assert result.exit_code in {1, 2}
    assert said in result.output
    assert "Traceback" not in result.output
