"""The quarantine as people look at it: the same on both databases."""

from __future__ import annotations

import pytest

from core.lifecycle import Keeper
from core.store import Store, quarantine
from core.store.quarantine import Among, kind_of
from tests.fakes import FrozenClock

ERRORS = {"a": "AuthFailed: 401", "b": "AuthFailed", "c": "AuthFailedTwice: 1", "d": "503"}


@pytest.fixture
def failing(keeper: Keeper, clock: FrozenClock) -> None:
    """Four that failed too often, one after the other, the first two a tenant's own."""
    for name, error in ERRORS.items():
        keeper.open(name, tenant="acme" if name in "ab" else "other")
        keeper.end(name)
        claim = keeper.store.teardowns.claim(name, 1, "w")
        assert claim is not None
        keeper.store.teardowns.release(claim, error, 900, actor="w", quarantine=True)
        clock.advance(1)


def ids(store: Store, among: Among) -> list[str]:
    """All that match, page by page."""
    found: list[str] = []
    page = store.quarantine.page(among, limit=1)
    while True:
        found += [row.session_id for row in page.rows]
        if page.behind is None:
            return found
        page = store.quarantine.page(among, after=page.behind, limit=1)


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("stretch", [10_000, 2])
def test_each_that_matches_is_on_one_page(
    store: Store, monkeypatch: pytest.MonkeyPatch, stretch: int
) -> None:
    """By provider, tenant and the very kind of error; also where matches are far apart."""
    monkeypatch.setattr(quarantine, "STRETCH", stretch)

    assert ids(store, Among()) == ["a", "b", "c", "d"]
    assert ids(store, Among(error="AuthFailed")) == ["a", "b"]
    assert ids(store, Among(error="AuthFailed", tenant="other")) == []
    assert ids(store, Among(tenant="other", provider="fake")) == ["c", "d"]
    assert ids(store, Among(provider="none")) == []
    assert store.quarantine.count(Among(tenant="acme")) == (2, stretch == 2)
    assert store.quarantine.choices() == (["fake"], ["AuthFailed", "AuthFailedTwice"])


@pytest.mark.usefixtures("failing")
def test_what_matches_is_tried_again_and_nothing_else(store: Store, clock: FrozenClock) -> None:
    """The pauses of the others go on."""
    retried = store.teardowns.retry_now(among=Among(tenant="acme", error="AuthFailed"))

    due = {row.session_id: row.due_at for row in store.quarantine.page(Among(), limit=9).rows}
    assert retried == 2
    assert [name for name in sorted(due) if due[name] <= clock()] == ["a", "b"]
    assert store.teardowns.retry_now(among=Among(provider="none")) == 0


def test_the_kind_of_an_error_is_its_class() -> None:
    """A sentence that only looks like one has none."""
    assert [kind_of(error) for error in ("AuthFailed: 401", "Busy", "no route: 1", None)] == [
        "AuthFailed",
        "Busy",
        "",
        "",
    ]
