"""Calls to a Docker engine: each ends by its deadline, and fails in our words."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from ..errors import (
    AuthFailed,
    Busy,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    SettingsError,
    Unavailable,
    words,
)
from ..host import in_forked_children

NEVER_SENT = (ConnectionRefusedError, FileNotFoundError, PermissionError)
_deadline: ContextVar[float] = ContextVar("deadline")


class Engine:
    """
    The engine that DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH mean, the local one without
    them. A forked child connects for itself: two processes on one connection would read the
    answers to each other's calls.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.host = environ.get("DOCKER_HOST", "") or "the local socket"
        try:
            self._arguments = kwargs_from_env(environment=dict(environ))
            _Client(version="1.41", **self._arguments).close()  # connects to nothing yet
        except (DockerException, ValueError) as error:
            raise SettingsError(
                f"DOCKER_HOST={self.host}, with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH: {error}"
            ) from error
        self._forget()
        in_forked_children(self, Engine._forget)

    def _forget(self) -> None:
        self._client: _Client | None = None
        self._lock = threading.Lock()

    @contextmanager
    def calls(self, doing: str, deadline: float) -> Iterator[docker.APIClient]:
        """
        A client whose calls end at `deadline`, of the monotonic clock. APIError is the caller's to
        understand; what is left of it, and everything else, becomes a ProviderError.
        """
        token = _deadline.set(deadline)
        try:
            yield self._connected()
        except (requests.RequestException, DockerException, ValueError) as error:
            raise self.named(error, doing) from error
        finally:
            _deadline.reset(token)

    def _connected(self) -> docker.APIClient:
        with self._lock:
            if self._client is None:
                self._client = _Client(version="auto", **self._arguments)
            return self._client

    def named(self, error: Exception, doing: str) -> ProviderError:
        """What an error of the client means, whatever was attempted."""
        said = f"cannot {doing} at {self.host}: {_said(error)}"
        if isinstance(error, APIError):
            return _by_status(error, said)
        if isinstance(error, requests.ConnectionError) or isinstance(error.__cause__, OSError):
            reason = _reason(error)
            if isinstance(reason, PermissionError):
                return AuthFailed(f"{said}: this user may not; is it in the group `docker`?")
            if isinstance(reason, NEVER_SENT):
                return Unavailable(f"{said}: is the engine running?")
        # It was sent, and no answer, or none that can be read, came back.
        return OutcomeUnknown(said)


class _Client(docker.APIClient):
    def request(  # type: ignore[override] # its callers are docker-py's own, by keyword
        self, method: Any, url: Any, **options: Any
    ) -> Any:
        left = _deadline.get() - time.monotonic()
        if left <= 0:
            raise requests.Timeout("there was no time left for the call")
        return super().request(method, url, **{**options, "timeout": left})


def _by_status(error: APIError, said: str) -> ProviderError:
    status = error.status_code or 0
    if status in {401, 403}:
        return AuthFailed(said)
    if status == 409:
        return Busy(said)
    if status == 429:
        return RateLimited(said)
    return Unavailable(said)


def _said(error: Exception) -> str:
    if isinstance(error, APIError):
        return str(error.explanation or error)
    return words(error)


def _reason(error: BaseException) -> BaseException:
    """The operating system's own error, somewhere below what three libraries made of it."""
    seen: list[BaseException] = []
    below: list[object] = [error]
    while below:
        found = below.pop()
        if isinstance(found, NEVER_SENT):
            return found
        if isinstance(found, BaseException) and found not in seen:
            seen.append(found)
            below += [found.__cause__, found.__context__, *found.args, vars(found).get("reason")]
    return error
