"""The processes of a world: what each is made of, and how it comes back after it died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime

from core.host import Host
from core.lifecycle import Keeper
from core.policy import Policy
from core.reaper import Reaper
from core.reconcile import Reconciler
from core.timekeeper import Timekeeper, Watched
from core.watchdog import Watchdog
from tests.simulation.background import Comparer, Operator, Sweeper, Worker
from tests.simulation.bus import Bus
from tests.simulation.cloud import OURS, Cloud, Provider
from tests.simulation.faults import Fault, Faults
from tests.simulation.host import host
from tests.simulation.judge import Judge
from tests.simulation.line import Line
from tests.simulation.plan import CHAOS, Focus, Plan
from tests.simulation.scheduler import Look, Process, Scheduler
from tests.simulation.users import Limits, User

NAMES = (
    "api-1",
    "api-2",
    "sweeper-1",
    "sweeper-2",
    "worker-1",
    "worker-2",
    "worker-3",  # at the end only, in the account that mistakes were made in
    "reconciler-1",
    "operator-1",
)
CHILDREN = 2  # of each worker
COMES_BACK = (1.0, 10.0, 40.0)


class Observed(Timekeeper):
    """Writes down when its process looked at the database's clock, and what it saw."""

    def __init__(
        self, scheduler: Scheduler, process: Process, machine: Host, policy: Policy
    ) -> None:
        super().__init__(machine.monotonic, policy.confirm_interval / 4)
        self._scheduler = scheduler
        self._process = process

    def watch(self, look: Callable[[], datetime]) -> Watched:
        before = self._scheduler.now

        def seen() -> datetime:
            clock = look()
            self._process.looks.append(Look(before, self._scheduler.now, clock))
            return clock

        return super().watch(seen)


class Staff:
    """Everybody who works, by name."""

    def __init__(
        self,
        plan: Plan,
        line: Line,
        scheduler: Scheduler,
        *,
        faults: Faults,
        judge: Judge,
        cloud: Cloud,
        bus: Bus,
        sessions: dict[str, Limits],
    ) -> None:
        self.plan = plan
        self.line = line
        self.scheduler = scheduler
        self.faults = faults
        self.judge = judge
        self.cloud = cloud
        self.bus = bus
        self.sessions = sessions
        self.sweep_policy = plan.policy
        self.processes: dict[str, Process] = {}
        self.retired = {"worker-3"}
        self._lives: Counter[str] = Counter()
        self._start = {
            "api": self._api,
            "sweeper": self._sweeper,
            "worker": self._worker,
            "reconciler": self._reconciler,
            "operator": self._operator,
        }
        scheduler.on_death.append(self._died)

    def start_all(self) -> None:
        """Everybody who is not there."""
        for name in NAMES:
            self.start(name)

    def start(self, name: str, *, account: str = OURS) -> None:
        """Another life of a process, unless the last one goes on."""
        alive = name in self.processes and self.processes[name].alive
        if alive or name in self.retired:
            return
        self._lives[name] += 1
        process = Process(f"{name}.{self._lives[name]}", name.partition("-")[0], account=account)
        process.confirm_interval = self.plan.policy.confirm_interval
        self.processes[name] = process
        self._start[process.kind](process)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.scheduler.kill(self.processes[name])

    def one(self) -> Process:
        """Anybody."""
        return self.processes[self.scheduler.random.choice(sorted(self.processes))]

    def _died(self, process: Process) -> None:
        """Somebody starts it again, sooner or later."""
        if self.faults.on:
            self.faults.happened(Fault.CRASH)
            name = process.name.partition(".")[0]
            pause = self.scheduler.random.choice(COMES_BACK)
            self.scheduler.at(self.scheduler.now + pause, lambda: self.start(name))

    # What each is made of

    def _api(self, process: Process) -> None:
        machine = host(self.scheduler, process)
        store = self.line.store(self.plan.policy)
        reaper = self._reaper(process, machine, self.plan.policy)
        watchdog = Watchdog(
            store,
            stand_in=lambda: reaper.sweep(stand_in=True),
            host=machine,
            actor=process.name,
        )
        keeper = Keeper(
            store,
            self._provider(process, machine),
            doorbell=self.bus.ring,
            loops=(watchdog,),
            holder=process.name,
            host=machine,
        )
        watchdog.start()
        for number in range(self.plan.users):
            user = User(
                keeper,
                self.judge,
                self.faults,
                sessions=self.sessions,
                extends=self.plan.extends,
                extensions=self.plan.extensions,
                pause=self.plan.pause,
                until=CHAOS,
            )
            self.scheduler.spawn(process, f"{process.name}/user{number}", user.live)

    def _sweeper(self, process: Process) -> None:
        process.confirm_interval = self.sweep_policy.confirm_interval
        reaper = self._reaper(process, host(self.scheduler, process), self.sweep_policy)
        sweeper = Sweeper(self.scheduler, reaper, self.plan.sweep)
        self.scheduler.spawn(process, f"{process.name}/sweep", sweeper.live)

    def _worker(self, process: Process) -> None:
        reaper = self._reaper(process, host(self.scheduler, process), self.plan.policy)
        for number in range(CHILDREN):
            worker = Worker(self.scheduler, reaper, self.bus)
            self.scheduler.spawn(process, f"{process.name}/{number}", worker.live)

    def _reconciler(self, process: Process) -> None:
        machine = host(self.scheduler, process)
        reconciler = Reconciler(
            self.line.store(self.plan.policy),
            {Provider.name: self._provider(process, machine)},
            host=machine,
        )
        comparer = Comparer(self.scheduler, reconciler, self.plan.policy.reconcile_interval)
        self.scheduler.spawn(process, f"{process.name}/reconcile", comparer.live)

    def _operator(self, process: Process) -> None:
        guard = self.line.store(self.plan.policy).guard
        worried = self.plan.has(Focus.BREAKER)
        operator = Operator(self.scheduler, guard, self.faults, worried=worried)
        self.scheduler.spawn(process, f"{process.name}/operator", operator.live)

    def _reaper(self, process: Process, machine: Host, policy: Policy) -> Reaper:
        provider = self._provider(process, machine)
        return Reaper(
            self.line.store(policy),
            {Provider.name: provider},
            doorbell=self.bus.ring,
            host=machine,
            timekeeper=Observed(self.scheduler, process, machine, policy),
        )

    def _provider(self, process: Process, machine: Host) -> Provider:
        return Provider(
            self.cloud, process.account, machine.monotonic, lambda: self._poisoned(process)
        )

    def _poisoned(self, process: Process) -> None:
        """The call takes its own process along."""
        self.scheduler.at(self.scheduler.now, lambda: self.scheduler.kill(process))
        self.scheduler.sleep(0.1)
