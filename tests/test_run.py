"""`run`, the script that everything starts from. Nothing here needs the network."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "run"


def load() -> ModuleType:
    """`run` as a module: it has no suffix, so it is loaded by its path."""
    loader = SourceFileLoader("run_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("run_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_script"] = module  # dataclasses look their module up
    try:
        loader.exec_module(module)
    finally:
        del sys.modules["run_script"]
    return module


@pytest.fixture
def run() -> ModuleType:
    """The script, freshly loaded."""
    return load()


@pytest.fixture
def environment(run: ModuleType, tmp_path: Path) -> Any:
    """An environment in a folder of its own, with a lock file that asks for nothing."""
    lock = tmp_path / "requirements.lock"
    lock.write_text("# nothing\n")
    return run.Environment(tmp_path / "env", lock)


class Installer:
    """Stands in for uv and pip: links a Python, counts its runs, and fails when told to."""

    def __init__(self, run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        self.fails = False
        monkeypatch.setattr(run, "ways", self.ways)

    def ways(self, folder: Path, wanted: list[str]) -> Iterator[tuple[str, list[list[str]]]]:
        self.runs += 1
        link = f"import os; os.makedirs({str(folder / 'bin')!r}); "
        link += f"os.symlink({sys.executable!r}, {str(folder / 'bin' / 'python')!r})"
        steps = [[sys.executable, "-c", link]]
        if self.fails:
            steps.append([sys.executable, "-c", "raise SystemExit(1)"])
        yield "a stand-in", steps


@pytest.fixture
def installer(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """What ./run installs with in this test."""
    return Installer(run, monkeypatch)


def test_help_names_every_command() -> None:
    """`./run` alone and `./run --help` explain themselves, at once and without installing."""
    for arguments in ([], ["--help"]):
        done = subprocess.run(
            [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=True
        )

        for command in ("demo", "up", "help", "test", "check", "docs", "lock"):
            assert f"./run {command}" in done.stdout
        assert not done.stderr


def test_an_old_python_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that is too old gets one sentence with its own version, not a traceback."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))

    with pytest.raises(SystemExit) as stopped:
        load()

    assert "this is Python 3.9.18" in str(stopped.value)
    assert "3.11 or newer" in str(stopped.value)


def test_an_old_python_can_parse_the_script() -> None:
    """The sentence is only reached when the grammar of the whole file is old."""
    ast.parse(SCRIPT.read_text(), feature_version=(3, 7))


def test_the_version_is_checked_before_anything_else_is_imported() -> None:
    """Below Python 3.11 an import may fail, so only sys comes before the check."""
    before = SCRIPT.read_text().split("if sys.version_info")[0]

    assert re.findall(r"^(?:import|from) .*", before, re.MULTILINE) == ["import sys"]


def test_an_environment_is_made_once(
    run: ModuleType, environment: Any, installer: Installer
) -> None:
    """The second call finds it ready and installs nothing."""
    run.ensure(environment)
    run.ensure(environment)

    assert installer.runs == 1


def test_another_lock_is_installed_again(
    run: ModuleType, environment: Any, installer: Installer
) -> None:
    """After the lock file changed, the old environment does not count as ready."""
    run.ensure(environment)
    environment.lock.write_text("# something else\n")

    run.ensure(environment)

    assert installer.runs == 2


def test_another_python_is_installed_again(
    run: ModuleType, environment: Any, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was built for one Python is not used with another one."""
    run.ensure(environment)
    monkeypatch.setattr(run.platform, "python_version", lambda: "3.99.0")

    run.ensure(environment)

    assert installer.runs == 2


def test_an_environment_without_its_python_is_installed_again(
    run: ModuleType, environment: Any, installer: Installer
) -> None:
    """After an upgrade of the system, the link to the old Python may lead nowhere."""
    run.ensure(environment)
    environment.python.unlink()

    run.ensure(environment)

    assert installer.runs == 2


def test_an_interrupted_installation_is_not_taken_for_finished(
    run: ModuleType, environment: Any, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last package and before the stamp, the next call begins again."""

    def killed(environment: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", killed)
        with contextlib.suppress(KeyboardInterrupt):
            run.ensure(environment)
    assert environment.python.exists()
    assert not environment.is_ready()

    run.ensure(environment)

    assert installer.runs == 2
    assert environment.is_ready()


def test_a_half_removed_environment_is_not_ready(
    run: ModuleType, environment: Any, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it replaces an old environment: the stamp went first, so it does not count."""
    run.ensure(environment)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.shutil, "rmtree", killed)
        with contextlib.suppress(KeyboardInterrupt):
            run.discard(environment.folder)

    assert environment.python.exists()
    assert not environment.is_ready()


def test_a_failed_installation_is_refused_and_leaves_nothing(
    run: ModuleType, environment: Any, installer: Installer
) -> None:
    """The user reads what was tried; nothing half made stays behind."""
    installer.fails = True

    with pytest.raises(run.Refused, match="could not install with a stand-in"):
        run.ensure(environment)

    assert not environment.folder.exists()


def test_no_way_to_install_says_what_to_install(
    run: ModuleType, environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian without python3-venv, pip and uv: the message names the package."""
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(run.Refused, match="apt install python3-venv"):
        run.ensure(environment)


def test_uv_comes_first_and_pip_follows(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With uv on PATH it is tried first; every way takes wheels only."""
    monkeypatch.setattr(run.shutil, "which", lambda name: "/somewhere/uv")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: True)

    ways = list(run.ways(Path("env"), ["--require-hashes"]))

    assert [name for name, _ in ways] == ["uv", "pip"]
    for _, commands in ways:
        assert {"--require-hashes", "--only-binary", ":all:"} <= set(commands[-1])


