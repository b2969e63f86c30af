"""Calls to a cluster's API server: each ends by its deadline, and fails in our words."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, incluster_config, kube_config
from pydantic import ValidationError
from urllib3 import exceptions as failures

from ..errors import (
    InvalidSpec,
    OutcomeUnknown,
    ProviderError,
    SettingsError,
    Unavailable,
    words,
)
from ..host import in_forked_children
from .rest import LARGEST, Answer

PREFIX = "SANDKEEPER_KUBERNETES_"
HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"  # set in every Pod
NAMESPACE_FILE = Path(incluster_config.SERVICE_TOKEN_FILENAME).with_name("namespace")
CHUNK = 1 << 16  # bytes
# Nothing has left this machine: the call cannot have had an effect.
NEVER_SENT = (
    failures.ConnectTimeoutError,
    failures.LocationValueError,
    failures.NewConnectionError,
    failures.ProxyError,
)
# Neither module has types.
_files: Any = kube_config
_pods: Any = incluster_config


class Cluster:
    """
    The cluster that KUBECONFIG means, else ~/.kube/config, else the one that this process runs in.
    Safe for threads; a forked child connects for itself, because two processes on one connection
    would read the answers to each other's calls. Nothing is retried, no redirect is followed.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises SettingsError; connects to nothing, and runs no login program yet."""
        self._environ = dict(environ)
        self._file = _file(environ)
        self._context = environ.get(f"{PREFIX}CONTEXT") or None
        self.host, namespace = self._read()
        self.namespace = environ.get(f"{PREFIX}NAMESPACE") or namespace or "default"
        self._forget()
        in_forked_children(self, Cluster._forget)

    def _forget(self) -> None:
        self._client: client.ApiClient | None = None
        self._lock = threading.Lock()

    def _read(self) -> tuple[str, str]:
        """The address and the namespace that the settings mean."""
        if not self._file:
            return _in_cluster(self._environ).host, _own_namespace()
        try:
            return _chosen(self._file, self._context)
        except Exception as error:
            raise SettingsError(
                f"KUBECONFIG={self._file}, with {PREFIX}CONTEXT={self._context or ''}: "
                f"{words(error)}"
            ) from error

    def call(self, doing: str, deadline: float, send: Callable[[client.ApiClient], Any]) -> Answer:
        """
        What `send` asks of the API, any answer. `deadline` is of the monotonic clock; `doing`
        completes "cannot ...". Raises Unavailable when it cannot have had an effect,
        OutcomeUnknown when it can.
        """
        call = _Call(doing, deadline)
        if deadline <= time.monotonic():
            call.failed(self.host, "there was no time left for the call", Unavailable)
        api = self._connected(call)
        token = _current.set(call)
        try:
            with suppress(ApiException):  # of any status but 2xx: the answer itself says more
                send(api)
        except ProviderError as error:
            if _misses_a_file(error.__cause__):
                self._start_over()
            raise
        except ValidationError as error:  # the client looks at what it is given, too
            raise InvalidSpec(f"cannot {doing}: {words(error)}") from error
        except Exception as error:  # noqa: BLE001 - a login that was to be renewed, for one
            if call.answer is None:
                self._start_over()
                call.failed(self.host, words(error), Unavailable, error)
        finally:
            _current.reset(token)
        if call.answer is None:
            call.failed(self.host, "the client has not called", Unavailable)
        if call.answer.status == 401:
            self._start_over()  # tokens are rotated in their file: the next call reads it again
        return call.answer

    def fingerprint(self) -> str:
        """The address and the authority that vouches for it, digested."""
        call = _Call("read the certificate authority", 0.0)
        file = self._connected(call).configuration.ssl_ca_cert
        try:
            authority = Path(file).read_bytes() if file else b""
        except OSError as error:
            self._start_over()
            call.failed(self.host, words(error), Unavailable, error)
        return hashlib.sha256(self.host.encode() + b"\0" + authority).hexdigest()[:32]

    def _start_over(self) -> None:
        with self._lock:
            self._client = None

    def _connected(self, call: _Call) -> client.ApiClient:
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._made()
                except Exception as error:  # noqa: BLE001 - a login program's own
                    call.failed(self.host, words(error), Unavailable, error)
            return self._client

    def _made(self) -> client.ApiClient:
        configuration = client.Configuration()
        if self._file:
            _files.load_kube_config(
                config_file=self._file,
                context=self._context,
                client_configuration=configuration,
                persist_config=False,
            )
        else:
            _in_cluster(self._environ).load_and_set(configuration)
        api = client.ApiClient(configuration)
        api.rest_client.pool_manager = _Bounded(api.rest_client.pool_manager)  # type: ignore[assignment] # all that is called of it
        return api


