"""The servers of examples/, real ones: what a user copies holds what the product promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.examples import EXAMPLES, Server, install, missing_node, npm
from tests.acceptance.processes import Sampler
from tests.acceptance.site import Site

TTL = 2.0
LONG = 3 * TTL
FOR_EVER = 600.0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TypeScript example, compiled."""
    folder = install(tmp_path_factory.mktemp("examples"))
    npm(folder, "run", "build")
    return folder / "dist"


# One of them on servers: what an example does there is what it does on any.
STACKS = dict.fromkeys(EXAMPLES, "sqlite+folder") | {"flask": "postgresql+rabbitmq"}


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Site], Server]:
    """Start one of them."""
    built = tmp_path
    if request.param == "typescript":
        if missing := missing_node():
            pytest.skip(missing)
        built = request.getfixturevalue("built")
    return lambda site: EXAMPLES[request.param](site, built)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("start", "stack"), STACKS.items(), indirect=True)
def test_an_example_keeps_the_promises(
    make_site: Callable[..., Site], start: Callable[[Site], Server]
) -> None:
    """
    S1: a stream of three idle TTLs keeps its sandbox, and a stream whose session was ended is
    broken off. L1: what was streamed to its end, what a client left in the middle, and what a
    server was killed in with -9 is gone after the TTL.
    """
    # On a busy machine a sandbox takes its time.
    site = make_site(IDLE_TTL=TTL, CREATE_DEADLINE=20.0)
    site.worker()
    site.beat()
    server = start(site)
    with Sampler(site.root) as sampler:
        _ends_with_its_client(site, server)
        _lasts_as_long_as_its_stream(site, server, sampler)
        _is_broken_off(site, server)
        _dies_with_its_server(site, server)
        site.wait_until_gone()
    site.assert_nothing_left()


def _ends_with_its_client(site: Site, server: Server) -> None:
    stream = server.stream("left", FOR_EVER)
    stream.read_until(b"word 1\n")
    _is_open(site, "left")
    stream.drop()
    site.until(lambda: site.turns("left")[0].ended_at, "the turn ended with its client")
    assert site.turns("left")[0].outcome == "failed"
    site.until(lambda: site.gone("left"), "what a client left is gone")
    assert server.holder.exit_code is None


def _lasts_as_long_as_its_stream(site: Site, server: Server, sampler: Sampler) -> None:
    with server.stream("long", LONG) as stream:
        stream.read_until(b"word 1\n")
        _is_open(site, "long")
        stream.read_all()
        assert stream.status == 200
        assert stream.is_whole, stream.received
    site.until(lambda: site.turns("long")[0].ended_at, "the turn ended with its stream")
    (turn,) = site.turns("long")
    assert turn.outcome == "completed"
    assert (turn.ended_at - turn.started_at).total_seconds() >= LONG
    site.until(lambda: site.gone("long"), "what was streamed to its end is gone")
    absences = sampler.absences(
        site.name("long"), turn.started_at.timestamp(), turn.ended_at.timestamp()
    )
    assert absences == []
    session = site.session("long")
    assert session is not None
    assert (session.generation, session.end_reason) == (1, "idle")


def _is_broken_off(site: Site, server: Server) -> None:
    with server.stream("ended", FOR_EVER) as stream:
        stream.read_until(b"word 1\n")
        _is_open(site, "ended")
        assert server.leave("ended") == 202
        stream.read_all()
        assert not stream.is_whole, stream.received


def _dies_with_its_server(site: Site, server: Server) -> None:
    with server.stream("killed", FOR_EVER) as stream:
        stream.read_until(b"word 1\n")
        _is_open(site, "killed")
        begun = site.turns("killed")[0].started_at
        site.until(lambda: _active_at(site, "killed") > begun, "a heartbeat was written")
        server.holder.kill()
    site.until(lambda: site.gone("killed"), "what a killed server left is gone")


def _is_open(site: Site, conversation: str) -> None:
    (turn,) = site.turns(conversation)
    assert turn.ended_at is None
    assert site.name(conversation) in site.alive()


def _active_at(site: Site, conversation: str) -> object:
    session = site.session(conversation)
    assert session is not None
    return session.last_activity_at
