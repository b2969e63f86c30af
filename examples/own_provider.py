"""A provider of one's own: a sandbox is a scratch folder. PROVIDER=own_provider:Folders."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from core.errors import ForeignConflict, InvalidSpec, SettingsError, Unsupported
from core.providers.base import Capability, Page, ProviderState, SandboxInfo, SandboxRef, Spec

Labels = Mapping[str, str]


class Folders:
    """What each call promises is said in core/providers/base.py. A rename decides who makes one."""

    name = "folders"
    capabilities = frozenset({Capability.LIST, Capability.IDEMPOTENT_CREATE})

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        if not (root := environ.get("FOLDERS_ROOT")):
            raise SettingsError("FOLDERS_ROOT is missing: a folder for the sandboxes")
        Path(root).mkdir(parents=True, exist_ok=True)
        return cls(Path(root))

    def scope(self) -> str:
        return f"folders:{self.root.resolve()}:{self.root.stat().st_ino}"

    def create(
        self, name: str, labels: Labels, spec: Spec, *, ttl: float | None, deadline: float
    ) -> SandboxInfo:
        if spec.options:
            raise InvalidSpec(f"options {dict(spec.options)}: a folder has none")
        made = self.root / f".new-{uuid.uuid4().hex}"
        made.mkdir()
        facts = {"id": made.name, "labels": dict(labels), "at": datetime.now(UTC).isoformat()}
        (made / "sandbox.json").write_text(json.dumps(facts))
        try:
            made.rename(self.root / name)  # refused where there is one: it is not empty
        except OSError:
            shutil.rmtree(made)
        found = self._read(name)
        if found is None or dict(found.labels) != dict(labels):
            raise ForeignConflict(f"{name} is not ours, or went away at once")
        return found

    def get(self, ref: SandboxRef, *, deadline: float) -> SandboxInfo | None:
        found = self._read(ref.name)
        return found if found and ref.external_id in {None, found.ref.external_id} else None

    def destroy(self, ref: SandboxRef, *, deadline: float) -> None:
        gone = self.root / f".gone-{uuid.uuid4().hex}"
        if self.get(ref, deadline=deadline):
            with suppress(FileNotFoundError):  # somebody else was faster
                shutil.rmtree((self.root / ref.name).rename(gone))

    def list(self, labels: Labels, *, cursor: str | None, deadline: float) -> Page:
        found = [self._read(path.name) for path in self.root.glob("[!.]*")]
        return Page(items=tuple(i for i in found if i and labels.items() <= i.labels.items()))

    def extend(self, ref: SandboxRef, *, ttl: float, deadline: float) -> datetime | None:
        raise Unsupported("a folder has no TTL")

    def _read(self, name: str) -> SandboxInfo | None:
        with suppress(FileNotFoundError):
            facts = json.loads((self.root / name / "sandbox.json").read_text())
            ref, at = SandboxRef(name=name, external_id=facts["id"]), facts["at"]
            made = {"labels": facts["labels"], "created_at": datetime.fromisoformat(at)}
            return SandboxInfo(ref=ref, state=ProviderState.RUNNING, **made)
        return None
