"""REST calls: what left this machine, what came back, and what it means."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from core.errors import (
    AuthFailed,
    Busy,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SettingsError,
    Unavailable,
)
from core.providers import rest
from core.providers.rest import Answer, Rest, retry_after
from tests.apis import Api, Call, Fault, Reply, serving
from tests.forks import in_child


def echo(call: Call) -> Reply:
    """An API that says what it was asked."""
    return Reply(200, {"query": call.query, "body": call.body, "key": call.headers.get("x-key")})


@pytest.fixture
def api() -> Iterator[Api]:
    """It, served."""
    with serving(echo) as served:
        yield served


@pytest.fixture
def client(api: Api) -> Rest:
    """A client of it."""
    return Rest(api.url, headers={"X-Key": "secret"}, setting="AN_URL")


def ask(client: Rest, seconds: float = 30.0) -> Answer:
    """One call."""
    deadline = time.monotonic() + seconds
    return client.call("POST", "/a", doing="make x", deadline=deadline, params={"b": "c"}, body=[1])


def test_a_call_is_what_was_asked_for(api: Api, client: Rest) -> None:
    """Query, body and headers arrive; the answer comes back."""
    assert ask(client).fields() == {"query": {"b": "c"}, "body": [1], "key": "secret"}
    assert [(call.method, call.path) for call in api.calls] == [("POST", "/a")]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(401), AuthFailed),
        (Reply(403), AuthFailed),
        (Reply(402), QuotaExceeded),
        (Reply(409), Busy),
        (Reply(429), RateLimited),
        (Reply(500), Unavailable),
        (Reply(503), Unavailable),
        (Reply(418), Unavailable),
        (Reply(301, headers={"Location": "/b"}), Unavailable),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_a_status_has_its_error(
    api: Api, client: Rest, reply: Reply, kind: type[ProviderError]
) -> None:
    """None is repeated, none is followed, each says what was attempted, where, and the answer."""
    api.strike("POST", "/a", Fault(Reply(reply.status, b"no such luck", reply.headers)))

    error = ask(client).error()

    assert type(error) is kind
    for part in ("cannot make x", f"{api.url}/a", f"HTTP {reply.status}", "no such luck"):
        assert part in str(error)
    assert api.count("POST") == 1


@pytest.mark.parametrize("content", [b"<html>", b"", b"\xff\xfe", b"[1, 2]", b'{"a": '])
def test_a_success_that_cannot_be_read_is_an_unknown_outcome(
    api: Api, client: Rest, content: bytes
) -> None:
    """It may have been made."""
    api.strike("POST", "/a", Fault(Reply(200, content)))

    with pytest.raises(OutcomeUnknown, match="is no JSON"):
        ask(client).fields()


def test_an_answer_that_was_cut_off_is_an_unknown_outcome(api: Api, client: Rest) -> None:
    """The call arrived."""
    api.strike("POST", "/a", Fault(cut=True))

    with pytest.raises(OutcomeUnknown, match="cannot make x"):
        ask(client)


def test_what_was_never_sent_is_unavailable(client: Rest) -> None:
    """Nobody listens there, or no time is left: nothing can have happened."""
    nowhere = Rest("http://127.0.0.1:1", headers={}, setting="AN_URL")

    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        ask(nowhere)
    with pytest.raises(Unavailable, match="no time left"):
        ask(client, seconds=-1)


def test_a_deadline_ends_a_call_that_waits(api: Api, client: Rest) -> None:
    """It was sent, so nobody knows."""
    api.strike("POST", "/a", Fault(delay=3.0))
    began = time.monotonic()

    with pytest.raises(OutcomeUnknown, match="Timeout"):
        ask(client, seconds=0.2)

    assert time.monotonic() - began < 2


def test_a_deadline_ends_an_answer_that_drips() -> None:
    """Each byte comes in time, and the whole never would."""
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        caller, _ = listener.accept()
        with closing(caller):
            caller.recv(10_000)
            caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not over.wait(0.05):
                caller.sendall(b"a")

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        client = Rest(f"http://127.0.0.1:{listener.getsockname()[1]}", headers={}, setting="AN_URL")
        with pytest.raises(OutcomeUnknown, match="did not come to its end in time"):
            ask(client, seconds=0.5)
        over.set()
        thread.join()


def test_an_answer_without_end_is_refused(
    api: Api, client: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill our memory."""
    monkeypatch.setattr(rest, "LARGEST", 100)
    api.strike("POST", "/a", Fault(Reply(200, b"a" * 101)))

    with pytest.raises(OutcomeUnknown, match="longer than 100 bytes"):
        ask(client)


def test_a_long_answer_is_shortened_in_an_error(api: Api, client: Rest) -> None:
    """Rows and events keep it."""
    api.strike("POST", "/a", Fault(Reply(500, b"a\n" * 10_000)))

    assert len(str(ask(client).error())) < 500


@pytest.mark.parametrize("url", ["", "a.example", "ftp://a.example", "http://", "http://a:b"])
def test_what_is_no_address_is_refused(url: str) -> None:
    """With the setting and the value."""
    with pytest.raises(SettingsError, match=f"AN_URL='{url}'"):
        Rest(url, headers={}, setting="AN_URL")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After-Sandbox-Create": "9", "retry-after": "3"}, 9.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
    ],
)
def test_a_wait_that_is_asked_for_is_read(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds or a date; the longest of several; nonsense is none."""
    assert retry_after(headers) == seconds


def test_a_date_to_wait_for_is_read() -> None:
    """From now on."""
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    assert 50 < (retry_after({"Retry-After": then}) or 0) <= 60


def test_a_forked_child_has_connections_of_its_own(api: Api, client: Rest) -> None:
    """Two on one connection would read each other's answers."""
    ask(client)

    assert in_child(lambda: ask(client).status == 200)
    assert ask(client).status == 200
