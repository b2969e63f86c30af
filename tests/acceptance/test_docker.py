"""Containers of a real engine, whose clients and which itself are killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import docker
import pytest

from tests.acceptance.api import DOCKER_STEPS
from tests.acceptance.site import Site
from tests.engines import IMAGE, DockerEngine

CROWD = 100
SLACK = 20.0  # seconds, for the teardowns of a hundred containers

pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning",
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture
def docker_site(
    make_site: Callable[..., Site],
    dockerd: DockerEngine,
    docker_client: docker.APIClient,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Site]:
    """Make an installation whose sandboxes are containers of that engine."""
    assert docker_client.containers(all=True) == []
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    spec = json.dumps({"image": IMAGE, "command": ["sleep", "1000000"]})
    return lambda **settings: make_site(PROVIDER="docker", SPEC=spec, **settings)


def states(docker_client: docker.APIClient) -> dict[str, str]:
    """What the engine has, stopped ones too."""
    return {
        item["Names"][0].removeprefix("/"): item["State"]
        for item in docker_client.containers(all=True)
    }


def are_gone(site: Site) -> bool:
    """By the rows."""
    return all(row.state == "gone" for row in site.sandboxes())


@pytest.mark.parametrize("stack", ["sqlite+folder"], indirect=True)
def test_a_container_whose_creator_died_before_its_start_is_adopted_or_goes(
    docker_site: Callable[..., Site], docker_client: docker.APIClient
) -> None:
    """L1: create and start are two calls, and kill -9 comes between them."""
    site = docker_site(IDLE_TTL=8.0, CREATE_DEADLINE=8.0)
    (step,) = DOCKER_STEPS
    victims = {"deserted": step, "adopted": step}

    api = site.api("steps", victims=victims, adopt=["adopted"])
    site.until(lambda: api.said("all_dead"), "all of them died", 30)
    before = states(docker_client)
    site.worker()
    site.beat()
    site.until(
        lambda: site.name("deserted") not in states(docker_client), "it is removed", site.bound
    )
    site.keeper.end("adopted")
    site.until(lambda: are_gone(site), "both are gone", site.bound)

    assert [line["exit"] for line in api.said("victim")] == [-9, -9]
    assert before == {site.name("deserted"): "created", site.name("adopted"): "running"}
    (adopted,) = api.said("adopted")
    assert (adopted["generation"], adopted["name"]) == (1, site.name("adopted"))
    assert states(docker_client) == {}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stack", ["sqlite+folder"], indirect=True)
def test_an_engine_that_is_killed_in_a_teardown_leaves_nothing(
    docker_site: Callable[..., Site], dockerd: DockerEngine, docker_client: docker.APIClient
) -> None:
    """L3: while nobody answers nothing is gone, and it is asked until everything is."""
    site = docker_site(IDLE_TTL=60.0, CREATE_DEADLINE=20.0)  # an engine under load takes seconds
    ids = [f"conv-{number}" for number in range(12)]
    for of in ids:
        site.keeper.open(of)
    assert set(states(docker_client).values()) == {"running"}
    for of in ids:
        site.keeper.end(of)

    site.worker()
    site.beat()
    site.until(
        lambda: any(row.claimed_by and row.state == "closing" for row in site.sandboxes()),
        "a worker is at one of them",
    )
    dockerd.kill()
    gone = {row.key for row in site.sandboxes() if row.state == "gone"}
    time.sleep(3)  # nothing must happen: there is nothing to wait for
    meanwhile = {row.key for row in site.sandboxes() if row.state == "gone"}
    dockerd.start()
    site.until(lambda: are_gone(site), "everything is gone", 90)

    assert len(gone) < len(ids), "it was killed in the middle"
    assert meanwhile == gone
    assert states(docker_client) == {}
    assert max(site.recorded("sandbox_gone").values()) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stack", ["postgresql+rabbitmq"], indirect=True)
def test_no_container_outlives_an_api_server_that_was_killed(
    docker_site: Callable[..., Site],
    docker_client: docker.APIClient,
    record_property: Callable[[str, object], None],
) -> None:
    """L1: a hundred of them are gone within the idle TTL, three sweeps and the teardowns."""
    site = docker_site(IDLE_TTL=60.0, CREATE_DEADLINE=20.0, CLAIM_TTL=30.0)
    site.worker(concurrency=8)
    site.beat()
    api = site.api("crowd", ids=[f"conv-{n}" for n in range(CROWD)], threads=8, seed=1)
    # Within the TTL of the first, or they would not all be alive when it is killed.
    site.until(lambda: len(api.said("open")) == CROWD, "all are open", 60)
    alive = len(states(docker_client))

    killed_at = api.program.kill()
    limit = site.timings["IDLE_TTL"] + 3 * site.timings["SWEEP_INTERVAL"] + SLACK
    site.until(lambda: not states(docker_client), "no container is left", limit)
    took = time.time() - killed_at
    site.until(lambda: are_gone(site), "all rows say so", 10)

    print(f"{alive} containers, the last gone {took:.1f} s after the kill")  # noqa: T201
    record_property("timing", f"gone {took:.1f} s after the kill")
    assert alive == CROWD
    assert len(site.recorded("sandbox_gone")) == len(site.sandboxes()) >= CROWD