def test_concurrent_calls_install_once(
    run: ModuleType, environment: Any, installer: Installer
) -> None:
    """Two terminals at once: one installs, the other waits and uses what it made."""
    calls = [threading.Thread(target=run.ensure, args=(environment,)) for _ in range(4)]

    for call in calls:
        call.start()
    for call in calls:
        call.join()

    assert installer.runs == 1
    assert environment.is_ready()


def test_the_installer_holds_the_lock_of_a_killed_call(
    run: ModuleType, environment: Any, tmp_path: Path
) -> None:
    """pip may outlive a ./run that was killed: until it ends, nobody else may begin."""
    ready, go = tmp_path / "ready", tmp_path / "go"
    os.mkfifo(ready)
    os.mkfifo(go)
    code = f"open({str(ready)!r}, 'w').close(); open({str(go)!r}).read()"
    with run.alone(environment) as mutex:
        step = [sys.executable, "-c", code]
        installer = threading.Thread(target=run.install_step, args=(step, mutex))
        installer.start()
        ready.read_text()  # the installer lives; leaving this block is the death of its ./run

    held = threading.Event()
    waiter = threading.Thread(target=hold, args=(run, environment, held))
    waiter.start()
    early = held.wait(0.3)
    go.write_text("go")

    assert not early
    assert held.wait(30)
    waiter.join()
    installer.join()


def hold(run: ModuleType, environment: Any, held: threading.Event) -> None:
    """Take the environment's file lock, say so, and let it go."""
    with run.alone(environment):
        held.set()


def test_the_command_runs_in_the_callers_folder_and_takes_our_modules(
    run: ModuleType,
    environment: Any,
    installer: Installer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A `tasks` package where the user stands is not ours; relative paths stay the user's."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("")
    run.ensure(environment)
    become: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(run.os, "execve", lambda *call: become.append(call))
    look = "import importlib.util as u, json, os; "
    look += "print(json.dumps([os.getcwd(), u.find_spec('tasks').submodule_search_locations[0]]))"

    run.become(environment, "-c", look)

    [(_, arguments, variables)] = become
    done = subprocess.run(arguments, cwd=tmp_path, env=variables, capture_output=True, check=True)
    assert json.loads(done.stdout) == [str(tmp_path), str(ROOT / "tasks")]


def test_the_callers_python_path_stays_behind_ours(
    run: ModuleType, environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own provider on PYTHONPATH can be imported, but hides none of our modules."""
    monkeypatch.setenv("PYTHONPATH", "/their/modules")

    paths = run.variables(environment)["PYTHONPATH"].split(os.pathsep)

    assert paths == [str(ROOT), "/their/modules"]


@pytest.mark.parametrize(("cores", "processes"), [(2, 3), (4, 6), (1, 1), (None, 1)])
def test_three_processes_share_the_tests_of_two_cores(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, cores: int | None, processes: int
) -> None:
    """Many tests wait for others; on a machine that cannot be counted there is still one."""
    monkeypatch.setattr(run.os, "cpu_count", lambda: cores)

    assert run.testers() == processes


def test_every_check_is_run_and_those_that_failed_are_named(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they say is shown apart and in order, though they run side by side."""
    monkeypatch.setattr(run, "ensure", lambda environment: None)

    def look(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        failed = "mypy" in arguments
        return subprocess.CompletedProcess(arguments, int(failed), "wrong\n" if failed else "")

    monkeypatch.setattr(run, "look", look)

    assert run.check() == 1

    said = capsys.readouterr().out.splitlines()
    assert said == [
        "== format",
        "== lint",
        "== types",
        "wrong",
        "== imports",
        "== generated pages",
        "== failed: types",
    ]


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-test.lock", "requirements-image.lock"]
)
def test_locks_carry_hashes_and_no_address(name: str) -> None:
    """Every entry is pinned by hash, and no package index is prescribed to the user."""
    text = (ROOT / name).read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]

    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_locks_agree() -> None:
    """Tests run with exactly the versions that users get."""
    runtime, test = locked("requirements.lock"), locked("requirements-test.lock")

    assert runtime.items() <= locked("requirements-image.lock").items() <= test.items()


def test_locks_follow_the_project_file() -> None:
    """A dependency that was added or raised in pyproject.toml is in the locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime, test = locked("requirements.lock"), locked("requirements-test.lock")

    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["docker"], *extras["postgresql"]):
        assert_satisfied(line, runtime)
    for line in extras["test"]:
        assert_satisfied(line, test)
    for line in (*project["dependencies"], *(line for name in IMAGE for line in extras[name])):
        assert_satisfied(line, locked("requirements-image.lock"))


IMAGE = ("docker", "kubernetes", "modal", "postgresql")


def locked(name: str) -> dict[str, str]:
    """The versions in a lock file, by package."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def assert_satisfied(line: str, versions: dict[str, str]) -> None:
    """The lock has the required package, in a version that the requirement allows."""
    requirement = Requirement(line)
    assert versions.get(requirement.name, "") in requirement.specifier, f"./run lock: {line}"
