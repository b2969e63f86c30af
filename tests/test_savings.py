"""What sandboxes cost and what reaping saves: exact figures, and a brute force beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.bill import WhatIf, bill, said
from core.errors import InvalidArgument
from core.lifecycle import Keeper
from core.model import TurnOutcome
from core.prices import Prices
from core.reaper import Reaper
from core.savings import (
    MOST_LINES,
    MOST_TTLS,
    REST,
    Act,
    Book,
    Ending,
    Life,
    Meter,
    Span,
    Sums,
    Use,
    check_ttls,
    parse_span,
)
from core.store import Store
from core.store import savings as stretches
from tests.fakes import FakeCloud, FrozenClock

HOUR = 3600.0
DAY = 24 * HOUR


def turn(keeper: Keeper, clock: FrozenClock, name: str, seconds: float) -> None:
    """A turn that beats to its end."""
    begun = keeper.remote.begin(name, holder="h")
    left = seconds
    while left > 0:
        clock.advance(min(left, 600))
        left -= min(left, 600)
        keeper.store.turns.beat([begun.turn_id])
    keeper.store.turns.end(begun.turn_id, name, TurnOutcome.COMPLETED)


def reap(store: Store, name: str, clock: FrozenClock, *, generation: int = 1) -> None:
    """Its teardown takes ten seconds."""
    claim = store.teardowns.claim(name, generation, "w")
    assert claim is not None
    clock.advance(10)
    assert store.teardowns.gone(claim, actor="w")


def sums(store: Store, *ttls: float, seconds: float = DAY, tenant: str | None = None) -> Sums:
    """The total of all."""
    return book(store, *ttls, seconds=seconds, tenant=tenant).total()


def book(store: Store, *ttls: float, seconds: float = DAY, tenant: str | None = None) -> Book:
    """All that the database has."""
    reading = store.savings.read(store.savings.span(seconds), list(ttls), tenant=tenant)
    assert reading.behind is None
    return reading.book


# Constructed histories, on both databases


def test_an_empty_database_has_cost_nothing(store: Store) -> None:
    """No line, and a total of zeros."""
    found = book(store, 900)

    assert found.lines == {}
    assert (found.total().billed, found.total().outcomes[0].saved) == (0, 0)


def test_what_is_open_is_billed_until_now(keeper: Keeper, store: Store, clock: FrozenClock) -> None:
    """A turn of an hour in three; two gaps above 15 minutes, and a return from one of them."""
    keeper.open("conv", idle_ttl=4 * HOUR)
    clock.advance(HOUR)
    turn(keeper, clock, "conv", HOUR)
    clock.advance(HOUR)

    found = sums(store, 900)

    assert (found.sandboxes, found.billed, found.busy, found.idle) == (1, 10800, 3600, 7200)
    assert found.reaped == 0
    (outcome,) = found.outcomes
    assert (outcome.saved, outcome.resets, outcome.sessions) == (2 * (3600 - 900), 1, 1)


def test_a_gap_as_long_as_the_ttl_resets_nobody(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """Longer than the TTL, and not as long."""
    keeper.open("conv", idle_ttl=4 * HOUR)
    clock.advance(900)
    turn(keeper, clock, "conv", 60)

    exact, less = sums(store, 900, 899).outcomes

    assert [(one.saved, one.resets) for one in (exact, less)] == [(0, 0), (1, 1)]


def test_a_session_that_idleness_ended_would_have_ended_earlier(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """And with a longer TTL it would not have been reset when it was."""
    keeper.open("conv", idle_ttl=1800)
    clock.advance(1860)
    reaper.sweep()
    clock.advance(60)
    reaper.sweep()
    reap(store, "conv", clock)  # 1930 seconds after it was opened
    clock.advance(1070)
    keeper.open("conv", idle_ttl=1800)
    clock.advance(600)

    found = sums(store, 900, 3600)

    assert (found.sandboxes, found.billed) == (2, 1930 + 600)
    assert found.reaped == 600 + 1070
    shorter, longer = found.outcomes
    assert (shorter.saved, shorter.resets, shorter.spared) == (1920 - 900, 0, 0)
    assert (longer.saved, longer.resets, longer.spared) == (1920 + 600 - 3600, 0, 1)


def test_a_session_that_a_caller_ended_ends_with_any_ttl(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """A longer TTL does not keep what somebody ended."""
    keeper.open("conv", max_age=2 * HOUR)
    clock.advance(600)
    keeper.end("conv")
    reap(store, "conv", clock)
    clock.advance(DAY)

    found = sums(store, 300, 7200, seconds=2 * DAY)

    assert (found.billed, found.reaped) == (610, 2 * HOUR - 610)
    assert [one.saved for one in found.outcomes] == [300, 0]


def test_what_vanished_was_not_saved(
    keeper: Keeper, store: Store, provider: FakeCloud, clock: FrozenClock
) -> None:
    """It is billed until its absence was confirmed; that it went was nobody's merit."""
    keeper.open("conv")
    clock.advance(600)
    keeper.end("conv", reason="lost")
    reap(store, "conv", clock)
    clock.advance(HOUR)

    found = sums(store, 300)

    assert (found.sandboxes, found.billed, found.reaped) == (1, 610, 0)


