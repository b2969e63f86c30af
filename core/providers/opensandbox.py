"""
Provider `opensandbox`: a sandbox of an OpenSandbox server, which runs it on Docker or Kubernetes.

The server gives ids and knows no names. Ours is in two labels, installation and key, and is looked
for by them. So a create can only look first and make it then: two at once, or one whose answer is
lost while the server still pulls the image, may leave two sandboxes of one name. None of them is
removed here: the order in which they can be seen is not the order of their dates, and whichever
looks superfluous may be the one that another caller has found, and recorded, a moment ago. The
row decides: it keeps the first id that is recorded. Reconciliation removes every other, a teardown
without an id removes all of the name, and each has a TTL.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import quote, urlencode

from ..errors import (
    Busy,
    ForeignConflict,
    InvalidSpec,
    ProviderError,
    SettingsError,
    Unavailable,
)
from ..model import ownership
from .base import LABEL_PREFIX, Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec
from .opensandbox_answers import (
    code_of,
    failure,
    is_missing,
    looked,
    name_of,
    now_there,
    page,
    read,
    refusal,
    sandbox,
)
from .opensandbox_options import SHORTEST, body_of
from .opensandbox_pages import everything
from .reading import moment, our_labels
from .rest import Answer, Rest

DOMAIN, KEY = "OPEN_SANDBOX_DOMAIN", "OPEN_SANDBOX_API_KEY"
PREFIX = "SANDKEEPER_OPENSANDBOX_"
SCOPE = f"{PREFIX}SCOPE"
LARGEST_PAGE = 200  # sandboxes; the server refuses to be asked for more
LEAVES_WITHIN = 5.0  # seconds that a removal by another call takes, or it failed
LOOK_EVERY = 0.1
EVER = datetime.min.replace(tzinfo=UTC)
EXTENSIBLE = {ProviderState.PENDING, ProviderState.RUNNING, ProviderState.PAUSED}


class OpenSandboxProvider:
    """The sandboxes of one server that its API key can see."""

    name = "opensandbox"
    capabilities = frozenset({Capability.LIST, Capability.TTL})

    def __init__(self, rest: Rest, *, scope: str = "") -> None:
        self._rest = rest
        self._scope = f"opensandbox:{scope or rest.base_url.removesuffix('/v1')}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From the SDK's own OPEN_SANDBOX_DOMAIN (host and port, or an address with its scheme) and
        OPEN_SANDBOX_API_KEY, and from SANDKEEPER_OPENSANDBOX_SCOPE, a name for server and tenant
        instead of the address. Raises SettingsError; connects to nothing.
        """
        for variable in environ:
            if variable.startswith(PREFIX) and variable != SCOPE:
                raise SettingsError(f"{variable} is not a setting: known is {SCOPE}")
        key, scope = environ.get(KEY, ""), environ.get(SCOPE, "")
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            raise SettingsError(f"{KEY} has characters that no key has: was a line break copied?")
        if not scope.isprintable():
            raise SettingsError(f"{SCOPE}={scope!r}: give printable characters")
        domain = environ.get(DOMAIN) or "localhost:8080"
        if "@" in domain:  # it would be shown, and kept with every row
            raise SettingsError(f"{DOMAIN} holds a user or a password: give host and port alone")
        if not domain.startswith(("http://", "https://")):
            domain = f"http://{domain}"  # as the SDK does
        headers = {"OPEN-SANDBOX-API-KEY": key} if key else {}
        return cls(Rest(f"{domain.rstrip('/')}/v1", headers=headers, setting=DOMAIN), scope=scope)

    def scope(self) -> str:
        """`opensandbox:` and the server's address: the API does not say whose it is."""
        return self._scope

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
        Adopt the oldest that has this name and these labels, as it is, or make one. A TTL below a
        minute takes a second call; should that fail, it is a minute.
        """
        body = body_of(spec, labels, ttl)
        if name_of(labels) != name:
            raise InvalidSpec(f"sandbox {name} would be {name_of(labels)} by its labels")
        if found := self._all_of(name, deadline):
            return _adopted(found, name, labels)
        answer = self._call("POST", "", f"create {name}", deadline, body=body)
        if not answer.is_success:
            raise refusal(answer)
        made = read(answer, lambda said: sandbox({**said, "metadata": labels}))
        if ttl is not None and ttl < SHORTEST:
            with suppress(ProviderError):
                until = now_there(answer) + timedelta(seconds=ttl)
                return replace(made, expires_at=self._renew(made.ref, until, deadline))
        return made

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """Look one up by its id; without one, the oldest of its name."""
        if ref.external_id is None:
            return next(iter(self._all_of(ref.name, deadline)), None)
        return self._found(ref, self._look(ref, deadline))

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """Remove it; without an id, all that have its name."""
        if ref.external_id is None:
            meant = self._all_of(ref.name, deadline)
        else:
            found = self.get(ref, deadline=deadline)
            meant = [] if found is None else [found]
        for info in meant:
            self._remove(info.ref, deadline)

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """All sandboxes with all of these labels, in every state, on one page."""
        return Page(items=tuple(self._listed(labels, "list sandboxes", deadline)))

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """
        Let it live `ttl` seconds from now, by the server's clock, also while it is paused. Raises
        Unavailable when it is not there, has ended, or was made without a TTL.
        """
        if ref.external_id is None and (oldest := self.get(ref, deadline=deadline)):
            ref = oldest.ref
        answer = self._look(ref, deadline)
        found = self._found(ref, answer)
        if found is None or found.state not in EXTENSIBLE:
            raise Unavailable(f"sandbox {ref.name} is not there, or ended: nothing was extended")
        return self._renew(ref, now_there(answer) + timedelta(seconds=ttl), deadline)

    def _renew(self, ref: SandboxRef, until: datetime, deadline: float) -> datetime:
        path, body = f"{_path(ref)}/renew-expiration", {"expiresAt": until.isoformat()}
        answer = self._call("POST", path, f"extend {ref.name}", deadline, body=body)
        if is_missing(answer):
            raise Unavailable(f"sandbox {ref.name} is gone: nothing was extended")
        if answer.status == 409 and code_of(answer).endswith("::INVALID_EXPIRATION"):
            raise Unavailable(f"sandbox {ref.name} was made without a TTL: nothing was extended")
        if not answer.is_success:
            raise failure(answer)
        return read(answer, lambda said: moment(said["expiresAt"]))

    def _remove(self, ref: SandboxRef, deadline: float) -> None:
        answer = self._call("DELETE", _path(ref), f"destroy {ref.name}", deadline)
        if answer.is_success or is_missing(answer):
            return
        # Of several that remove it at once the server tells all but one 500, or 409.
        until = min(deadline, time.monotonic() + LEAVES_WITHIN)
        if answer.status not in {409, 500} or not self._leaves(ref, until):
            raise failure(answer)

    def _leaves(self, ref: SandboxRef, until: float) -> bool:
        """Whether it goes without us, as it does when another call is removing it."""
        with suppress(ProviderError):  # then nobody knows, and the first refusal is told
            while time.monotonic() < until:
                found = self.get(ref, deadline=until)
                if found is None or found.state is ProviderState.STOPPING:
                    return True
                time.sleep(min(LOOK_EVERY, max(0.0, until - time.monotonic())))
        return False

    def _all_of(self, name: str, deadline: float) -> builtins.list[SandboxInfo]:
        """All that are this name's, by every one of our labels: the oldest first."""
        installation, _, key = name.removeprefix("sk-").partition("-")
        wanted = {f"{LABEL_PREFIX}installation": installation, f"{LABEL_PREFIX}key": key}
        found = self._listed(wanted, f"look for {name}", deadline)
        ours = [info for info in found if ownership(name, info.labels, installation)]
        return sorted(ours, key=lambda info: (info.created_at or EVER, str(info.ref.external_id)))

    def _listed(
        self, labels: Mapping[str, str], doing: str, deadline: float
    ) -> builtins.list[SandboxInfo]:
        def fetch(number: int, size: int) -> tuple[dict[str, SandboxInfo | None], bool]:
            asked = {"metadata": urlencode(labels), "page": str(number), "pageSize": str(size)}
            answer = self._call("GET", "", doing, deadline, params=asked)
            return looked(answer, lambda said: page(said, labels))

        found = everything(fetch, LARGEST_PAGE)
        return [info for info in found.values() if info is not None]

    def _look(self, ref: SandboxRef, deadline: float) -> Answer:
        return self._call("GET", _path(ref), f"look at {ref.name}", deadline)

    def _found(self, ref: SandboxRef, answer: Answer) -> SandboxInfo | None:
        if is_missing(answer):
            return None
        found = looked(answer, sandbox)
        return found if found.ref == ref else None

    def _call(self, method: str, path: str, doing: str, deadline: float, **asked: Any) -> Answer:
        return self._rest.call(method, f"/sandboxes{path}", doing=doing, deadline=deadline, **asked)


def _path(ref: SandboxRef) -> str:
    # Whatever an id looks like, it is one part of a path: never the listing, nor another call.
    return f"/{quote(ref.external_id or '-', safe='')}"


def _adopted(found: list[SandboxInfo], name: str, labels: Mapping[str, str]) -> SandboxInfo:
    ours = [info for info in found if our_labels(info.labels) == labels]
    if not ours:
        raise ForeignConflict(f"sandbox {name} exists with other labels: it is left alone")
    stays = [info for info in ours if info.state is not ProviderState.STOPPING]
    if not stays:
        raise Busy(f"sandbox {name} is being removed: another can be made before long")
    return stays[0]
