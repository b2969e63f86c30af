"""What is remembered of a database outside of it, so that a copy of it gives itself away."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

SUFFIX = "-identity"


class Witness(Protocol):
    """One database, seen from outside. `epoch` counts its sweeps and never goes back."""

    def establish(self, installation: str) -> bool:
        """Vouch for a new database; False when another one of this installation was known."""
        ...

    def renew(self, installation: str) -> None:
        """An operator says that this database is the one."""
        ...

    def recall(self) -> int:
        """The greatest epoch that was seen."""
        ...

    def remember(self, epoch: int) -> None:
        """An epoch that the database has committed."""
        ...


class InMemory:
    """As long as this process lives. PostgreSQL knows more by itself: see store/sql.py."""

    def __init__(self) -> None:
        self._epoch = 0

    def establish(self, installation: str) -> bool:
        return True

    def renew(self, installation: str) -> None:
        self._epoch = 0

    def recall(self) -> int:
        return self._epoch

    def remember(self, epoch: int) -> None:
        self._epoch = max(self._epoch, epoch)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the file says. The token is random: two databases never share one."""

    installation: str
    token: str
    epoch: int


class Beside:
    """
    A small file beside a SQLite database. Who copies the database alone has no witness, who puts
    a backup in its place has one that remembers later sweeps, and who copies both has another
    inode. It may be lost, never wrong: what cannot be read makes the database a stranger.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(database.name + SUFFIX)

    def establish(self, installation: str) -> bool:
        known = self._read()
        if known is not None and known.installation == installation and known.epoch:
            return False  # its database was emptied, or is another one
        self.renew(installation)
        return True

    def renew(self, installation: str) -> None:
        self._write(_Known(installation=installation, token=secrets.token_hex(8), epoch=0))

    def recall(self) -> int:
        known = self._read()
        return 0 if known is None else known.epoch

    def remember(self, epoch: int) -> None:
        known = self._read()
        if known is not None and known.epoch < epoch:
            self._write(replace(known, epoch=epoch))

    def identity(self) -> str | None:
        """What the SQL function `sandkeeper_identity` says; None when there is no witness."""
        known = self._read()
        if known is not None:
            with suppress(OSError):
                return f"{known.token}:{self._database.stat().st_ino}"
        return None

    def _read(self) -> _Known | None:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            return _Known(
                installation=str(known["installation"]),
                token=str(known["token"]),
                epoch=int(known["epoch"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, known: _Known) -> None:
        # Written beside and renamed: whoever reads meanwhile sees the old one or the new one.
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        part.write_text(json.dumps(asdict(known)), encoding="utf-8")
        part.replace(self._path)
