"""
The promise, tried on this installation: a sandbox whose holder was killed in the middle of a turn
is gone in time, and the provider says so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import click

from core.doctor import Level, Patient, bounded, worst
from core.doctor.redaction import Redaction
from core.errors import InvalidArgument, SandkeeperError, SessionNotFound, words
from core.model import Session, SessionStatus
from core.providers.base import ProviderState, SandboxRef
from core.store import Store
from core.wiring import System
from tasks.commands import Context
from tasks.doctor.command import diagnosis

LOOK: Final = 0.2  # seconds between two looks
MARGIN: Final = 15.0  # seconds beyond what is promised, for a machine that is busy
START: Final = 300.0  # seconds for a Python to start on a machine that is busy, besides the create
STEPS: Final = {
    "session_noticed": "noticed: idle at first sight",
    "session_ended": "ended, its sandbox is to be torn down",
    "sandbox_gone": "torn down, a worker says",
}

Say = Callable[[str], None]


class NotKept(Exception):
    """What did not happen."""


def self_test(context: Context, patient: Patient, *, yes: bool) -> int:
    """
    Prints each step as it happens, and whether the promise holds. Gives the exit code. Whatever
    happens, Ctrl-C included, its session is ended; the workers tear its sandbox down.
    """
    redaction = Redaction.of(patient.environ)
    system = context.system
    session_id = f"doctor-{os.urandom(4).hex()}"
    others = patient.checkup.other_active(session_id)
    if others and not yes:
        raise InvalidArgument(
            f"{others} sessions are active here: the self-test leaves them alone, and belongs into "
            "a staging all the same; say it again with --yes"
        )

    def say(line: str) -> None:
        click.echo(redaction.hide(line))

    trial = Trial(system=system, session_id=session_id, say=say)
    try:
        with _interrupted_by(signal.SIGTERM):
            seconds = trial.run()
    except NotKept as broken:
        say(f"DOES NOT HOLD: {broken}")
        trial.clean_up()
        _explain(patient, say)
        return 1
    except BaseException:  # Ctrl-C too: a session of ours must not be left to run
        trial.clean_up()
        raise
    say(f"HOLDS: gone {seconds:.1f} s after kill -9; promised within {trial.promised:.1f} s")
    return 0


@dataclass(kw_only=True)
class Trial:
    """One session from its first turn to its end."""

    system: System
    session_id: str
    say: Say

    @property
    def store(self) -> Store:
        return self.system.store

    @property
    def idle_ttl(self) -> float:
        """As short as the rhythm allows: a live turn beats at least twice in it."""
        return min(self.system.policy.idle_ttl, self.system.policy.confirm_interval)

    @property
    def promised(self) -> float:
        """Idle TTL + 3 sweeps + one teardown, in seconds from the kill; see docs/lifecycle.md."""
        policy = self.system.policy
        sweep = max(self.system.settings.sweep_interval, policy.confirm_interval)
        return self.idle_ttl + 3 * sweep + policy.claim_ttl + MARGIN

    def run(self) -> float:
        """Seconds from the kill until the provider confirmed; NotKept when that was too long."""
        with _victim(self.session_id, self.idle_ttl) as victim:
            self._wait_for_turn(victim)
            session = self.store.sessions.get(self.session_id)
            self.say(
                f"{session.id}: sandbox {session.sandbox.name} runs at "
                f"{session.sandbox.provider}, idle TTL {self.idle_ttl:g} s"
            )
            self._wait_for_beat(victim, session)
            victim.kill()
            victim.wait()
        killed = time.monotonic()
        self.say(f"{0:7.1f} s  killed process {victim.pid} with -9, in the middle of its turn")
        self._watch(killed)
        self._confirm(session, killed)
        return time.monotonic() - killed

    def _wait_for_turn(self, victim: subprocess.Popen[str]) -> None:
        assert victim.stdout is not None  # noqa: S101 - it was asked for
        within = self.system.policy.create_deadline + START
        try:
            said = json.loads(bounded(victim.stdout.readline, within) or "{}")
        except Exception as error:
            raise NotKept(f"no sandbox was opened ({words(error)})") from error
        if "turn" not in said:
            raise NotKept(f"no sandbox was opened: {said.get('error', 'its process ended')}")

    def _wait_for_beat(self, victim: subprocess.Popen[str], session: Session) -> None:
        """So that what ends the session is the silence after the kill, and no beat that failed."""
        self.say("  its turn is open; waiting for a heartbeat")
        end = time.monotonic() + 3 * self.system.policy.heartbeat + MARGIN
        while self.store.sessions.get(session.id).last_activity_at <= session.last_activity_at:
            if time.monotonic() > end or victim.poll() is not None:
                raise NotKept("the turn's heartbeats are not written")
            time.sleep(LOOK)

    def _watch(self, killed: float) -> None:
        seen: set[str] = set()
        while True:
            for event in self.store.history.of_session(self.session_id):
                if event.kind in STEPS and event.kind not in seen:
                    seen.add(event.kind)
                    why = event.detail.get("reason", "") if event.kind == "session_ended" else ""
                    at = time.monotonic() - killed
                    self.say(f"{at:7.1f} s  {STEPS[event.kind]}{f' ({why})' if why else ''}")
            missing = [kind for kind in STEPS if kind not in seen]
            if "sandbox_gone" in seen:
                return
            if time.monotonic() - killed > self.promised:
                raise NotKept(f"no `{missing[0]}` within {self.promised:.1f} s of kill -9")
            time.sleep(LOOK)

    def _confirm(self, session: Session, killed: float) -> None:
        """The provider's own word, asked from here and not by a worker."""
        sandbox = session.sandbox
        provider = self.system.providers[sandbox.provider]
        ref = SandboxRef(name=sandbox.name, external_id=sandbox.external_id)
        found = provider.get(ref, deadline=time.monotonic() + MARGIN)
        if found is not None and found.state is not ProviderState.GONE:
            raise NotKept(f"{sandbox.provider} still has {sandbox.name} ({found.state.value})")
        at = time.monotonic() - killed
        self.say(f"{at:7.1f} s  confirmed: {sandbox.provider} does not know it any more")

    def clean_up(self) -> None:
        """End the session, if there is one that is active."""
        try:
            if self.store.sessions.get(self.session_id).status is SessionStatus.ACTIVE:
                self.system.keeper().end(self.session_id, reason="self-test stopped")
                self.say(f"{self.session_id} is ended; its sandbox goes when a worker runs")
        except SessionNotFound:
            pass  # it was never opened
        except SandkeeperError as error:
            self.say(f"{self.session_id} could not be ended ({error}): it ends by being idle")


def _explain(patient: Patient, say: Say) -> None:
    """What the doctor finds is why."""
    found = [finding for finding in diagnosis(patient) if not finding.level.is_ok]
    if not found or worst(found) is Level.OK:
        say("the doctor finds nothing wrong: look at the workers' logs")
    for finding in found:
        say(f"  {finding.level.value} {finding.check}: {finding.says}. {finding.fix}")


@contextmanager
def _victim(session_id: str, idle_ttl: float) -> Iterator[subprocess.Popen[str]]:
    package = __name__.rpartition(".")[0]
    root = Path(__file__).parents[package.count(".") + 1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(  # noqa: S603 - a program of ours
        [sys.executable, "-m", f"{package}.victim", session_id, str(idle_ttl)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us, who end its session
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    except BrokenPipeError:  # closing the pipe of who is dead
        pass


@contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Being asked to stop is as good as Ctrl-C."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before)
