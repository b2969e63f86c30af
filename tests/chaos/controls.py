"""Controls: one safeguard off, and the faults that show it. Each of them must be VIOLATED."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.faults import Chances, Fault
from tests.mutants import MUTANTS, ROOT, copy_tree


@dataclass(frozen=True, kw_only=True)
class Edit:
    """`old` becomes `new`, once, in `file`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Control:
    """One safeguard off. `only` the faults of these kinds are played, all when there are none."""

    name: str
    promise: str
    edits: Sequence[Edit]
    stack: str = "sqlite"
    seconds: float = 40.0
    settings: Mapping[str, float] = field(default_factory=dict)
    chances: Chances | None = None  # what the cloud does wrong instead
    only: Sequence[str] = ()


def copied(to: Path, control: Control | None) -> Path:
    """The tree, with one safeguard less."""
    tree = copy_tree(to)
    for edit in control.edits if control else ():
        path = tree / edit.file
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if control is not None and found != 1:
            raise LookupError(f"{control.name}: found {found} times in {edit.file}: {edit.old!r}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    return tree


def _as_tested(name: str) -> Sequence[Edit]:
    """The change that a mutant of the test suite makes."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    return [Edit(file=mutant.file, old=mutant.old, new=mutant.new)]


MILD: Chances = {
    "create": {Fault.LOST_ANSWER: 0.05},
    "get": {Fault.UNAVAILABLE: 0.03},
    "destroy": {Fault.UNAVAILABLE: 0.05, Fault.LOST_ANSWER: 0.05},
}

CONTROLS: Mapping[str, Control] = {
    control.name: control
    for control in (
        Control(
            name="no-heartbeats",
            promise="S1: a silent turn is kept alive by its process",
            edits=[
                Edit(
                    file="core/beater.py",
                    old="        return self.interval if self.once() else self.interval / 4\n",
                    new="        return 3600.0\n",
                )
            ],
            only=("worker_killed", "beat_killed"),
        ),
        Control(
            name="no-notice",
            promise="S5: no session is ended at first sight",
            edits=_as_tested("end without a notice"),
            only=("database_outage", "beat_killed"),
        ),
        Control(
            name="no-extensions",
            promise="S1: an acknowledged extension is kept",
            edits=_as_tested("extensions are ignored"),
            only=("worker_killed", "beat_killed"),
        ),
        Control(
            name="begin-on-anything",
            promise="S1: who comes too late gets a refusal, never a dead sandbox",
            edits=[
                Edit(
                    file="core/store/turns.py",
                    old=".where(this, rules.usable, HAS_RUNNING)",
                    new=".where(this)",
                )
            ],
            chances=MILD,
            only=("worker_killed", "beat_killed"),
        ),
        Control(
            name="failure-is-success",
            promise="L3: a teardown is done only when absence was confirmed",
            edits=[
                Edit(
                    file="core/teardown.py",
                    old="        except ProviderError as error:\n"
                    "            return self._failed(claim, worker, error)\n",
                    new="        except ProviderError:\n            left = None\n",
                )
            ],
        ),
        Control(
            name="acceptance-is-success",
            promise="L3: an accepted destroy is not believed",
            edits=_as_tested("an accepted destroy is believed"),
        ),
        Control(
            name="quarantine-is-the-end",
            promise="L3: retried for ever",
            edits=[
                *_as_tested("quarantine is the end"),
                # Nor does its message come back by itself, which it may or may not.
                Edit(
                    file="tasks/reap.py",
                    old="    if after is None or after > RETRY_WITHIN:\n",
                    new="    if after is None or after > 0:\n",
                ),
            ],
            settings={"QUARANTINE_AFTER": 2},
            chances={"destroy": {Fault.FORBIDDEN: 0.2, Fault.UNAVAILABLE: 0.2}},
        ),
        Control(
            name="end-closes-nothing",
            promise="L1: who ends a session closes its sandbox with it",
            edits=_as_tested("the end leaves the sandbox alone"),
            chances=MILD,
            only=("worker_killed", "beat_killed"),
        ),
        Control(
            name="creates-without-deadline",
            promise="L1: what crashed between create and record is found",
            edits=_as_tested("unfinished creates are left"),
            only=("client_killed", "all_killed", "database_stall"),
        ),
        Control(
            name="nothing-published-again",
            promise="L2: the row says when it is due, whatever becomes of the message",
            edits=[
                Edit(
                    file="core/store/publications.py",
                    old=".values(due_at=rules.in_(rules.policy.publish_lease))",
                    new=".values(due_at=rules.in_(86400.0))",
                ),
                Edit(
                    file="core/policy.py",
                    old="            self.publish_lease,\n            self.retry_max,\n",
                    new="            86400.0,\n            self.retry_max,\n",
                ),
                # A message waits for milliseconds, and wipes seldom meet one: lose a third of them.
                Edit(
                    file="tasks/doorbell.py",
                    old="teardown.apply_async(pair, producer",
                    new="time.monotonic_ns() % 3 and teardown.apply_async(pair, producer",
                ),
            ],
            only=("broker_wipe", "worker_killed"),
        ),
        Control(
            name="clock-never-steps-back",
            promise="L1: a clock that steps back delays, it does not forget",
            edits=_as_tested("dates of the future stay"),
            stack="redis",
            only=("clock_forward", "clock_back"),
        ),
        Control(
            name="lost-from-a-list",
            promise="S4: a listing may be stale, only a lookup counts",
            edits=[
                Edit(
                    file="core/reconcile/missing.py",
                    old="        if info is None or info.state is ProviderState.GONE:\n"
                    "            gone.append(row)\n",
                    new="        if True:\n            gone.append(row)\n",
                )
            ],
            only=("worker_killed", "beat_killed"),
        ),
        Control(
            name="nearly-ours",
            promise="S2: ours is what has all of our labels, exactly",
            edits=[
                Edit(
                    file="core/model.py",
                    old='    r"1"\n',
                    new='    r"[0-9]"\n',
                )
            ],
            chances=MILD,
            only=("worker_killed", "beat_killed"),
        ),
        Control(
            name="orphans-stay",
            promise="L4: a sandbox that no row explains is found and removed",
            edits=[
                Edit(
                    file="core/reconcile/__init__.py",
                    old="    orphans.kill(visit, listed)\n",
                    new="",
                ),
            ],
            only=("worker_killed", "beat_killed"),
        ),
    )
}


def stale() -> list[str]:
    """What no longer fits the tree: every edit has to be found exactly once."""
    return [
        f"{control.name}: {edit.file}"
        for control in CONTROLS.values()
        for edit in control.edits
        if (ROOT / edit.file).read_text(encoding="utf-8").count(edit.old) != 1
    ]
