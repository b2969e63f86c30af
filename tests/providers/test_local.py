from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from core.errors import (
    ForeignConflict,
    InvalidSpec,
    ProviderError,
    SettingsError,
    Unavailable,
    Unsupported,
)
from core.providers import local
from core.providers.base import ProviderState, SandboxRef, Spec
from core.providers.local import LocalProvider
from core.providers.trial import Subject, in_processes
from tests.providers.contract import ProviderContract, eventually
from tests.providers.local_ground import LABELS, Ground, is_alive

PATH = "core.providers.local:LocalProvider"


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """A registry whose processes are killed in the end, whatever happened."""
    ground = Ground(tmp_path / "root")
    yield ground
    ground.clear()


def _shows_only(allowed: set[str], fds: Path) -> bool:
    try:
        return {str(fd.readlink()) for fd in fds.iterdir()} <= allowed
    except FileNotFoundError:
        return False  # one was closed while we looked


def scope(subject: Subject) -> str:
    """The scope as another process sees it."""
    return subject.handle().scope()


class TestContract(ProviderContract):
    """Provider `local` keeps the contract."""

    provider_path = PATH

    @pytest.fixture
    def environ(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
        """A registry of its own, with pages that are too small for all."""
        monkeypatch.setattr(local, "PAGE", 2)
        yield {
            "SANDKEEPER_LOCAL_ROOT": str(tmp_path / "root"),
            "SANDKEEPER_LOCAL_GRACE": "0.5",
        }
        Ground(tmp_path / "root").clear()


class TestSettings:
    """What from_env() takes."""

    def test_defaults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without settings the registry is below the current directory, wherever that is later."""
        monkeypatch.chdir(tmp_path)
        provider = LocalProvider.from_env({"SANDKEEPER_OTHER": "x"})
        monkeypatch.chdir("/")

        work = provider.workdir(SandboxRef(name="a"))
        assert work == tmp_path / ".sandkeeper/local/a/work"

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("SANDKEEPER_LOCAL_GRACE", "soon"),
            ("SANDKEEPER_LOCAL_GRACE", "-1"),
            ("SANDKEEPER_LOCAL_GRACE", "nan"),
            ("SANDKEEPER_LOCAL_GRACE", "inf"),
            ("SANDKEEPER_LOCAL_ROOT", " "),
            ("SANDKEEPER_LOCAL_GRAZE", "1"),
        ],
    )
    def test_nonsense_is_refused(self, variable: str, value: str) -> None:
        """The error names the variable and its value; a misspelt one is no silent default."""
        with pytest.raises(SettingsError) as caught:
            LocalProvider.from_env({variable: value})

        assert variable in str(caught.value)
        assert value in str(caught.value)

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
    def test_a_kernel_without_pidfds_is_explained(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where processes cannot be held safely, the constructor says what to do instead."""

        def refuse(pid: int) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pidfd_open", refuse)
        with pytest.raises(Unsupported, match="SANDKEEPER_PROVIDER"):
            LocalProvider(tmp_path)

    def test_another_system_is_explained(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Likewise where Python has no such call at all."""
        monkeypatch.delattr(os, "pidfd_open")
        with pytest.raises(Unsupported, match="Linux"):
            LocalProvider(tmp_path)


class TestSpec:
    """What create() takes."""

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../x", "a/b", "A", "a\n", "x" * 64, "id", ".locks", "a\0"]
    )
    def test_names_are_no_paths(self, name: str, ground: Ground) -> None:
        """A name that could mean anything to a path is refused by every call."""
        ref, soon = SandboxRef(name=name), time.monotonic() + 5
        calls: list[Callable[[], object]] = [
            lambda: ground.create(name),
            lambda: ground.get(name),
            lambda: ground.destroy(name),
            lambda: ground.provider.extend(ref, ttl=1.0, deadline=soon),
            lambda: ground.provider.workdir(ref),
        ]
        for call in calls:
            with pytest.raises(InvalidSpec, match="1 to 63"):
                call()

    @pytest.mark.parametrize(
        "spec",
        [
            Spec(image="python:3.13"),
            Spec(options={"cpus": 1}),
            Spec(command=("",)),
            Spec(command=("echo", "a\0b")),
            Spec(env={"A=B": "c"}),
            Spec(env={"SANDKEEPER_SANDBOX": "another"}),
            Spec(command=("no-such-command-anywhere",)),
            Spec(command=("./missing",)),
            Spec(command=("/etc/passwd",)),
        ],
    )
    def test_what_can_never_run_is_refused(self, spec: Spec, ground: Ground) -> None:
        """InvalidSpec, and neither folder nor lock nor process stays."""
        with pytest.raises(InvalidSpec):
            ground.provider.create("a", LABELS, spec, ttl=None, deadline=time.monotonic() + 9)

        eventually(lambda: ground.nothing_is_left("a"))  # who said no is a moment in exiting
        assert ground.get("a") is None

    @pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_ttl_is_a_duration(self, ttl: float, ground: Ground) -> None:
        """What is no number of seconds is refused, not rounded to something."""
        with pytest.raises(InvalidSpec, match="ttl"):
            ground.create("a", ttl=ttl)


class TestSurroundings:
    """What a sandbox gets to see, and what it does not."""

    def test_secrets_do_not_leak(self, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
        """No process of a sandbox has the server's environment; its own is what the spec says."""
        monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@db/x")
        spec = Spec(command=("sleep", "1000"), env={"TASK": "42"})
        ground.provider.create("a", LABELS, spec, ttl=None, deadline=time.monotonic() + 9)

        for pid in ground.alive():
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        text = Path(f"/proc/{ground.main('a')}/environ").read_text().rstrip("\0")
        environ = dict(line.split("=", 1) for line in text.split("\0"))
        marks = {"SANDKEEPER_SANDBOX", "SANDKEEPER_SANDBOX_ROOT"}
        assert set(environ) - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", "TASK"} | marks
        assert environ["HOME"] == str(ground.root / "a/work")

    def test_descriptors_do_not_leak(self, ground: Ground) -> None:
        """A descriptor of the server is in no process of the sandbox, inheritable or not."""
        ours = os.open("/etc/hostname", os.O_RDONLY)
        os.set_inheritable(ours, True)
        ground.create("a", "sleep", "1000")
        os.close(ours)

        allowed = {"/dev/null", str(ground.root / "a"), str(ground.root / "a/output.log")}
        for pid in (ground.supervisor("a"), ground.main("a")):
            fds = Path(f"/proc/{pid}/fd")
            # A moment after create() returns the supervisor still closes what it answered through.
            eventually(partial(_shows_only, allowed, fds))

    def test_it_is_nobodys_child(self, ground: Ground) -> None:
        """Supervisor and command have sessions of their own: no ^C, no zombie of the server's."""
        ground.create("a", "sleep", "1000")
        supervisor, main = ground.supervisor("a"), ground.main("a")

        assert os.getsid(supervisor) == supervisor
        assert os.getsid(main) == main
        assert supervisor not in ground.children(os.getpid())

    def test_a_turn_finds_its_files(self, ground: Ground) -> None:
        """The work directory is where the command runs, its output beside it."""
        ground.create("a", "sh", "-c", "echo hello; echo there > file; exec sleep 1000")
        work = ground.provider.workdir(SandboxRef(name="a"))

        eventually(lambda: (work / "file").exists() and (work / "file").read_text() == "there\n")
        assert (ground.root / "a/output.log").read_text() == "hello\n"


class TestRegistry:
    """What the folder says, and what is never concluded from it."""

    def test_everybody_sees_one_scope(self, tmp_path: Path) -> None:
        """Processes that open a new registry at once agree on its name."""
        environ = {"SANDKEEPER_LOCAL_ROOT": str(tmp_path / "root")}

        assert len(set(in_processes(4, scope, Subject(provider=PATH, environ=environ)))) == 1

    @pytest.mark.parametrize("call", ["scope", "create", "get", "destroy", "list", "extend"])
    def test_a_registry_that_cannot_be_read_concludes_nothing(
        self, call: str, tmp_path: Path
    ) -> None:
        """A file in its place, as a full or a read-only disk: Unavailable, in words."""
        (tmp_path / "root").write_text("")
        provider = Ground(tmp_path / "root").provider
        ref, soon = SandboxRef(name="a"), time.monotonic() + 5
        calls: Mapping[str, Callable[[], object]] = {
            "scope": provider.scope,
            "create": lambda: provider.create("a", LABELS, Spec(), ttl=None, deadline=soon),
            "get": lambda: provider.get(ref, deadline=soon),
            "destroy": lambda: provider.destroy(ref, deadline=soon),
            "list": lambda: provider.list({}, cursor=None, deadline=soon),
            "extend": lambda: provider.extend(ref, ttl=1.0, deadline=soon),
        }
        with pytest.raises(Unavailable, match="writable"):
            calls[call]()

    def test_a_registry_that_was_replaced_concludes_nothing(self, ground: Ground) -> None:
        """Another registry in its place is not an absence of all sandboxes."""
        ground.provider.scope()
        ground.root.rename(ground.root.with_name("moved"))
        LocalProvider(ground.root).scope()

        with pytest.raises(Unavailable, match="bring it back"):
            ground.get("a")

    def test_two_registries_never_mix(self, ground: Ground, tmp_path: Path) -> None:
        """A sandbox of the same name below another root is not seen and not touched."""
        other = Ground(tmp_path / "other")
        try:
            other.create("a", "sleep", "1000")
            assert ground.get("a") is None
            ground.create("a", "sleep", "1000")
            ground.destroy("a")

            assert other.state("a") is ProviderState.RUNNING
            assert is_alive(other.main("a"))
        finally:
            other.clear()

    def test_a_damaged_record_is_not_an_absence(self, ground: Ground) -> None:
        """UNKNOWN, listed when no labels are asked for, adopted by nobody; destroy still works."""
        ground.create("a", "sleep", "1000")
        (ground.root / "a/record.json").write_text('{"version": 1, "na')

        assert ground.state("a") is ProviderState.UNKNOWN
        page = ground.provider.list({}, cursor=None, deadline=time.monotonic() + 5)
        assert [item.state for item in page.items] == [ProviderState.UNKNOWN]
        with pytest.raises(Unavailable, match="damaged"):
            ground.create("a")
        ground.destroy("a")
        assert ground.nothing_is_left("a")

    def test_processes_without_a_folder_are_found(self, ground: Ground) -> None:
        """Who moved the folder away did not end the sandbox: get sees it, destroy ends it."""
        ground.create("a", "sleep", "1000")
        (ground.root / "a").rename(ground.root.with_name("elsewhere"))

        assert ground.state("a") is ProviderState.UNKNOWN
        ground.destroy("a")
        assert ground.get("a") is None
        assert not ground.alive()

    def test_a_registry_that_is_deleted_leaves_nothing_running(self, ground: Ground) -> None:
        """After `rm -r` of the folder the supervisor ends the sandbox by itself."""
        ground.create("a", "sleep", "1000")
        subprocess.run(["rm", "-r", str(ground.root)], check=True)

        eventually(lambda: not ground.alive())

    def test_folders_of_others_are_left_alone(self, ground: Ground) -> None:
        """A folder without a record is not ours: not listed, not adopted, never removed."""
        ground.provider.scope()
        (ground.root / "notes").mkdir()
        (ground.root / "notes/precious").write_text("x")

        page = ground.provider.list({}, cursor=None, deadline=time.monotonic() + 5)
        assert page.items == ()
        for call in (ground.create, ground.destroy):
            with pytest.raises(ForeignConflict):
                call("notes")
        assert (ground.root / "notes/precious").exists()

    def test_another_pid_namespace_is_not_judged(self, ground: Ground) -> None:
        """Its processes are not to be seen from here: get and destroy refuse, the list goes on."""
        ground.create("a", "sleep", "1000")
        ground.rewrite("a", namespace=1)

        for call in (ground.get, ground.destroy, ground.create):
            with pytest.raises(Unavailable, match="another pid namespace"):
                call("a")
        page = ground.provider.list(LABELS, cursor=None, deadline=time.monotonic() + 5)
        assert [item.state for item in page.items] == [ProviderState.UNKNOWN]
        assert is_alive(ground.main("a"))

    def test_another_boot_ended_it(self, ground: Ground) -> None:
        """A record of an earlier boot has no process any more, whoever has its pid now."""
        ground.create("a")
        ground.rewrite("a", boot="00000000-earlier")

        assert ground.state("a") is ProviderState.FAILED
        ground.destroy("a")
        assert ground.nothing_is_left("a")

    def test_a_deep_and_locked_tree_is_removed(self, ground: Ground) -> None:
        """Folders nested deeper than a path may be long, or without any rights, go too."""
        ground.script(
            "a",
            "for _ in range(1500):\n    os.mkdir('deeper')\n    os.chdir('deeper')\n"
            "os.chmod('.', 0)\nos.chdir(os.environ['HOME'])\nos.symlink('/etc', 'link')",
        )

        ground.destroy("a")

        assert ground.nothing_is_left("a")
        assert Path("/etc/passwd").exists()

    def test_extend_refuses_what_does_not_run(self, ground: Ground) -> None:
        """Without a supervisor nobody would keep the promise."""
        ground.create("a", "true")
        eventually(lambda: ground.state("a") is ProviderState.FAILED)

        with pytest.raises(ProviderError, match="nothing was extended"):
            ground.provider.extend(SandboxRef(name="a"), ttl=60.0, deadline=time.monotonic() + 5)
