"""What the tests of REST providers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apis import Api, Handler, serving


@pytest.fixture
def api(fake: Handler) -> Iterator[Api]:
    """The vendor's fake that the module has, served."""
    with serving(fake) as served:
        yield served
