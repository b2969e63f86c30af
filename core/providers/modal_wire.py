"""
Calls to Modal's API: each ends by its deadline, and fails in our words.

The messages are those of Modal's own package. Its classes are not used: they ask three times, wait
as long as a busy server wishes, share one connection and the settings of the whole process, and
what they list has no names, labels or dates.
"""

from __future__ import annotations

import asyncio
import base64
import json
import platform
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

from google.protobuf.message import Message  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from modal_proto import api_pb2

from ..errors import (
    AuthFailed,
    Busy,
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Unavailable,
    words,
)
from ..host import in_forked_children
from .modal_line import SLACK, Line, Method, NeverSent

SERVICE = "/modal.client.ModalClient/"
TOKEN_LIVES = 1200.0  # seconds, for a token that does not say
Reply = TypeVar("Reply", bound=Message)
Result = TypeVar("Result")


class NotThere(Unavailable):
    """Modal knows nothing of this name or id. Only the caller can tell whether that says much."""


class NameTaken(Busy):
    """A sandbox of this name runs."""


MEANT: Mapping[Status, type[ProviderError]] = {
    Status.NOT_FOUND: NotThere,
    Status.ALREADY_EXISTS: NameTaken,
    Status.FAILED_PRECONDITION: Busy,
    Status.ABORTED: Busy,
}


class Wire:
    """
    Modal's control plane at the first of `addresses` that can be reached. Safe for threads; a
    forked child connects for itself. Nothing is retried.
    """

    def __init__(self, addresses: Sequence[str], *, token_id: str, token_secret: str) -> None:
        self.addresses = tuple(addresses)
        self._headers = {
            "x-modal-client-version": version("modal"),
            "x-modal-client-type": str(api_pb2.CLIENT_TYPE_CLIENT),
            "x-modal-python-version": platform.python_version(),
            "x-modal-token-id": token_id,
            "x-modal-token-secret": token_secret,
        }
        self._forget()
        in_forked_children(self, Wire._forget)

    def _forget(self) -> None:
        # In a child, the frames of the thread that did not come along hold the old one for good:
        # it is never collected, which would unregister the parent's connection in their epoll.
        self._line: Line | None = None
        self._token, self._renew_at = "", 0.0
        self._lock = threading.Lock()

    def ask(
        self,
        rpc: str,
        request: Message,
        reply: type[Reply],
        *,
        doing: str,
        deadline: float,
        creates: bool = False,
    ) -> Reply:
        """
        One request, one answer. `deadline` is of the monotonic clock; `doing` completes "cannot
        ...". Raises NotThere, NameTaken and the rest of ProviderError; what may have happened is
        OutcomeUnknown if it `creates`, else Unavailable.
        """

        def method(channel: Channel) -> UnaryUnaryMethod[Any, Reply]:
            return UnaryUnaryMethod(channel, SERVICE + rpc, type(request), reply)

        return self._asked(method, request, doing, deadline, creates=creates)

    def follow(
        self, rpc: str, request: Message, reply: type[Reply], *, doing: str, deadline: float
    ) -> list[Reply]:
        """One request, and all that is answered until Modal ends it."""

        def method(channel: Channel) -> UnaryStreamMethod[Any, Reply]:
            return UnaryStreamMethod(channel, SERVICE + rpc, type(request), reply)

        return self._asked(method, request, doing, deadline, creates=False)

    def _asked(
        self,
        method: Method[Result],
        request: Message,
        doing: str,
        deadline: float,
        *,
        creates: bool,
    ) -> Result:
        kept = self._renew_at > time.monotonic()
        try:
            return self._sent(method, request, doing, deadline, creates=creates)
        except AuthFailed:
            if not kept:
                raise
            # A token that we keep may have been withdrawn. What was refused had no effect.
            self._renew_at = 0.0
            return self._sent(method, request, doing, deadline, creates=creates)

    def _sent(
        self,
        method: Method[Result],
        request: Message,
        doing: str,
        deadline: float,
        *,
        creates: bool,
    ) -> Result:
        headers = {**self._headers, "x-modal-auth-token": self._logged_in(deadline)}
        return self._run(method, request, headers, doing, deadline, creates=creates)

    def _logged_in(self, deadline: float) -> str:
        """A token of short life, which most calls need besides the credentials."""
        if self._renew_at <= time.monotonic():

            def method(channel: Channel) -> UnaryUnaryMethod[Any, api_pb2.AuthTokenGetResponse]:
                name = f"{SERVICE}AuthTokenGet"
                request, reply = api_pb2.AuthTokenGetRequest, api_pb2.AuthTokenGetResponse
                return UnaryUnaryMethod(channel, name, request, reply)

            request = api_pb2.AuthTokenGetRequest()
            got = self._run(method, request, self._headers, "log in", deadline, creates=False)
            if not got.token:  # without one every call would be refused: as if we had no rights
                raise Unavailable(f"cannot log in at {self.addresses[0]}: no token in the answer")
            self._token, self._renew_at = got.token, time.monotonic() + _lives(got.token) / 2
        return self._token

    def _run(
        self,
        method: Method[Result],
        request: Message,
        headers: Mapping[str, str],
        doing: str,
        deadline: float,
        *,
        creates: bool,
    ) -> Result:
        said = f"cannot {doing} at {self.addresses[0]}"
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{said}: there was no time left for the call")
        line = self._connected()
        running = asyncio.run_coroutine_threadsafe(
            line.call(method, request, headers, left), line.loop
        )
        try:
            return running.result(left + SLACK)
        except NeverSent as error:
            raise Unavailable(f"{said}: {_told(error.__cause__)}") from error
        except GRPCError as error:
            raise _named(error, said, creates=creates) from error
        except Exception as error:  # of four libraries, and none says "it was not done"
            running.cancel()
            told = f"{said}: {_told(error)}"
            raise (OutcomeUnknown(told) if creates else Unavailable(told)) from error

    def _connected(self) -> Line:
        with self._lock:
            if self._line is None:
                self._line = Line(self.addresses)
                weakref.finalize(self, self._line.close)  # a provider has no close of its own
            return self._line


