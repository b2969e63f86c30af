"""Providers that keep all promises but one, each to show that the contract's checks see it."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.errors import AuthFailed, Unavailable
from core.providers.base import Capability, Page, SandboxInfo, SandboxRef, Spec
from examples.own_provider import Folders, Labels


class ScopeOfHandle(Folders):
    """Another account with every look."""

    def scope(self) -> str:
        return uuid.uuid4().hex


class WithoutId(Folders):
    """It gives a name only."""

    def _read(self, name: str) -> SandboxInfo | None:
        found = super()._read(name)
        return found and replace(found, ref=SandboxRef(name=name))


class ForgetsLabels(Folders):
    """One of them is lost on the way."""

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        found = super().get(ref, deadline=deadline)
        return found and replace(found, labels=dict(list(found.labels.items())[:-1]))


class LocalTime(Folders):
    """Dates without a zone."""

    def _read(self, name: str) -> SandboxInfo | None:
        found = super()._read(name)
        if found is None or found.created_at is None:
            return found
        return replace(found, created_at=found.created_at.replace(tzinfo=None))


class MakesAnother(Folders):
    """A second create replaces what the first one made."""

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        self.destroy(SandboxRef(name=name), deadline=deadline)
        return super().create(name, labels, spec, ttl=ttl, deadline=deadline)


class LooksAndMakes(Folders):
    """Between the look and the making, others look."""

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        if found := self._read(name):
            return found
        time.sleep(0.2)
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        facts = {"id": uuid.uuid4().hex, "labels": labels, "at": datetime.now(UTC).isoformat()}
        draft = folder / uuid.uuid4().hex
        draft.write_text(json.dumps(facts))
        draft.replace(folder / "sandbox.json")
        return SandboxInfo(
            ref=SandboxRef(name=name, external_id=str(facts["id"])),
            state=Folders.create(  # never reached its turn: the folder is not empty
                self, name, labels, spec, ttl=ttl, deadline=deadline
            ).state,
            labels=labels,
        )


class RefusesAfterGivingUp(Folders):
    """What was half made is never adopted, and never made."""

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        if time.monotonic() >= deadline - 1:
            (self.root / f".half-{name}").touch()
            raise Unavailable("there was no time")
        if (self.root / f".half-{name}").exists():
            raise Unavailable("it is half made")
        return super().create(name, labels, spec, ttl=ttl, deadline=deadline)


class TakesEverything(Folders):
    """Any sandbox of that name is taken for ours."""

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        return self._read(name) or super().create(name, labels, spec, ttl=ttl, deadline=deadline)


class IgnoresOptions(Folders):
    """What it does not know does not matter to it."""

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        return super().create(name, labels, Spec(), ttl=ttl, deadline=deadline)


class FindsAlways(Folders):
    """By its name alone, and where nothing is too."""

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        for path in self.root.glob("[!.]*"):
            return self._read(path.name)
        return super().get(ref, deadline=deadline)


class IgnoresId(Folders):
    """The name is enough for it."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        super().destroy(SandboxRef(name=ref.name), deadline=deadline)


class IgnoresName(Folders):
    """The id is enough for it."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        for path in self.root.glob("[!.]*"):
            found = self._read(path.name)
            if found and ref.external_id in {None, found.ref.external_id}:
                super().destroy(found.ref, deadline=deadline)


class ListsHalf(Folders):
    """The last one is missing."""

    def list(self, labels: Labels, *, cursor: str | None, deadline: float) -> Page:
        return Page(items=super().list(labels, cursor=cursor, deadline=deadline).items[1:])


class ListsAll(Folders):
    """Other people's as well."""

    def list(self, labels: Labels, *, cursor: str | None, deadline: float) -> Page:
        return super().list({}, cursor=cursor, deadline=deadline)


class ListsTheDead(Folders):
    """Whatever it once had."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.had: tuple[SandboxInfo, ...] = ()

    def list(self, labels: Labels, *, cursor: str | None, deadline: float) -> Page:
        return Page(items=self.had)

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        made = super().create(name, labels, spec, ttl=ttl, deadline=deadline)
        self.had += (made,)
        return made


class DestroysNothing(Folders):
    """It accepts, and that is all."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        """Not at all."""


class NotFoundIsAnError(Folders):
    """A second destroy fails."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        if self.get(ref, deadline=deadline) is None and ref.external_id is not None:
            raise Unavailable(f"no {ref}")
        super().destroy(ref, deadline=deadline)


class OneAtATime(Folders):
    """A destroy beside another one fails."""

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        busy = self.root / ".busy"
        try:
            busy.mkdir()
        except FileExistsError:
            raise Unavailable("one at a time") from None
        try:
            time.sleep(0.3)
            super().destroy(ref, deadline=deadline)
        finally:
            busy.rmdir()


class ClaimsTtl(Folders):
    """It writes the expiry down, and nobody carries it out."""

    capabilities = Folders.capabilities | {Capability.TTL}

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        made = super().create(name, labels, spec, ttl=ttl, deadline=deadline)
        return replace(made, expires_at=datetime.now(UTC) + timedelta(seconds=ttl or 0))

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        return datetime.now(UTC) + timedelta(seconds=ttl)


class ExtendsNothing(Folders):
    """It claims no TTL, and says that it extended one."""

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        return None


class ListsNothing(Folders):
    """It claims no listing, and returns an empty one."""

    capabilities = Folders.capabilities - {Capability.LIST}

    def list(self, labels: Labels, *, cursor: str | None, deadline: float) -> Page:
        return Page(items=())


class Slow(Folders):
    """Whatever time it was given."""

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        if time.monotonic() > deadline:
            time.sleep(2.5)
        return super().get(ref, deadline=deadline)


class GivesUpForGood(Folders):
    """No time left is an error that nobody retries."""

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        if time.monotonic() > deadline:
            raise AuthFailed("no time to log in")
        return super().get(ref, deadline=deadline)


class Raises(Folders):
    """An error that is none of ours."""

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        raise ZeroDivisionError("by zero")
