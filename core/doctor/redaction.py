"""No finding says a secret, whatever a driver or a provider puts into its errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from ..settings import HIDDEN, PREFIX

HIDES = "(hidden)"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_API_TOKEN = re.compile(r"sk_[^\s:]+_([^\s:_]+)")
SHORTEST = 4  # characters: what is shorter would hide half of every sentence
SHORTEST_NAMED = 6  # where only a name says that it is one: `true` may be the value of anything


@dataclass(frozen=True)
class Redaction:
    """What must not be said."""

    secrets: tuple[str, ...]

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """Whatever in this environment is named like a secret, and passwords inside of URLs."""
        found = {secret for name, value in environ.items() for secret in _secrets(name, value)}
        kept = (secret for secret in found if len(secret) >= SHORTEST)
        return cls(tuple(sorted(kept, key=len, reverse=True)))

    def hide(self, text: str) -> str:
        """The same without them; a secret that is part of a longer word is left in that word."""
        for secret in self.secrets:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDES, text)
        return text


def _secrets(name: str, value: str) -> Iterator[str]:
    if name.startswith(PREFIX) and name.endswith("_FILE"):
        name, value = name.removesuffix("_FILE"), _content(value)
    yield from _of_url(value)
    if name == f"{PREFIX}SPEC":
        yield from _leaves(value)
    elif name.removeprefix(PREFIX) in HIDDEN or _SECRET_NAME.search(name):
        if len(value) >= SHORTEST_NAMED:
            yield value.strip()
        yield from _API_TOKEN.findall(value)


def _of_url(value: str) -> Iterator[str]:
    for part in value.split(";"):  # a broker may have several
        try:
            password = urlsplit(part.strip()).password
        except ValueError:
            continue
        if password:
            yield password
            yield unquote(password)


def _leaves(value: str) -> Iterable[str]:
    """Every value of the environment that a sandbox is given."""
    try:
        env = json.loads(value)["env"]
        return [str(secret) for secret in env.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [value]


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