class _Call:
    """One request under way, and its answer."""

    def __init__(self, doing: str, deadline: float) -> None:
        self.doing = doing
        self.deadline = deadline
        self.answer: Answer | None = None

    def failed(
        self,
        url: str,
        what: str,
        kind: type[Unavailable | OutcomeUnknown],
        cause: Exception | None = None,
    ) -> NoReturn:
        """Raise it."""
        raise kind(f"cannot {self.doing} at {url}: {what}") from cause


_current: ContextVar[_Call] = ContextVar("call")


class _Bounded:
    """
    The connections of a client, for calls that are made once and come to their end. The client's
    own timeout is for each read: a server that drips would never reach it.
    """

    def __init__(self, pools: urllib3.PoolManager) -> None:
        self._pools = pools

    def clear(self) -> None:
        """Close them."""
        self._pools.clear()

    def request(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """One request; its answer is read whole."""
        call = _current.get()
        address = url.partition("?")[0]
        left = call.deadline - time.monotonic()
        if left <= 0:
            call.failed(address, "there was no time left for the call", Unavailable)
        ours = {"timeout": urllib3.Timeout(total=left), "preload_content": False}
        options |= {**ours, "retries": False, "redirect": False}
        sent = False
        try:
            response = self._pools.request(method, url, **options)
            sent = True
            content = _read(response, call.deadline)
        except (failures.HTTPError, OSError) as error:
            unknown = method != "GET" and (sent or _may_have_been_sent(error))
            call.failed(address, words(error), OutcomeUnknown if unknown else Unavailable, error)
        headers = httpx2.Headers(list(response.headers.items()))
        call.answer = Answer(response.status, headers, content, call.doing, address)
        return urllib3.HTTPResponse(
            body=content, headers=response.headers, status=response.status, reason=response.reason
        )


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    content = bytearray()
    try:
        while chunk := _chunk(response, deadline, LARGEST - len(content)):
            content += chunk
    except BaseException:
        response.close()  # what is left of it belongs to no other call
        raise
    response.release_conn()
    return bytes(content)


def _chunk(response: urllib3.BaseHTTPResponse, deadline: float, room: int) -> bytes:
    left = deadline - time.monotonic()
    if room < 0:
        raise failures.ProtocolError(f"the answer is longer than {LARGEST} bytes")
    if left <= 0:
        raise failures.TimeoutError("the answer did not come to its end in time")
    socket = getattr(response.connection, "sock", None)
    if socket is not None:  # None as soon as all of it is here
        socket.settimeout(left)
    return response.read1(CHUNK)


def _may_have_been_sent(error: Exception) -> bool:
    if _misses_a_file(error) or isinstance(error, NEVER_SENT):
        return False
    return not any(isinstance(why, ssl.SSLCertVerificationError) for why in error.args)


def _misses_a_file(error: BaseException | None) -> bool:
    """
    Certificates that are in the configuration file itself, the client keeps in temporary files. A
    process that forked, and came to its end, has removed those of its parent too.
    """
    reasons = () if error is None else (error, *error.args)
    return any(isinstance(why, FileNotFoundError) for why in reasons)


def _file(environ: Mapping[str, str]) -> str:
    """The configuration to read; empty for the cluster that this process runs in."""
    if given := environ.get("KUBECONFIG"):
        if not any(Path(part).expanduser().is_file() for part in given.split(os.pathsep)):
            raise SettingsError(f"KUBECONFIG={given}: there is no such file")
        return given
    own = Path(environ.get("HOME") or Path.home(), ".kube", "config")
    if own.is_file():
        return str(own)
    if environ.get(HOST_VARIABLE):
        return ""
    raise SettingsError(
        f"KUBECONFIG is not set, {own} is not there, and this is no Pod of a cluster: set "
        "KUBECONFIG to the path of a configuration file"
    )


def _in_cluster(environ: Mapping[str, str]) -> Any:
    loader = _pods.InClusterConfigLoader(
        token_filename=incluster_config.SERVICE_TOKEN_FILENAME,
        cert_filename=incluster_config.SERVICE_CERT_FILENAME,
        environ=environ,
    )
    try:
        loader.load_and_set(client.Configuration())  # only reads the files
    except (ConfigException, OSError) as error:
        raise SettingsError(
            f"{HOST_VARIABLE}={environ[HOST_VARIABLE]} says that this is a Pod: "
            f"{words(error)}; give it a service account and its token, or set KUBECONFIG"
        ) from error
    return loader


def _chosen(file: str, context: str | None) -> tuple[str, str]:
    merged = _files.KubeConfigMerger(file).config
    loader = _files.KubeConfigLoader(config_dict=merged, active_context=context)
    chosen = loader.current_context["context"]
    cluster = merged["clusters"].get_with_name(chosen["cluster"])["cluster"]
    return str(cluster["server"]).rstrip("/"), str(chosen.get("namespace") or "")


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.is_file() else ""
