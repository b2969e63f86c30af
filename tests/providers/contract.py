"""
The conformance suite: what every provider must do, as tests that anybody can run on their own.

    class TestMine(ProviderContract):
        provider_path = "my_package.sandboxes:MyProvider"

        @pytest.fixture
        def environ(self):
            return {"MY_PROVIDER_TOKEN": ...}

Sandboxes are real and are destroyed afterwards, also when a test fails. The tests themselves are
`core/providers/contract.py`, so that `sandkeeper providers check` runs the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import pytest

from core.providers.base import SandboxInfo, SandboxProvider, Spec
from core.providers.contract import CHECKS, Check
from core.providers.trial import Subject, Trial, all_items


def soon() -> float:
    """A deadline that is generous, and absolute."""
    return time.monotonic() + 60


def listed(provider: SandboxProvider, labels: Mapping[str, str]) -> list[SandboxInfo]:
    """What all pages of a listing have."""
    return all_items(lambda cursor: provider.list(labels, cursor=cursor, deadline=soon()))


def eventually(condition: Callable[[], bool], patience: float = 30.0) -> None:
    """Wait until it holds; fail the test when it does not in time."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)


class ProviderContract:
    """Inherit, name the provider, give its environment; override what costs too much of it."""

    provider_path: ClassVar[str]
    spec: ClassVar[Spec] = Spec()
    several: ClassVar[int] = 5  # more than one page, if pages can be made that small
    short: ClassVar[float] = 2.0  # seconds of the shortest TTL that it keeps
    patience: ClassVar[float] = 60.0  # seconds for one call
    lag: ClassVar[float] = 0.0  # seconds that a listing may be behind

    @pytest.fixture
    def trial(self, environ: Mapping[str, str]) -> Iterator[Trial]:
        """Handles of the backend; whatever is made with them is destroyed in the end."""
        trial = Trial(
            Subject(
                provider=self.provider_path,
                environ=environ,
                spec=self.spec,
                several=self.several,
                short=self.short,
                patience=self.patience,
                lag=self.lag,
            )
        )
        yield trial
        trial.close()

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    def test_contract(self, check: Check, trial: Trial) -> None:
        """It does what its first line says."""
        if not check.concerns(trial.provider):
            pytest.skip(f"{trial.provider.name} claims {sorted(trial.provider.capabilities)}")
        check.run(trial)
