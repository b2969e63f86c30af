"""The FastAPI example, which is also the README's integration text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from core.engines import make_engine
from core.providers.base import SandboxRef
from core.providers.local import LocalProvider
from core.store import Store
from examples.fastapi_app import app


@pytest.fixture
def client(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """The example server on a database of its own, with real sandboxes."""
    monkeypatch.setenv("SANDKEEPER_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("SANDKEEPER_LOCAL_ROOT", str(tmp_path / "sandboxes"))
    with TestClient(app) as client:
        yield client
        for folder in (tmp_path / "sandboxes").glob("sk-*"):
            _destroy(folder.name, tmp_path / "sandboxes")


def _destroy(name: str, root: Path) -> None:
    LocalProvider(root).destroy(SandboxRef(name=name), deadline=time.monotonic() + 10)


def test_a_conversation_keeps_its_sandbox(client: TestClient) -> None:
    """Two messages of one conversation meet the same sandbox, fresh only the first time."""
    first = client.post("/conversations/c-1/messages").json()
    second = client.post("/conversations/c-1/messages").json()

    assert first["sandbox"] == second["sandbox"]
    assert (first["fresh"], second["fresh"]) == (True, False)


def test_leaving_ends_the_session(client: TestClient, sqlite_url: str) -> None:
    """DELETE ends the session at once; the next message has a fresh sandbox."""
    first = client.post("/conversations/c-1/messages").json()

    left = client.delete("/conversations/c-1")

    engine = make_engine(sqlite_url)
    assert left.status_code == 202
    assert Store(engine).sessions.get("c-1").end_reason == "user left"
    again = client.post("/conversations/c-1/messages").json()
    assert again["sandbox"] != first["sandbox"]
    assert again["fresh"] is True
    engine.dispose()


def test_leaving_what_is_not_there_is_a_clear_error(client: TestClient) -> None:
    """Nobody's conversation is not found, which is no fault of the server."""
    answer = client.delete("/conversations/nobody")

    assert answer.status_code == 404
    assert "no session 'nobody'" in answer.json()["error"]


def test_an_id_that_cannot_be_one_is_a_clear_error(client: TestClient) -> None:
    """A malformed id is the caller's mistake, in words."""
    answer = client.post("/conversations/not%20an%20id/messages")

    assert answer.status_code == 422
    assert "use 1 to 128 characters" in answer.json()["error"]
