"""
Provider `daytona`: a sandbox is one of Daytona's, of their cloud or of one's own servers.

Three things of it decide how this reads. A name is unique in its organisation until a delete, which
renames: so a create is idempotent, and what is being deleted is no longer found by its name. The
API says "not found" for some of its own failures too: so a listing is asked before that is
believed. And listings come from an index that is seconds behind: so they alone decide nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Self
from urllib.parse import quote

from ..errors import Busy, ForeignConflict, InvalidSpec, OutcomeUnknown, Unavailable
from .base import LABEL_PREFIX, Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec
from .daytona_account import Account
from .daytona_answers import (
    Sandbox,
    is_not_found,
    message,
    page,
    refusal,
    sandbox,
)
from .daytona_options import request
from .reading import our_labels
from .rest import Answer, only_looking

MINUTE = 60.0  # seconds: the unit of Daytona's TTL
PAGE = 200  # the largest that it gives
SETTLES_WITHIN = 12.0  # seconds: an answer to a look by name is kept for ten at the server
LOOK_EVERY = 0.25
FAILED_TO_START = "Sandbox failed to start"


class DaytonaProvider:
    """Sandboxes of one organisation. Its regions are one scope: a look finds those of all."""

    name = "daytona"
    capabilities = frozenset({Capability.LIST, Capability.TTL, Capability.IDEMPOTENT_CREATE})

    def __init__(self, account: Account, *, target: str | None = None) -> None:
        self._account = account
        self._rest = account.rest
        self._target = target

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From Daytona's own variables: those of `Account`, and DAYTONA_TARGET, the region of what is
        made. Raises SettingsError; connects to nothing.
        """
        return cls(Account.from_env(environ), target=environ.get("DAYTONA_TARGET") or None)

    def scope(self) -> str:
        """`daytona:` and the organisation: that of a key is asked for, once."""
        return self._account.scope()

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
        Make it: the call returns when it runs, or after half a minute. One that has the name is
        adopted as it is. A TTL counts in whole minutes, rounded up; the region may allow less.
        """
        minutes = None if ttl is None else _minutes(ttl)
        body = request(name, labels, spec, target=self._target, ttl_minutes=minutes)
        answer = self._rest.call(
            "POST", "/sandbox", doing=f"create {name}", deadline=deadline, body=body
        )
        if answer.is_success:
            return _made(answer, name, labels).info()
        found = self._there_after_all(answer, name, deadline)
        if found is None:
            raise refusal(answer, name)
        found = _ours(found, name, labels)
        if found.state is ProviderState.FAILED and message(answer).startswith(FAILED_TO_START):
            raise InvalidSpec(f"sandbox {name} cannot be made: {message(answer)}")
        return found.info()

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        """
        Look one up by its id, or by its name while that is not known. One that is being deleted is
        STOPPING; one whose deletion failed is FAILED, though Daytona itself says "not found".
        """
        with only_looking():
            found = self._found(ref.external_id or ref.name, deadline)
            if found is None:
                found = self._hidden(ref, deadline)
        if found is None or not found.is_meant(ref) or found.state is ProviderState.GONE:
            return None
        return found.info()

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """
        Delete it, in whatever state it is. Raises Busy while another change of it is under way,
        and while forks of it exist.
        """
        with only_looking():
            found = self._found(ref.external_id or ref.name, deadline)
        if found is None or not found.is_meant(ref) or found.is_leaving:
            return
        answer = self._rest.call(
            "DELETE", _path(found.id), doing=f"destroy {ref.name}", deadline=deadline
        )
        if answer.is_success or is_not_found(answer, found.id):
            return
        if answer.status == 409:
            with only_looking():
                again = self._found(found.id, deadline)
            if again is None or again.is_leaving:
                return
        if answer.status == 400 and "fork" in message(answer):
            raise Busy(f"sandbox {ref.name} cannot be destroyed: {message(answer)}")
        raise answer.error()

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """
        Sandboxes of all regions with all of these labels, stopped and paused ones too. Left out
        are those that failed and were deleted since: nothing more can be asked about them.
        """
        params = {"labels": json.dumps(dict(labels))} | ({"cursor": cursor} if cursor else {})
        with only_looking():
            found, following = self._page(params, labels, deadline)
        items = (item.info() for item in found if item.state is not ProviderState.GONE)
        return Page(items=tuple(items), cursor=following)

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        """
        Let it live `ttl` seconds from now, rounded up to minutes; gives what the region granted.
        Raises Unavailable when it is not there, is being deleted, or has failed.
        """
        with only_looking():
            found = self._found(ref.external_id or ref.name, deadline)
        lost = {ProviderState.STOPPING, ProviderState.GONE, ProviderState.FAILED}
        if found is None or not found.is_meant(ref) or found.state in lost:
            raise Unavailable(f"sandbox {ref.name} is not there, or failed: nothing was extended")
        path = f"{_path(found.id)}/ttl/{_minutes(ttl)}"
        answer = self._rest.call("POST", path, doing=f"extend {ref.name}", deadline=deadline)
        if not answer.is_success:
            raise answer.error()
        now = sandbox(answer)
        if now.expires_at is None or now.is_leaving:
            raise Unavailable(f"sandbox {ref.name} has no TTL after an extension: is it deleted?")
        return now.expires_at

    def _there_after_all(self, answer: Answer, name: str, deadline: float) -> Sandbox | None:
        """
        Who has the name of a create that was refused. Quotas are checked before names, and one
        that fails to start is refused and there: so a 400 too is no proof. A name that is taken
        may be hidden by an older answer for as long as the server keeps that.
        """
        if answer.status not in {400, 409}:
            return None
        patience = SETTLES_WITHIN if answer.status == 409 else 0.0
        until = min(deadline, time.monotonic() + patience)
        while True:
            found = self._found(name, deadline)
            if found is not None and found.name == name:
                return found
            if time.monotonic() + LOOK_EVERY >= until:
                return None
            time.sleep(LOOK_EVERY)

    def _found(self, which: str, deadline: float) -> Sandbox | None:
        """By id or name. None is Daytona's "not found", which it says for an outage too."""
        answer = self._rest.call("GET", _path(which), doing=f"look at {which}", deadline=deadline)
        if is_not_found(answer, which):
            return None
        if not answer.is_success:
            raise answer.error()
        return sandbox(answer)

    def _hidden(self, ref: SandboxRef, deadline: float) -> Sandbox | None:
        """
        One that is not found, and that the index has all the same: renamed by a delete, failed
        while it was deleted, or there while something else failed. What the index says of its
        state may be old, so that is not repeated.
        """
        key = {f"{LABEL_PREFIX}key": ref.name.rpartition("-")[2]}
        # Labels can be replaced by whoever may use the account: an id is looked for by itself.
        narrow = {"id": ref.external_id} if ref.external_id else {"labels": json.dumps(key)}
        params, cursor = {**narrow, "includeErroredDeleted": "true"}, ""
        while True:
            more = {"cursor": cursor} if cursor else {}
            items, following = self._page({**params, **more}, {}, deadline)
            for item in items:
                if item.is_meant(ref) and item.state is not ProviderState.GONE:
                    known = item.is_leaving or item.state is ProviderState.FAILED
                    return item if known else replace(item, state=ProviderState.UNKNOWN)
            if following is None:
                return None
            cursor = following

    def _page(
        self, params: Mapping[str, str], labels: Mapping[str, str], deadline: float
    ) -> tuple[tuple[Sandbox, ...], str | None]:
        # By default what was used last comes first: whoever moves up meanwhile would be skipped.
        ordered = {"limit": str(PAGE), "sort": "createdAt", "order": "asc"}
        answer = self._rest.call(
            "GET",
            "/sandbox",
            doing="list sandboxes",
            deadline=deadline,
            params={**ordered, **params},
        )
        if not answer.is_success:
            raise answer.error()
        return page(answer, labels)


def _minutes(ttl: float) -> int:
    return max(1, math.ceil(ttl / MINUTE))  # 0 would mean for ever


def _path(which: str) -> str:
    return f"/sandbox/{quote(which, safe='')}"


def _made(answer: Answer, name: str, labels: Mapping[str, str]) -> Sandbox:
    try:
        return _ours(sandbox(answer), name, labels)
    except ForeignConflict as error:  # whatever it shows: something was made
        raise OutcomeUnknown(f"{answer.url} made {name}, and shows another sandbox") from error


def _ours(found: Sandbox, name: str, labels: Mapping[str, str]) -> Sandbox:
    if found.name != name or our_labels(found.labels) != labels:
        raise ForeignConflict(f"sandbox {name} exists with other labels: it is left alone")
    if found.is_leaving:
        raise Busy(f"sandbox {name} is being deleted: its name is free before long")
    return found
