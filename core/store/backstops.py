"""The provider's own TTL on each sandbox: what was granted, and who may ask for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, bindparam, case, func, or_, select, true, update

from ..model import sandbox_name
from ..providers.base import SandboxRef
from ..schema import sandboxes, sessions
from .database import Database
from .rules import ACTIVE, OF_SESSION, RUNNING, Rules, b, s
from .sql import Earliest, Latest, Seconds, any_of, later


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A sandbox that has to live longer than its provider means to let it."""

    key: str
    session_id: str
    generation: int
    provider: str
    scope: str
    ref: SandboxRef
    ttl: float  # seconds from now
    asked_at: datetime  # by the database's clock
    claimed_until: datetime  # whoever claims it in between has another date


class Backstops:
    """One method, one transaction. None is a move: no state depends on them."""

    def __init__(self, database: Database, rules: Rules, installation: str) -> None:
        self.database = database
        self.installation = installation
        self._create_deadline = rules.policy.create_deadline
        self._prepare_claim(rules)
        self._prepare_answer(rules)

    def claim(
        self, session_ids: Sequence[str], *, at_once: bool = False, anyway: bool = False
    ) -> list[Extension]:
        """
        Which of these sessions have a sandbox that would not outlive its session. Nobody else is
        given them for a while. `at_once` also those that were extended a moment ago.
        """
        with self.database.move() as move:
            of = {"ids": list(session_ids), "at_once": at_once, "anyway": anyway}
            rows = move.all(self._claim, of)
            if not rows:
                return []
            rows = move.all(self._wanted, {"keys": [row.key for row in rows]})
        return [
            Extension(
                key=row.key,
                session_id=row.session_id,
                generation=row.generation,
                provider=row.provider,
                scope=row.scope,
                ref=SandboxRef(
                    name=sandbox_name(self.installation, row.key), external_id=row.external_id
                ),
                ttl=(row.needed - row.at).total_seconds(),
                asked_at=row.at,
                claimed_until=row.extend_at,
            )
            for row in rows
        ]

    def release(self, extension: Extension) -> None:
        """Who claimed it cannot extend it: somebody else may, at once."""
        of = {"of_key": extension.key, "claimed_until": extension.claimed_until}
        with self.database.single() as move:
            move.run(self._release, of)

    def granted(self, extension: Extension, expires_at: datetime | None) -> bool | None:
        """
        What the provider said; `expires_at` is None when it granted what it was asked for. False
        when that is less than what has to be left after the last activity. None when somebody
        else asked meanwhile: nobody knows whom the provider heard last, and nothing is written.
        """
        seconds = extension.ttl
        if expires_at is not None:
            seconds = min(seconds, (expires_at - extension.asked_at).total_seconds())
        # A quarter of what has to be left, which is without what a create may take.
        pause = max(0.0, min(seconds, extension.ttl - self._create_deadline)) / 4
        of = {"of_key": extension.key, "granted": expires_at, "seconds": max(0.0, seconds)}
        of |= {"pause": pause, "claimed_until": extension.claimed_until}
        with self.database.single() as move:
            if not move.run(self._granted, of):
                return None
        return seconds >= 0.75 * extension.ttl

    # Statements, built once

    def _prepare_claim(self, rules: Rules) -> None:
        policy = rules.policy
        confirm = policy.confirm_interval
        idle = case((s.idle_ttl > confirm, s.idle_ttl), else_=confirm)
        ttl = (policy.backstop or 0.0) * (idle + confirm)  # Policy.backstop_ttl, for each row
        active_at = Latest(
            rules.active_at_most,
            *(func.coalesce(until, rules.active_at_most) for until in rules.kept()),
        )
        needed = later(active_at, ttl)
        now_or_never = or_(b.extend_at <= rules.now, bindparam("at_once", type_=true().type))
        anyway = bindparam("anyway", type_=true().type)
        # A look that is further away than half of what it would ask for, where a quarter is usual:
        # the clock stepped back since, and the provider granted until sooner than the row says.
        usual = later(rules.now, Seconds(rules.now, Latest(needed, rules.in_(ttl))) / 2)
        stepped_back = b.extend_at > usual
        due = and_(RUNNING, or_(and_(b.expires_at < needed, now_or_never), stepped_back, anyway))
        unusual = select(usual).where(OF_SESSION).correlate(sandboxes).scalar_subquery()
        claimed = rules.in_(policy.extend_claim)
        of = any_of(s.id, "ids")
        chosen = select(b.key).join_from(sessions, sandboxes, OF_SESSION).where(of, ACTIVE, due)
        self._claim = (
            update(sandboxes)
            # Looked at again where one waited for another: who was first has it for that long, and
            # may have extended it already.
            .where(b.key.in_(chosen), RUNNING, or_(now_or_never, b.extend_at > unusual, anyway))
            .values(extend_at=claimed)
            .returning(b.key)
        )
        # Never less than a create asks for, from now on: where the database's clock stepped
        # forward, what it knows of the last activity and of the first grant is old, and an
        # extension would shorten the life of a live sandbox.
        wanted = Latest(needed, later(rules.now, ttl + policy.create_deadline))
        self._wanted = (
            select(sandboxes, wanted.label("needed"), rules.now.label("at"))
            .join_from(sessions, sandboxes, OF_SESSION)
            .where(any_of(b.key, "keys"))
        )

    def _prepare_answer(self, rules: Rules) -> None:
        seconds = bindparam("seconds", type_=rules.seconds)
        granted = bindparam("granted", type_=b.expires_at.type)
        this = and_(
            b.key == bindparam("of_key"),
            b.extend_at == bindparam("claimed_until", type_=b.extend_at.type),
        )
        self._release = update(sandboxes).where(this, RUNNING).values(extend_at=rules.now)
        self._granted = (
            update(sandboxes)
            .where(this, RUNNING)
            .values(
                # A provider's clock may be ahead of the database's: never more than was asked.
                expires_at=Earliest(func.coalesce(granted, rules.in_(seconds)), rules.in_(seconds)),
                extend_at=rules.in_(bindparam("pause", type_=rules.seconds)),
            )
        )
