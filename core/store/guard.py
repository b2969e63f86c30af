"""
The breaker and the interlock: what makes everything destructive wait for an operator, and the
operator's answers. A hold is one open question; while there is one nothing is destroyed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, and_, bindparam, case, delete, func, null, or_, select, update

from ..errors import InvalidArgument
from ..events import Event, EventKind
from ..schema import holds, installation
from ..witness import Witness
from .database import Database, Move
from .rules import UNHELD, Rules
from .sql import Identity

# So many sweeps may be missing from a database without a question: a power cut takes the last
# moments of a SQLite file along.
SLACK = 2
AHEAD = 1_000_000  # sweeps: past whatever any process remembers of a database that went back
h, i = holds.c, installation.c


class HoldReason(StrEnum):
    """What the question is about."""

    MASS_END = "mass_end"  # a sweep would end too many sessions at once
    MASS_ORPHANS = "mass_orphans"  # a reconcile would tear down too many rowless sandboxes
    MASS_MISSING = "mass_missing"  # a provider does not show too many sandboxes that should run
    STORE = "store"  # the provider has sandboxes of ours that this database cannot know
    DATABASE = "database"  # this is not the database that it was: a clone, a restore, a failover
    REWOUND = "rewound"  # the database went back in time
    RESTORE = "restore"  # a backup is being brought back
    OPERATOR = "operator"  # somebody asked for it


ABOUT_THE_DATABASE = frozenset({HoldReason.DATABASE, HoldReason.REWOUND})
# Answered once and for all, and held until they are; an answer to the others expires.
ONCE_AND_FOR_ALL = ABOUT_THE_DATABASE | {HoldReason.OPERATOR, HoldReason.RESTORE}
FOR_GOOD = 10 * 365 * 86400.0  # seconds


class Decision(StrEnum):
    """What an operator may answer."""

    APPROVED = "approved"
    DENIED = "denied"


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A question and its answer. It holds everything as long as it is `open`."""

    reason: HoldReason
    since: datetime
    detail: Mapping[str, object]
    decision: Decision | None
    decided_by: str | None
    until: datetime | None
    open: bool


