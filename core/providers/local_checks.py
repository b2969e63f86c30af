"""What provider `local` accepts: names, specs, durations, settings. Nothing is touched in here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import InvalidSpec, SettingsError
from .base import Spec

NAME = re.compile(r"[a-z0-9-]{1,63}")
RESERVED = {"id"}  # a file of the registry
PREFIX = "SANDKEEPER_LOCAL_"
MARK, ROOT_MARK = "SANDKEEPER_SANDBOX", "SANDKEEPER_SANDBOX_ROOT"


def check_name(name: str) -> None:
    """Raises InvalidSpec: a name becomes a path, so nothing in it may mean anything to one."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InvalidSpec(f"sandbox name {name!r}: use 1 to 63 of a-z 0-9 -, and not `id`")


def check_ttl(ttl: float) -> None:
    """Raises InvalidSpec unless it is a duration."""
    if not (math.isfinite(ttl) and ttl > 0):
        raise InvalidSpec(f"ttl {ttl!r}: give seconds, more than 0")


def check_spec(spec: Spec, labels: Mapping[str, str]) -> None:
    """Raises InvalidSpec that names what is wrong with it."""
    if spec.image is not None:
        raise InvalidSpec(f"image {spec.image!r}: provider `local` runs commands of this host")
    if spec.options:
        raise InvalidSpec(f"options {sorted(spec.options)}: provider `local` has none")
    for marker in (MARK, ROOT_MARK):
        if marker in spec.env:
            raise InvalidSpec(f"env {marker}: it marks the sandbox, leave it out")
    if spec.command and not spec.command[0]:
        raise InvalidSpec("command: its first word is empty")
    for text in (*spec.command, *spec.env.values()):
        _check_text(text)
    for key, value in (*spec.env.items(), *labels.items()):
        _check_text(key)
        _check_text(value)
    for key in spec.env:
        if not key or "=" in key:
            raise InvalidSpec(f"env {key!r}: a name is not empty and has no `=`")


def settings(environ: Mapping[str, str]) -> tuple[Path, float]:
    """The root and the grace, or SettingsError."""
    known = {f"{PREFIX}ROOT", f"{PREFIX}GRACE"}
    for variable, value in environ.items():
        if variable.startswith(PREFIX) and variable not in known:
            raise SettingsError(
                f"{variable}={value} is not a setting: known are {', '.join(sorted(known))}"
            )
    root = environ.get(f"{PREFIX}ROOT", ".sandkeeper/local")
    if not root.strip() or "\0" in root:
        raise SettingsError(f"{PREFIX}ROOT={root!r}: give the path of a folder, or unset it")
    return Path(root).expanduser().absolute(), _grace(environ.get(f"{PREFIX}GRACE", "2"))


def _grace(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 3600:
        raise SettingsError(
            f"{PREFIX}GRACE={value!r}: give the seconds between SIGTERM and SIGKILL, 0 to 3600"
        )
    return seconds


def _check_text(text: object) -> None:
    try:
        if isinstance(text, str) and b"\0" not in os.fsencode(text):
            return
    except UnicodeEncodeError:
        pass
    raise InvalidSpec(f"{text!r}: give text without NUL, as the kernel takes it")
