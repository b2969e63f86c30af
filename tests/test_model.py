"""The words of the domain: moves, ids, names and labels."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass
from datetime import UTC, datetime, timedelta, timezone
from secrets import randbits
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import model
from core.errors import InvalidArgument
from core.model import (
    MOVES,
    SandboxState,
    check_reason,
    check_session_id,
    check_tenant,
    new_key,
    sandbox_labels,
    sandbox_name,
)
from core.providers.base import LABEL_PREFIX
from tests.factories import claim, intent

LABEL_VALUE = re.compile(r"[a-z0-9-]{1,63}")
ID_ALPHABET = string.ascii_letters + string.digits + "._:-"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

keys = st.text(model.KEY_ALPHABET, min_size=model.KEY_LENGTH, max_size=model.KEY_LENGTH)
installations = st.text(string.ascii_lowercase + string.digits, min_size=8, max_size=8)
session_ids = st.text(ID_ALPHABET, min_size=1, max_size=128)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001

checks = pytest.mark.parametrize(
    ("check", "longest"),
    [(check_session_id, 128), (check_tenant, 64)],
    ids=["session id", "tenant"],
)


# Moves


def test_every_state_says_where_it_may_go() -> None:
    """A state that MOVES forgot would be one that no table and no test knows."""
    assert set(MOVES) == set(SandboxState)


def test_no_move_goes_back() -> None:
    """The states are listed in the order of a sandbox's life, and every move goes on."""
    order = list(SandboxState)

    for state, following in MOVES.items():
        assert all(order.index(state) < order.index(other) for other in following)


def test_only_gone_is_final() -> None:
    """From anywhere else there is a way on: nothing is stuck by design."""
    assert [state for state, following in MOVES.items() if not following] == [SandboxState.GONE]


def test_every_way_to_gone_leads_through_closing() -> None:
    """No sandbox is called gone without a teardown that confirmed it."""
    before_gone = [state for state, following in MOVES.items() if SandboxState.GONE in following]

    assert before_gone == [SandboxState.CLOSING]


def test_every_state_is_reached_from_creating() -> None:
    """A row begins as creating, and no state is only on paper."""
    reached, frontier = {SandboxState.CREATING}, [SandboxState.CREATING]

    while frontier:
        news = MOVES[frontier.pop()] - reached
        reached |= news
        frontier.extend(news)

    assert reached == set(SandboxState)


# Ids


@checks
@pytest.mark.parametrize(
    "good", ["a", "conv-42", "A.b_c:d-e", "018f6b5e-7f3a-7000-8000-000000000000"]
)
def test_a_good_id_is_returned_as_it_is(check: Any, longest: int, good: str) -> None:
    """Nothing is lowered, trimmed or escaped: two spellings are two ids."""
    assert check(good) == good


@checks
def test_an_id_may_be_as_long_as_the_column(check: Any, longest: int) -> None:
    """The limit itself is inside, one more is not."""
    assert check("x" * longest) == "x" * longest

    with pytest.raises(InvalidArgument):
        check("x" * (longest + 1))


@checks
@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        "a b",
        "a/b",
        "a\n",
        "\na",
        "a\x00",
        "é",
        "٣",
        "😀",
        "a%",
        "'; --",
        None,
        7,
        1.5,
        b"a",
    ],
    ids=repr,
)
def test_a_bad_id_is_refused(check: Any, longest: int, bad: object) -> None:
    """The message shows what was given and says what is right."""
    with pytest.raises(InvalidArgument) as refused:
        check(bad)

    assert repr(bad) in str(refused.value)
    assert f"1 to {longest} characters of A-Z a-z 0-9 . _ : -" in str(refused.value)


@checks
def test_a_huge_id_is_not_repeated_in_the_message(check: Any, longest: int) -> None:
    """A megabyte of nonsense does not become a megabyte of log."""
    with pytest.raises(InvalidArgument) as refused:
        check("x" * 1_000_000)

    assert len(str(refused.value)) < 250


@given(text=st.text(max_size=140))
def test_an_id_is_accepted_exactly_when_it_fits(text: str) -> None:
    """The rule is the alphabet and the length, and nothing else."""
    fits = 1 <= len(text) <= 128 and set(text) <= set(ID_ALPHABET)

    try:
        accepted = check_session_id(text) == text
    except InvalidArgument:
        accepted = False

    assert accepted == fits


