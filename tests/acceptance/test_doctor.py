"""The doctor and its self-test on a whole installation of real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from tests.acceptance.site import Site

PATIENCE = 20 * float(os.environ.get("ACCEPTANCE_SLACK", "10"))  # seconds for a command
# The claim is the part of the promise that a machine which others keep busy may use up.
SETTINGS = {"CREATE_DEADLINE": PATIENCE, "CLAIM_TTL": PATIENCE}
embedded = pytest.mark.parametrize("stack", ["sqlite+folder"], indirect=True)


def doctor(site: Site, *options: str) -> CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tasks.cli", "doctor", *options],
        env=site.environ,
        cwd=site.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def running(make_site: Callable[..., Site]) -> Site:
    """A worker and a beat that have swept."""
    site = make_site(**SETTINGS)
    site.beat()
    site.worker()
    site.until(site.swept_at, "a sweep", PATIENCE)
    return site


@pytest.mark.timeout(600)
@embedded
def test_a_healthy_installation_has_no_warning(make_site: Callable[..., Site]) -> None:
    """A worker, a beat, SQLite and a folder: exit code 0, and what workers say is understood."""
    site = running(make_site)

    done = doctor(site, "--strict", "--json", "--within", "60")

    found = {each["check"]: each for each in json.loads(done.stdout)}
    assert [each for each in found.values() if each["level"] not in {"ok", "note"}] == []
    assert done.returncode == 0
    assert "thread 8" in found["workers"]["says"]
    assert found["worker_queues"]["says"] == "each is consumed"
    assert found["worker_settings"]["level"] == "ok"


@pytest.mark.timeout(600)
def test_the_promise_holds(make_site: Callable[..., Site]) -> None:
    """On each stack: a real sandbox whose holder was killed with -9 is gone in time."""
    site = running(make_site)

    done = doctor(site, "--self-test")

    assert done.returncode == 0, done.stdout + done.stderr + site.explain()
    steps = ("with -9, in the middle", "noticed", "ended", "torn down", "confirmed", "HOLDS")
    places = [done.stdout.index(step) for step in steps]
    assert places == sorted(places)
    site.assert_nothing_left()


@pytest.mark.timeout(600)
@embedded
def test_without_a_worker_it_says_what_did_not_happen(make_site: Callable[..., Site]) -> None:
    """Not the notice, because nobody sweeps; and its session is ended all the same."""
    site = make_site(**{**SETTINGS, "CLAIM_TTL": 2.0})

    done = doctor(site, "--self-test", "--within", "60")

    assert done.returncode == 1
    assert "DOES NOT HOLD: no `session_noticed` within" in done.stdout
    assert "failure workers: none answered" in done.stdout
    assert "failure sweep: no sweep ever ran" in done.stdout
    assert {row.state for row in site.sandboxes()} == {"closing"}


@embedded
@pytest.mark.timeout(600)
def test_others_are_left_alone(make_site: Callable[..., Site]) -> None:
    """Where sessions are active it does nothing before somebody says --yes."""
    site = make_site(**SETTINGS)
    site.keeper.open("somebody")

    done = doctor(site, "--self-test")

    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert len(site.sandboxes()) == 1


@embedded
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_its_session_when_it_is_stopped(
    make_site: Callable[..., Site], number: signal.Signals
) -> None:
    """Ctrl-C in the middle: no session of ours is left to run, nor the process that holds it."""
    site = make_site(**{**SETTINGS, "CLAIM_TTL": 120.0})
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tasks.cli", "doctor", "--self-test"],
        env=site.environ,
        cwd=site.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if "runs at" in line:
                break
        process.send_signal(number)
        rest = process.stdout.read()
        code = process.wait(PATIENCE)

    assert code != 0
    assert "is ended; its sandbox goes when a worker runs" in rest
    assert {row.state for row in site.sandboxes()} == {"closing"}
