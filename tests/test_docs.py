"""What the pages say is what the code does."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from core.events import EventKind
from core.model import SandboxState, SessionStatus
from core.providers.registry import BUILT_IN
from core.settings import PREFIX, PROVIDER_PREFIXES, Settings
from tasks.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIFECYCLE = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def commands(group: click.Group, *before: str) -> set[tuple[str, ...]]:
    """Every command of the command line, as the words that call it."""
    found: set[tuple[str, ...]] = set()
    for name, command in group.commands.items():
        words = (*before, name)
        if isinstance(command, click.Group):
            found |= commands(command, *words)
        else:
            found.add(words)
    return found


def test_the_readme_is_read_in_one_sitting() -> None:
    """150 lines at most."""
    assert len(README.splitlines()) <= 150


def test_every_command_of_the_readme_exists() -> None:
    """What the README tells somebody to type is a command, of `./run` or of the command line."""
    known: set[tuple[str, ...]] = {
        (name,) for name in ("demo", "test", "check", "docs", "lock", "help")
    }
    known |= commands(main)
    named = [tuple(line.split()) for line in re.findall(r"\./run ([a-z][a-z -]*)", README)]

    unknown = [words for words in named if not any(words[: len(k)] == k for k in known)]

    assert named
    assert unknown == []


def test_the_readme_s_program_is_valid() -> None:
    """The integration text compiles, and imports only what is there."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    imports = "".join(line + "\n" for line in block.splitlines() if line.startswith("from "))

    compile(block, "README.md", "exec")
    exec(imports, {})  # noqa: S102 - our own page


def test_the_contract_names_every_event() -> None:
    """No event is recorded or logged that docs/lifecycle.md does not name, nor the other way."""
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", LIFECYCLE))

    missing = {kind.value for kind in EventKind} - named

    assert missing == set()


@pytest.mark.parametrize("state", [*SessionStatus, *SandboxState])
def test_the_diagram_shows_every_state(state: str) -> None:
    """The state diagram and the code have the same states."""
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", LIFECYCLE, re.DOTALL)

    assert re.search(rf"\b{state}\b", diagram)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "settings.md"], ids=lambda page: page.name
)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    """A SANDKEEPER_ name on a page is a setting, one of a provider's, or one of the tests'."""
    known = {"TEST_KUBECONFIG", *(name.upper() for name in Settings.model_fields)}
    named = set(re.findall(r"\bSANDKEEPER_([A-Z_]+[A-Z])\b", page.read_text(encoding="utf-8")))
    providers = tuple(prefix.removeprefix(PREFIX) for prefix in PROVIDER_PREFIXES)

    unknown = {
        name
        for name in named
        if name.removesuffix("_FILE") not in known and not name.startswith(providers)
    }

    assert unknown == set()


def test_every_test_that_reliability_names_is_there() -> None:
    """A table of what covers what is worth nothing once a test was renamed."""
    named = re.findall(r"`(test_[a-z_]+)(?:::(test_[a-z0-9_]+))?`", RELIABILITY)

    assert len(named) > 40
    paths = list((ROOT / "tests").rglob("test_*.py"))
    assert {file for file, _ in named} <= {path.stem for path in paths}
    everything = "".join(path.read_text(encoding="utf-8") for path in paths)
    assert [test for _, test in named if test and f"def {test}(" not in everything] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """A relative link names a file that is there."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))

    broken = [link for link in links if not (page.parent / link).exists()]

    assert broken == []


@pytest.mark.parametrize(
    ("page", "options"),
    [
        ("daytona", ["daytona_options:DaytonaOptions"]),
        ("docker", ["docker_options:DockerOptions"]),
        ("e2b", ["e2b_options:E2BOptions"]),
        ("kubernetes", ["kubernetes_options:PodOptions", "kubernetes_options:ClaimOptions"]),
        ("modal", ["modal_options:ModalOptions"]),
        ("opensandbox", ["opensandbox_options:OpenSandboxOptions"]),
    ],
)
def test_a_provider_s_page_has_its_options(page: str, options: list[str]) -> None:
    """Every option of the code is named, and every option of the table exists."""
    text = (ROOT / "docs" / "providers" / f"{page}.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| option \|.*?\n\n", text, re.DOTALL)
    in_table = set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    )
    known: set[str] = set()
    for one in options:
        module, name = one.split(":")
        known |= set(getattr(import_module(f"core.providers.{module}"), name).model_fields)

    named = set(re.findall(r"`(\w+)`", text))

    assert in_table <= known
    assert known <= named


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_provider_has_a_page_and_a_row_in_each_table(name: str) -> None:
    """Whoever chooses one finds it wherever they are compared."""
    index = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")

    assert (ROOT / "docs" / "providers" / f"{name}.md").is_file()
    assert (
        len(
            re.findall(
                rf"^\| (?:\[`{name}`\]\(providers/{name}.md\)|`{name}`)", index, re.MULTILINE
            )
        )
        >= 4
    )