def _lives(token: str) -> float:
    """For how many seconds a JSON web token is good; its middle part says until when."""
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        return float(claims["exp"]) - time.time()
    except (IndexError, KeyError, TypeError, ValueError):
        return TOKEN_LIVES


def _named(error: GRPCError, said: str, *, creates: bool) -> ProviderError:
    """What a status means, by https://grpc.io/docs/guides/status-codes/ and Modal's own errors."""
    said = f"{said}: {error.status.name}{f': {error.message}' if error.message else ''}"
    if error.status in {Status.UNAUTHENTICATED, Status.PERMISSION_DENIED}:
        return AuthFailed(f"{said}; look at MODAL_TOKEN_ID and MODAL_TOKEN_SECRET")
    if error.status is Status.RESOURCE_EXHAUSTED:
        return _exhausted(error, said, creates=creates)
    if error.status in {Status.INVALID_ARGUMENT, Status.OUT_OF_RANGE} and creates:
        return InvalidSpec(said)
    meant = MEANT.get(error.status, OutcomeUnknown if creates else Unavailable)
    return meant(said)


def _exhausted(error: GRPCError, said: str, *, creates: bool) -> ProviderError:
    """Too many calls, or too many sandboxes: one status for both."""
    wait = _wait(error)
    if wait is not None or not creates or "rate" in (error.message or "").lower():
        return RateLimited(said, retry_after=wait)
    return QuotaExceeded(said)


def _wait(error: GRPCError) -> float | None:
    policy = api_pb2.RPCRetryPolicy()
    details = error.details.details if isinstance(error.details, api_pb2.RPCStatus) else ()
    for detail in details:
        if detail.Is(api_pb2.RPCRetryPolicy.DESCRIPTOR):
            detail.Unpack(policy)
            return max(0.0, policy.retry_after_secs)
    return None


def _told(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return "there was no answer in time"
    return words(error) if isinstance(error, Exception) else "it broke off"
