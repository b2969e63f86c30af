"""
Provider `modal`: a sandbox is one of Modal's, named, in one app of one of its environments.

A name is unique among the sandboxes that run, and free again when they have ended; the tags say
whose it is. The life of a sandbox is fixed when it is made and can never be extended, so this
provider claims no TTL.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Self
from urllib.parse import urlsplit

from modal_proto import api_pb2

from ..errors import (
    Busy,
    ForeignConflict,
    OutcomeUnknown,
    SettingsError,
    Unavailable,
    Unsupported,
)
from ..model import sandbox_name
from .base import LABEL_PREFIX, Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec
from .modal_images import prepared
from .modal_options import check
from .modal_pages import labels_of, page
from .modal_wire import NameTaken, NotThere, Wire
from .reading import our_labels

PREFIX = "SANDKEEPER_MODAL_"
ADDRESSES = "https://api.modal.com,https://api.modal2.com"  # as Modal's own client has them
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # of apps and environments
ID_OF_AN_APP = re.compile(r"ap-[A-Za-z0-9]{22}")  # Modal takes such a name for an id
OLD_ID = re.compile(r"sb-[A-Za-z0-9]{22}")  # of the backend before; other calls are for those
SCOPE_WITHIN = 10.0  # seconds
SETTLES_WITHIN = 2.0  # seconds between a name that is taken and a sandbox that can be found by it
LOOK_EVERY = 0.05


class ModalProvider:
    """Sandboxes of one app, which is made when it is first needed."""

    name = "modal"
    capabilities = frozenset({Capability.LIST, Capability.IDEMPOTENT_CREATE})

    def __init__(self, wire: Wire, *, app: str, environment: str) -> None:
        self._wire = wire
        self._app = app
        self._environment = environment

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From Modal's own MODAL_TOKEN_ID, MODAL_TOKEN_SECRET, MODAL_ENVIRONMENT (none: the
        workspace's default) and MODAL_SERVER_URL, and from SANDKEEPER_MODAL_APP. Raises
        SettingsError; connects to nothing. The file ~/.modal.toml is not read.
        """
        for variable in environ:
            if variable.startswith(PREFIX) and variable != f"{PREFIX}APP":
                raise SettingsError(f"{variable} is not a setting: known is {PREFIX}APP")
        app = environ.get(f"{PREFIX}APP", "sandkeeper")
        if not NAME.fullmatch(app) or ID_OF_AN_APP.fullmatch(app):
            raise SettingsError(
                f"{PREFIX}APP={app!r}: give 1 to 64 of A-Z a-z 0-9 . _ -, and no id of an app"
            )
        environment = environ.get("MODAL_ENVIRONMENT", "")
        if environment and not NAME.fullmatch(environment):
            raise SettingsError(
                f"MODAL_ENVIRONMENT={environment!r}: give 1 to 64 of A-Z a-z 0-9 . _ -"
            )
        wire = Wire(
            _addresses(environ.get("MODAL_SERVER_URL") or ADDRESSES),
            token_id=_credential(environ, "MODAL_TOKEN_ID"),
            token_secret=_credential(environ, "MODAL_TOKEN_SECRET"),
        )
        return cls(wire, app=app, environment=environment)

    def scope(self) -> str:
        """`modal:` and the id of the app, which no other workspace or environment has."""
        return f"modal:{self._app_id(time.monotonic() + SCOPE_WITHIN)}"

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        spec: Spec,
        *,
        ttl: float | None,
        deadline: float,
    ) -> SandboxInfo:
        """
        Make it. Modal first builds the image, if nobody has used it yet, which may take minutes:
        the next create goes on with that. It lives `ttl` seconds, or the option `lifetime` if that
        is less; nothing extends it.
        """
        options = check(spec, labels)
        app_id = self._app_id(deadline)
        request = options.request(
            name,
            labels,
            spec,
            app_id=app_id,
            image_id=prepared(self._wire, spec.image or "", app_id, deadline),
            ttl=ttl,
        )
        try:
            return self._made(name, labels, request, deadline)
        except NameTaken as error:
            found = self._settled(name, min(deadline, time.monotonic() + SETTLES_WITHIN), deadline)
            if found is None:
                raise Busy(f"{error}; but it cannot be found: its name is free before long") from (
                    error
                )
            return _ours(found, labels)

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """
        Look one up by its id, or by its name while that is not known. One that ended is gone:
        Modal remembers it, and bills nothing.
        """
        return self._meant(ref, deadline)

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """Let Modal terminate it, which takes it a moment after it has accepted."""
        found = self._meant(ref, deadline)
        if found is None or found.ref.external_id is None:
            return
        which = found.ref.external_id
        try:
            self._wire.ask(
                f"SandboxTerminate{_backend(which)}",
                api_pb2.SandboxTerminateRequest(sandbox_id=which),
                api_pb2.SandboxTerminateResponse,
                doing=f"destroy {ref.name}",
                deadline=deadline,
            )
        except NotThere:
            return

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """What runs, the newest first; Modal decides how many on a page."""
        return page(self._wire, self._app_id(deadline), labels, cursor, deadline)

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """Always Unsupported: Modal fixes the life of a sandbox when it is made."""
        raise Unsupported(f"cannot extend {ref.name}: Modal lets no sandbox live longer")

    def _app_id(self, deadline: float) -> str:
        """Asked anew each time: an app that was stopped and made again has another."""
        found = self._wire.ask(
            "AppGetOrCreate",
            api_pb2.AppGetOrCreateRequest(
                app_name=self._app,
                environment_name=self._environment,
                object_creation_type=api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
            ),
            api_pb2.AppGetOrCreateResponse,
            doing=f"find app {self._app} in environment {self._environment or '(default)'}",
            deadline=deadline,
        )
        if not found.app_id:  # a listing without one would be of all apps
            raise Unavailable(f"cannot find app {self._app}: Modal's answer has no id")
        return found.app_id

    def _made(
        self,
        name: str,
        labels: Mapping[str, str],
        request: api_pb2.SandboxCreateV2Request,
        deadline: float,
    ) -> SandboxInfo:
        made = self._wire.ask(
            "SandboxCreateV2",
            request,
            api_pb2.SandboxCreateV2Response,
            doing=f"create {name}",
            deadline=deadline,
            creates=True,
        )
        if not made.sandbox_id:
            raise OutcomeUnknown(f"cannot create {name}: Modal's answer has no id")
        ref = SandboxRef(name=name, external_id=made.sandbox_id)
        return SandboxInfo(ref=ref, state=ProviderState.RUNNING, labels=dict(labels))

    def _settled(self, name: str, until: float, deadline: float) -> SandboxInfo | None:
        """Who has the name. It is taken before it leads anywhere: a create may be under way."""
        while (found := self._named(name, deadline)) is None and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
        return found

    def _named(self, name: str, deadline: float) -> SandboxInfo | None:
        """Whatever has this name."""
        which = self._id_of(name, deadline)
        return None if which is None else self._running(name, which, deadline)

    def _id_of(self, name: str, deadline: float) -> str | None:
        try:
            found = self._wire.ask(
                "SandboxGetFromNameV2",
                api_pb2.SandboxGetFromNameRequest(
                    sandbox_name=name, app_name=self._app, environment_name=self._environment
                ),
                api_pb2.SandboxGetFromNameResponse,
                doing=f"look for {name}",
                deadline=deadline,
            )
        except NotThere:
            self._app_id(deadline)  # where there is no such environment, "not found" says nothing
            return None
        if not found.sandbox_id:
            raise Unavailable(f"cannot look for {name}: Modal's answer has no id")
        return found.sandbox_id

    def _meant(self, ref: SandboxRef, deadline: float) -> SandboxInfo | None:
        """
        What runs, and has this name and this id. By a name alone it has to have the tags of which
        our names are made. By an id Modal gives no name, so these tags are compared, and only when
        they were changed the name is asked for: what has both is never taken for gone.
        """
        which = ref.external_id
        if which is None:
            found = self._named(ref.name, deadline)
            return found if found is not None and _is_of(ref.name, found.labels) else None
        if not which.startswith("sb-"):  # no id of a sandbox
            return None
        found = self._running(ref.name, which, deadline)
        if found is None or _is_of(ref.name, found.labels):
            return found
        return found if self._id_of(ref.name, deadline) == which else None

    def _running(self, name: str, which: str, deadline: float) -> SandboxInfo | None:
        """Whatever has this id, unless it has ended."""
        backend, doing = _backend(which), f"look at {name}"
        try:
            waited = self._wire.ask(
                f"SandboxWait{backend}",
                api_pb2.SandboxWaitRequest(sandbox_id=which, timeout=0),
                api_pb2.SandboxWaitResponse,
                doing=doing,
                deadline=deadline,
            )
            if waited.result.status:
                return None
            found = self._wire.ask(
                f"SandboxTagsGet{backend}",
                api_pb2.SandboxTagsGetRequest(sandbox_id=which),
                api_pb2.SandboxTagsGetResponse,
                doing=doing,
                deadline=deadline,
            )
        except NotThere:
            return None
        return SandboxInfo(
            ref=SandboxRef(name=name, external_id=which),
            state=ProviderState.RUNNING,
            labels=labels_of(found.tags),
        )