class Guard:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules, witness: Witness) -> None:
        self.database = database
        self.witness = witness
        self._live = select(i.id, i.identity, i.epoch, Identity().label("live"))
        self._adopt = update(installation).values(identity=Identity())
        self._prepare_holds(rules)
        self._prepare_answers(rules)

    def establish(self) -> None:
        """Note which database this is, the first time that it is used."""
        with self.database.look() as look:
            row = look.one(self._live)
        if not _is_new(row):
            return
        # Looked at again where SQLite has one writer: of two first processes the later one must
        # not replace the witness that the earlier one has adopted.
        with self.database.move() as move:
            row = move.one(self._live)
            if row is not None and _is_new(row) and self.witness.establish(row.id):
                move.run(self._adopt.where(i.identity.is_(None)))

    def check(self, *, actor: str) -> None:
        """The interlock: hold everything when this is another database, or an older state of it."""
        seen = self.witness.recall()  # before the look: what it remembers was committed before
        with self.database.look() as look:
            doubt = _doubt(look.one(self._live), seen)
        if doubt is None:
            return
        reason, detail = doubt
        with self.database.move() as move:
            if not self._ask_in(move, reason, detail):
                return
            # Looked at again behind the question: an operator may have answered since our look,
            # and what he has just decided must not be held again.
            if _doubt(move.one(self._live), seen) is None:
                move.run(self._close, {"of_reason": reason})
            else:
                move.record(_held(reason, detail, actor))

    def hold(self, reason: HoldReason, detail: Mapping[str, object], *, actor: str) -> bool:
        """Ask, unless it was asked already, or answered and the answer has not expired."""
        with self.database.move() as move:
            asked = self._ask_in(move, reason, detail)
            if asked:
                move.record(_held(reason, detail, actor))
        return asked

    def is_held(self) -> bool:
        """Whether everything destructive waits for an operator."""
        with self.database.look() as look:
            return look.one(self._unheld) is None

    def decision(self, reason: HoldReason) -> Decision | None:
        """The answer that holds now, if there is one."""
        with self.database.look() as look:
            row = look.one(self._answer, {"of_reason": reason})
        return None if row is None else Decision(row.decision)

    def holds(self) -> list[Hold]:
        """Questions, and answers that have not expired; the oldest first."""
        with self.database.look() as look:
            rows = look.all(self._list)
        return [
            Hold(
                reason=HoldReason(row.reason),
                since=row.since,
                detail=row.detail,
                decision=None if row.decision is None else Decision(row.decision),
                decided_by=row.decided_by,
                until=row.until,
                open=row.until is None,
            )
            for row in rows
        ]

    def approve(
        self, reason: HoldReason, seconds: float, *, actor: str, why: str | None = None
    ) -> None:
        """
        Go on. What is about the database makes this one the right one; the others may be done
        for so many seconds. InvalidArgument when nothing of this kind was asked.
        """
        with self.database.move() as move:
            row = move.one(self._open, {"of_reason": reason})
            if row is None:
                raise _not_asked(reason)
            if reason in ABOUT_THE_DATABASE:
                self.trust_in(move)
            elif reason in ONCE_AND_FOR_ALL:
                move.run(self._close, {"of_reason": reason})
            else:
                self._decide_in(move, reason, Decision.APPROVED, seconds, actor)
            move.record(_decided(reason, Decision.APPROVED, actor, why))

    def deny(
        self, reason: HoldReason, seconds: float, *, actor: str, why: str | None = None
    ) -> None:
        """
        Do not. The mass that was asked about is left alone for so many seconds, and the rest goes
        on; what this store cannot know is left alone for good. What is about the database, or was
        asked for, keeps holding everything.
        """
        with self.database.move() as move:
            if move.one(self._open, {"of_reason": reason}) is None:
                raise _not_asked(reason)
            if reason in ONCE_AND_FOR_ALL:
                move.run(self._refuse, {"of_reason": reason, "by": actor})
            else:
                # A wrong database stays wrong, and looks right once its sandboxes have turned over.
                seconds = FOR_GOOD if reason is HoldReason.STORE else seconds
                self._decide_in(move, reason, Decision.DENIED, seconds, actor)
            move.record(_decided(reason, Decision.DENIED, actor, why))

    def deny_in(self, move: Move, reason: HoldReason, seconds: float, actor: str) -> None:
        """The same whether or not anybody asked, inside somebody's transaction."""
        self._ask_in(move, reason, {})
        self._decide_in(move, reason, Decision.DENIED, seconds, actor)

    def trust_in(self, move: Move) -> None:
        """This database is the right one, inside somebody's transaction."""
        row = move.one(self._live)
        if row is None:
            return
        # Or every other process that remembers more would ask again.
        epoch = max(row.epoch, self.witness.recall(), self._remembered(move)) + AHEAD
        self.witness.renew(row.id)
        move.run(self._adopt.values(epoch=epoch))
        move.run(self._close_all)

    def _remembered(self, move: Move) -> int:
        rows = move.all(select(h.detail).where(h.reason == HoldReason.REWOUND))
        return max((int(row.detail.get("seen", 0)) for row in rows), default=0)

    def _ask_in(self, move: Move, reason: HoldReason, detail: Mapping[str, object]) -> bool:
        question = {"of_reason": reason, "new_detail": dict(detail)}
        return move.one(self._ask, question) is not None

    def _decide_in(
        self, move: Move, reason: HoldReason, decision: Decision, seconds: float, actor: str
    ) -> None:
        answer = {"of_reason": reason, "new_decision": decision, "by": actor, "seconds": seconds}
        move.run(self._decide, answer)

    # Statements, built once

    def _prepare_holds(self, rules: Rules) -> None:
        expired = and_(h.until.is_not(None), h.until <= rules.now)
        asked: dict[str, Any] = {
            "since": rules.now,
            "detail": bindparam("new_detail", type_=h.detail.type),
        }
        self._ask = (
            self.database.insert(holds)
            .values(reason=bindparam("of_reason"), **asked)
            .on_conflict_do_update(
                index_elements=["reason"],
                set_={**asked, "decision": null(), "decided_by": null(), "until": null()},
                where=expired,
            )
            .returning(h.reason)
        )
        self._unheld = select(func.count()).where(UNHELD).having(func.count() > 0)
        self._list = (
            select(holds).where(or_(h.until.is_(None), h.until > rules.now)).order_by(h.since)
        )

    def _prepare_answers(self, rules: Rules) -> None:
        this = h.reason == bindparam("of_reason")
        self._open = (
            select(h.reason)
            .where(this, or_(h.until.is_(None), h.until > rules.now))
            .with_for_update()
        )
        self._answer = select(h.decision).where(this, h.until > rules.now)
        until = rules.in_(bindparam("seconds", type_=rules.seconds))
        # The same answer again must not shorten one that was given for longer.
        same = and_(h.decision == bindparam("new_decision"), h.until > until)
        self._decide = (
            update(holds)
            .where(this)
            .values(
                decision=bindparam("new_decision"),
                decided_by=bindparam("by"),
                until=case((same, h.until), else_=until),
            )
        )
        self._refuse = (
            update(holds)
            .where(this)
            .values(decision=Decision.DENIED.value, decided_by=bindparam("by"))
        )
        self._close = delete(holds).where(this)
        self._close_all = delete(holds).where(h.reason.in_([*ABOUT_THE_DATABASE]))


def _is_new(row: Row[Any] | None) -> bool:
    """Whether nobody has said yet which database this is."""
    return row is not None and row.identity is None and not (row.live is None and row.epoch)


def _doubt(row: Row[Any] | None, seen: int) -> tuple[HoldReason, dict[str, object]] | None:
    """Why this may be another database, or an older state of it, when it may."""
    if row is None:
        return None
    if row.identity != row.live:
        return HoldReason.DATABASE, {"was": row.identity, "is": row.live}
    if row.epoch < seen - SLACK:
        return HoldReason.REWOUND, {"sweeps": row.epoch, "seen": seen}
    return None


def _held(reason: HoldReason, detail: Mapping[str, object], actor: str) -> Event:
    asked = {"reason": reason.value, **detail}
    return Event(kind=EventKind.DESTRUCTION_HELD, actor=actor, detail=asked)


def _not_asked(reason: HoldReason) -> InvalidArgument:
    return InvalidArgument(f"nothing is held for {reason.value}: see `sandkeeper breaker status`")


def _decided(reason: HoldReason, decision: Decision, actor: str, why: str | None) -> Event:
    said = {} if why is None else {"why": why}
    return Event(
        kind=EventKind.HOLD_DECIDED,
        actor=actor,
        detail={"reason": reason.value, "decision": decision.value, **said},
    )
