"""What a check of the contract is, and how a function becomes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .base import Capability, SandboxProvider
from .trial import NotKept, Trial


@dataclass(frozen=True)
class Check:
    """What `promise` says. It concerns who claims `needs`, and who does not claim `lacks`."""

    name: str
    promise: str
    run: Callable[[Trial], None]
    needs: Capability | None = None
    lacks: Capability | None = None

    def concerns(self, provider: SandboxProvider) -> bool:
        """Whether the provider claims what this is about."""
        claimed = provider.capabilities
        return (self.needs is None or self.needs in claimed) and self.lacks not in claimed


CHECKS: list[Check] = []


def check(
    *, needs: Capability | None = None, lacks: Capability | None = None
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Make a function one of them: its name and the first line of its docstring are for people."""

    def add(run: Callable[[Trial], None]) -> Callable[[Trial], None]:
        promise = (run.__doc__ or "").strip().splitlines()[0]
        CHECKS.append(Check(run.__name__, promise, run, needs, lacks))
        return run

    return add


def expect(holds: object, words: str) -> None:
    """NotKept, unless it holds."""
    if not holds:
        raise NotKept(words)
