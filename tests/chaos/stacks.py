"""Where a run keeps its rows and its messages, and how each of them can be taken away."""

from __future__ import annotations

import shutil
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kombu import Connection, Queue
from kombu.exceptions import OperationalError

from tests import services
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Postgresql, Valkey


@dataclass(frozen=True, kw_only=True)
class Outage:
    """One way to take something away: `begin` it, and `end` it so many seconds later."""

    kind: str
    begin: Callable[[], object]
    end: Callable[[], object] = lambda: None
    seconds: tuple[float, float] = (0.0, 0.0)  # from, to
    past_ttl: bool = False  # then `seconds` are counted on top of what makes all sessions idle


class Stack(ABC):
    """A database and a broker of one run's own."""

    database_url: str  # as the processes under test see it
    direct_url: str  # for the judge, past every proxy
    broker_url: str

    @abstractmethod
    def outages(self) -> list[Outage]:
        """What can go wrong here."""

    @abstractmethod
    def heal(self) -> None:
        """Everything is there again, and the clock is right."""

    def commits_cut(self) -> int:
        """How many answers to a COMMIT were lost on their way."""
        return 0

    def wait(self) -> None:
        """Until messages can be published."""
        limit = time.monotonic() + 20
        while True:
            try:
                with Connection(self.broker_url, connect_timeout=2) as broker:
                    broker.ensure_connection(max_retries=1)
                    return
            except OperationalError:
                if time.monotonic() > limit:
                    raise


