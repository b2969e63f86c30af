"""
Our fakes, and what we send to them, beside what the vendors publish of their APIs.

The documents are the vendors' and not in this tree: a variable names the file of each.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.errors import (
    AuthFailed,
    Busy,
    InvalidSpec,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from core.model import sandbox_labels, sandbox_name
from core.providers import daytona, opensandbox
from core.providers.base import Capability, SandboxInfo, SandboxProvider, Spec
from core.providers.daytona import DaytonaProvider
from core.providers.e2b import E2BProvider
from core.providers.opensandbox import OpenSandboxProvider
from tests.apis import Call, Handler, Reply, serving
from tests.providers import fake_daytona, fake_e2b, fake_opensandbox
from tests.providers.contract import ProviderContract, listed, soon
from tests.providers.fake_daytona import FakeDaytona
from tests.providers.fake_e2b import FakeE2B
from tests.providers.fake_opensandbox import FakeOpenSandbox
from tests.providers.openapi import Compared, Published

KEYS = ("a" * 26, "b" * 26)
OURS = {"sandkeeper-installation": "abcd1234"}


@dataclass(frozen=True)
class Vendor:
    """
    Where its document is, and in what our fake may differ from it: the deviation as a regular
    expression, and the reason.
    """

    variable: str
    below: str = ""
    moved: Mapping[tuple[str, str], str] = field(default_factory=dict)
    excuses: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.variable)

    @cache  # noqa: B019 - three of them, for as long as the tests run
    def published(self) -> Published:
        """Its document; skips the test when there is none."""
        file = os.environ.get(self.variable)
        if not file:
            pytest.skip(f"{self.variable} names no document of the vendor's API")
        return Published(Path(file), below=self.below, moved=self.moved)

    def unexcused(self, deviations: set[str]) -> list[str]:
        """Those that nobody has a reason for."""
        return sorted(
            line
            for line in deviations
            if not any(re.fullmatch(pattern, line) for pattern in self.excuses)
        )


UNKNOWN = "answer: Unknown response http status: "
E2B = Vendor(
    "SANDKEEPER_TEST_E2B_OPENAPI",
    # The document is older than the SDK (2.63.0), whose body of a create is the same at both.
    moved={("POST", "/v2/sandboxes"): "/sandboxes"},
    excuses={
        rf"POST /sandboxes (404|409|429): {UNKNOWN}\d+": "said by the server's source (template, "
        "concurrent sandboxes) and by the SDK (idempotency)",
        rf"GET /sandboxes/\{{sandboxID\}} 400: {UNKNOWN}400": "the server's sandbox_get.go, of "
        "what can be no id",
        rf"POST /sandboxes/\{{sandboxID\}}/timeout (400|409): {UNKNOWN}\d+": "the server's "
        "sandbox_timeout.go hands on what its orchestrator says",
    },
)
DAYTONA = Vendor(
    "SANDKEEPER_TEST_DAYTONA_OPENAPI",
    below="/api",
    excuses={
        rf"\S+ \S+ (4\d\d|503): {UNKNOWN}\d+": "the document names no error at all",
        r"\S+ \S+ 200: answer: body: Additional properties are not allowed "
        r"\('kvm' was unexpected\)": "the client of 0.231.0 refuses a sandbox without it",
    },
)
OPENSANDBOX = Vendor(
    "SANDKEEPER_TEST_OPENSANDBOX_OPENAPI",
    below="/v1",
    excuses={
        rf"POST /sandboxes 404: {UNKNOWN}404": "the server's snapshot_restore.py, of a snapshot "
        "that is not there"
    },
)


@contextmanager
def as_published(vendor: Vendor, fake: Handler) -> Iterator[tuple[str, Compared]]:
    """Serve the fake at an address; in the end, nothing that it saw or said may be unexcused."""
    compared = Compared(fake, vendor.published())
    with serving(compared) as api:
        yield api.url, compared
    assert vendor.unexcused(compared.deviations) == []


class TestE2B(ProviderContract):
    """The contract's calls."""

    provider_path = "e2b"
    spec: ClassVar[Spec] = Spec(image="mine")

    @pytest.fixture
    def environ(self) -> Iterator[dict[str, str]]:
        """A fake with short pages."""
        with as_published(E2B, FakeE2B(largest_page=2)) as (url, _):
            yield e2b_environ(url)


