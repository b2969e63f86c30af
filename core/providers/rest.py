"""Calls to a REST API: each ends by its deadline, and fails in our words."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from ..errors import (
    AuthFailed,
    Busy,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SettingsError,
    Unavailable,
    words,
)
from ..host import in_forked_children

LARGEST = 32 << 20  # bytes of an answer: ten thousand sandboxes take a tenth of it
LONGEST_WORDS = 300  # characters of an answer that an error repeats
# Nothing has left this machine: the call cannot have had an effect.
NEVER_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)


@dataclass(frozen=True)
class Answer:
    """What the API said. `doing` and `url` are for the words of its errors."""

    status: int
    headers: httpx2.Headers
    content: bytes
    doing: str
    url: str

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Its body. Raises OutcomeUnknown when it is no JSON: the call may have had its effect."""
        try:
            return json.loads(self.content)
        except ValueError as error:
            raise OutcomeUnknown(self._told("an answer that is no JSON")) from error

    def fields(self) -> dict[str, Any]:
        """Its body as an object; OutcomeUnknown when it is none."""
        found = self.json()
        if not isinstance(found, dict):
            raise OutcomeUnknown(self._told("an answer that is no JSON object"))
        return found

    def error(self) -> ProviderError:
        """What its status means, whatever was attempted; an adapter asks before about the rest."""
        said = self._told(f"HTTP {self.status}")
        if self.status in {401, 403}:
            return AuthFailed(said)
        if self.status == 402:
            return QuotaExceeded(said)
        if self.status == 409:
            return Busy(said)
        if self.status == 429:
            return RateLimited(said, retry_after=retry_after(self.headers))
        if self.is_success:
            return OutcomeUnknown(said)
        return Unavailable(said)

    def _told(self, what: str) -> str:
        text = " ".join(self.content.decode(errors="replace").split())
        shown = text[:LONGEST_WORDS] + ("…" if len(text) > LONGEST_WORDS else "")
        return f"cannot {self.doing} at {self.url}: {what}{': ' if shown else ''}{shown}"


class Rest:
    """
    An API below `base_url`, which the variable `setting` gave: SettingsError names it when it is
    no address. Safe for threads; a forked child connects for itself, because two processes on one
    connection would read the answers to each other's calls. Redirects are not followed and nothing
    is retried.
    """

    def __init__(self, base_url: str, *, headers: Mapping[str, str], setting: str) -> None:
        try:
            url = httpx2.URL(base_url)
        except httpx2.InvalidURL as error:
            raise SettingsError(f"{setting}={base_url!r} is no address: {error}") from error
        if url.scheme not in {"http", "https"} or not url.host:
            raise SettingsError(
                f"{setting}={base_url!r}: give an address such as https://a.example"
            )
        self.base_url = str(url).rstrip("/")
        self._headers = dict(headers)
        self._forget()
        in_forked_children(self, Rest._forget)

    def _forget(self) -> None:
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        deadline: float,
        params: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """
        One request, any answer. `deadline` is of the monotonic clock; `doing` completes "cannot
        ...". Raises Unavailable when it cannot have had an effect, OutcomeUnknown when it can.
        """
        url = f"{self.base_url}{path}"
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"cannot {doing} at {url}: there was no time left for the call")
        try:
            with self._connected().stream(
                method, url, params=params, json=body, headers=headers, timeout=left
            ) as response:
                content = _read(response, deadline)
                return Answer(response.status_code, response.headers, content, doing, url)
        except httpx2.RequestError as error:
            said = f"cannot {doing} at {url}: {words(error)}"
            raise (
                Unavailable(said) if isinstance(error, NEVER_SENT) else OutcomeUnknown(said)
            ) from error

    def _connected(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(headers=self._headers)
                weakref.finalize(self, self._client.close)  # a provider has no close of its own
            return self._client


@contextmanager
def only_looking() -> Iterator[None]:
    """A look has no effect that could be unknown: OutcomeUnknown is Unavailable."""
    try:
        yield
    except OutcomeUnknown as error:
        raise Unavailable(str(error)) from error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """
    The longest wait that any `Retry-After` or `Retry-After-<scope>` asks for, in seconds; None
    when none can be read. RFC 9110, 10.2.3, says what a value is: seconds, or a date.
    """
    waits = [
        wait
        for name, value in headers.items()
        if name.lower().startswith("retry-after") and (wait := _wait(value)) is not None
    ]
    return max(waits, default=None)


def _wait(value: str) -> float | None:
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _read(response: httpx2.Response, deadline: float) -> bytes:
    # The client's timeout is for each read: an API that drips would never reach it.
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > LARGEST:
            raise httpx2.ReadError(f"the answer is longer than {LARGEST} bytes")
        if time.monotonic() > deadline:
            raise httpx2.ReadTimeout("the answer did not come to its end in time")
    return bytes(content)
