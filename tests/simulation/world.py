"""One world: how it is put together, what chaos can do to it, and how it comes to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from core.model import new_key, sandbox_labels, sandbox_name
from tests.simulation import chaos
from tests.simulation.bus import Bus
from tests.simulation.cloud import OTHER, OURS, Cloud
from tests.simulation.database import Server
from tests.simulation.faults import Fault, Faults
from tests.simulation.judge import Judge, Violation
from tests.simulation.line import INSTALLATION, Line
from tests.simulation.moments import Moments
from tests.simulation.plan import CHAOS, PATIENT, Focus, Plan, plan
from tests.simulation.row_rules import RowRules
from tests.simulation.rows import Rows
from tests.simulation.scheduler import Scheduler
from tests.simulation.staff import Staff
from tests.simulation.users import Limits

QUIET = 600.0  # more than the sum of what anybody may wait for
STOPS = (1.0, 4.0, 12.0, 30.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a world ended."""

    plan: Plan
    violation: Violation | None
    digest: int
    seconds: float  # of virtual time
    steps: int
    faults: Counter[Fault]


class World:
    """One seed, from its first call to the last sandbox that is gone."""

    def __init__(self, seed: int, line: Line, log: Callable[[str], None] | None = None) -> None:
        self.plan = plan(seed)
        random = Random(f"world {seed}")
        self.scheduler = Scheduler(random, log)
        self.faults = Faults(random, self.plan.rates)
        self.judge = Judge(self.scheduler, self.plan.policy.orphan_grace)
        self.line = line
        real = line.fresh()
        rules = RowRules(self.judge, self.plan.policy)
        self.server = Server(real, self.scheduler, self.faults, self.plan.flavour, rules.committed)
        self.cloud = Cloud(self.scheduler, self.faults, self.judge)
        self.judge.server, self.judge.cloud = self.server, self.cloud
        self.judge.rows = Rows(real)
        self.moments = Moments(self.scheduler, self.faults, self.step_clock)
        self.server.between = self.moments.between
        self.bus = Bus(self.scheduler, self.faults, self.judge.rang)
        self.sessions = {f"s{number}": self._limits() for number in range(self.plan.sessions)}
        self.staff = Staff(
            self.plan,
            line,
            self.scheduler,
            faults=self.faults,
            judge=self.judge,
            cloud=self.cloud,
            bus=self.bus,
            sessions=self.sessions,
        )
        self.scheduler.on_stop.append(lambda *_: self.faults.happened(Fault.STOP))

    def run(self) -> Result:
        """Chaos, then quiet, then the verdict."""
        self.line.server, self.line.tell = self.server, self.judge.heard
        self.scheduler.note(f"{self.plan}")
        self.scheduler.crash_rate = self.plan.crash_rate
        self.scheduler.stop_rate = self.plan.stop_rate
        self.scheduler.stop_lengths = STOPS
        self.staff.start_all()
        chaos.schedule(self.plan, self, CHAOS)
        self.scheduler.run(CHAOS)
        self._quiet()
        # Messages for the two accounts reach any worker: it takes them more attempts, and where
        # nobody but a watchdog sweeps these are far apart.
        patience = 1.0
        if self.faults.count[Fault.WRONG_ACCOUNT]:
            patience = 6.0 if self.faults.count[Fault.ABANDONED] else 2.0
        self.scheduler.run(CHAOS + patience * QUIET)
        for actor, trace in self.scheduler.failures:
            self.judge.failed(actor, trace)
        if self.judge.violation is None:
            self.judge.finish()
        seconds = self.scheduler.now
        self._tear_down()
        return Result(
            plan=self.plan,
            violation=self.judge.violation,
            digest=self.scheduler.digest,
            seconds=seconds,
            steps=self.scheduler.steps,
            faults=self.faults.count,
        )

    # What chaos does

    def kill_one(self) -> None:
        self.scheduler.kill(self.staff.one())

    def stop_one(self, seconds: float) -> None:
        self.scheduler.stop(self.staff.one(), seconds)

    def outage(self, seconds: float, fault: Fault) -> None:
        self.faults.happened(fault)
        self.server.go_down(seconds, hangs=self.scheduler.random.random() < 0.5)

    def step_clock(self, seconds: float) -> None:
        self.server.step_clock(seconds)
        self.judge.books.clock_stepped(self.server.clock())

    def swing_clock(self, seconds: float, back: float) -> None:
        self.moments.swing(seconds, back)

    def vanish(self) -> None:
        boxes = [box for box in self.cloud.boxes if self.cloud.alive(box) and not box.foreign]
        if boxes:
            self.cloud.vanish(self.scheduler.random.choice(boxes))
            self.faults.happened(Fault.VANISHED)

    def plant(self) -> None:
        labels = self.scheduler.random.choice(({}, {"sandkeeper-installation": "neighbour"}))
        self.cloud.add("somebody-elses", labels, OURS, foreign=True)
        self.faults.happened(Fault.FOREIGN)

    def lose_row(self) -> None:
        """A sandbox that is ours in every respect, and whose row is not in this database."""
        key = new_key(self.scheduler.random.getrandbits)
        labels = sandbox_labels(INSTALLATION, key, "lost", 1, self.server.clock())
        self.cloud.add(sandbox_name(INSTALLATION, key), labels, OURS)
        self.faults.happened(Fault.ROWLESS)

    def forge(self) -> None:
        random = self.scheduler.random
        session_id = random.choice(sorted(self.sessions))
        row = self.judge.rows.sessions.get(session_id)
        generation = random.choice((1, 2, 99)) if row is None else row.generation
        self.bus.deliver((session_id, generation, 0))
        self.faults.happened(Fault.FORGED)

    def wipe(self) -> None:
        self.bus.wipe()

    def broker_down(self, seconds: float) -> None:
        self.bus.go_down(seconds)

    def change_policy(self) -> None:
        """The sweepers are started anew with another confirm interval, one after the other."""
        self.faults.happened(Fault.ROLLOUT)
        usual = self.staff.sweep_policy is self.plan.policy
        self.staff.sweep_policy = PATIENT if usual else self.plan.policy
        for name in ("sweeper-1", "sweeper-2"):
            self.staff.kill(name)
            self.staff.start(name)

    def change_account(self) -> None:
        """A process is started anew with the credentials of another account."""
        name = self.scheduler.random.choice(("api-1", "api-1", "worker-1", "reconciler-1"))
        self.staff.kill(name)
        self.staff.start(name, account=OTHER)
        self.faults.happened(Fault.WRONG_ACCOUNT)

    def abandon(self) -> None:
        """Beat is gone, and nobody starts it again: API processes have to notice."""
        self.staff.retired |= {"sweeper-1", "sweeper-2"}
        for name in ("sweeper-1", "sweeper-2"):
            self.staff.kill(name)
        self.faults.happened(Fault.ABANDONED)

    # The end

    def _quiet(self) -> None:
        """Faults stop. What was started in another account comes back in the right one."""
        if self.scheduler.halted:
            return
        self.scheduler.note("quiet")
        self.scheduler.crash_rate = self.scheduler.stop_rate = 0.0
        for name in ("api-1", "worker-1", "worker-2", "reconciler-1", "sweeper-2"):
            self.staff.kill(name)
        self.faults.on = False
        self.staff.retired.add("sweeper-2")  # one is enough to clean up
        if self.faults.count[Fault.WRONG_ACCOUNT]:  # what was made there has to go as well
            self.staff.retired.remove("worker-3")
            self.staff.start("worker-3", account=OTHER)
        self.staff.start_all()
        self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        """A clean world stays clean: there is no need to watch it any longer."""
        if self.judge.clean():
            self.scheduler.halted = True
            return
        self.judge.lingering(CHAOS)
        self.scheduler.at(self.scheduler.now + 5.0, self._look_for_the_end)

    def _tear_down(self) -> None:
        self.faults.on = False
        for process in self.staff.processes.values():
            self.scheduler.kill(process)
        self.line.server = None

    def _limits(self) -> Limits:
        random = self.scheduler.random
        if self.plan.has(Focus.JUMPS):
            return Limits(max_turn=300.0)  # which most jumps do not reach
        if self.plan.has(Focus.OUTAGES):
            return Limits(max_turn=200.0)  # turns that are still there when it is over
        if self.plan.has(Focus.ROLLOUT):
            return Limits(idle_ttl=random.choice((None, 8.0, 15.0)))  # many notices
        if not self.plan.has(Focus.LIMITS):
            return Limits()
        return Limits(
            idle_ttl=random.choice((None, 8.0, 30.0)),
            max_age=random.choice((None, 50.0, 100.0)),
            max_turn=random.choice((None, 30.0)),
        )
