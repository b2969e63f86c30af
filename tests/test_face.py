"""What users import: one name, on the environment or on their own engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

import core
from core import AsyncLifecycle, Lifecycle, Policy, SchemaOutdated, SessionEnded, SettingsError
from tests.fakes import FakeCloud

FAKE = "tests.fakes:FakeCloud"


def environ(url: str) -> dict[str, str]:
    """The environment of an API server on this database."""
    return {"SANDKEEPER_DATABASE_URL": url, "SANDKEEPER_PROVIDER": FAKE}


def test_everything_public_can_be_imported() -> None:
    """From the one package, and nothing else is promised."""
    assert all(hasattr(core, name) for name in core.__all__)
    assert core.__all__ == sorted(core.__all__)


def test_the_environment_is_enough(database_url: str) -> None:
    """The example of the README, on both databases."""
    with Lifecycle.from_env(environ(database_url)) as keeper:
        session = keeper.open("conv-42", tenant="acme", metadata={"plan": "pro"})
        with keeper.turn("conv-42") as turn:
            turn.check()
        keeper.end("conv-42", reason="user left")

        with pytest.raises(SessionEnded, match="user left"), keeper.turn("conv-42"):
            pytest.fail("it has begun")

    assert isinstance(keeper, Lifecycle)
    assert turn.sandbox == session.sandbox


def test_what_was_made_from_the_environment_is_closed_with_it(database_url: str) -> None:
    """No connection is left behind: the engine is ours, nobody else could dispose of it."""
    keeper = Lifecycle.from_env(environ(database_url))
    keeper.open("conv")
    pool = keeper.store.database.engine.pool

    keeper.close()

    assert keeper.store.database.engine.pool is not pool


def test_ones_own_engine_and_provider_are_enough(database_url: str) -> None:
    """Without one environment variable: engine, provider, policy."""
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url)
    policy = Policy(idle_ttl=60)
    rung: list[tuple[str, int]] = []

    with Lifecycle(
        engine=engine,
        provider=FakeCloud(),
        policy=policy,
        spec={"image": "x"},
        doorbell=rung.extend,
        sinks=(),
    ) as keeper:
        session = keeper.open("conv")
        keeper.end("conv")

    assert session.idle_ttl == 60
    assert rung == [("conv", 1)]
    engine.dispose()


def test_an_engine_without_our_tables_is_refused(tmp_path: Path) -> None:
    """When it is made, not when it is first used."""
    engine = create_engine(f"sqlite:///{tmp_path}/empty.db")

    with pytest.raises(SchemaOutdated, match="sandkeeper db upgrade"):
        Lifecycle(engine=engine, provider=FakeCloud())
    engine.dispose()


def test_a_broken_environment_is_refused_by_name() -> None:
    """F24: before anything is made."""
    with pytest.raises(SettingsError, match="SANDKEEPER_IDLE_TTLL"):
        Lifecycle.from_env({"SANDKEEPER_IDLE_TTLL": "5"})


def test_asyncio_has_the_same_face(database_url: str) -> None:
    """The other example of the README."""

    async def serve() -> int:
        async with AsyncLifecycle.from_env(environ(database_url)) as keeper:
            await keeper.open("conv-42")
            async with keeper.turn("conv-42") as turn:
                turn.check()
            return (await keeper.get("conv-42")).turn_count

    assert asyncio.run(serve()) == 1


def test_a_policy_of_ones_own_is_checked(engine: Engine) -> None:
    """F24: heartbeats that come less often than looks would end live turns."""
    with pytest.raises(SettingsError, match="HEARTBEAT 90"):
        Lifecycle(
            engine=engine,
            provider=FakeCloud(),
            policy=Policy(idle_ttl=60, confirm_interval=10, heartbeat=90),
        )
