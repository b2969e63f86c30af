"""
What the database knows, in Prometheus' text format: gauges are counted now, counters and histograms
have every line of the ledger once. Every server of an installation says the same: ask one of them,
or take the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..events import RECORDED, EventKind
from ..model import EndReason
from ..store.census import Census
from ..store.tallies import (
    ASKED,
    BEYOND,
    BOUNDS,
    ENDED,
    EVENTS,
    LATENESS,
    SWEEP,
    SWEPT,
    TEARDOWN,
    Tally,
    Totals,
)
from ..store.watch import Pulse

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "sandkeeper_"
FAILURES: Final = (EventKind.TEARDOWN_FAILED, EventKind.TEARDOWN_QUARANTINED)

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Known:
    """All that the metrics are made of, as of one scrape."""

    pulse: Pulse
    census: Census
    totals: Totals
    late: bool

    def counted(self, name: str) -> dict[str, Tally]:
        """The totals of one name, by label."""
        return {tally.label: tally for tally in self.totals.tallies if tally.name == name}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One line. `suffix` is what a histogram's lines have besides its name."""

    value: float
    labels: Labels = ()
    suffix: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One family. Without samples nothing of it is said."""

    name: str
    type: Literal["gauge", "counter", "histogram"]
    says: str
    samples: Callable[[Known], Sequence[Sample]]
    label: str = ""


def exposition(known: Known) -> str:
    """The whole page. Ages are seconds; a sweep that never ran has no age."""
    return "".join(_family(metric, metric.samples(known)) for metric in METRICS)


def _family(metric: Metric, samples: Sequence[Sample]) -> str:
    name = PREFIX + metric.name
    if not samples:
        return ""
    lines = [f"# HELP {name} {metric.says}", f"# TYPE {name} {metric.type}"]
    lines += [f"{name}{each.suffix}{_braces(each.labels)} {number(each.value)}" for each in samples]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """All of its digits: a counter that is rounded stands still, and then jumps."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _braces(labels: Labels) -> str:
    said = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{said}}}" if said else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _gauge(
    name: str, says: str, value: Callable[[Known], float | None], *, unit: str = ""
) -> Metric:
    def samples(known: Known) -> list[Sample]:
        found = value(known)
        return [] if found is None else [Sample(value=found)]

    return Metric(name=name + unit, type="gauge", says=says, samples=samples)


def _counter(name: str, says: str, *, label: str, of: str, always: Sequence[str] = ()) -> Metric:
    """One that counts from zero: what is not there yet could not be seen to grow."""

    def samples(known: Known) -> list[Sample]:
        found = known.counted(of)
        values = {**dict.fromkeys(always, 0), **{key: one.count for key, one in found.items()}}
        return [Sample(value=count, labels=((label, key),)) for key, count in values.items()]

    return Metric(name=name, type="counter", says=says, samples=samples, label=label)


def _histogram(name: str, says: str, *, of: str, label: str = "") -> Metric:
    def samples(known: Known) -> list[Sample]:
        tallies = [tally for tally in known.totals.tallies if tally.name == of]
        keys = sorted({tally.label for tally in tallies}) if label else [""]
        return [
            sample
            for key in keys
            for sample in _buckets(
                of,
                {tally.bucket: tally for tally in tallies if tally.label == key},
                ((label, key),) if label else (),
            )
        ]

    return Metric(name=name, type="histogram", says=says, samples=samples, label=label)


def _buckets(of: str, found: Mapping[str, Tally], labels: Labels) -> Iterator[Sample]:
    """Whatever bounds it was counted by, in whichever version."""
    count = 0
    for bound in sorted({*BOUNDS[of], *found, BEYOND}, key=float):
        count += found[bound].count if bound in found else 0
        yield Sample(value=count, labels=(*labels, ("le", bound)), suffix="_bucket")
    yield Sample(value=sum(tally.total for tally in found.values()), labels=labels, suffix="_sum")
    yield Sample(value=count, labels=labels, suffix="_count")


def _sandboxes(known: Known) -> list[Sample]:
    states = known.census.sandboxes.items()
    return [Sample(value=count, labels=(("state", state),)) for state, count in states]


def _failures(known: Known) -> list[Sample]:
    events = known.counted(EVENTS)
    return [Sample(value=sum(events[kind].count for kind in FAILURES if kind in events))]


METRICS: Final = (
    _gauge("sessions_active", "Active sessions.", lambda known: known.census.sessions_active),
    Metric(
        name="sandboxes",
        type="gauge",
        says="Sandboxes that are not gone, by state; those in quarantine are closing.",
        samples=_sandboxes,
        label="state",
    ),
    _gauge("quarantined", "Teardowns in quarantine.", lambda known: known.census.quarantined),
    _gauge("orphans", "Sandboxes that no row explains.", lambda known: known.census.orphans),
    _gauge(
        "circuits_open",
        "Providers that are not called now.",
        lambda known: known.census.circuits_open,
    ),
    _gauge(
        "teardowns_in_flight",
        "Teardowns that are published or claimed and not done, but for the quarantined.",
        lambda known: known.census.in_flight,
    ),
    _gauge(
        "call_slots_taken",
        "Calls of providers that count for PROVIDER_CONCURRENCY.",
        lambda known: known.census.slots_taken,
    ),
    _gauge(
        "holds_open",
        "Questions to an operator that are open; nothing is destroyed meanwhile.",
        lambda known: known.pulse.held,
    ),
    _gauge(
        "overdue",
        "Wait of the most overdue row.",
        lambda known: known.pulse.overdue,
        unit="_seconds",
    ),
    _gauge("sweep_late", "1 while nobody sweeps in time.", lambda known: int(known.late)),
    _gauge("sweep_age", "Since the last sweep.", lambda known: known.pulse.age, unit="_seconds"),
    _gauge(
        "uncounted",
        "Wait of the oldest event that the counters below do not have yet.",
        lambda known: known.totals.behind,
        unit="_seconds",
    ),
    _counter(
        "events_total",
        "Lines of the ledger, by kind.",
        label="kind",
        of=EVENTS,
        always=[kind.value for kind in EventKind if kind in RECORDED],
    ),
    _counter(
        "sessions_ended_total",
        f"Sessions that ended, by reason; all reasons of their callers' own are {ASKED!r}.",
        label="reason",
        of=ENDED,
        always=[*(reason.value for reason in EndReason), ASKED],
    ),
    Metric(
        name="teardown_failures_total",
        type="counter",
        says="Attempts at a teardown that failed; it is tried again.",
        samples=_failures,
    ),
    _counter(
        "sweep_rows_total",
        "Rows that sweeps which came to their end did something to, by what they did.",
        label="step",
        of=SWEPT,
        always=[
            "clamped",
            "followed",
            "rearmed",
            "noticed",
            "ended",
            "expired",
            "published",
            "poisoned",
        ],
    ),
    _histogram(
        "sweep_duration_seconds",
        "How long sweeps took that came to their end, by the sweeping process's clock.",
        of=SWEEP,
    ),
    _histogram(
        "teardown_duration_seconds",
        "From the session's end to the provider's word that the sandbox is gone.",
        of=TEARDOWN,
        label="provider",
    ),
    _histogram(
        "teardown_lateness_seconds",
        "The same, from the moment at which nobody was entitled to the sandbox any more: idle "
        "TTL, extension or max age over, or else the session's end.",
        of=LATENESS,
        label="provider",
    ),
)
