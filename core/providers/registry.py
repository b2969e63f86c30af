"""Which provider a name means. Nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from ..errors import SettingsError, words
from .base import SandboxProvider

GROUP = "sandkeeper.providers"
BUILT_IN = {
    "daytona": ".daytona:DaytonaProvider",
    "docker": ".docker:DockerProvider",
    "e2b": ".e2b:E2BProvider",
    "kubernetes": ".kubernetes:KubernetesProvider",
    "local": ".local:LocalProvider",
    "modal": ".modal:ModalProvider",
    "opensandbox": ".opensandbox:OpenSandboxProvider",
}
# What needs more than Sandkeeper itself does, by the name of its extra.
EXTRAS = {"docker", "kubernetes", "modal"}
METHODS = ("from_env", "scope", "create", "get", "destroy", "list", "extend")


def load_provider(name: str, environ: Mapping[str, str]) -> SandboxProvider:
    """
    Make the provider of this name from environment variables: one of ours, an entry point of the
    group `sandkeeper.providers`, or `module:Class`. Raises SettingsError when there is none, when
    it cannot be imported, when it is no provider, or when it refuses its settings.
    """
    found = _load(name)
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing or not isinstance(found, type):
        lacks = f"it has no {', '.join(missing)}" if missing else "it is no class"
        raise SettingsError(
            f"SANDKEEPER_PROVIDER={name} is no provider ({lacks}): see core/providers/base.py"
        )
    provider: SandboxProvider = found.from_env(environ)  # type: ignore[attr-defined]  # see above
    named = isinstance(getattr(provider, "name", None), str)
    if not named or not isinstance(getattr(provider, "capabilities", None), frozenset):
        raise SettingsError(
            f"SANDKEEPER_PROVIDER={name} makes no provider: it lacks `name`, or `capabilities` "
            "as a frozenset"
        )
    return provider


def _load(name: str) -> object:
    registered = _registered()
    try:
        if name in BUILT_IN:  # the plain tree has no entry points, and ours cannot be replaced
            module, attribute = BUILT_IN[name].split(":")
            return getattr(import_module(module, __package__), attribute)
        if name in registered:
            return registered[name].load()
        module, colon, attribute = name.partition(":")
        if module and colon and attribute:
            return getattr(import_module(module), attribute)
    except Exception as error:
        hint = ""
        if name in EXTRAS and isinstance(error, ModuleNotFoundError):
            hint = f": install it by `pip install 'sandkeeper[{name}]'`"
        raise SettingsError(
            f"SANDKEEPER_PROVIDER={name} cannot be imported: {words(error)}{hint}"
        ) from error
    known = ", ".join(sorted({*BUILT_IN, *registered}))
    raise SettingsError(
        f"SANDKEEPER_PROVIDER={name} is not known: use {known}, or `module:Class` of your own"
    )


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
