"""The processes of a run: workers, beats, API servers and the cloud; started, killed, stopped."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.processes import Program
from tests.acceptance.site import QUIET
from tests.chaos.journal import Journal, read

Command = Callable[[str, int], list[str]]


@dataclass
class Member:
    """One place in the crew, and who fills it now."""

    role: str
    place: int
    program: Program
    stopped: bool = False

    @property
    def runs(self) -> bool:
        return self.program.exit_code is None


class Crew:
    """Fills its places; everything that happens to a member is in the journal."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        journal: Journal,
        *,
        sizes: Mapping[str, int],
        cloud_port: int,
        seed: str,
        threads: int,
    ) -> None:
        self.folder = folder
        self.cloud_journal = folder / "cloud.jsonl"
        self.members: dict[tuple[str, int], Member] = {}
        self._environ = dict(environ)
        self._journal = journal
        self._sizes = sizes
        self._port = cloud_port
        self._seed = seed
        self._threads = threads
        self._lives = 0
        (folder / "clients").mkdir(exist_ok=True)

    def start(self, *roles: str) -> None:
        """Fill every place of these roles that nobody is alive in."""
        for role in roles:
            for place in range(self._sizes[role]):
                self.fill(role, place)

    def fill(self, role: str, place: int) -> None:
        """Somebody new in this place, unless somebody is alive there."""
        old = self.members.get((role, place))
        if old is not None and old.runs:
            return
        self._lives += 1
        name = f"{role}{place}-{self._lives}"
        program = Program(name, self._command(role, name), self._environ, self.folder)
        self.members[role, place] = Member(role=role, place=place, program=program)
        self._journal.write("started", name=name, role=role, pid=program.pid)

    def of(self, role: str) -> list[Member]:
        """Who runs in this role and is not stopped."""
        return [m for m in self.members.values() if m.role == role and m.runs and not m.stopped]

    def kill(self, member: Member) -> None:
        """kill -9."""
        member.program.kill()
        self._journal.write("killed", name=member.program.name, pid=member.program.pid)

    def stop(self, member: Member) -> None:
        """SIGSTOP."""
        member.program.signal(signal.SIGSTOP)
        member.stopped = True
        self._journal.write("stopped", name=member.program.name, pid=member.program.pid)

    def resume(self, member: Member) -> None:
        """SIGCONT, if it is still there to hear it."""
        if member.stopped and member.runs:
            self._journal.write("resumed", name=member.program.name, pid=member.program.pid)
            member.program.signal(signal.SIGCONT)
        member.stopped = False

    def refill(self) -> None:
        """Somebody in every place."""
        for role, place in list(self.members):
            self.fill(role, place)

    def refill_all_but(self, left_out: str) -> None:
        """As a supervisor does for who ended by himself; not for who has been told to finish."""
        for role, place in list(self.members):
            if role != left_out:
                self.fill(role, place)

    def destroy(self) -> None:
        """End everybody."""
        for member in self.members.values():
            member.program.destroy()

    # API servers

    def client_journals(self) -> Iterator[Path]:
        return self.folder.glob("clients/*.jsonl")

    def wait_until_ready(self, within: float) -> None:
        """Until every API server has said so."""
        end = time.monotonic() + within
        for member in self.of("client"):
            path = self._client_journal(member.program.name)
            while not read(path):
                if time.monotonic() > end or not member.runs:
                    log = member.program.log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{member.program.name} does not start: {log}")
                time.sleep(0.1)

    def finish(self) -> None:
        """Tell every API server to come to its end."""
        for member in self.of("client"):
            Path(f"{self._client_journal(member.program.name)}.finish").touch()

    # The cloud

    def cloud(self, what: str, **asked: Any) -> Any:
        """Ask the cloud for something that no provider could. OSError while it is dead."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("POST", f"/control/{what}", json.dumps(asked))
            return json.loads(connection.getresponse().read())
        except (http.client.HTTPException, ValueError) as error:  # killed in the middle
            raise ConnectionResetError(str(error)) from error
        finally:
            connection.close()

    def wait_for_cloud(self) -> None:
        """Until it answers."""
        end = time.monotonic() + 20
        while True:
            try:
                self.cloud("boxes")
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _client_journal(self, name: str) -> Path:
        return self.folder / "clients" / f"{name}.jsonl"

    def _command(self, role: str, name: str) -> list[str]:
        celery = [sys.executable, "-m", "celery", "-A", "tasks"]
        match role:
            case "worker":
                options = ["-P", "threads", "-c", "6", "-n", f"{name}@%h", *QUIET]
                return [*celery, "worker", *options, "-l", "info"]
            case "beat":
                return [*celery, "beat", "-l", "info"]
            case "cloud":
                arguments = [str(self._port), str(self.cloud_journal), self._seed]
                return [sys.executable, "-m", "tests.chaos.cloud", *arguments]
        journal, seed = self._client_journal(name), f"{self._seed}/{name}"
        arguments = [name, str(journal), seed, str(self._threads)]
        return [sys.executable, "-m", "tests.chaos.client", *arguments]
