"""docs/doctor.md: what each check means, in the words of its docstring."""

from __future__ import annotations

from typing import Final

from tasks.doctor.command import examinations

HEAD: Final = """\
# The doctor

<!-- Generated from core/doctor and tasks/doctor by ./run docs. -->

`sandkeeper doctor` looks at what an operator would look at, and says what to do about each thing
that is wrong. It moves no session and no sandbox, asks providers only what changes nothing, and
prints no secret. Each look may take `--within` seconds: a broker or a provider that hangs
becomes a finding.

| level | meaning | exit code |
|---|---|---|
| `ok` | nothing to do | 0 |
| `note` | somebody should know | 0 |
| `warning` | it works, and will not for ever | 0; 1 with `--strict` |
| `failure` | a promise is not kept while this is so, or it could not be checked | 1 |

For monitoring: `sandkeeper doctor --quiet` prints warnings and failures alone, `--json` an array
of `{check, level, says, fix}`. What cannot be looked at because something before it failed is a
note: mend the first failure first.
"""
TAIL: Final = """\

## The self-test

`sandkeeper doctor --self-test` proves the promise on this installation: it opens a session of
its own (`doctor-…`) with a real sandbox at the provider and the shortest idle TTL that the
rhythm allows, kills the process that holds it with -9 in the middle of a turn, and watches the
notice, the end and the teardown, until the provider itself does not know the sandbox any more.
`HOLDS`, exit code 0, when that took no longer than the idle TTL, three sweeps, one claim and a
margin; else it says what did not happen, and what the doctor finds. Ctrl-C ends its session. It
leaves other sessions alone; where some are active it wants `--yes`, because it belongs into a
staging of your own.
"""


def text() -> str:
    """The page."""
    lines = [HEAD]
    for examination in examinations():
        lines += [f"## {examination.name}", "", f"When it cannot be looked at: {examination.fix}."]
        lines += ["", "| check | all is well when |", "|---|---|"]
        for check in examination.checks:
            meaning = " ".join((check.__doc__ or "").split()).replace("|", "\\|")
            lines.append(f"| `{check.__name__}` | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n" + TAIL