class TestDaytona(ProviderContract):
    """The contract's calls."""

    provider_path = "daytona"
    short: ClassVar[float] = 5.0
    lag: ClassVar[float] = 5.0

    @pytest.fixture
    def environ(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[dict[str, str]]:
        """A fake with short pages. Where a TTL has to run out, a minute is short too."""
        fake = FakeDaytona(page=2)
        if request.node.callspec.params["check"].needs is Capability.TTL:
            fake.minute = self.short
            monkeypatch.setattr(daytona, "MINUTE", self.short)
        with as_published(DAYTONA, fake) as (url, _):
            yield daytona_environ(url)


class TestOpenSandbox(ProviderContract):
    """The contract's calls."""

    provider_path = "opensandbox"
    spec: ClassVar[Spec] = Spec(image="python:3.13-slim")
    several: ClassVar[int] = 12

    @pytest.fixture
    def environ(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
        """A fake with short pages."""
        monkeypatch.setattr(opensandbox, "LARGEST_PAGE", 5)
        with as_published(OPENSANDBOX, FakeOpenSandbox()) as (url, _):
            yield opensandbox_environ(url)


# What the contract does not ask for: every option, and every refusal


def test_e2b_s_options_and_refusals() -> None:
    """Each field that we can send, and each status that the fake can answer."""
    fake = FakeE2B()
    with as_published(E2B, fake) as (url, compared):
        provider = E2BProvider.from_env(e2b_environ(url))
        options = {"allow_out": ["pypi.org"], "deny_out": ["10.0.0.0/8"], "public_traffic": True}
        spec = Spec(image="mine", env={"A": "1"}, options=options)
        made = make(provider, spec)
        assert make(provider, spec, ttl=600.0).ref == made.ref  # its key has other bytes: 409
        fake.boxes[str(made.ref.external_id)].state = "paused"
        assert len(listed(provider, OURS)) == 1
        fake.boxes[str(made.ref.external_id)].state = "snapshotting"
        refused(Busy, lambda: provider.extend(made.ref, ttl=60.0, deadline=soon()))
        refused(InvalidSpec, lambda: make(provider, Spec(image="no-such"), which=1))
        fake.concurrent = 0
        refused(QuotaExceeded, lambda: make(provider, spec, which=1))
        stranger = E2BProvider.from_env({**e2b_environ(url), "E2B_API_KEY": "e2b_theirs"})
        refused(AuthFailed, lambda: listed(stranger, OURS))
        provider.destroy(made.ref, deadline=soon())
        assert provider.get(made.ref, deadline=soon()) is None

    assert compared.calls == {
        *("POST 201", "POST 404", "POST 409", "POST 429"),
        *("GET 200", "GET 401", "GET 404", "DELETE 204"),
    }


def test_daytona_s_options_and_refusals() -> None:
    """Each field that we can send, and each status that the fake can answer."""
    fake = FakeDaytona()
    with as_published(DAYTONA, fake) as (url, compared):
        provider = DaytonaProvider.from_env({**daytona_environ(url), "DAYTONA_TARGET": "eu"})
        assert provider.scope() == f"daytona:{fake_daytona.OURS}"
        options = {
            "cpu": 2,
            "memory": 4,
            "disk": 8,
            "gpu": 1,
            "user": "root",
            "public": True,
            "network_allow_list": ["10.0.0.0/8"],
            "domain_allow_list": ["pypi.org"],
            "auto_stop_interval": 5,
            "auto_archive_interval": 5,
            "auto_delete_interval": 5,
        }
        spec = Spec(image="debian:13", env={"A": "1"}, options=options)
        made = make(provider, spec)
        assert make(provider, spec).ref == made.ref
        assert provider.extend(made.ref, ttl=600.0, deadline=soon()) is not None
        assert [info.ref for info in listed(provider, OURS)] == [made.ref]
        fake.put(made.ref.name, forks=1)
        refused(Busy, lambda: provider.destroy(made.ref, deadline=soon()))
        for odd in ({"snapshot": "no-such"}, {"target": "nowhere"}):
            refused(InvalidSpec, lambda odd=odd: make(provider, Spec(options=odd), which=1))
        fake.put(made.ref.name, forks=0, state="started", pending=False)
        provider.destroy(made.ref, deadline=soon())
        stranger = DaytonaProvider.from_env({**daytona_environ(url), "DAYTONA_API_KEY": "theirs"})
        refused(AuthFailed, lambda: listed(stranger, OURS))
        fake.has_store = False
        refused(Unavailable, DaytonaProvider.from_env(daytona_environ(url)).scope)

    assert compared.calls >= {
        *("POST 200", "POST 400", "POST 404", "POST 409"),
        *("GET 200", "GET 401", "GET 503", "DELETE 200", "DELETE 400"),
    }


def test_opensandbox_s_options_and_refusals() -> None:
    """Each field that we can send, and each status that the fake can answer."""
    with as_published(OPENSANDBOX, FakeOpenSandbox()) as (url, compared):
        provider = OpenSandboxProvider.from_env(opensandbox_environ(url))
        options = {"cpus": 0.5, "memory": "512Mi", "egress": ["pypi.org"]}
        spec = Spec(image="debian:13", command=("sleep", "9"), env={"A": "1"}, options=options)
        made = make(provider, spec)
        assert provider.extend(made.ref, ttl=600.0, deadline=soon()) is not None
        for_ever = make(provider, replace(spec, options={}), which=1, ttl=None)
        refused(Unavailable, lambda: provider.extend(for_ever.ref, ttl=60.0, deadline=soon()))
        assert len(listed(provider, OURS)) == 2
        for info in (made, for_ever):
            provider.destroy(info.ref, deadline=soon())
        assert provider.get(made.ref, deadline=soon()) is None
        for odd in ({"snapshot": "no-such"}, {"pool": "no-such"}):
            refused(InvalidSpec, lambda odd=odd: make(provider, Spec(options=odd)))
        refused(ProviderError, lambda: make(provider, Spec(image="no-such:1")))
        stranger = OpenSandboxProvider.from_env(
            {**opensandbox_environ(url), "OPEN_SANDBOX_API_KEY": "theirs"}
        )
        refused(AuthFailed, lambda: listed(stranger, OURS))

    assert compared.calls == {
        *("POST 200", "POST 202", "POST 400", "POST 404", "POST 409", "POST 500"),
        *("GET 200", "GET 401", "GET 404", "DELETE 204"),
    }


def make(
    provider: SandboxProvider, spec: Spec, *, which: int = 0, ttl: float | None = 300.0
) -> SandboxInfo:
    """One of two sandboxes."""
    key = KEYS[which]
    labels = sandbox_labels("abcd1234", key, "one", 1, datetime(2026, 1, 1, tzinfo=UTC))
    name = sandbox_name("abcd1234", key)
    return provider.create(name, labels, spec, ttl=ttl, deadline=soon())


def refused(kind: type[ProviderError], call: Any) -> None:
    """It fails like this."""
    with pytest.raises(kind):
        call()


def e2b_environ(url: str) -> dict[str, str]:
    """What finds the fake."""
    return {"E2B_API_KEY": fake_e2b.API_KEY, "E2B_API_URL": url}


def daytona_environ(url: str) -> dict[str, str]:
    """Likewise."""
    return {"DAYTONA_API_KEY": fake_daytona.KEY, "DAYTONA_API_URL": f"{url}/api"}


def opensandbox_environ(url: str) -> dict[str, str]:
    """Likewise."""
    return {"OPEN_SANDBOX_DOMAIN": url, "OPEN_SANDBOX_API_KEY": fake_opensandbox.KEY}


# That a deviation is seen at all, by a document of our own


THING = {
    "type": "object",
    "required": ["id"],
    "properties": {"id": {"type": "string"}, "at": {"type": "string", "format": "date-time"}},
}
CONTENT = {"application/json": {"schema": THING}}
DOCUMENT = {
    "openapi": "3.0.0",
    "info": {"title": "ours", "version": "1"},
    "servers": [{"url": "https://api.example/v1"}],
    "paths": {
        "/things/{id}": {
            "parameters": [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
                {"name": "limit", "in": "query", "schema": {"type": "integer", "maximum": 9}},
            ],
            "post": {
                "requestBody": {"required": True, "content": CONTENT},
                "responses": {"200": {"description": "it", "content": CONTENT}},
            },
        }
    },
}
GOOD = Call("POST", "/api/things/1", {}, {"content-type": "application/json"}, b'{"id": "1"}')
FINE = Reply(200, {"id": "1", "at": "2026-11-23T10:00:00.123456789Z"})
AT = "POST /things/{id} 200"


@pytest.mark.parametrize(
    ("call", "reply", "found"),
    [
        (GOOD, FINE, []),
        (replace(GOOD, query={"limit": "9"}), FINE, []),
        (replace(GOOD, path="/api/moved/1"), FINE, []),
        (replace(GOOD, path="/api/no"), FINE, ["POST /no 200: no such operation"]),
        (replace(GOOD, method="PUT"), FINE, ["PUT /things/1 200: no such operation"]),
        (replace(GOOD, query={"limits": "9"}), FINE, [f"{AT}: query limits: not known"]),
        (
            replace(GOOD, query={"limit": "10"}),
            FINE,
            [f"{AT}: request: limit: 10 is greater than the maximum of 9"],
        ),
        (
            replace(GOOD, content=b'{"it": 1}'),
            FINE,
            [
                f"{AT}: request: body: 'id' is a required property",
                f"{AT}: request: body: Additional properties are not allowed ('it' was unexpected)",
            ],
        ),
        (replace(GOOD, content=b""), FINE, [f"{AT}: request: Missing required request body"]),
        (
            GOOD,
            Reply(200, {"id": 1}),
            [f"{AT}: answer: id: 1 is not of type 'string'"],
        ),
        (
            GOOD,
            Reply(200, {"id": "1", "at": "yesterday"}),
            [f"{AT}: answer: at: 'yesterday' is not a 'date-time'"],
        ),
        (GOOD, Reply(404), [f"POST /things/{{id}} 404: {UNKNOWN}404"]),
    ],
)
def test_what_is_not_in_the_document_is_told(
    tmp_path: Path, call: Call, reply: Reply, found: list[str]
) -> None:
    """What is sent, what is answered, and whether the path is known at all."""
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    moved = {("POST", "/moved/1"): "/things/1"}
    compared = Compared(lambda _: reply, Published(file, below="/api", moved=moved))

    assert compared(call) is reply
    assert sorted(compared.deviations) == found


def test_only_what_has_a_reason_is_excused() -> None:
    """The whole line has to fit."""
    vendor = Vendor("X", excuses={r"GET /a 404: .*": "why"})

    assert vendor.unexcused({"GET /a 404: so", "GET /a 4040: so"}) == ["GET /a 4040: so"]


def test_without_a_document_the_test_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the variable is named."""
    monkeypatch.delenv("SANDKEEPER_TEST_NOBODY_OPENAPI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="SANDKEEPER_TEST_NOBODY_OPENAPI names no"):
        Vendor("SANDKEEPER_TEST_NOBODY_OPENAPI").published()
