"""
Write the pages of docs/ that repeat what the code says: settings.md, metrics.md, cli.md and
doctor.md.

`./run docs` writes them, `./run check` runs this with --check and fails when one is out of date.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic.fields import FieldInfo

from core.errors import SettingsError
from core.settings import FROM_FILES, PREFIX, Settings
from core.store.tallies import BOUNDS
from core.web.metrics import METRICS, Metric
from core.web.metrics import PREFIX as PREFIX_OF_METRICS

FOLDER = Path(__file__).resolve().parent
WIDTH = 96  # of the help texts, whatever terminal this runs in

# Defaults that follow from other settings. `Settings` derives them; these are the words for it.
DERIVED = {
    "confirm_interval": "`SWEEP_INTERVAL`, at most `IDLE_TTL`",
    "publish_lease": "`SWEEP_INTERVAL`",
    "heartbeat": "15, at most half of `CONFIRM_INTERVAL`",
}

# Each rule with settings that break it. The page shows what the code really answers; a rule that
# the code no longer has fails the generator.
RULES = (
    ("`HEARTBEAT` ≤ `CONFIRM_INTERVAL` / 2", {"CONFIRM_INTERVAL": "20", "HEARTBEAT": "15"}),
    ("`CONFIRM_INTERVAL` ≤ `IDLE_TTL`", {"IDLE_TTL": "60", "CONFIRM_INTERVAL": "90"}),
    ("`RETENTION` ≥ 2 × `CREATE_DEADLINE`", {"CREATE_DEADLINE": "300", "RETENTION": "500"}),
    ("Zero and negative durations are refused", {"IDLE_TTL": "0"}),
    ("No limit is written `none`, and only where a limit may be missing", {"MAX_TURN": "none"}),
    ("Unknown names are refused, so that no misspelt limit goes unnoticed", {"IDLE_TTTL": "60"}),
)


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check only compare them; 1 when one is out of date."""
    stale = 0
    for name, text in pages():
        page = FOLDER / name
        written = page.read_text(encoding="utf-8") if page.exists() else ""
        if written == text:
            continue
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
            continue
        stale += 1
        print(f"docs/{name} is out of date: write it with ./run docs")
        before, after = written.splitlines(), text.splitlines()
        print("\n".join(difflib.unified_diff(before, after, "as it is", "as it should be", n=0)))
    return 1 if stale else 0


def pages() -> Iterator[tuple[str, str]]:
    """Every generated page: its file name and its text."""
    yield "settings.md", settings_page()
    yield "metrics.md", metrics_page()
    if importlib.util.find_spec("tasks") and importlib.util.find_spec("tasks.cli"):
        command = importlib.import_module("tasks.cli").main
        yield "cli.md", cli_page(command)
        yield "doctor.md", importlib.import_module("tasks.doctor.page").text()


def settings_page() -> str:
    """What `Settings` reads, and what it refuses."""
    lines = [
        "# Settings",
        "",
        "<!-- Generated from core/settings.py by ./run docs. -->",
        "",
        f"Environment variables with the prefix `{PREFIX}`, read once and checked at start.",
        "Durations are seconds and may be fractions; all of them may be short, so that a test can",
        "run the real thing in seconds. A provider has settings of its own, which its page",
        "describes.",
        "",
        f"| `{PREFIX}…` | Default | Meaning |",
        "|---|---|---|",
    ]
    lines += [settings_row(name, field) for name, field in Settings.model_fields.items()]
    files = " and ".join(f"`{PREFIX}{name}_FILE`" for name in FROM_FILES)
    lines += [
        "",
        "Secrets and prices may be in files. A variable is refused when its file is named too:",
        f"{files}.",
        "",
        "## What is checked at start",
        "",
        "A process with settings that break a rule does not start. It says which one, and what to",
        "do.",
    ]
    for rule, example in RULES:
        assignment = " ".join(f"{PREFIX}{name}={value}" for name, value in example.items())
        lines += ["", f"- {rule}. `{assignment}` is answered:", "", f"  > {refusal(example)}"]
    return "\n".join(lines) + "\n"


def settings_row(name: str, field: FieldInfo) -> str:
    """One line of the table."""
    if not field.description:
        raise ValueError(f"core/settings.py: {name} has no description")
    meaning = field.description.replace("|", "\\|")
    return f"| `{name.upper()}` | {default(name, field)} | {meaning} |"


def metrics_page() -> str:
    """What `/metrics` says, and where it has that from."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated from core/web/metrics.py by ./run docs. -->",
        "",
        "`GET /metrics` of any API server, with a token of the scope `read` and of no tenant. All",
        "of it is in the database, so every server of an installation says the same, whichever",
        "process did it and is dead since: take `max()` over servers, never `sum()`.",
        "",
        "Gauges are counted at the scrape. Counters and histograms of events have every line of",
        "the ledger exactly once; each sweep adds what is new, so they are a sweep behind, and",
        f"`{PREFIX_OF_METRICS}uncounted_seconds` says so when it is more. On PostgreSQL a",
        "transaction that has written to the ledger and does not end holds them up. After a",
        "restore from a backup they are what they were then. Sweeps that die before their end are",
        "not in the figures of sweeps.",
        "",
        "Alerts and a dashboard are in [deploy/](../deploy); [runbook.md](runbook.md) says what to",
        "do.",
        "",
        "| Metric | Type | Unit | Labels | Meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [metrics_row(metric) for metric in METRICS]
    lines += ["", "## Buckets", "", "Upper bounds in seconds; beyond the last one is `+Inf`.", ""]
    lines += [f"- {name}: {', '.join(bounds)}" for name, bounds in BOUNDS.items()]
    return "\n".join(lines) + "\n"


def metrics_row(metric: Metric) -> str:
    """One line of the table."""
    unit = "seconds" if metric.name.endswith("_seconds") else ""
    label = f"`{metric.label}`" if metric.label else ""
    name = f"`{PREFIX_OF_METRICS}{metric.name}`"
    return f"| {name} | {metric.type} | {unit} | {label} | {metric.says} |"


def default(name: str, field: FieldInfo) -> str:
    """The default as it would be written in an environment variable, or in words."""
    if name in DERIVED:
        return DERIVED[name]
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "`none`" if name == "max_age" else "not set"
    if value == {}:
        return "not set"
    whole = isinstance(value, float) and value.is_integer()
    return f"`{int(value) if whole else value}`"


def refusal(example: dict[str, str]) -> str:
    """What `Settings` answers to an example that breaks a rule."""
    try:
        Settings.from_env({PREFIX + name: value for name, value in example.items()})
    except SettingsError as error:
        return str(error)
    raise ValueError(f"docs/generate.py: core/settings.py accepts {example}, is the rule gone?")


def cli_page(command: click.Command) -> str:
    """The help of every command, as the program prints it."""
    lines = [
        "# Command line",
        "",
        "<!-- Generated from tasks/cli.py by ./run docs. -->",
        "",
        "In a checkout, `./run COMMAND` is the same as `sandkeeper COMMAND`.",
    ]
    for path, text in helps(command, None, "sandkeeper"):
        lines += ["", f"{'#' * (2 + path.count(' '))} {path}", "", "```", text, "```"]
    return "\n".join(lines) + "\n"


def helps(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[tuple[str, str]]:
    """The command and all below it, depth first: how it is called and its help text."""
    context = command.context_class(command, info_name=name, parent=parent)
    context.terminal_width = context.max_content_width = WIDTH
    yield context.command_path, command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found and not found.hidden:
                yield from helps(found, context, child)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
