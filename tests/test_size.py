"""How much `pip install sandkeeper` puts on a disk, by what the wheels say of themselves."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 60_000_000  # bytes, without byte code
SELF = "sandkeeper"


def test_an_installation_without_extras_is_small() -> None:
    """Below 60 MB with everything that it needs: images and functions are made of it."""
    sizes = {name: size_of(name) for name in needed()} | {SELF: size_of_ours()}

    shown = sorted(((size, name) for name, size in sizes.items()), reverse=True)
    assert {"celery", "sqlalchemy", "pydantic-core"} <= sizes.keys()
    assert sum(sizes.values()) < LARGEST, shown


def test_no_vendor_and_no_driver_is_needed() -> None:
    """What only some users want is an extra, and is not even pulled in by something else."""
    extras = {"docker", "kubernetes", "modal", "psycopg", "psycopg-binary"}

    assert needed() & extras == set()


def test_no_extra_is_imported() -> None:
    """Face, command line and Celery app stand without what the extras bring."""
    code = """
import sys
sys.modules.update(dict.fromkeys(("docker", "kubernetes", "modal", "psycopg")))
import core, core.wiring, tasks, tasks.cli
core.wiring.make_engine("sqlite:///never-opened.db")
"""

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def needed() -> set[str]:
    """The names of all distributions that an installation without extras has on this platform."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(line) for line in project["dependencies"]]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in done:
            continue
        done.add((name, frozenset(requirement.extras)))
        further = map(Requirement, distribution(name).requires or [])
        waiting += [each for each in further if applies(each, requirement.extras)]
    return {name for name, _ in done}


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether it holds here, for somebody who asked for these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def size_of(name: str) -> int:
    """Bytes of its files, as its wheel lists them, without byte code that an installer added."""
    files = distribution(name).files
    assert files, f"{name} does not list its files"
    return sum(file.size or 0 for file in files if file.suffix != ".pyc")


def size_of_ours() -> int:
    """Bytes of what our wheel has."""
    ours = [*ROOT.glob("core/**/*"), *ROOT.glob("tasks/**/*"), ROOT / "celeryconfig.py"]
    return sum(
        path.stat().st_size for path in ours if path.is_file() and "__pycache__" not in path.parts
    )
