"""The HTTP API on the keeper of the other tests, and what calls it."""

from __future__ import annotations

import pytest

from core.lifecycle import Keeper
from core.store.tokens import Tokens
from tests.web.callers import Api, Desk


@pytest.fixture
def api(keeper: Keeper) -> Api:
    """A server without tokens, called from its own machine."""
    return Api(keeper)


@pytest.fixture
def desk(keeper: Keeper) -> Desk:
    """Where tokens are made."""
    return Desk(Tokens(keeper.store.database))
