"""Room on the disks of this host: a full one stops every write, the sweep's own included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .findings import Answer, failure, ok, warning
from .patient import Patient

LITTLE, FAR_TOO_LITTLE = 500, 50  # MiB
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Space:
    """Of the file system that a folder is on, in MiB."""

    folder: Path
    free: float
    total: float


def space(folder: Path, patient: Patient) -> Space:
    """OSError when the folder is not there."""
    total, _, free = patient.usage(folder)
    return Space(folder=folder, free=free / MIB, total=total / MIB)


def judged(found: Space) -> Answer:
    """Warning below 500 MiB, failure below 50."""
    says = f"{found.free:.0f} of {found.total:.0f} MiB are free at {found.folder}"
    if found.free < FAR_TOO_LITTLE:
        return failure(says, "free some room, now")
    return ok(says) if found.free >= LITTLE else warning(says, "free some room")
