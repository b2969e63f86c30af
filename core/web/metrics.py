"""
What the database counts, in Prometheus' text format. Every server of an installation says the
same: ask one of them, or take the maximum.
"""

from __future__ import annotations

from typing import Final

from ..store.census import Census
from ..store.watch import Pulse

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(pulse: Pulse, census: Census, *, late: bool) -> str:
    """The whole page. Ages are seconds; a sweep that never ran has no age."""
    states: dict[str, float] = {
        f'{{state="{state}"}}': count for state, count in census.sandboxes.items()
    }
    gauges: list[tuple[str, str, dict[str, float]]] = [
        ("sessions_active", "Active sessions.", {"": census.sessions_active}),
        ("sandboxes", "Sandboxes that are not gone, by state.", states),
        ("quarantined", "Teardowns in quarantine.", {"": census.quarantined}),
        ("orphans", "Sandboxes that no row explains.", {"": census.orphans}),
        ("circuits_open", "Providers that are not called now.", {"": census.circuits_open}),
        ("holds_open", "Questions to an operator that are open.", {"": pulse.held}),
        ("overdue_seconds", "Wait of the most overdue row.", {"": pulse.overdue}),
        ("sweep_late", "1 while nobody sweeps in time.", {"": int(late)}),
    ]
    if pulse.age is not None:
        gauges.append(("sweep_age_seconds", "Since the last sweep.", {"": pulse.age}))
    return "".join(_gauge(*gauge) for gauge in gauges)


def _gauge(name: str, says: str, samples: dict[str, float]) -> str:
    name = f"sandkeeper_{name}"
    lines = [f"# HELP {name} {says}", f"# TYPE {name} gauge"]
    lines += [f"{name}{labels} {value:g}" for labels, value in samples.items()]
    return "\n".join(lines) + "\n"
