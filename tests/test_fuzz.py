"""What strangers may write: labels, listings, stored JSON. Nothing of it is trusted, nor fatal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, update

from core.engines import make_engine
from core.errors import SandkeeperError
from core.lifecycle import Keeper
from core.migrations import upgrade
from core.model import KEY_ALPHABET, ownership, sandbox_labels, sandbox_name
from core.providers.base import Page, ProviderState, SandboxInfo, SandboxRef
from core.reaper import Reaper
from core.reconcile import Reconciler
from core.schema import sandboxes, sessions
from core.store import Store
from tests.fakes import FakeCloud, FrozenClock

OURS = "0a1b2c3d"
BORN = datetime(2026, 3, 1, tzinfo=UTC)
anything = st.text(max_size=80) | st.sampled_from(["", "\x00", "\ud800", "1", "\u0661", "a" * 300])
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
keys = st.text(KEY_ALPHABET, min_size=26, max_size=26)


def ours(key: str) -> dict[str, str]:
    """The labels as we write them."""
    return sandbox_labels(OURS, key, "conv", 1, BORN)


@given(key=keys, name=st.sampled_from(sorted(ours("k"))), value=anything)
def test_one_label_that_is_not_as_we_write_it_makes_it_a_strangers(
    key: str, name: str, value: str
) -> None:
    """S2: ownership is all of our labels, exactly."""
    changed = {**ours(key), name: value}

    owned = ownership(sandbox_name(OURS, key), changed, OURS)

    same = ownership(sandbox_name(OURS, key), ours(key), OURS)
    assert same is not None
    if owned is not None:  # another digest, generation or date is as good as ours: the key decides
        assert owned.key == key
        assert name in {
            "sandkeeper-session",
            "sandkeeper-generation",
            "sandkeeper-created-at",
        } or (value == ours(key)[name])


@given(
    name=anything,
    labels=st.dictionaries(st.sampled_from(sorted(ours("k"))), json, min_size=1),
    key=keys,
)
def test_labels_of_any_kind_are_read_without_an_error(
    name: str, labels: Mapping[str, Any], key: str
) -> None:
    """F13: one sandbox that somebody labelled with nonsense does not stop a pass."""
    ownership(sandbox_name(OURS, key), {**ours(key), **labels}, OURS)

    assert ownership(name, labels, OURS) is None


class Listing(FakeCloud):
    """A cloud whose listing is what the test says, and whose sandboxes nobody made."""

    shown: tuple[SandboxInfo, ...] = ()

    def list(self, labels: Mapping[str, str], *, cursor: str | None, deadline: float) -> Page:
        """All of it, on one page."""
        return Page(items=self.shown)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all examples."""
    engine = make_engine(f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'fuzz.db'}")
    upgrade(engine)
    return Store(engine, installation=OURS, clock=FrozenClock())


def shown() -> st.SearchStrategy[SandboxInfo]:
    """What a provider might show, near to what we made or far from it."""
    name = keys.map(lambda key: sandbox_name(OURS, key)) | anything
    return st.builds(
        lambda name, key, extra, state, external_id: SandboxInfo(
            ref=SandboxRef(name=name, external_id=external_id),
            state=state,
            labels={**ours(key), **extra},
        ),
        name=name,
        key=keys,
        extra=st.dictionaries(st.sampled_from(sorted(ours("k"))), json, max_size=2),
        state=st.sampled_from(ProviderState),
        external_id=st.none() | anything,
    )


@settings(max_examples=60, deadline=None)
@given(items=st.lists(shown(), max_size=6))
def test_a_listing_of_any_kind_kills_nothing_at_first_sight(
    store: Store, items: list[SandboxInfo]
) -> None:
    """S2, S4, F13: whatever it shows, the pass ends, and nothing is destroyed."""
    cloud = Listing()
    cloud.shown = tuple(items)

    (report,) = Reconciler(store, {"fake": cloud}).reconcile()

    assert (report.skipped, report.killed) == (None, 0)
    assert cloud.count("destroy") == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(metadata=json, spec=json)
def test_stored_json_of_any_kind_stops_nobody_else(
    tmp_path_factory: pytest.TempPathFactory, metadata: Any, spec: Any
) -> None:
    """F13: a row that somebody wrote by hand is an error with a name, and the others go on."""
    path = tmp_path_factory.mktemp("json") / "json.db"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine)
    clock, cloud = FrozenClock(), FakeCloud()
    store = Store(engine, clock=clock)
    with Keeper(store, cloud) as keeper:
        keeper.open("poison")
        keeper.open("well")
        _write(engine, metadata, spec)
        with suppress(SandkeeperError):
            keeper.get("poison")
            keeper.open("poison")
            keeper.end("poison")
        clock.advance(store.policy.idle_ttl)
        reaper = Reaper(store, {"fake": cloud}, doorbell=lambda _: None)
        reaper.sweep()
        clock.advance(store.policy.confirm_interval)
        reaper.sweep()

        assert keeper.get("well").end_reason == "idle"
        assert reaper.teardown("well", 1, worker="w").outcome == "gone"
    engine.dispose()
    Path(path).unlink()


def _write(engine: Engine, metadata: Any, spec: Any) -> None:
    other = create_engine(engine.url)
    with other.begin() as connection:
        of = sessions.c.id == "poison"
        connection.execute(update(sessions).where(of).values(metadata=metadata))
        mine = sandboxes.c.session_id == "poison"
        connection.execute(update(sandboxes).where(mine).values(spec=spec))
    other.dispose()
