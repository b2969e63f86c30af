"""
Provider `e2b`: a sandbox is one of E2B's, or of a server that speaks its API.

E2B gives ids and knows no names: a sandbox is found by its labels, which are its metadata. A
create is idempotent on a key, which is our name. No SDK is used: E2B's repeats calls by itself, and
keeps to itself the codes by which a create that is under way differs from one that was refused.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self
from urllib.parse import urlencode

from ..errors import (
    Busy,
    ForeignConflict,
    InvalidSpec,
    SettingsError,
    Unavailable,
)
from . import e2b_answers as answers
from .base import LABEL_PREFIX, Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec
from .e2b_options import body
from .reading import our_labels
from .rest import Answer, Rest, only_looking

PREFIX = "SANDKEEPER_E2B_"
DOMAIN = "e2b.app"
HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")
AN_ID = re.compile(r"[A-Za-z0-9-]{1,255}")
LARGEST_PAGE = "100"
LONGEST = 24 * 3600  # seconds that E2B lets a sandbox live, on its longest plan
STARTS_WITHIN = 5.0  # seconds that a create which is under way takes, or is left to a retry
LOOK_EVERY = 0.25


class E2BProvider:
    """
    Sandboxes of one E2B team. Each ends by itself when its timeout runs out: E2B has none without,
    so one that is asked for without a TTL gets the longest that the team's plan allows.
    """

    name = "e2b"
    capabilities = frozenset({Capability.LIST, Capability.TTL, Capability.IDEMPOTENT_CREATE})

    def __init__(self, api_key: str, api_url: str, *, setting: str = "E2B_API_URL") -> None:
        self._rest = Rest(api_url, headers={"X-API-KEY": api_key}, setting=setting)
        digest = hashlib.sha256(api_key.encode()).hexdigest()[:16]
        self._scope = f"e2b:{self._rest.base_url.partition('://')[2]}:{digest}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From E2B's own E2B_API_KEY, E2B_DOMAIN, E2B_API_URL and E2B_DEBUG. Raises SettingsError,
        which never shows the key; connects to nothing.
        """
        for variable in environ:
            if variable.startswith(PREFIX):
                raise SettingsError(f"{variable} is not a setting: E2B's own variables are used")
        key = environ.get("E2B_API_KEY", "")
        if not key:
            raise SettingsError(
                "E2B_API_KEY is not set: give an API key of your team, which e2b.dev/dashboard has"
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise SettingsError(
                "E2B_API_KEY has a space, a line break or another character that no key has"
            )
        setting, url = _address(environ)
        return cls(key, url, setting=setting)

    def scope(self) -> str:
        """`e2b:`, the API's address, a digest of the key: E2B does not say whose team it is."""
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
        Create it, and read back what was granted. A plan that allows less than `ttl` gives what it
        allows. One that was paused meanwhile is adopted as it is.
        """
        if answers.name_of(labels) != name:
            raise InvalidSpec(f"labels {dict(labels)} do not make the name {name}")
        asked = _seconds(LONGEST if ttl is None else ttl)
        answer = self._post(name, name, body(spec, labels, asked), deadline)
        allowed = answers.longest(answer)
        if allowed is not None and 0 < allowed < asked:
            # Under a key of its own: the first one belongs to other bytes, for every later retry.
            key = f"{name}-{allowed}"
            answer = self._post(name, key, body(spec, labels, allowed), deadline)
        if answer.status == 409:
            return self._adopted(name, labels, answer, deadline)
        if not answer.is_success:
            raise answers.error_of_create(answer)
        return self._granted(name, labels, answers.made(answer), deadline)

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """
        Look one up by its id, or among the listed while that is not known. A listing leaves out
        what is being snapshotted at this moment; only who has the id can have ordered that.
        """
        found = self._meant(ref, f"look at {ref.name}", deadline)
        return found[0] if found else None

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """
        Kill it, and delete the snapshot of one that is paused. Without an id, all that have the
        name: a fork has the labels of what it was forked from.
        """
        doing = f"destroy {ref.name}"
        for found in self._meant(ref, doing, deadline):
            answer = self._rest.call("DELETE", _path(found), doing=doing, deadline=deadline)
            if not answer.is_success and not answers.is_not_there(answer):
                raise answer.error()

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """
        A page of the sandboxes with all of these labels, oldest first, paused ones too. One that
        is resumed between two pages begins anew, so that it may be on both, and is on one.
        """
        answer = self._listing(labels, cursor, "list sandboxes", deadline)
        found = [one for one in answers.listed(answer) if labels.items() <= one.labels.items()]
        return Page(items=tuple(found), cursor=answers.cursor(answer))

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """
        Let it live `ttl` seconds from now, as far as the plan allows: the expiry is what E2B says
        afterwards. Raises Unavailable when it does not run.
        """
        doing = f"extend {ref.name}"
        found = self._meant(ref, doing, deadline)
        if not found or found[0].state is ProviderState.PAUSED:
            raise Unavailable(f"sandbox {ref.name} does not run: nothing was extended")
        answer = self._rest.call(
            "POST",
            f"{_path(found[0])}/timeout",
            doing=doing,
            deadline=deadline,
            body={"timeout": _seconds(ttl)},
        )
        if not answer.is_success:
            raise answer.error()
        after = self._by_id(found[0].ref, doing, deadline)
        if after is None:
            raise Unavailable(f"sandbox {ref.name} was gone when it had been extended")
        return after.expires_at

    def _post(self, name: str, key: str, content: Mapping[str, Any], deadline: float) -> Answer:
        return self._rest.call(
            "POST",
            "/v2/sandboxes",
            doing=f"create {name}",
            deadline=deadline,
            body=content,
            headers={"Idempotency-Key": key},
        )

    def _granted(
        self, name: str, labels: Mapping[str, str], external_id: str, deadline: float
    ) -> SandboxInfo:
        """
        What the create made. Its answer says no expiry, and is the same again for as long as E2B
        remembers the key: the sandbox may have come to its end since.
        """
        ref = SandboxRef(name=name, external_id=external_id)
        found = self._by_id(ref, f"create {name}", deadline)
        if found is None:
            raise Unavailable(f"sandbox {external_id}, made as {name}, is not there any more")
        return _ours(found, labels)

    def _adopted(
        self, name: str, labels: Mapping[str, str], refused: Answer, deadline: float
    ) -> SandboxInfo:
        """
        The key was used: whoever has the name now decides, whatever the reason was. What another
        call is creating is waited for in the listing: creates are few a second, looks are many.
        """
        error = answers.error_of_create(refused)
        until = min(deadline, time.monotonic() + STARTS_WITHIN * isinstance(error, Busy))
        while not (found := self._by_name(name, f"create {name}", deadline)):
            if time.monotonic() + LOOK_EVERY >= until:
                raise error
            time.sleep(LOOK_EVERY)
        return self._granted(name, labels, str(found[0].ref.external_id), deadline)

    def _meant(self, ref: SandboxRef, doing: str, deadline: float) -> Sequence[SandboxInfo]:
        """The one of this id, if it has the name too; all of the name while there is no id."""
        if ref.external_id is None:
            return self._by_name(ref.name, doing, deadline)
        found = self._by_id(ref, doing, deadline)
        return [] if found is None else [found]

    def _by_id(self, ref: SandboxRef, doing: str, deadline: float) -> SandboxInfo | None:
        if not AN_ID.fullmatch(ref.external_id or ""):
            return None  # E2B never gave it; some would make another path of the call
        path = f"/sandboxes/{ref.external_id}"
        answer = self._look(path, {}, doing, deadline)
        if answers.is_not_there(answer):
            return None
        if not answer.is_success:
            raise answer.error()
        return answers.shown(answer, ref)

    def _by_name(self, name: str, doing: str, deadline: float) -> Sequence[SandboxInfo]:
        """All that have the name, from all pages; one, unless somebody forked it."""
        labels = {f"{LABEL_PREFIX}key": name.rpartition("-")[2]}
        answer = self._listing(labels, None, doing, deadline)
        found = answers.listed(answer)
        while cursor := answers.cursor(answer):
            answer = self._listing(labels, cursor, doing, deadline)
            found += answers.listed(answer)
        return [one for one in found if one.ref.name == name]

    def _listing(
        self, labels: Mapping[str, str], cursor: str | None, doing: str, deadline: float
    ) -> Answer:
        # From the newest on, as E2B does by itself, a sandbox that is resumed between two pages
        # would be on neither: what is resumed is the newest.
        params = {"state": "running,paused", "order": "asc", "limit": LARGEST_PAGE}
        if labels:
            params["metadata"] = urlencode(labels)
        if cursor is not None:
            params["nextToken"] = cursor
        answer = self._look("/v2/sandboxes", params, doing, deadline)
        if not answer.is_success:
            raise answer.error()
        return answer

    def _look(self, path: str, params: Mapping[str, str], doing: str, deadline: float) -> Answer:
        with only_looking():
            return self._rest.call("GET", path, doing=doing, deadline=deadline, params=params)


def _address(environ: Mapping[str, str]) -> tuple[str, str]:
    """The variable that says where the API is, and where that is."""
    if url := environ.get("E2B_API_URL"):
        return "E2B_API_URL", url
    if environ.get("E2B_DEBUG", "").lower() == "true":
        return "E2B_DEBUG", "http://localhost:3000"  # as E2B's own SDK has it
    domain = environ.get("E2B_DOMAIN") or DOMAIN
    if not HOST.fullmatch(domain):
        raise SettingsError(f"E2B_DOMAIN={domain!r}: give a domain alone, such as {DOMAIN}")
    return "E2B_DOMAIN", f"https://api.{domain}"


def _seconds(ttl: float) -> int:
    """Whole ones, as E2B counts; a 32-bit number of them."""
    return min(max(1, math.ceil(ttl)), 2**31 - 1)


def _path(found: SandboxInfo) -> str:
    return f"/sandboxes/{found.ref.external_id}"


def _ours(found: SandboxInfo, labels: Mapping[str, str]) -> SandboxInfo:
    if our_labels(found.labels) != labels:
        raise ForeignConflict(
            f"sandbox {found.ref.external_id} is {found.ref.name} with other labels: it is left "
            "alone"
        )
    return found
