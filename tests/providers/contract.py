"""
The conformance suite: what every provider must do, as tests that anybody can run on their own.

    class TestMine(ProviderContract):
        provider_path = "my_package.sandboxes:MyProvider"

        @pytest.fixture
        def environ(self):
            return {"MY_PROVIDER_TOKEN": ...}

Sandboxes are real and are destroyed afterwards, also when a test fails. Two instances that were
made from the same `environ` must be handles of the same backend.
"""

from __future__ import annotations

import multiprocessing
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import ClassVar

import pytest

from core.errors import ForeignConflict, InvalidSpec, ProviderError
from core.providers.base import (
    Capability,
    ProviderState,
    SandboxInfo,
    SandboxProvider,
    SandboxRef,
    Spec,
)

Making = tuple[str, Mapping[str, str]]  # how another process makes a handle
ALIVE = {ProviderState.PENDING, ProviderState.RUNNING}


def make(making: Making) -> SandboxProvider:
    """A fresh handle."""
    path, environ = making
    module, name = path.split(":")
    provider: SandboxProvider = getattr(import_module(module), name).from_env(environ)
    return provider


def eventually(condition: Callable[[], bool], patience: float = 30.0) -> None:
    """Wait until it holds; fail the test when it does not in time."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)


def create_many(
    making: Making, name: str, labels: Mapping[str, str], spec: Spec, times: int
) -> list[str]:
    """Create one name at once from several threads of this process; the ids that came back."""
    provider = make(making)
    barrier = threading.Barrier(times)

    def create(_: int) -> str:
        barrier.wait()
        info = provider.create(name, labels, spec, ttl=300.0, deadline=time.monotonic() + 60)
        return str(info.ref.external_id)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(create, range(times)))


def destroy_once(making: Making, name: str) -> bool:
    """Destroy from this process, and wait until it says so: what another removes is accepted."""
    provider, ref = make(making), SandboxRef(name=name)
    provider.destroy(ref, deadline=time.monotonic() + 60)
    eventually(lambda: provider.get(ref, deadline=time.monotonic() + 60) is None)
    return True


def in_processes(count: int, call: Callable[..., object], *arguments: object) -> list[object]:
    """Run it in so many processes at once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        return [future.result() for future in [pool.submit(call, *arguments) for _ in range(count)]]


