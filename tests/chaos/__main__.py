"""
Fault runs: `./run chaos [--seconds N] [--stack sqlite|rabbitmq|redis] [--seed S]`.

Exit code 0 HOLDS, 1 VIOLATED, 2 usage, 3 UNKNOWN.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.chaos.controls import CONTROLS
from tests.chaos.judge import Findings, Verdict
from tests.chaos.play import Plan, run
from tests.chaos.report import as_json, as_table
from tests.chaos.stacks import STACKS
from tests.services import ServiceMissing

EXIT = {Verdict.HOLDS: 0, Verdict.VIOLATED: 1, Verdict.UNKNOWN: 3}


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.controls == "list":
        for control in CONTROLS.values():
            _tell(f"{control.name:26} {control.promise}")
        return 0
    plan = Plan(
        seconds=options.seconds or 60.0,
        stack=options.stack or "sqlite",
        seed=secrets.randbits(31) if options.seed is None else options.seed,
        folder=Path(),
    )
    if options.keep and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"--keep {options.keep}: it is not empty; journals of two runs do not mix")
    try:
        if options.controls == "run":
            return _all_controls(plan, options.keep)
        if options.control:
            plan = _controlled(plan, options.control, options.seconds, options.stack)
        return EXIT[_one(plan, options.keep).verdict]
    except ServiceMissing as error:
        parser.exit(2, f"chaos: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run chaos", description="Real processes under every fault that we know."
    )
    parser.add_argument("--seconds", type=_seconds, help="of faults; 60, or what a control needs")
    parser.add_argument("--stack", choices=list(STACKS), help="sqlite, or what a control needs")
    parser.add_argument("--seed", type=int, help="repeats the same plan; printed when not given")
    parser.add_argument("--keep", type=Path, help="an empty folder for journals, logs and rows")
    control = parser.add_mutually_exclusive_group()
    control.add_argument(
        "--control", choices=list(CONTROLS), help="with this safeguard off: must be VIOLATED"
    )
    control.add_argument(
        "--controls", choices=["list", "run"], nargs="?", const="list", help="all of them"
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 5 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("give 5 to 86400 seconds")
    return seconds


def _controlled(plan: Plan, name: str, seconds: float | None, stack: str | None) -> Plan:
    control = CONTROLS[name]
    return replace(
        plan,
        control=control,
        seconds=seconds or control.seconds,
        stack=stack or control.stack,
    )


def _all_controls(plan: Plan, keep: Path | None) -> int:
    """Every control in turn; 0 when each of them was VIOLATED."""
    verdicts = {}
    for name in CONTROLS:
        kept = keep / name if keep else None
        verdicts[name] = _one(_controlled(plan, name, None, None), kept).verdict
    for name, verdict in verdicts.items():
        _tell(f"{name:26} {verdict}")
    return 0 if set(verdicts.values()) == {Verdict.VIOLATED} else 1


def _one(plan: Plan, keep: Path | None) -> Findings:
    folder = keep or Path(tempfile.mkdtemp(prefix="sandkeeper-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = replace(plan, folder=folder.resolve())
    named = f", control {plan.control.name}" if plan.control else ""
    _tell(f"chaos: {plan.seconds:g} s on {plan.stack}, seed {plan.seed}{named}, in {folder}")
    findings = run(plan, _tell)
    _tell(as_table(plan, findings))
    _tell(as_json(plan, findings))
    if keep is None and findings.verdict is not Verdict.VIOLATED:
        shutil.rmtree(folder, ignore_errors=True)
    return findings


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
