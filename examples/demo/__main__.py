"""
The story: server A opens five sessions and begins a turn on one, server B holds one silent turn
that is longer than the idle TTL. Then A is killed with -9. Its five sandboxes must disappear, the
silent turn must not notice, and in the end nothing may be left. Judged by the provider and by the
process table.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field

import click

from core.errors import SandkeeperError
from examples.demo.ground import IMAGE, Containers, Local
from examples.demo.stage import Rhythm, Server, Stage
from examples.demo.view import Row, View

ABANDONED = [f"chat-{number}" for number in range(1, 6)]
IN_A_TURN = ABANDONED[-1]
SILENT = "chat-6"


@dataclass
class Silent:
    """The turn that must survive."""

    sandbox: object = None
    answer: dict[str, object] | None = None
    error: str | None = None
    deaths: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.answer is not None or self.error is not None

    @property
    def harmed(self) -> bool:
        lost = self.answer is not None and self.answer.get("sandbox") != self.sandbox
        return bool(self.error or self.deaths or lost)


class Story:
    """One run of the demo."""

    def __init__(self, stage: Stage, view: View, *, kill: str) -> None:
        self.stage = stage
        self.view = view
        self.kill = kill
        self.silent = Silent()
        self.names: dict[str, str] = {}
        self.killed_at = 0.0
        self.last_gone_after: float | None = None
        self.holder: Server | None = None

    def run(self) -> bool:
        """True when everything that was promised was seen."""
        self.view.say("starting two API servers, a worker and a beat")
        self.stage.start()
        self._open()
        self._kill()
        deadline = self.killed_at + self.stage.rhythm.silent_turn + 2 * self.stage.rhythm.bound
        while time.monotonic() < deadline:
            rows = self._look()
            if self.silent.over and all(row.provider == "gone" for row in rows):
                break
            if self.stage.system is None or self.stage.system.poll() is not None:
                self.view.say("the worker and beat did not start", "bold red")
                break
            time.sleep(0.15)
        return self._verdict()

    def _open(self) -> None:
        first, second = self.stage.servers
        for conversation in ABANDONED:
            first.post(conversation)
        self.silent.sandbox = second.post(SILENT)["sandbox"]
        self.view.say(f"six sessions are open, each with a sandbox (idle TTL {self._ttl})")
        _in_background(self._doomed_turn, first)
        _in_background(self._silent_turn, second)
        self._wait_for_turns()
        self.view.say(f"{IN_A_TURN} is in a turn on server A, {SILENT} in one on server B")
        self.view.say(f"the turn on B will be silent for {self.stage.rhythm.silent_turn:g} s")

    def _wait_for_turns(self) -> None:
        """The row proves that both servers are inside their turns before anybody is killed."""
        for _ in range(200):
            lines = {line.id: line for line in self.stage.store.history.lines()}
            self.names = {name: self.stage.store.sessions.get(name).sandbox.name for name in lines}
            if all(lines[name].turns_open for name in (IN_A_TURN, SILENT)):
                return
            time.sleep(0.05)
        raise SystemExit("the turns did not begin")

    def _doomed_turn(self, server: Server) -> None:
        try:
            server.post(IN_A_TURN, seconds=600)
        except OSError:
            return  # as meant: its server was killed

    def _silent_turn(self, server: Server) -> None:
        try:
            self.silent.answer = server.post(SILENT, seconds=self.stage.rhythm.silent_turn)
            self.view.say(f"the silent turn on {SILENT} came to its end", "green")
        except (OSError, urllib.error.HTTPError) as error:
            self.silent.error = str(error)
            self.view.say(f"the silent turn was harmed: {error}", "bold red")

    def _kill(self) -> None:
        self._look()
        victims = {"API server A": self.stage.servers[0].process.pid}
        for name in ("worker", "beat"):
            pid = self.stage.background(name)
            if self.kill in {name, "all"} and pid is not None:
                victims[f"the {name}"] = pid
        for name, pid in victims.items():
            os.kill(pid, signal.SIGKILL)
            self.view.say(f"kill -9 {pid}: {name} is dead", "bold red")
        self.killed_at = time.monotonic()

    def _look(self) -> list[Row]:
        """The database, the provider and the process table, side by side."""
        lines = {line.id: line for line in self.stage.store.history.lines()}
        listed, processes = self.stage.sandboxes(), self._processes()
        rows = []
        for conversation, name in sorted(self.names.items()):
            pids = tuple(sorted(processes.get(name, [])))
            info = listed.get(name)
            there = str(info.state) if info else "stopping" if pids else "gone"
            line = lines[conversation]
            rows.append(
                Row(
                    session=conversation,
                    server="B" if conversation == SILENT else "A (dead)" if self.killed_at else "A",
                    doing=self._doing(conversation),
                    status=line.status + (f" ({line.end_reason})" if line.end_reason else ""),
                    sandbox=line.sandbox,
                    provider=there,
                    pids=pids,
                )
            )
        self._judge({row.session: row for row in rows})
        self.view.show(rows)
        return rows

    def _processes(self) -> dict[str, list[int]]:
        return self.stage.ground.processes(list(self.names.values()))

    def _doing(self, conversation: str) -> str:
        if conversation == SILENT:
            return "-" if self.silent.over else "silent turn"
        return "turn, abandoned" if conversation == IN_A_TURN else "-"

    def _judge(self, rows: dict[str, Row]) -> None:
        # Asked before the table was drawn: a turn that ended while we looked proves nothing.
        if not self.silent.over and rows[SILENT].provider != "running":
            self.silent.deaths.append(rows[SILENT].provider)
        gone = all(rows[name].provider == "gone" for name in ABANDONED)
        if gone and self.last_gone_after is None and self.killed_at:
            self.last_gone_after = time.monotonic() - self.killed_at
            self.view.say(
                f"all five sandboxes of the killed server are gone, {self.last_gone_after:.1f} s "
                f"after the kill (promised {self.stage.rhythm.bound:.1f} s)",
                "green",
            )

    @property
    def _ttl(self) -> str:
        return f"{self.stage.rhythm.idle_ttl:g} s, sweep every {self.stage.rhythm.sweep:g} s"

    def _verdict(self) -> bool:
        left, processes = self.stage.sandboxes(), self._processes()
        after = self.last_gone_after
        in_time = after is not None and after <= self.stage.rhythm.bound
        kept = "untouched" if not self.silent.harmed and self.silent.over else "HARMED"
        took = "never" if after is None else f"{after:.1f} s after the kill"
        well = in_time and kept == "untouched" and not left and not processes
        self.view.say(
            f"{'HOLDS' if well else 'VIOLATED'}: 5 sandboxes of the killed server gone {took}; "
            f"the {self.stage.rhythm.silent_turn:g} s silent turn {kept}; left behind: "
            f"{len(left)} sandboxes, {sum(map(len, processes.values()))} processes "
            "(provider and process table)",
            "bold green" if well else "bold red",
        )
        return well


def _in_background(target: Callable[[Server], None], server: Server) -> None:
    threading.Thread(target=target, args=(server,), daemon=True).start()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--kill",
    type=click.Choice(["api", "worker", "beat", "all"]),
    default="api",
    show_default=True,
    help="Who is killed with -9 besides API server A.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(10, 3600),
    default=30,
    show_default=True,
    help="About how long it takes; all durations scale with it.",
)
@click.option(
    "--provider",
    type=click.Choice(["local", "docker"]),
    default="local",
    show_default=True,
    help="What a sandbox is: processes of this host, or a container of its Docker engine.",
)
@click.option("--image", default=IMAGE, show_default=True, help="What the containers run.")
def main(kill: str, seconds: float, provider: str, image: str) -> None:
    """Kill an API server and watch its sandboxes disappear while a live turn survives."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        settle = Local if provider == "local" else lambda _: Containers(image)
        stage = Stage(Rhythm.within(seconds), settle)
    except SandkeeperError as error:
        raise click.ClickException(str(error)) from error
    try:
        with View() as view:
            well = Story(stage, view, kill=kill).run()
        stage.failed = not well
        if not well:
            click.echo(f"the logs are in {stage.folder}", err=True)
    finally:
        stage.close()
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
