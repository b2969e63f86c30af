"""What a sweep would find, by one look: most sweeps find nothing, and cost no more than this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, or_, select

from ..schema import events, installation
from .clamps import Clamps
from .database import Database
from .policies import Policies
from .sweeps import Sweeps


@dataclass(frozen=True, kw_only=True)
class Work:
    """Which steps have something to do. What comes due a moment later is the next sweep's."""

    far: bool  # dates that no healthy clock can have written
    changed: bool  # policies that open sessions have yet to follow
    due: bool  # sessions
    creates: bool  # that nobody finished in time
    closing: bool  # sandboxes to be torn down
    failing: bool  # quarantined ones, which are tried again
    told: bool  # lines of the ledger that are not counted yet


class Outlook:
    """By the same conditions as the steps themselves, each by its index."""

    def __init__(
        self, database: Database, clamps: Clamps, sweeps: Sweeps, policies: Policies
    ) -> None:
        self.database = database
        self._look = select(
            or_(*(_any(rows) for rows in clamps.far)).label("far"),
            _any(policies.to_follow).label("changed"),
            _any(sweeps.due).label("due"),
            _any(sweeps.creates).label("creates"),
            _any(sweeps.closing).label("closing"),
            _any(sweeps.failing).label("failing"),
            func.coalesce(
                _newest_event() > select(installation.c.told).scalar_subquery(), false()
            ).label("told"),
        )

    def work(self) -> Work:
        """What there is to do now."""
        with self.database.look() as look:
            (row,) = look.all(self._look)
        return Work(**row._mapping)


def _newest_event() -> ColumnElement[int]:
    return select(func.max(events.c.id)).scalar_subquery()


def _any(rows: Select[Any]) -> ColumnElement[bool]:
    # Not EXISTS, which forgets their order: a planner that takes many for due would then look
    # through the whole table for the first.
    return rows.limit(1).scalar_subquery().is_not(None)