class Sqlite(Stack):
    """A file and a folder: the embedded default."""

    def __init__(self, exits: ExitStack, folder: Path, prefix: str) -> None:
        self._file = folder / "rows.db"
        self._broker = folder / "broker"
        self.database_url = self.direct_url = f"sqlite:///{self._file}"
        self.broker_url = f"sandkeeper+filesystem:///{self._broker}"
        self._lock: sqlite3.Connection | None = None
        exits.callback(self.heal)

    def outages(self) -> list[Outage]:
        return [
            Outage(
                kind="database_outage",
                begin=self._take_lock,
                end=self.heal,
                seconds=(0.5, 2.0),
                past_ttl=True,
            ),
            Outage(kind="database_stall", begin=self._take_lock, end=self.heal, seconds=(0.5, 2.5)),
            Outage(kind="broker_wipe", begin=self._forget),
            Outage(kind="broker_outage", begin=self._block, end=self._unblock, seconds=(1.0, 4.0)),
        ]

    def heal(self) -> None:
        if self._lock is not None:
            self._lock.close()  # without a commit: nothing was written
            self._lock = None
        self._unblock()

    def wait(self) -> None:
        """Folders are always there."""

    def _take_lock(self) -> None:
        """Nobody writes any more."""
        if self._lock is None:
            lock = sqlite3.connect(self._file, timeout=10, isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            self._lock = lock

    def _forget(self) -> None:
        """At one instant: whoever writes to it meanwhile must not keep us from it."""
        aside = self._broker.with_name(f"forgotten-{time.monotonic_ns()}")
        with suppress(FileNotFoundError):
            self._broker.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _block(self) -> None:
        """A file where the folder was: nothing can be published or read."""
        self._forget()
        with suppress(FileExistsError, IsADirectoryError):
            self._broker.touch(exist_ok=False)

    def _unblock(self) -> None:
        if self._broker.is_file():
            self._broker.unlink()


class OnPostgresql(Stack):
    """PostgreSQL of our own behind a proxy, whatever the broker is."""

    def __init__(self, exits: ExitStack) -> None:
        self.postgresql = Postgresql(exits)
        self.database = exits.enter_context(Proxy(self.postgresql.socket))
        self.direct_url = self.postgresql.url
        options = "sslmode=disable&gssencmode=disable"
        self.database_url = (
            f"postgresql://postgres@127.0.0.1:{self.database.port}/postgres?{options}"
        )

    def outages(self) -> list[Outage]:
        database, server = self.database, self.postgresql.server
        outages = [
            Outage(
                kind="database_outage",
                begin=database.refuse,
                end=database.heal,
                seconds=(0.5, 2.0),
                past_ttl=True,
            ),
            Outage(
                kind="database_stall", begin=database.hold, end=database.heal, seconds=(0.5, 6.5)
            ),
            Outage(kind="database_cut", begin=database.cut),
            Outage(kind="commit_cut", begin=lambda: database.cut_commits(5)),
            Outage(kind="database_restart", begin=self.postgresql.restart),
            Outage(kind="database_kill", begin=server.kill, end=server.start, seconds=(0.1, 3.0)),
        ]
        if self.postgresql.has_clock:
            outages += [self._clock("clock_forward", 7200), self._clock("clock_back", -3600)]
        return outages

    def commits_cut(self) -> int:
        return self.database.commits_cut

    def heal(self) -> None:
        self.database.heal()
        self.postgresql.step(0)
        self.postgresql.server.start_if_over()

    def _clock(self, kind: str, offset: float) -> Outage:
        return Outage(
            kind=kind,
            begin=lambda: self.postgresql.step(offset),
            end=lambda: self.postgresql.step(0),
            seconds=(4.0, 10.0),
        )


class Redis(OnPostgresql):
    """A Valkey that is really restarted, which wipes it, and wiped."""

    def __init__(self, exits: ExitStack, folder: Path, prefix: str) -> None:
        super().__init__(exits)
        self.valkey = Valkey(exits)
        self.broker = exits.enter_context(Proxy(("127.0.0.1", self.valkey.port)))
        self.broker_url = f"redis://:{self.valkey.password}@127.0.0.1:{self.broker.port}/0"

    def outages(self) -> list[Outage]:
        server = self.valkey.server
        return [
            *super().outages(),
            Outage(kind="broker_wipe", begin=self.valkey.wipe),
            Outage(kind="broker_cut", begin=self.broker.cut),
            Outage(kind="broker_restart", begin=server.kill, end=server.start, seconds=(0.1, 4.0)),
        ]

    def heal(self) -> None:
        super().heal()
        self.broker.heal()
        self.valkey.server.start_if_over()


class Rabbitmq(OnPostgresql):
    """
    The RabbitMQ that is there, with queues of our own, behind a proxy: others use it too, so that
    it seems restarted to us alone.
    """

    def __init__(self, exits: ExitStack, folder: Path, prefix: str) -> None:
        super().__init__(exits)
        found = services.rabbitmq()
        with Connection(found.url) as upstream:
            self.broker = exits.enter_context(
                Proxy((upstream.hostname or "127.0.0.1", upstream.port or 5672))
            )
            user, password, vhost = upstream.userid, upstream.password, upstream.virtual_host
        self.broker_url = f"amqp://{user}:{password}@127.0.0.1:{self.broker.port}/{vhost}"
        self._direct = found.url
        self._prefix = prefix
        exits.callback(self._delete)

    def outages(self) -> list[Outage]:
        return [
            *super().outages(),
            Outage(kind="broker_wipe", begin=self._wipe),
            Outage(kind="broker_cut", begin=self.broker.cut),
            Outage(
                kind="broker_restart",
                begin=self.broker.refuse,
                end=self.broker.heal,
                seconds=(0.5, 4.0),
            ),
        ]

    def heal(self) -> None:
        super().heal()
        self.broker.heal()

    def _wipe(self) -> None:
        with Connection(self._direct) as connection:
            for name in ("sweep", "teardown"):
                with suppress(*connection.channel_errors):  # not declared yet
                    channel = connection.channel()
                    Queue(f"{self._prefix}.{name}", channel=channel).purge()

    def _delete(self) -> None:
        names = (f"{self._prefix}.{name}" for name in ("sweep", "teardown", "dead", "pidbox"))
        services.delete_queues(self._direct, [self._prefix, *names, f"reply.{self._prefix}.pidbox"])


STACKS: Mapping[str, type[Sqlite | Redis | Rabbitmq]] = {
    "sqlite": Sqlite,
    "rabbitmq": Rabbitmq,
    "redis": Redis,
}


@contextmanager
def stack(name: str, folder: Path, prefix: str) -> Iterator[Stack]:
    """One of them, for as long as the block lasts."""
    with ExitStack() as exits:
        yield STACKS[name](exits, folder, prefix)
