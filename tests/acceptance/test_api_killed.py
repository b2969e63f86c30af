from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from tests.acceptance.processes import Sampler
from tests.acceptance.site import SLACK, Api, Site

SESSIONS = 200  # in two processes
DECISION_SLACK = 3.0  # seconds; to decide takes no CPU, so this holds on a busy machine too


class Server:
    """A crashing API server: it opens its sessions in two lives, and loses both to kill -9."""

    def __init__(self, site: Site, ids: list[str], chance: random.Random) -> None:
        self.site = site
        self.ids = ids
        self.chance = chance
        self.deaths: list[tuple[float, set[str]]] = []  # when, and whose sessions it left behind
        self.start(ids)

    def start(self, ids: list[str]) -> None:
        self.mine = ids
        seed = self.chance.randrange(2**32)
        self.api: Api = self.site.api("crowd", ids=ids, threads=4, seed=seed)

    def acknowledged(self) -> set[str]:
        return {line["id"] for line in self.api.said("open")}

    def is_far_enough(self, count: int) -> bool:
        return len(self.acknowledged()) >= count

    def kill(self) -> None:
        time.sleep(self.chance.uniform(0.0, 0.05))
        at = self.api.program.kill()
        self.deaths.append((at, self.acknowledged()))


@pytest.mark.timeout(240)
def test_no_sandbox_outlives_an_api_server_that_was_killed(
    make_site: Callable[..., Site], record_property: Callable[[str, object], None]
) -> None:
    """
    L1: whatever kill -9 leaves behind is gone within idle TTL + 3 sweeps + the teardowns. S1: the
    turns of the server that lives are not touched. S3, H1: each generation is torn down once.
    """
    seed = int(os.environ.get("ACCEPTANCE_SEED", random.randrange(2**32)))
    print(f"ACCEPTANCE_SEED={seed}")  # noqa: T201 - to repeat a failure
    chance = random.Random(seed)
    site = make_site(IDLE_TTL=4.0, CREATE_DEADLINE=3.0, CLAIM_TTL=10.0, PUBLISH_LEASE=3.0)
    site.worker(concurrency=4)
    site.worker(concurrency=4)
    site.beat()
    silent, chatty = [f"silent-{n}" for n in range(5)], [f"chatty-{n}" for n in range(3)]
    started = time.monotonic()

    with Sampler(site.root) as sampler:
        living = site.api("hold", silent=silent, chatty=chatty)
        site.until(lambda: len(living.said("begun")) == len(silent + chatty), "turns began", 30)
        servers = [
            Server(site, [f"{name}-{n}" for n in range(SESSIONS // 2)], chance) for name in "ab"
        ]
        _kill_while_opening(site, servers, chance)
        _kill_while_running(site, servers, chance)
        opened = time.monotonic() - started
        left = {of for server in servers for of in server.ids}
        names = {name for name, (of, _) in site.names().items() if of in left}
        site.until(lambda: not sampler.now() & names, "the killed servers' sandboxes are gone", 90)
        held_until = time.time()
        living.tell("end")
        site.until(lambda: living.said("all_ended"), "the living server ended its turns", 15)
        ended = living.said("all_ended")[0]["at"]
        site.wait_until_gone()

    took = _assert_gone_in_time(site, sampler, servers)
    _assert_never_touched(site, sampler, living, held_until)
    assert sampler.last_seen(set(site.names())) - ended < site.bound
    site.assert_nothing_left()
    assert {row.session_id for row in site.sandboxes()} == left | {*silent, *chatty}
    facts = f"opened in {opened:.1f} s, gone {took} s after the kills"
    record_property("timing", facts)
    print(f"{site.stack.name}: {facts}, {time.monotonic() - started:.1f} s in all")  # noqa: T201


def _kill_while_opening(site: Site, servers: list[Server], chance: random.Random) -> None:
    """The first lives end in the middle; the second ones open what was not acknowledged."""
    moments = {server: chance.randrange(5, SESSIONS // 2 - 5) for server in servers}
    while moments:
        ready = site.until(
            lambda: [s for s, count in moments.items() if s.is_far_enough(count)],
            "a server opened some sessions",
            60,
        )
        for server in ready:
            del moments[server]
            server.kill()
            server.start([of for of in server.ids if of not in server.acknowledged()])


def _kill_while_running(site: Site, servers: list[Server], chance: random.Random) -> None:
    running = list(servers)
    while running:
        ready = site.until(
            lambda: [s for s in running if s.api.said("all_open")], "all sessions are open", 60
        )
        for server in ready:
            running.remove(server)
            time.sleep(chance.uniform(0.0, 1.0))
            server.kill()


def _assert_gone_in_time(site: Site, sampler: Sampler, servers: list[Server]) -> list[float]:
    names = site.names()
    took = []
    for server in servers:
        for at, ids in server.deaths:
            if not ids:  # its first life had opened them all before the kill came
                continue
            mine = {name for name, (of, _) in names.items() if of in ids}
            took.append(round(sampler.last_seen(mine) - at, 1))
            decided = max(row.closing_at for row in site.sandboxes() if row.session_id in ids)
            assert decided.timestamp() - at < site.bound - SLACK + DECISION_SLACK
    assert max(took) < site.bound, took
    return took


def _assert_never_touched(site: Site, sampler: Sampler, living: Api, until: float) -> None:
    assert living.said("lost") == []
    assert len(living.said("ended")) == len(living.said("begun"))
    for line in living.said("begun"):
        name = site.name(line["id"])
        assert sampler.absences(name, line["at"], until) == []
        assert site.sandbox(line["id"], 2) is None
