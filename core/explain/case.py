"""The facts of one session, and what follows from them for everything that is said of it."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..model import Session, SessionStatus
from ..policy import Policy
from ..store.evidence import Facts, TurnFacts
from .answer import Holding, Point
from .said import moment


class Case:
    """The facts of one session, and what follows from them."""

    def __init__(self, facts: Facts, policy: Policy) -> None:
        self.facts, self.policy = facts, policy
        self.session, self.now = facts.session, facts.session.seen_at
        self.box = facts.sandboxes[-1]
        self.active = self.session.status is SessionStatus.ACTIVE
        self.over = facts.ends_at <= self.now
        self.too_old = facts.age_ends is not None and facts.age_ends <= self.now
        self.window = facts.window
        self.unused = _is_unused(self.session)
        self.idle_at = self.session.last_activity_at + timedelta(seconds=self.idle_ttl)
        # As the sweep has it: a notice counts as long as nothing was active since.
        self.noticed = (
            self.session.noticed_at is not None
            and self.session.noticed_at <= self.now
            and facts.noticed_activity_at == self.session.last_activity_at
        )
        self.turns = tuple(self._holding(turn) for turn in facts.turns if turn.ended_at is None)
        self.kept = self._kept()

    @property
    def idle_ttl(self) -> float:
        """Seconds: its never-used TTL until the first turn, where that is shorter."""
        unused = self.session.never_used_ttl if self.unused else None
        return self.session.idle_ttl if unused is None else unused

    def said(self, at: datetime) -> str:
        """A moment as people read it."""
        return moment(at, self.now)

    def _holding(self, turn: TurnFacts) -> Holding:
        live = self.active and turn.hard_until > self.now and self.idle_at > self.now
        since = f"{turn.holder} holds turn {turn.id} since {self.said(turn.started_at)}"
        if turn.hard_until <= self.now:
            until = f"and did not end it; its ceiling was {self.said(turn.hard_until)}"
        elif live:
            until = f"until {self.said(turn.hard_until)} at most"
        else:
            until = "and did not end it; nothing was heard of it for the idle TTL"
        return Holding(
            turn_id=turn.id,
            holder=turn.holder,
            started_at=turn.started_at,
            hard_until=turn.hard_until,
            live=live,
            sentence=f"{since}, {until}.",
        )

    def _kept(self) -> tuple[Point, ...]:
        session, found = self.session, list[Point]()
        if not self.active:
            return ()
        if session.extended_until is not None and session.extended_until > self.now:
            until = session.extended_until
            sentence = f"It was extended until {self.said(until)}."
            found.append(Point(kind="extension", until=until, sentence=sentence))
        if session.pinned_until is not None and session.pinned_until > self.now:
            until = session.pinned_until
            values = {"owner": session.pinned_by, "reason": session.pin_reason}
            sentence = (
                f"{session.pinned_by} has pinned it until {self.said(until)}: {session.pin_reason}."
            )
            found.append(Point(kind="pin", until=until, values=values, sentence=sentence))
        return tuple(found)


def _is_unused(session: Session) -> bool:
    """As the sweep has it: no turn began on this generation, and there is a shorter TTL for it."""
    unused = session.never_used_ttl
    return session.fresh and unused is not None and unused < session.idle_ttl
