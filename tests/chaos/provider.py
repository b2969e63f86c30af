"""The system's side of the cloud: SANDKEEPER_PROVIDER=tests.chaos.provider:ChaosCloud."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from core.errors import (
    AuthFailed,
    Busy,
    ForeignConflict,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SettingsError,
    Unavailable,
)
from core.providers.base import Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec

VARIABLE = "CHAOS_CLOUD"  # host:port. Not SANDKEEPER_…: those are the system's own, and checked
NOT_FOUND = 404


class ChaosCloud:
    """One connection a call, nothing retried, nothing remembered."""

    name = "chaos"
    capabilities = frozenset({Capability.LIST, Capability.TTL, Capability.IDEMPOTENT_CREATE})

    def __init__(self, address: str) -> None:
        self.address = address

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        address = environ.get(VARIABLE)
        if address is None:
            raise SettingsError(f"{VARIABLE} is not set: start tests.chaos.cloud and name it")
        return cls(address)

    def scope(self) -> str:
        return "chaos-account"

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        if spec.options:
            raise InvalidSpec(f"this cloud has no options: {', '.join(spec.options)}")
        asked = {"name": name, "labels": dict(labels), "ttl": ttl}
        return _info(self._call("create", asked, deadline, doubt=OutcomeUnknown))

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        found = self._call("get", _asked(ref), deadline)
        return None if found is None else _info(found)

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        self._call("destroy", _asked(ref), deadline)

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        page = self._call("list", {"labels": dict(labels), "cursor": cursor}, deadline)
        return Page(items=tuple(_info(item) for item in page["items"]), cursor=page["cursor"])

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        found = self._call("extend", {**_asked(ref), "ttl": ttl}, deadline)
        if found is None:
            raise Unavailable(f"{ref.name} is not there to be extended")
        return _info(found).expires_at

    def _call(
        self,
        operation: str,
        asked: object,
        deadline: float,
        *,
        doubt: type[ProviderError] = Unavailable,
    ) -> Any:
        left = deadline - time.monotonic()
        if left <= 0:
            raise OutcomeUnknown(f"{operation} was called after its deadline")
        connection = http.client.HTTPConnection(self.address, timeout=left)
        try:
            headers = {"Content-Type": "application/json", "X-Pid": str(os.getpid())}
            connection.request("POST", f"/{operation}", json.dumps(asked), headers)
            response = connection.getresponse()
            body = response.read()
            _check(response, operation)
            return None if response.status == NOT_FOUND else json.loads(body)
        except ConnectionRefusedError as error:
            raise Unavailable(f"{operation}: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise doubt(f"{operation}: {error!r}") from error
        finally:
            connection.close()


def _asked(ref: SandboxRef) -> dict[str, str | None]:
    return {"name": ref.name, "external_id": ref.external_id}


def _check(response: http.client.HTTPResponse, operation: str) -> None:
    said = f"{operation}: {response.status}"
    match response.status:
        case 402:
            raise QuotaExceeded(said)
        case 403:
            raise AuthFailed(said)
        case 409:
            raise Busy(said)
        case 412:
            raise ForeignConflict(said)
        case 429:
            after = response.headers.get("Retry-After")
            raise RateLimited(said, retry_after=None if after is None else float(after))
        case status if status >= 400 and status != NOT_FOUND:
            raise Unavailable(said)


def _info(seen: Mapping[str, Any]) -> SandboxInfo:
    expires = seen["expires"]
    return SandboxInfo(
        ref=SandboxRef(name=seen["name"], external_id=seen["id"]),
        state=ProviderState.RUNNING,
        labels=seen["labels"],
        created_at=datetime.fromtimestamp(seen["created"], UTC),
        expires_at=None if expires is None else datetime.fromtimestamp(expires, UTC),
    )
