"""What users install: built here from the tree, without the network, and looked into."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from core.providers.registry import BUILT_IN

ROOT = Path(__file__).resolve().parent.parent
OURS = ("core", "tasks", "celeryconfig")
IN_CELERY = ("breaker", "quarantine", "sandkeeper", "sessions")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from the sdist, in one folder."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    return folder


@pytest.fixture(scope="module")
def site(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with the wheel and nothing else: a pure wheel is its own content."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The build hook as a module."""
    spec = importlib.util.spec_from_file_location("wheel_hook", ROOT / ".ci" / "wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(site: Path, code: str) -> str:
    """What the code prints where only the wheel and its dependencies can be imported."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SANDKEEPER_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=site,
        env={**variables, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_adds_one_name(site: Path) -> None:
    """Top-level core, tasks or celeryconfig would hide modules of the user's own."""
    added = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}

    assert added == {"sandkeeper"}


@pytest.mark.parametrize(
    "name", ["sandkeeper", "sandkeeper.core", "sandkeeper.tasks", "sandkeeper.celeryconfig"]
)
def test_every_package_can_be_imported(site: Path, name: str) -> None:
    """Renamed imports lead somewhere, and nothing of the tree is needed."""
    loaded = python(
        site,
        f"import {name}, sys; "
        f"print(*[m for m in sys.modules if m.split('.')[0] in {OURS}], {name}.__name__)",
    )

    assert loaded == name


def test_the_face_is_that_of_core(site: Path) -> None:
    """`from sandkeeper import X` works for every name that `core` offers."""
    missing = python(
        site,
        "import sandkeeper, sandkeeper.core as core; "
        "print([name for name in core.__all__ if not hasattr(sandkeeper, name)])",
    )

    assert missing == "[]"


def test_every_file_of_the_tree_is_in_the_wheel(built: Path) -> None:
    """Migrations and their templates too: `db upgrade` works from an installation."""
    tree = {f"sandkeeper/{path.relative_to(ROOT)}" for path in shipped()}

    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if name.startswith("sandkeeper/")}

    assert inside - tree == {"sandkeeper/__init__.py", "sandkeeper/py.typed"}
    assert tree <= inside
    migrations = "sandkeeper/core/migrations"
    assert {f"{migrations}/env.py", f"{migrations}/script.py.mako"} <= inside
    assert any(name.startswith(f"{migrations}/versions/") for name in inside)


def test_the_command_and_the_providers_are_registered(site: Path) -> None:
    """The entry points in the wheel lead to the renamed modules, and can be loaded."""
    loaded = python(
        site,
        "from importlib.metadata import distribution as d; "
        "print(*(f'{e.group} {e.name} {callable(e.load())}' "
        "for e in d('sandkeeper').entry_points), sep=chr(10))",
    ).splitlines()

    assert sorted(loaded) == [
        *(f"celery.commands {name} True" for name in sorted(IN_CELERY)),
        "console_scripts sandkeeper True",
        *(f"sandkeeper.providers {name} True" for name in sorted(BUILT_IN)),
    ]


def test_the_celery_app_finds_its_settings_and_tasks(site: Path) -> None:
    """`celery -A sandkeeper.tasks` knows its tasks by the names that never change."""
    tasks = python(
        site,
        "from sandkeeper.tasks import app; app.loader.import_default_modules(); "
        "print(*[n for n in app.tasks if n.startswith('sandkeeper.')], app.conf.broker_url)",
    )

    assert {"sandkeeper.reap_idle_sessions", "sandkeeper.teardown_sandbox"} <= set(tasks.split())
    assert "sandkeeper+filesystem://" in tasks


