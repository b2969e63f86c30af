"""The provider that the documentation shows keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.providers.contract import ProviderContract

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_provider.py"


class TestOwnProvider(ProviderContract):
    """Every line of it."""

    provider_path = "examples.own_provider:Folders"

    @pytest.fixture
    def environ(self, tmp_path: Path) -> dict[str, str]:
        """A root of its own."""
        return {"FOLDERS_ROOT": str(tmp_path / "folders")}


def test_it_is_as_short_as_is_said() -> None:
    """One file that is read in one sitting."""
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 80