class ProviderContract:
    """Inherit, name the provider, give its environment; override what costs too much of it."""

    provider_path: ClassVar[str]
    spec: ClassVar[Spec] = Spec()
    several: ClassVar[int] = 5  # more than one page, if pages can be made that small
    short: ClassVar[float] = 2.0  # seconds of the shortest TTL that it keeps
    patience: ClassVar[float] = 60.0  # seconds for one call

    @pytest.fixture
    def making(self, environ: Mapping[str, str]) -> Making:
        """Anything that another process needs for a handle of its own."""
        return self.provider_path, environ

    @pytest.fixture
    def provider(self, making: Making) -> SandboxProvider:
        """A handle of the backend."""
        return make(making)

    @pytest.fixture
    def other_handle(self, making: Making) -> SandboxProvider:
        """Another handle of the same backend."""
        return make(making)

    @pytest.fixture
    def labels(self) -> dict[str, str]:
        """The labels of one installation that nobody else has."""
        return {"sandkeeper-installation": secrets.token_hex(4), "sandkeeper-schema": "1"}

    @pytest.fixture
    def name(self, provider: SandboxProvider) -> Iterator[Callable[[], str]]:
        """Fresh names; whatever was made of them is destroyed in the end."""
        given: list[str] = []

        def fresh() -> str:
            given.append(f"sk-contract-{secrets.token_hex(8)}")
            return given[-1]

        yield fresh
        for one in given:
            provider.destroy(SandboxRef(name=one), deadline=self.soon())

    def soon(self) -> float:
        """A deadline that is generous."""
        return time.monotonic() + self.patience

    def create(
        self,
        provider: SandboxProvider,
        name: str,
        labels: Mapping[str, str],
        ttl: float | None = 300.0,
    ) -> SandboxInfo:
        """Create it with what most tests need."""
        return provider.create(name, labels, self.spec, ttl=ttl, deadline=self.soon())

    def listed(self, provider: SandboxProvider, labels: Mapping[str, str]) -> list[str]:
        """The names on all pages."""
        page = provider.list(labels, cursor=None, deadline=self.soon())
        names = [item.ref.name for item in page.items]
        while page.cursor is not None:
            page = provider.list(labels, cursor=page.cursor, deadline=self.soon())
            names += [item.ref.name for item in page.items]
        return names

    def needs(self, provider: SandboxProvider, capability: Capability) -> None:
        """Skip what was never claimed."""
        if capability not in provider.capabilities:
            pytest.skip(f"{provider.name} does not claim {capability}")

    def test_is_a_provider(self, provider: SandboxProvider) -> None:
        """It has all that the protocol asks for, and claims only what there is."""
        assert isinstance(provider, SandboxProvider)
        assert provider.capabilities <= set(Capability)

    def test_scope_is_the_backend(
        self, provider: SandboxProvider, other_handle: SandboxProvider
    ) -> None:
        """Every handle of one backend names it alike, and always."""
        assert provider.scope() == other_handle.scope() == provider.scope() != ""

    def test_create_makes_it(
        self,
        provider: SandboxProvider,
        other_handle: SandboxProvider,
        name: Callable[[], str],
        labels: dict[str, str],
    ) -> None:
        """What create returns is what any handle gets: name, id, labels, an aware date."""
        made = self.create(provider, name(), labels)

        found = other_handle.get(SandboxRef(name=made.ref.name), deadline=self.soon())
        assert found is not None
        assert found.ref == made.ref
        assert made.ref.external_id
        assert made.state in ALIVE
        assert labels.items() <= found.labels.items()
        assert found.created_at is None or found.created_at.tzinfo is UTC

    def test_create_again_adopts(
        self,
        provider: SandboxProvider,
        other_handle: SandboxProvider,
        name: Callable[[], str],
        labels: dict[str, str],
    ) -> None:
        """A retry from anywhere gets the same sandbox."""
        made = self.create(provider, name(), labels)

        again = self.create(other_handle, made.ref.name, labels)

        assert again.ref == made.ref

    def test_many_creates_of_one_name_make_one(
        self,
        provider: SandboxProvider,
        making: Making,
        name: Callable[[], str],
        labels: dict[str, str],
    ) -> None:
        """Thirty creates at once, from six processes, and all return the one sandbox."""
        self.needs(provider, Capability.IDEMPOTENT_CREATE)

        answers = in_processes(6, create_many, making, one := name(), labels, self.spec, 5)

        ids = {external_id for ids in answers if isinstance(ids, list) for external_id in ids}
        found = provider.get(SandboxRef(name=one), deadline=self.soon())
        assert found is not None
        assert ids == {found.ref.external_id}

    def test_create_leaves_a_foreign_one_alone(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """A name with other labels is somebody else's: refused, and nothing about it changed."""
        made = self.create(provider, name(), labels)

        with pytest.raises(ForeignConflict):
            self.create(provider, made.ref.name, {**labels, "sandkeeper-generation": "2"})

        found = provider.get(made.ref, deadline=self.soon())
        assert found is not None
        assert (found.ref, dict(found.labels)) == (made.ref, dict(made.labels))

    def test_refuses_options_that_it_does_not_know(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """A spec that cannot be met is refused as such, and leaves nothing."""
        spec = replace(self.spec, options={"no-such-option": 1})
        with pytest.raises(InvalidSpec):
            provider.create(one := name(), labels, spec, ttl=None, deadline=self.soon())

        assert provider.get(SandboxRef(name=one), deadline=self.soon()) is None

    def test_get_finds_nothing_where_nothing_is(
        self, provider: SandboxProvider, name: Callable[[], str]
    ) -> None:
        """A name that was never used is None, whatever id is believed to be its."""
        ref = SandboxRef(name=name(), external_id="no-such-id")

        assert provider.get(ref, deadline=self.soon()) is None

    def test_list_is_complete_and_filtered(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """All pages together hold each of ours exactly once, and nobody else's."""
        self.needs(provider, Capability.LIST)
        ours = [self.create(provider, name(), labels).ref.name for _ in range(self.several)]
        foreign = {**labels, "sandkeeper-installation": "otherone"}
        self.create(provider, name(), foreign)

        assert sorted(self.listed(provider, labels)) == sorted(ours)
        assert len(self.listed(provider, foreign)) == 1

    def test_destroy_is_confirmed(
        self,
        provider: SandboxProvider,
        other_handle: SandboxProvider,
        name: Callable[[], str],
        labels: dict[str, str],
    ) -> None:
        """After destroy every handle says, before long, that it is gone; listings too."""
        made = self.create(provider, name(), labels)

        other_handle.destroy(made.ref, deadline=self.soon())

        eventually(lambda: provider.get(made.ref, deadline=self.soon()) is None, self.patience)
        assert self.listed(provider, labels) == []

    def test_destroy_of_what_is_gone_succeeds(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """Twice, or of a name that never was: success, for a retry cannot know."""
        made = self.create(provider, name(), labels)
        for ref in (made.ref, made.ref, SandboxRef(name=name())):
            provider.destroy(ref, deadline=self.soon())

    def test_an_id_means_that_sandbox_and_no_other(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """S3: what another create made under the same name is neither found nor touched by it."""
        made = self.create(provider, name(), labels)
        other = SandboxRef(name=made.ref.name, external_id=f"not-{made.ref.external_id}")

        provider.destroy(other, deadline=self.soon())

        assert provider.get(other, deadline=self.soon()) is None
        found = provider.get(made.ref, deadline=self.soon())
        assert found is not None
        assert found.state in ALIVE

    def test_an_id_alone_is_not_enough(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """S2: ids may be given again; one under another name is somebody else's."""
        made = self.create(provider, name(), labels)
        other = SandboxRef(name=name(), external_id=made.ref.external_id)

        provider.destroy(other, deadline=self.soon())

        assert provider.get(other, deadline=self.soon()) is None
        found = provider.get(made.ref, deadline=self.soon())
        assert found is not None
        assert found.state in ALIVE

    def test_destroy_from_everywhere_at_once(
        self, making: Making, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """Workers in several processes destroy the same one: all succeed, and it is gone."""
        made = self.create(make(making), name(), labels)

        assert in_processes(4, destroy_once, making, made.ref.name) == [True] * 4

    def test_ttl_ends_it(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """The expiry that was asked for can be read back, and nobody is needed to carry it out."""
        self.needs(provider, Capability.TTL)
        made = self.create(provider, name(), labels, ttl=self.short)

        wanted = datetime.now(UTC) + timedelta(seconds=self.short)
        assert made.expires_at is not None
        assert abs(made.expires_at - wanted) < timedelta(seconds=self.short)
        eventually(lambda: provider.get(made.ref, deadline=self.soon()) is None, self.patience)

    def test_extend_moves_the_expiry(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str]
    ) -> None:
        """An extended sandbox outlives its first TTL, and says until when."""
        self.needs(provider, Capability.TTL)
        made = self.create(provider, name(), labels, ttl=self.short)

        granted = provider.extend(made.ref, ttl=300.0, deadline=self.soon())

        found = provider.get(made.ref, deadline=self.soon())
        assert found is not None
        assert granted is not None
        assert granted > datetime.now(UTC) + timedelta(seconds=290)
        assert found.expires_at == granted
        time.sleep(self.short + 0.5)  # nothing must happen: there is nothing to wait for
        found = provider.get(made.ref, deadline=self.soon())
        assert found is not None
        assert found.state in ALIVE

    def test_extend_of_what_is_gone_does_not_succeed(
        self, provider: SandboxProvider, name: Callable[[], str]
    ) -> None:
        """A lost sandbox never looks extended."""
        self.needs(provider, Capability.TTL)
        with pytest.raises(ProviderError):
            provider.extend(SandboxRef(name=name()), ttl=60.0, deadline=self.soon())

    @pytest.mark.parametrize("call", ["create", "get", "destroy", "list", "extend"])
    def test_deadline_bounds_every_call(
        self, provider: SandboxProvider, name: Callable[[], str], labels: dict[str, str], call: str
    ) -> None:
        """With no time left a call returns at once, done or with an error that can be retried."""
        if call == "extend":
            self.needs(provider, Capability.TTL)
        made = self.create(provider, name(), labels)
        ref, past = made.ref, time.monotonic() - 1
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: provider.create(name(), labels, self.spec, ttl=9.0, deadline=past),
            "get": lambda: provider.get(ref, deadline=past),
            "destroy": lambda: provider.destroy(ref, deadline=past),
            "list": lambda: provider.list(labels, cursor=None, deadline=past),
            "extend": lambda: provider.extend(ref, ttl=9.0, deadline=past),
        }

        began = time.monotonic()
        try:
            calls[call]()
        except ProviderError as error:
            assert error.retryable  # noqa: PT017 - either way is right
        assert time.monotonic() - began < 2
