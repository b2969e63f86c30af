from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from core.errors import SettingsError
from core.providers import registry
from core.providers.local import LocalProvider
from core.providers.registry import load_provider

ROOT = Path(__file__).parents[2]


class NoProvider:
    """Lacks nearly everything."""

    @classmethod
    def from_env(cls, _: object) -> NoProvider:
        """Make one."""
        return cls()


class Nameless(LocalProvider):
    """All methods, and no name."""

    name = property()


def test_local_needs_no_installation(tmp_path: Path) -> None:
    """In the plain tree `local` is there without any entry point, with its settings."""
    provider = load_provider("local", {"SANDKEEPER_LOCAL_ROOT": str(tmp_path)})

    assert isinstance(provider, LocalProvider)
    assert provider.scope().startswith("local:")


def test_module_and_class(tmp_path: Path) -> None:
    """`module:Class` names a provider of the user's own."""
    path = "core.providers.local:LocalProvider"
    provider = load_provider(path, {"SANDKEEPER_LOCAL_ROOT": str(tmp_path)})

    assert provider.name == "local"


def test_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package may bring a provider; it cannot replace ours."""
    good = EntryPoint("mine", "core.providers.local:LocalProvider", registry.GROUP)
    thief = EntryPoint("local", "os:path", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [good, thief])

    for name in ("mine", "local"):
        provider = load_provider(name, {"SANDKEEPER_LOCAL_ROOT": str(tmp_path)})
        assert isinstance(provider, LocalProvider)


def test_the_entry_points_are_those_that_are_built_in() -> None:
    """Who looks into an installation for its providers finds all of them, and the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project["entry-points"][registry.GROUP] == {
        name: f"sandkeeper.core.providers{where}" for name, where in registry.BUILT_IN.items()
    }


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_no_plugin_replaces_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can install a package could otherwise make another's sandboxes."""
    thief = EntryPoint(name, "os:path", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [thief])

    found = registry._load(name)

    assert getattr(found, "__module__", None) == f"core.providers.{name}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dokcer", "use daytona, docker, e2b, kubernetes, local, modal, opensandbox"),
        ("", "use daytona, docker, e2b, kubernetes, local, modal, opensandbox"),
        (":Class", "use daytona, docker, e2b, kubernetes, local, modal, opensandbox"),
        ("no_such_module:Class", "No module named 'no_such_module'"),
        ("core.providers.local:NoSuchClass", "NoSuchClass"),
        (f"{__name__}:NoProvider", "it has no scope, create, get, destroy, list, extend"),
        (f"{__name__}:Nameless", "lacks `name`"),
        ("core.providers.registry:load_provider", "it has no from_env"),
    ],
)
def test_what_is_no_provider_is_refused(name: str, words: str, tmp_path: Path) -> None:
    """The error names the variable, its value, and what is known or what went wrong."""
    with pytest.raises(SettingsError) as caught:
        load_provider(name, {"SANDKEEPER_LOCAL_ROOT": str(tmp_path)})

    assert f"SANDKEEPER_PROVIDER={name} " in str(caught.value)
    assert words in str(caught.value)


def test_a_module_that_fails_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens while a user's module is imported, the cause is told."""
    (tmp_path / "sandkeeper_broken.py").write_text("raise ValueError('out of order')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SettingsError, match="ValueError: out of order"):
        load_provider("sandkeeper_broken:Class", {})


def test_the_provider_checks_its_own_settings() -> None:
    """What from_env() refuses is refused here, in its words."""
    with pytest.raises(SettingsError, match="SANDKEEPER_LOCAL_GRACE='soon'"):
        load_provider("local", {"SANDKEEPER_LOCAL_GRACE": "soon"})