def celery(site: Path, database: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Celery's own command, where only the wheel and its dependencies can be imported."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SANDKEEPER_")}
    where = {"PYTHONPATH": str(site), "SANDKEEPER_DATABASE_URL": f"sqlite:///{database}"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "celery", "-A", "sandkeeper.tasks", *arguments],
        cwd=database.parent,
        env={**variables, **where},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_is_a_plug_in_of_celery_s(site: Path, tmp_path: Path) -> None:
    """`celery -A sandkeeper.tasks sessions ls`, and whatever else under a name of our own."""
    database = tmp_path / "sandkeeper.db"

    upgraded = celery(site, database, "sandkeeper", "db", "upgrade")
    listed = celery(site, database, "sessions", "ls", "--json")
    unknown = celery(site, database, "sessions", "show", "nobody")
    helped = celery(site, database, "--help").stdout

    assert upgraded.returncode == 0, upgraded.stderr
    assert (listed.returncode, json.loads(listed.stdout)) == (0, [])
    assert (unknown.returncode, "nobody" in unknown.stderr) == (1, True)
    assert [name for name in IN_CELERY if f" {name} " not in helped] == []


def test_celery_s_commands_wait_for_no_plug_in_of_ours(site: Path) -> None:
    """Each of them loads all plug-ins of an environment: commands are imported when called."""
    loaded = python(
        site,
        "import sys; from sandkeeper.tasks.plugin import sessions; "
        "print('sandkeeper.tasks.cli' in sys.modules, 'fastapi' in sys.modules)",
    )

    assert loaded == "False False"


def test_no_text_names_a_module_of_ours() -> None:
    """The wheel renames imports, not texts: a module named in a text would not be found there."""
    found = [
        f"{path.relative_to(ROOT)}:{line} {text!r}"
        for path in shipped()
        if path.suffix == ".py"
        for line, text in texts(path)
        if names_our_module(text)
    ]

    assert found == []


@pytest.mark.parametrize(
    ("source", "renamed"),
    [
        ("from core import Lifecycle", "from sandkeeper.core import Lifecycle"),
        ("    from core.store import x  # why", "    from sandkeeper.core.store import x  # why"),
        ("from tasks.app import (\n    app,\n)", "from sandkeeper.tasks.app import (\n    app,\n)"),
        ("import celeryconfig", "from sandkeeper import celeryconfig"),
        ("import tasks as ours", "from sandkeeper import tasks as ours"),
        ("from .core import x", "from .core import x"),
        ("from corelib import x", "from corelib import x"),
        ("from core of the matter", "from core of the matter"),
        ("text = 'from core import x'", "text = 'from core import x'"),
    ],
)
def test_the_hook_renames_our_imports_only(hook: ModuleType, source: str, renamed: str) -> None:
    """Lines that begin an import of ours change; everything else stays byte for byte."""
    assert hook.renamed(source) == renamed


@pytest.mark.parametrize("source", ["import core.store", "import tasks, os"])
def test_the_hook_refuses_what_it_cannot_rename(hook: ModuleType, source: str) -> None:
    """`import core.store` binds the name `core`, which would not exist: the build stops."""
    with pytest.raises(ValueError, match="from-import"):
        hook.renamed(source)


def shipped() -> list[Path]:
    """The files of the tree that an installation must have."""
    found = [*ROOT.glob("core/**/*.*"), *ROOT.glob("tasks/**/*.*"), ROOT / "celeryconfig.py"]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every string of a Python file, with its line, but not what an f-string computes."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    computed = {
        id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)) if id(node) not in computed:
                yield node.lineno, text


def names_our_module(text: str) -> bool:
    """True for `celeryconfig` and for `core.x`, `tasks.x:y` when the tree has such a module."""
    top, _, rest = text.partition(":")[0].partition(".")
    if top not in OURS or not all(
        part.isidentifier() for part in text.partition(":")[0].split(".")
    ):
        return False
    path = ROOT.joinpath(top, *rest.split(".")) if rest else ROOT / top
    return text == "celeryconfig" or (
        bool(rest) and (path.is_dir() or path.with_suffix(".py").exists())
    )
