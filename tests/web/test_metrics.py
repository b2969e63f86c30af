"""What /metrics says: its grammar by Prometheus' own tool, its figures by the ledger."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace

import pytest

from core.events import LOGGED, RECORDED, EventKind
from core.lifecycle import Keeper
from core.model import EndReason
from core.reaper import Reaper, SweepReport
from core.store.census import Census
from core.store.tallies import ASKED, TEARDOWN, Tally, Totals
from core.store.watch import Pulse
from core.web.metrics import METRICS, PREFIX, Known, exposition, number
from tests.web.callers import Api

LINE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)+)\})? (\S+)')
NOTHING = Known(
    pulse=Pulse(swept_at=None, age=1.5, stand_in_age=None, installed=9.0, overdue=0.0, held=0),
    census=Census(
        sessions_active=0,
        sandboxes={"creating": 0, "running": 0, "closing": 0},
        quarantined=0,
        orphans=0,
        circuits_open=0,
        in_flight=0,
        slots_taken=0,
    ),
    totals=Totals(tallies=[], behind=0.0),
    late=False,
)


def samples(text: str) -> dict[str, float]:
    """Every line by all that is before its value: each in the grammar, and there once."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        assert match is not None, line
        key = line.rsplit(" ", 1)[0]
        assert key not in found
        found[key] = float(match[3])
    return found


@pytest.fixture
def promtool() -> str:
    """Prometheus' own tool. It is a package of a distribution, and may be missing."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not here: Debian has it in its package prometheus")
    return found


def finish(keeper: Keeper, reaper: Reaper, name: str) -> None:
    """A session from its first moment to its sandbox's last."""
    keeper.open(name)
    keeper.end(name, reason="bye")
    reaper.teardown(name, 1, worker="w")


def test_prometheus_own_tool_has_nothing_to_say(
    promtool: str, api: Api, keeper: Keeper, reaper: Reaper
) -> None:
    """Grammar, types, names and units."""
    finish(keeper, reaper, "conv")
    reaper.sweep()
    text = api.call("GET", "/metrics").text

    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_counters_have_what_the_ledger_had(api: Api, keeper: Keeper, reaper: Reaper) -> None:
    """Each event once, by kind; ends by reason; a failure with and without quarantine."""
    finish(keeper, reaper, "a")
    keeper.open("b")
    keeper.end("b")
    for quarantine in (False, True):
        claim = keeper.store.teardowns.claim("b", 1, "w", early=True)
        assert claim is not None
        keeper.store.teardowns.release(claim, "no", 1, actor="w", quarantine=quarantine)
    reaper.sweep()

    found = samples(api.call("GET", "/metrics").text)

    assert found['sandkeeper_events_total{kind="session_opened"}'] == 2
    assert found['sandkeeper_events_total{kind="sandbox_gone"}'] == 1
    assert found['sandkeeper_sessions_ended_total{reason="asked"}'] == 2
    assert found["sandkeeper_teardown_failures_total"] == 2
    assert found['sandkeeper_teardown_duration_seconds_count{provider="fake"}'] == 1
    assert found['sandkeeper_teardown_lateness_seconds_bucket{provider="fake",le="5"}'] == 1
    assert found["sandkeeper_sweep_duration_seconds_count"] == 1


def test_counters_begin_at_zero() -> None:
    """A counter that appears with its first event shows no growth of one."""
    found = samples(exposition(NOTHING))

    for kind in RECORDED:
        assert found[f'sandkeeper_events_total{{kind="{kind}"}}'] == 0
    for reason in (*EndReason, ASKED):
        assert found[f'sandkeeper_sessions_ended_total{{reason="{reason}"}}'] == 0
    for step in SweepReport.__dataclass_fields__:
        assert found[f'sandkeeper_sweep_rows_total{{step="{step}"}}'] == 0
    assert found['sandkeeper_sweep_duration_seconds_bucket{le="+Inf"}'] == 0


def test_every_kind_is_recorded_or_logged_only() -> None:
    """And none of those that are logged only has a counter that would stay at zero."""
    text = exposition(NOTHING)

    assert frozenset(EventKind) == RECORDED | LOGGED
    assert not [kind for kind in LOGGED if f'"{kind}"' in text]


def test_buckets_have_all_that_is_below_them() -> None:
    """Those of an older version too, whose bounds were others; the last one has everything."""
    tallies = [
        Tally(name=TEARDOWN, label="p", bucket=bound, count=count, total=seconds)
        for bound, count, seconds in (("0.5", 2, 0.5), ("7", 1, 6.0), ("+Inf", 1, 1e6))
    ]
    totals = Totals(tallies=tallies, behind=0.0)

    found = samples(exposition(replace(NOTHING, totals=totals)))

    name = "sandkeeper_teardown_duration_seconds"
    by_bound = {
        bound: found[f'{name}_bucket{{provider="p",le="{bound}"}}']
        for bound in ("0.5", "5", "7", "10", "14400", "+Inf")
    }
    assert by_bound == {"0.5": 2, "5": 2, "7": 3, "10": 3, "14400": 3, "+Inf": 4}
    assert found[f'{name}_sum{{provider="p"}}'] == 1_000_006.5
    assert found[f'{name}_count{{provider="p"}}'] == 4


@pytest.mark.parametrize("value", [1_234_567, 9_007_199_254_740_993, 0.1 + 0.2, 1234567.25])
def test_every_digit_is_said(value: float) -> None:
    """A rounded counter stands still for a while, and then jumps."""
    said = number(value)

    assert (int(said) if isinstance(value, int) else float(said)) == value


def test_a_name_may_have_any_letter() -> None:
    """A provider's name is its maker's choice, and must not end the line."""
    tally = Tally(name=TEARDOWN, label='a"b\\c\nd', bucket="1", count=1, total=1.0)

    text = exposition(replace(NOTHING, totals=Totals(tallies=[tally], behind=0.0)))

    assert r'provider="a\"b\\c\nd",le="1"} 1' in text
    assert samples(text)


def test_each_family_has_its_help_and_type_before_its_samples() -> None:
    """Once, and all of its samples together."""
    families: dict[str, list[str]] = defaultdict(list)
    current = ""
    for line in exposition(NOTHING).splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in families
        families[current].append(line)

    assert list(families) == [PREFIX + metric.name for metric in METRICS if metric.samples(NOTHING)]
    for name, (_, kind, *rest) in families.items():
        assert kind.startswith(f"# TYPE {name} ")
        assert rest
        assert all(line.startswith(name) for line in rest)