def _credential(environ: Mapping[str, str], variable: str) -> str:
    value = environ.get(variable, "")
    if not value:
        raise SettingsError(f"{variable} is not set: `modal token new` makes one, or modal.com")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise SettingsError(f"{variable} has characters that no token has: copy it again")
    return value


def _addresses(text: str) -> list[str]:
    found = [address.strip() for address in text.split(",")]
    for address in found:
        try:
            url = urlsplit(address)
            wrong = url.scheme not in {"http", "https"} or not url.hostname or url.port == 0
        except ValueError:
            wrong = True
        if wrong:
            raise SettingsError(
                f"MODAL_SERVER_URL={text!r}: give an address such as https://api.modal.com"
            )
    return found


def _backend(which: str) -> str:
    """Which calls know this id: Modal has two backends, and lists both."""
    return "" if OLD_ID.fullmatch(which) else "V2"


def _is_of(name: str, labels: Mapping[str, str]) -> bool:
    key = labels.get(f"{LABEL_PREFIX}key", "")
    installation = labels.get(f"{LABEL_PREFIX}installation", "")
    return bool(key) and name == sandbox_name(installation, key)


def _ours(found: SandboxInfo, labels: Mapping[str, str]) -> SandboxInfo:
    if our_labels(found.labels) != labels:
        raise ForeignConflict(f"sandbox {found.ref.name} runs with other tags: it is left alone")
    return found
