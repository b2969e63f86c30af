"""What a provider is tried with: handles, sandboxes with names and labels like ours, a watch."""

from __future__ import annotations

import multiprocessing
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from ..errors import ProviderError
from ..model import new_key, sandbox_labels, sandbox_name
from .base import Page, SandboxInfo, SandboxProvider, SandboxRef, Spec
from .registry import load_provider

Result = TypeVar("Result")
LOOK_EVERY = 0.02  # seconds
LONG = 300.0  # seconds of a TTL that does not run out while one check lasts


class NotKept(Exception):
    """The provider does not do what the contract says; the message says what it did."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """
    Which provider is tried, by its name as in SANDKEEPER_PROVIDER, and what it can bear. Two
    handles made of one `environ` have to be handles of the same backend. Times are in seconds.
    """

    provider: str
    environ: Mapping[str, str] = field(default_factory=dict)
    spec: Spec = field(default_factory=Spec)
    several: int = 5  # sandboxes to list: more than one page, if pages can be made that small
    short: float = 2.0  # the shortest TTL that it keeps
    patience: float = 60.0  # for one call, and for a destroy to be confirmed
    lag: float = 0.0  # for a listing to show what happened

    def handle(self) -> SandboxProvider:
        """A fresh one."""
        return load_provider(self.provider, self.environ)


class Trial:
    """
    One check's sandboxes. They belong to an installation that nobody else has; `close` destroys
    whatever was made, and waits until it is gone. `seconds` is how long each kind of call took.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.provider = subject.handle()
        self.other = subject.handle()
        self.installation = secrets.token_hex(4)
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._labels: dict[str, dict[str, str]] = {}

    @property
    def labels(self) -> dict[str, str]:
        """What all of its sandboxes are found by."""
        return {"sandkeeper-installation": self.installation, "sandkeeper-schema": "1"}

    def name(self, installation: str = "") -> str:
        """A fresh one; its labels are those that a row of ours would give it."""
        key = new_key(secrets.randbits)
        name = sandbox_name(installation or self.installation, key)
        self._labels[name] = sandbox_labels(
            installation or self.installation, key, f"trial-{key}", 1, datetime.now(UTC)
        )
        return name

    def labels_of(self, name: str) -> dict[str, str]:
        """The same at every call."""
        return dict(self._labels[name])

    def soon(self) -> float:
        """A deadline that is generous."""
        return time.monotonic() + self.subject.patience

    def create(
        self, name: str, *, ttl: float = LONG, by: SandboxProvider | None = None
    ) -> SandboxInfo:
        """Make it, by the one handle or the other."""
        provider, labels = by or self.provider, self.labels_of(name)
        return self._timed(
            "create",
            lambda: provider.create(name, labels, self.subject.spec, ttl=ttl, deadline=self.soon()),
        )

    def get(self, ref: SandboxRef, *, by: SandboxProvider | None = None) -> SandboxInfo | None:
        """Look one up."""
        return self._timed("get", lambda: (by or self.provider).get(ref, deadline=self.soon()))

    def present(self, ref: SandboxRef, *, by: SandboxProvider | None = None) -> SandboxInfo:
        """Look up one that has to be there."""
        found = self.get(ref, by=by)
        if found is None:
            raise NotKept(f"get does not find {ref}")
        return found

    def destroy(self, ref: SandboxRef, *, by: SandboxProvider | None = None) -> None:
        """Make it go away."""
        self._timed("destroy", lambda: (by or self.provider).destroy(ref, deadline=self.soon()))

    def extend(self, ref: SandboxRef, ttl: float) -> datetime | None:
        """Move its expiry."""
        return self._timed(
            "extend", lambda: self.provider.extend(ref, ttl=ttl, deadline=self.soon())
        )

    def listed(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        """What all pages have."""
        return all_items(partial(self._page, labels))

    def _page(self, labels: Mapping[str, str], cursor: str | None) -> Page:
        return self._timed(
            "list", lambda: self.provider.list(labels, cursor=cursor, deadline=self.soon())
        )

    def waits_for(self, condition: Callable[[], bool], words: str, patience: float = -1) -> None:
        """Returns when it holds; NotKept when it does not in time."""
        until = time.monotonic() + (self.subject.patience if patience < 0 else patience)
        while not condition():
            if time.monotonic() >= until:
                raise NotKept(words)
            time.sleep(LOOK_EVERY)

    def close(self) -> None:
        """Leave nothing. NotKept when something cannot be made to go."""
        for name in self._labels:
            self.waits_for(partial(self._is_gone, name), f"{name} cannot be destroyed")

    def _is_gone(self, name: str) -> bool:
        ref = SandboxRef(name=name)
        with suppress(ProviderError):
            self.provider.destroy(ref, deadline=self.soon())
            return self.provider.get(ref, deadline=self.soon()) is None
        return False

    def _timed(self, call: str, do: Callable[[], Result]) -> Result:
        began = time.monotonic()
        result = do()
        self.seconds[call].append(time.monotonic() - began)
        return result


def all_items(look: Callable[[str | None], Page]) -> list[SandboxInfo]:
    """What all pages of a listing have; `look` gives the one that a cursor leads to."""
    page = look(None)
    items = [*page.items]
    while page.cursor is not None:
        page = look(page.cursor)
        items += page.items
    return items


def in_processes(count: int, call: Callable[..., Result], *arguments: object) -> list[Result]:
    """Run it in so many fresh processes at once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        return [future.result() for future in [pool.submit(call, *arguments) for _ in range(count)]]
