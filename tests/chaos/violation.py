"""What a run may be found guilty of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One promise that was broken once."""

    promise: str  # S1, S2, S3, S4, L1, L2, L3, H1
    kind: str
    about: str
    at: float | None = None

    def __str__(self) -> str:
        when = "" if self.at is None else f" at {self.at:.3f}"
        return f"{self.promise} {self.kind}: {self.about}{when}"
