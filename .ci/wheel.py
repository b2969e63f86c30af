"""
Put core/, tasks/ and celeryconfig.py into the wheel as sandkeeper.core, sandkeeper.tasks and
sandkeeper.celeryconfig. An installation then adds one name to site-packages: three such common
names would hide users' own modules, and a stray celeryconfig is read by every Celery program.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "sandkeeper"
MODULES = "core|tasks|celeryconfig"
FROM = re.compile(rf"^(\s*)from ((?:{MODULES})(?:\.\w+)*) import ", re.MULTILINE)
IMPORT = re.compile(rf"^(\s*)import ((?:{MODULES})\b[^\n]*)$", re.MULTILINE)


def renamed(source: str) -> str:
    """
    The source with its absolute imports of our packages under the installed name, examples in
    docstrings included. Raises ValueError for an import that cannot keep its meaning.
    """
    return IMPORT.sub(_from_import, FROM.sub(rf"\1from {NAME}.\2 import ", source))


def _from_import(found: re.Match[str]) -> str:
    indent, rest = found.groups()
    if re.fullmatch(rf"(?:{MODULES})(?: as \w+)?(?:\s*#.*)?", rest):
        return f"{indent}from {NAME} import {rest}"
    raise ValueError(f"{found[0].strip()!r}: write it as a from-import, so that it can be renamed")


class WheelHook(BuildHookInterface[BuilderConfig]):
    """Runs once for each wheel. An editable installation keeps the tree as it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add every file of ours to the wheel; Python files as renamed copies."""
        self.copies = Path(mkdtemp(prefix="sandkeeper-wheel-"))
        if version == "editable":
            return
        include: dict[str, str] = build_data["force_include"]
        for path in self._files():
            where = f"{NAME}/{path.relative_to(self.root)}"
            include[str(self._copy(path, where) if path.suffix == ".py" else path)] = where
        include[self._write(f"{NAME}/__init__.py", self._face())] = f"{NAME}/__init__.py"
        include[self._write(f"{NAME}/py.typed", "")] = f"{NAME}/py.typed"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copies: the wheel has them now."""
        shutil.rmtree(self.copies)

    def _files(self) -> list[Path]:
        root = Path(self.root)
        found = [*root.glob("core/**/*"), *root.glob("tasks/**/*"), root / "celeryconfig.py"]
        return sorted(p for p in found if not p.is_dir() and "__pycache__" not in p.parts)

    def _copy(self, path: Path, where: str) -> str:
        try:
            return self._write(where, renamed(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _write(self, where: str, text: str) -> str:
        copy = self.copies / where
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")
        return str(copy)

    def _face(self) -> str:
        core = f"{NAME}.core"
        return (
            f'"""Sandkeeper: what users import. All of it comes from {core}."""\n\n'
            f"from {core} import *\n"
            f"from {core} import __all__ as __all__\n"
        )