@pytest.mark.parametrize("good", ["x", "user left", "нет денег", "💸", "x" * 200])
def test_a_reason_may_be_in_any_words(good: str) -> None:
    """A person writes it, in a language of theirs."""
    assert check_reason(good) == good


@pytest.mark.parametrize("bad", ["", "x" * 201, "two\nlines", "\x1b[31m", "\x00", "\x7f", None, 7])
def test_a_reason_that_would_spoil_a_log_is_refused(bad: object) -> None:
    """It is printed on terminals and kept in a column: no control characters, 200 at most."""
    with pytest.raises(InvalidArgument, match="1 to 200 printable characters"):
        check_reason(bad)


# Names and labels


def test_keys_are_random_and_of_one_shape() -> None:
    """A key is never made twice, and has 130 bits from 26 characters of base 32."""
    made = [new_key(randbits) for _ in range(1000)]

    assert len(set(made)) == len(made)
    assert len(set(model.KEY_ALPHABET)) == 32
    assert all(re.fullmatch(rf"[a-z2-7]{{{model.KEY_LENGTH}}}", key) for key in made)
    assert set("".join(made)) == set(model.KEY_ALPHABET)


@given(installation=installations, key=keys)
def test_a_name_fits_every_provider(installation: str, key: str) -> None:
    """Lower-case letters, digits and hyphens, a letter first, at most 49 characters."""
    name = sandbox_name(installation, key)

    assert re.fullmatch(r"[a-z][a-z0-9-]{0,48}", name)
    assert name == f"sk-{installation}-{key}"


@given(
    installation=installations,
    key=keys,
    session_id=session_ids,
    generation=st.integers(1, 2**31 - 1),
    created_at=moments,
)
def test_labels_fit_every_provider(
    installation: str, key: str, session_id: str, generation: int, created_at: datetime
) -> None:
    """Values have at most 63 of a-z, 0-9 and hyphen, whatever the caller's id looks like."""
    labels = sandbox_labels(installation, key, session_id, generation, created_at)

    assert all(name.startswith(LABEL_PREFIX) for name in labels)
    assert all(LABEL_VALUE.fullmatch(value) for value in labels.values())


def test_the_labels_are_those_that_other_programs_read() -> None:
    """Their names and meanings are an interface: a change orphans what is running."""
    labels = sandbox_labels("testtest", "k" * 26, "conv-42", 3, NOON)

    assert labels == {
        "sandkeeper-installation": "testtest",
        "sandkeeper-key": "k" * 26,
        "sandkeeper-session": "49933ea253b58d70fdf1ca26f4b1bca85257b5eb",
        "sandkeeper-generation": "3",
        "sandkeeper-created-at": str(int(NOON.timestamp())),
        "sandkeeper-schema": "1",
    }


def test_labels_are_the_same_in_every_time_zone() -> None:
    """A retried create sends the same bytes, also from a host that thinks in local time."""
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))

    here = sandbox_labels("testtest", "k" * 26, "conv-42", 1, NOON)
    there = sandbox_labels("testtest", "k" * 26, "conv-42", 1, elsewhere)

    assert here == there


@given(first=session_ids, second=session_ids)
def test_two_sessions_never_share_a_label(first: str, second: str) -> None:
    """The digest keeps ids apart that differ in case or length only."""
    labels = [sandbox_labels("testtest", "k" * 26, each, 1, NOON) for each in (first, second)]

    assert (labels[0] == labels[1]) == (first == second)


# Values


@pytest.mark.parametrize("kind", [model.Sandbox, model.Session, model.Claim, model.Intent])
def test_values_are_made_by_name(kind: type) -> None:
    """Twenty fields in a row cannot be told apart by position."""
    assert is_dataclass(kind)
    assert all(field.kw_only for field in fields(kind))


@pytest.mark.parametrize("make", [claim, intent])
def test_values_are_frozen(make: Callable[[], Any]) -> None:
    """What was read is what it was: only a move in the store changes anything."""
    value = make()

    with pytest.raises(FrozenInstanceError):
        value.key = "another"
