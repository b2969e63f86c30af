"""The stacks that every promise is tried on, and one installation per test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis
from kombu import Connection, Queue

from tests.acceptance.site import Site, Stack

STACKS = ("sqlite+folder", "postgresql+rabbitmq", "postgresql+redis")


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest, tmp_path: Path, queue_prefix: str) -> Stack:
    """A database and a broker. A test that needs only some stacks parametrizes it, indirectly."""
    name: str = request.param
    database, broker = name.split("+")
    database_url: str = request.getfixturevalue(f"{database}_url")
    if broker == "folder":
        folder = tmp_path / "broker"
        url, wipe = f"sandkeeper+filesystem:///{folder}", lambda: _remove(folder)
    else:
        url = request.getfixturevalue(f"{broker}_url")
        wipe = lambda: _wipe(url, queue_prefix)  # noqa: E731 - one of two, side by side
    return Stack(
        name=name,
        database_url=database_url,
        broker_url=url,
        queue_prefix=queue_prefix,
        wipe=wipe,
    )


def _remove(folder: Path) -> None:
    """At one instant: whoever writes to it meanwhile must not keep us from it."""
    shutil.rmtree(folder.rename(folder.with_name("forgotten")))


def _wipe(url: str, prefix: str) -> None:
    if url.startswith("redis"):
        with closing(redis.Redis.from_url(url)) as client:
            client.flushdb()
        return
    with Connection(url) as connection:
        for name in ("sweep", "teardown"):
            Queue(f"{prefix}.{name}", channel=connection.default_channel).purge()


@pytest.fixture
def make_site(stack: Stack, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Make the installation, with settings that differ from the tests' own."""
    with ExitStack() as exits:
        yield lambda **settings: exits.enter_context(Site(stack, tmp_path, **settings))


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """The installation, with the tests' own settings."""
    return make_site()