def test_a_span_has_what_is_within(keeper: Keeper, store: Store, clock: FrozenClock) -> None:
    """Of a sandbox that is older, its last hour; of one that went before, nothing."""
    keeper.open("old", idle_ttl=DAY)
    keeper.open("gone")
    keeper.end("gone")
    reap(store, "gone", clock)
    clock.advance(2 * HOUR)

    found = sums(store, 900, seconds=HOUR)

    assert (found.sandboxes, found.billed, found.busy, found.reaped) == (1, 3600, 0, 0)
    assert found.outcomes[0].saved == 3600


def test_a_turn_that_nobody_ended_lasts_until_its_last_heartbeat(
    keeper: Keeper, store: Store, reaper: Reaper, clock: FrozenClock
) -> None:
    """Its holder died: what came after was idle, also in an earlier generation."""
    keeper.open("conv", idle_ttl=1800)
    begun = keeper.remote.begin("conv", holder="h")
    clock.advance(300)
    store.turns.beat([begun.turn_id])
    clock.advance(1860)
    busy = sums(store).busy
    reaper.sweep()
    clock.advance(60)
    reaper.sweep()
    clock.advance(60)
    reaper.sweep()
    reap(store, "conv", clock)
    keeper.open("conv", idle_ttl=1800)

    assert keeper.get("conv").generation == 2
    assert (busy, sums(store).busy) == (300, 300)


