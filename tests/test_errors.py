"""The one tree of errors: as it is drawn, each with a message, each retried as it says."""

from __future__ import annotations

import pickle
import re

import pytest

from core import errors
from core.errors import ProviderError, RateLimited, SandkeeperError

LINE = re.compile(r" {4}(?P<indent>(?:  )*)(?P<name>[A-Z]\w+) *(?P<says>.*)")

EXAMPLES: list[SandkeeperError] = [
    errors.SandkeeperError(),
    errors.SettingsError(),
    errors.InvalidArgument(),
    errors.SessionNotFound("conv-1"),
    errors.SessionNotReady("conv-1"),
    errors.SessionEnded("conv-1", reason="idle"),
    errors.TurnExpired("conv-1", "turn-1", reason="max_turn"),
    errors.TenantFull(),
    errors.StoreError(),
    errors.StoreUnavailable(),
    errors.RowLocked(),
    errors.SchemaOutdated(),
    errors.ProviderError(),
    errors.RateLimited(retry_after=2.5),
    errors.QuotaExceeded(),
    errors.Unavailable(),
    errors.OutcomeUnknown(),
    errors.Busy(),
    errors.AuthFailed(),
    errors.InvalidSpec(),
    errors.ForeignConflict(),
    errors.Unsupported(),
]

each_example = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def drawn() -> list[tuple[int, str, str]]:
    """The tree in the module's docstring: depth, name, what is said of it."""
    lines = (errors.__doc__ or "").splitlines()
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    return [(len(match["indent"]) // 2, match["name"], match["says"]) for match in found]


def real(error: type[SandkeeperError], depth: int = 0) -> list[tuple[int, str]]:
    """
    The tree of the classes, in the order in which they are defined. A provider may refine one for
    itself: whoever catches its errors sees the class above.
    """
    ours = [child for child in error.__subclasses__() if child.__module__ == errors.__name__]
    below = [line for child in ours for line in real(child, depth + 1)]
    return [(depth, error.__name__), *below]


def test_the_drawing_is_the_tree() -> None:
    """Whoever reads the top of the file knows every class and what it is under."""
    assert [(depth, name) for depth, name, _ in drawn()] == real(SandkeeperError)


def test_everything_public_is_in_the_tree() -> None:
    """No error stands beside the tree, where `except SandkeeperError` would miss it."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}

    assert classes == {name for _, name in real(SandkeeperError)}


def test_there_is_an_example_of_each() -> None:
    """The tests below leave out no class."""
    assert [type(error).__name__ for error in EXAMPLES] == [
        name for _, name in real(SandkeeperError)
    ]


@each_example
def test_every_error_says_something(error: SandkeeperError) -> None:
    """An error without a message of its own says what its class is; none is empty."""
    assert str(error)
    assert str(error) == str(error).strip()


@each_example
def test_every_error_of_a_session_names_it(error: SandkeeperError) -> None:
    """The message has the id, and what to do about it after a colon."""
    session_id = getattr(error, "session_id", None)

    if session_id is not None:
        assert repr(session_id) in str(error)
        assert re.search(r": \w+", str(error))


def test_a_message_of_ones_own_is_kept() -> None:
    """What the raiser knew replaces the general sentence."""
    assert str(errors.Unavailable("503 from the control plane")) == "503 from the control plane"


@pytest.mark.parametrize(("depth", "name", "says"), [line for line in drawn() if line[0] == 2])
def test_retried_or_told_as_the_drawing_says(depth: int, name: str, says: str) -> None:
    """A provider's error is retried, or an operator is told: never neither, never both."""
    error = getattr(errors, name)

    if issubclass(error, ProviderError):
        assert error.retryable == ("(retried" in says)
        assert error.retryable != ("(an operator is told)" in says)


def test_an_unknown_provider_error_is_retried() -> None:
    """What nobody foresaw is tried again: a sandbox given up is a sandbox that leaks."""
    assert ProviderError.retryable


def test_an_invalid_argument_is_a_value_error() -> None:
    """Callers who know nothing of us catch it as they catch int('x')."""
    assert issubclass(errors.InvalidArgument, ValueError)


@pytest.mark.parametrize("seconds", [None, 0.0, 30.0])
def test_a_rate_limit_keeps_what_the_provider_asked_for(seconds: float | None) -> None:
    """None is "it did not say", which is not "at once"."""
    assert RateLimited("429", retry_after=seconds).retry_after == seconds


@each_example
def test_an_error_crosses_processes_whole(error: SandkeeperError) -> None:
    """A pool of processes hands it on by pickle: same class, same message, same facts."""
    other = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
