"""What a client concludes: from answers, from silence, and from its own clock."""

from __future__ import annotations

from datetime import timedelta

import httpx2
import pytest

from core.errors import (
    InvalidArgument,
    SandkeeperError,
    SessionEnded,
    SettingsError,
    StoreUnavailable,
    TurnExpired,
)
from core.web.answers import TurnAnswer
from core.web.client import AsyncClient, Client
from core.web.holding import Holding, error_of
from core.web.problems import KINDS, PREFIX
from tests.fakes import FrozenClock

ENDED = SessionEnded("conv", reason="idle")
AWAY = StoreUnavailable("no answer")


@pytest.fixture
def holding(clock: FrozenClock) -> Holding:
    """A turn of a minute, with a heartbeat every eight seconds."""
    answer = TurnAnswer.model_construct(
        turn_id="t",
        session_id="conv",
        heartbeat_every=8.0,
        started_at=clock.now - timedelta(days=400),  # the server's clock is its own
        hard_until=clock.now - timedelta(days=400) + timedelta(seconds=60),
    )
    return Holding(answer, clock.monotonic(), clock.monotonic)


def test_silence_refuses_nothing(holding: Holding) -> None:
    """A server that is away is asked again sooner, and the turn goes on."""
    assert holding.heard(None) == 8.0
    assert holding.heard(AWAY) == 2.0
    assert holding.heard(SettingsError("the API token was revoked")) == 2.0
    holding.check()


def test_a_refusal_is_final(holding: Holding) -> None:
    """No more heartbeats; whoever waits is told, with the reason."""
    pause = holding.heard(ENDED)

    assert pause is None
    assert holding.lost.is_set()
    with pytest.raises(SessionEnded, match="idle"):
        holding.check()


def test_the_ceiling_is_kept_by_the_holder_s_own_clock(
    holding: Holding, clock: FrozenClock
) -> None:
    """Whatever any server says, or none does; and no heartbeat is planned behind it."""
    clock.advance(57)
    last = holding.heard(None)
    clock.advance(3)

    assert last == 3.0
    assert holding.heard(None) is None
    with pytest.raises(TurnExpired, match="hard ceiling"):
        holding.check()


def test_an_end_that_was_asked_for_twice_may_have_been_heard_once(holding: Holding) -> None:
    """Then "it was ended" is our own doing. Nothing else is."""
    twice = TurnExpired("conv", "t", reason="it was ended")

    holding.ended(twice, repeated=True)
    with pytest.raises(TurnExpired):
        holding.ended(twice, repeated=False)
    with pytest.raises(SessionEnded):
        holding.ended(ENDED, repeated=True)


@pytest.mark.parametrize("error", KINDS, ids=lambda error: error.__name__)
def test_every_problem_becomes_the_error_that_it_was(error: type[SandkeeperError]) -> None:
    """`except` on this side is what it is on the other."""
    kind = KINDS[error]
    facts = {"session_id": "conv", "turn_id": "t", "reason": "idle"}
    body = {"type": PREFIX + kind.type, "detail": "what was said", **facts}

    found = error_of(_answered(kind.status, json=body))

    assert type(found) is error
    assert "conv" in str(found) or "what was said" in str(found)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidArgument), (401, SettingsError), (403, SettingsError), (502, StoreUnavailable)],
)
def test_what_is_no_problem_of_ours_is_an_error_all_the_same(
    status: int, error: type[Exception]
) -> None:
    """A proxy's page: nobody takes it for an answer."""
    assert isinstance(error_of(_answered(status, text="<html>")), error)
    assert error_of(_answered(204)) is None


def test_a_turn_is_used_once() -> None:
    """A second one on the same object would have nobody beat for it."""
    client = Client("http://127.0.0.1:1")
    turn = client.turn("conv")
    with pytest.raises(StoreUnavailable), turn:
        pytest.fail("it has begun")

    with pytest.raises(InvalidArgument, match="make a new one"), turn:
        pytest.fail("it has begun")

    client.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_needs_a_server(kind: type[Client | AsyncClient]) -> None:
    """None at all is a mistake of its maker."""
    with pytest.raises(InvalidArgument, match="name at least one server"):
        kind([])


def _answered(status: int, **content: object) -> httpx2.Response:
    request = httpx2.Request("PUT", "http://server")
    return httpx2.Response(status, request=request, **content)  # type: ignore[arg-type]