def test_an_extension_and_a_pin_keep_it_in_the_replay_too(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """Until they are over, or the pin is lifted; one that came too late keeps nobody."""
    for name in ("extended", "pinned", "lifted", "late"):
        keeper.open(name, idle_ttl=DAY, tenant=name)
    clock.advance(600)
    keeper.extend("extended", 3000)
    for name in ("pinned", "lifted"):
        keeper.pin(name, 3000, reason="r", owner="o")
    clock.advance(600)
    keeper.unpin("lifted")
    keeper.extend("late", 3000)
    clock.advance(2400)
    for name in ("extended", "pinned", "lifted", "late"):
        keeper.touch(name)

    lines = book(store, 900).lines

    found = {tenant: sums.outcomes[0] for (tenant, _), sums in lines.items()}
    assert {name: one.resets for name, one in found.items()} == {
        "extended": 0,
        "pinned": 0,
        "lifted": 1,
        "late": 1,
    }
    assert {name: one.saved for name, one in found.items()} == {
        "extended": 0,
        "pinned": 0,
        "lifted": 2400,
        "late": 2700,
    }


def test_tenants_and_providers_have_lines_of_their_own(
    keeper: Keeper, store: Store, clock: FrozenClock
) -> None:
    """One tenant's question is answered with that tenant's alone."""
    other = Keeper(store, FakeCloud(name="other"))
    keeper.open("a-1", tenant="acme")
    other.open("b-1", tenant="acme")
    keeper.open("c-1", tenant="globex")
    clock.advance(100)
    keeper.open("d-1", tenant="acme")
    clock.advance(100)

    every, acme = book(store), book(store, tenant="acme")
    other.close()

    assert {key: sums.billed for key, sums in every.lines.items()} == {
        ("acme", "fake"): 300,
        ("acme", "other"): 200,
        ("globex", "fake"): 200,
    }
    assert acme.lines == {key: sums for key, sums in every.lines.items() if key[0] == "acme"}


@pytest.mark.parametrize("stretch", [1, 2, 500])
def test_stretches_and_readings_add_up(
    keeper: Keeper,
    store: Store,
    clock: FrozenClock,
    stretch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However few rows a statement reads; a reading goes on behind a whole session."""
    for name in ("A", "a", "b_", "b-1"):  # not every database sorts these alike
        for generation in (1, 2, 3):
            keeper.open(name, idle_ttl=DAY)
            turn(keeper, clock, name, 60)
            clock.advance(1000)
            turn(keeper, clock, name, 60)
            keeper.end(name)
            reap(store, name, clock, generation=generation)
    whole = book(store, 900)
    monkeypatch.setattr(stretches, "STRETCH", stretch)
    monkeypatch.setattr(stretches, "USES", stretch)
    span, parts, after, read = store.savings.span(DAY), Book([900]), "", []
    while True:
        found = store.savings.read(span, [900], after=after, most=2)
        parts.add(found.book)
        read.append(found.read)
        if found.behind is None:
            break
        after = found.behind

    assert read == [3, 3, 3, 3]
    assert parts == book(store, 900) == whole
    total = whole.total()
    assert (total.sandboxes, total.busy, total.outcomes[0].resets) == (12, 24 * 60, 12)
    assert total.outcomes[0].sessions == 4


# Arithmetic


SPAN = Span(since=0, until=400)
MOMENTS = st.integers(0, 60)


@dataclass(frozen=True)
class History:
    """One session: its generations and what happened to each, whole seconds."""

    lives: list[Life]
    uses: list[list[Use]]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Generations one after the other, of which the last may be open."""
    lives: list[Life] = []
    uses: list[list[Use]] = []
    at = draw(MOMENTS)
    for generation in range(1, draw(st.integers(1, 4)) + 1):
        length, pause, teardown = draw(MOMENTS), draw(MOMENTS), draw(st.integers(0, 9))
        life = Life(
            session_id="s",
            generation=generation,
            tenant="t",
            provider="p",
            created=at,
            closing=at + length,
            gone=at + length + teardown,
            ending=draw(st.sampled_from(Ending)),
        )
        pairs = st.tuples(st.integers(0, length), st.integers(0, 20))
        moments = sorted(draw(st.lists(pairs, max_size=5)))
        happened = [
            Use(act=Act.TURN, at=at + start, until=min(at + start + more, at + length))
            for start, more in moments
        ]
        lives.append(life)
        uses.append(happened)
        at += length + pause + 1
    if draw(st.booleans()):
        lives[-1] = replace(lives[-1], closing=None, gone=None)
    return History(lives, uses)


def counted(history: History, span: Span, *ttls: float) -> Sums:
    """What the meter makes of it."""
    meter = Meter(span, ttls)
    for life, uses in zip(history.lives, history.uses, strict=True):
        meter.count(life, uses)
    meter.finish()
    return meter.book.total()


@given(histories(), st.integers(0, 150))
def test_billed_and_busy_are_what_each_second_says(history: History, since: int) -> None:
    """A second is billed while a sandbox is there, and busy while one of its turns runs."""
    span = Span(since=since, until=400)
    billed = busy = 0
    for life, uses in zip(history.lives, history.uses, strict=True):
        for second in range(since, 400):
            if life.created <= second < (400 if life.gone is None else life.gone):
                billed += 1
                busy += any(use.at <= second < use.until for use in uses)

    found = counted(history, span)

    assert (found.billed, found.busy, found.idle) == (billed, busy, billed - busy)


@given(histories(), st.integers(1, 80), st.integers(0, 150))
def test_a_replay_is_what_each_second_says(history: History, ttl: int, since: int) -> None:
    """A sandbox runs where an activity was less than the TTL ago, and nothing else has ended it."""
    points = active_points(history)
    span, seconds = Span(since=since, until=400), range(since, 400)
    live = sum(
        life.created <= second < (400 if life.closing is None else life.closing)
        for life in history.lives
        for second in seconds
    )
    ran = sum(
        any(a <= second < a + ttl and not stopped(history, of, second) for of, a in points)
        for second in seconds
    )
    moments = {moment for _, moment in points}
    starts = {use.at for uses in history.uses for use in uses if use.at >= since}
    returns = starts - {life.created for life in history.lives}
    resets = {at for at in returns if not moments & set(range(int(at) - ttl, int(at)))}

    (outcome,) = counted(history, span, ttl).outcomes

    assert live - outcome.saved == ran
    assert outcome.resets == len(resets)
    assert outcome.sessions == bool(resets)


def active_points(history: History) -> set[tuple[int, int]]:
    """Each second with activity, and in which generation."""
    found = {(life.generation, int(life.created)) for life in history.lives}
    for life, uses in zip(history.lives, history.uses, strict=True):
        for use in uses:
            found |= {(life.generation, at) for at in range(int(use.at), int(use.until) + 1)}
    return found


def stopped(history: History, generation: int, second: int) -> bool:
    """Whether that one, or a later one, was ended for another reason than idleness by then."""
    return any(
        life.generation >= generation
        and life.ending is not Ending.IDLE
        and life.closing is not None
        and life.closing <= second
        for life in history.lives
    )


@given(histories(), st.lists(st.integers(1, 80), min_size=2, unique=True))
def test_a_longer_ttl_never_resets_more_and_never_saves_more(
    history: History, ttls: list[int]
) -> None:
    """Each TTL is a replay of its own."""
    outcomes = counted(history, SPAN, *sorted(ttls)).outcomes

    for shorter, longer in pairwise(outcomes):
        assert shorter.saved >= longer.saved
        assert shorter.resets >= longer.resets
        assert shorter.spared <= longer.spared
    assert outcomes == [counted(history, SPAN, ttl).outcomes[0] for ttl in sorted(ttls)]


def test_a_sandbox_that_went_on_would_have_come_of_age() -> None:
    """What an idle TTL does not end, its max age does."""
    life = Life(
        session_id="s",
        generation=1,
        tenant="t",
        provider="p",
        created=0,
        closing=100,
        gone=110,
        max_age=150,
        ending=Ending.IDLE,
    )

    found = counted(History([life], [[]]), SPAN, 1000)

    assert found.outcomes[0].saved == -50
    assert found.reaped == 40


def test_many_tenants_are_told_apart_up_to_a_bound() -> None:
    """The others are one line for each provider, and nothing of them is missing."""
    book = Book([])
    for number in range(MOST_LINES + 5):
        book.of(f"t-{number}", "p").billed += 1

    assert len(book.lines) == MOST_LINES + 1
    assert book.lines[REST, "p"].billed == 5
    assert book.total().billed == MOST_LINES + 5
    assert bill(SPAN, book, None).lines[-1].tenant is None


# Money and words


def test_money_is_what_the_operator_says_an_hour_costs() -> None:
    """A provider without a price has hours alone, and then so has the total."""
    book = Book([900])
    for provider in ("docker", "e2b"):
        sums = book.of("acme", provider)
        sums.billed, sums.busy, sums.reaped = 7200, 1800, 3600
        sums.outcomes[0].saved = 900

    every = bill(SPAN, book, Prices(currency="EUR", default=0.5, providers={"e2b": 2}))
    some = bill(SPAN, book, Prices(currency="EUR", providers={"e2b": 2}))
    none = bill(SPAN, book, None)

    docker, e2b = every.lines
    assert (docker.billed_cost, docker.idle_cost, docker.saved_cost) == (1, 0.75, 0.5)
    assert (e2b.billed_cost, e2b.what_if[0].saved_cost) == (4, 0.5)
    assert (every.total.billed_cost, every.total.what_if[0].saved_cost) == (5, 0.625)
    assert [line.billed_cost for line in some.lines] == [None, 4]
    assert (some.total.billed_cost, some.total.billed) == (None, 14400)
    assert (none.currency, none.total.billed_cost, none.total.idle) == (None, None, 10800)


@pytest.mark.parametrize(
    ("saved", "cost", "sessions", "spared", "sentence"),
    [
        (3600, 412, 31, 0, "saved 412.00 EUR (1.0 h) and reset 31 sessions"),
        (3600, None, 1, 0, "saved 1.0 h and reset 1 session"),
        (-7200, None, 0, 2, "cost another 2.0 h and reset 0 sessions, and spared 2 of the resets"),
    ],
)
def test_the_answer_is_a_sentence(
    saved: float, cost: float | None, sessions: int, spared: int, sentence: str
) -> None:
    """What it saves and whom it costs."""
    found = WhatIf(
        ttl=900, saved=saved, saved_cost=cost, resets=40, sessions=sessions, spared=spared
    )

    assert said(found, "15 min", "EUR").startswith(f"A TTL of 15 min would have {sentence}")


# Nonsense


@pytest.mark.parametrize("text", ["", "7", "90s", "30m", "12h", "7d", "0.5h"])
def test_a_span_is_a_number_and_a_unit(text: str) -> None:
    """Seconds when there is no unit; nothing is no span."""
    seconds = {"7": 7, "90s": 90, "30m": 1800, "12h": 43200, "7d": 604800, "0.5h": 1800}

    if text:
        assert parse_span(text) == seconds[text]
    else:
        with pytest.raises(InvalidArgument, match="since ''"):
            parse_span(text)


@pytest.mark.parametrize("text", ["0", "0d", "-1d", "1w", "d", "1e9d", "nan", "9" * 12, "7 d"])
def test_a_span_that_is_none_is_refused(text: str) -> None:
    """With field, value and fix."""
    with pytest.raises(InvalidArgument, match=r"since .*: write it as 7d, 12h, 30m"):
        parse_span(text)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_ttl_that_is_none_is_refused(ttl: float) -> None:
    """With field, value and fix."""
    with pytest.raises(InvalidArgument, match=r"ttl .*: give seconds"):
        check_ttls([900, ttl])


def test_so_many_ttls_are_tried_at_a_time() -> None:
    """Each once, the shortest first."""
    assert check_ttls([900, 60, 900]) == [60, 900]
    with pytest.raises(InvalidArgument, match=f"at most {MOST_TTLS}"):
        check_ttls(range(1, MOST_TTLS + 2))
