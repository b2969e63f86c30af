"""
Whether the promises hold, from three sources and never from what the system says of itself: what
lives in the cloud, what callers know (books.py), and the rows after each commit (row_rules.py).

S1  No sandbox is destroyed while somebody trusts a turn on it, or while its row is not closing or
    gone. A caller's own end() takes the trust of others away. Being stopped excuses an end by the
    sweep when the holder had, between notice and end, less time than 1.5 heartbeats to say that
    it lives. So does a clock that stepped in between, where the sweeping process cannot know: at
    none of its looks since the notice had it come further than the process's own. A begin,
    touch, extend or open that is acknowledged found an active session. The provider's own TTL
    does not run out under a turn, nor before what was promised, unless by a process in another
    account, which cannot extend it, or the provider refused to extend it three times in a row.
S2  A sandbox that somebody else made is never destroyed.
S3  Rows only go forward; only the holder of a claim writes its outcome, a claim that is live is
    nobody else's, and it is for the generation that the message named; one gone event each.
S4  `gone` is only written after the cloud itself, asked in the right account, had none; `lost`
    only when there is none; what no row explains lives for its grace.
S5  The sweep ends what an earlier look noticed, no activity since, a confirm interval later, and
    never before what was acknowledged (a touch, a turn, an extension) has run out. An extension
    lasts for as many seconds as were asked for, less those that the clock jumped ahead since;
    and until its date, as often as the clock steps back and is put right, or jumps and falls back.
L   When faults have stopped: every session ended, every sandbox gone, nothing of ours alive. No
    date that a clock wrote which was set back since keeps anything for longer.
H1  Who is told of a move can find it committed; gone events, gone rows and the cloud agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from core.errors import InvalidSpec
from core.events import Event, EventKind
from core.model import SandboxState, Session, sandbox_name
from core.turn import Turn
from tests.simulation.books import Asked, Books, Extended, Promised, Trust
from tests.simulation.cloud import OURS, Box, Cloud
from tests.simulation.database import Server
from tests.simulation.faults import Fault
from tests.simulation.line import INSTALLATION
from tests.simulation.rows import Rows, SandboxRow
from tests.simulation.scheduler import Actor, Scheduler

GONE_PAIRS = (
    "SELECT session_id, generation FROM events WHERE kind = 'sandbox_gone' ORDER BY 1, 2",
    "SELECT session_id, generation FROM sandboxes WHERE state = 'gone' ORDER BY 1, 2",
)
NOT_MOVES = {
    EventKind.FAN_OUT_FAILED,
    EventKind.BEAT_FAILED,
    EventKind.TURN_LOST,
    EventKind.TURN_END_FAILED,
    EventKind.SWEEP_LATE,
    EventKind.EXTEND_FAILED,
    EventKind.RECONCILE_SKIPPED,
    EventKind.ORPHAN_FAILED,
    EventKind.OTHER_INSTALLATIONS,
}
FOUND_WITHIN = 150.0  # seconds without faults: two reconciles, and an operator who says yes
TICK = 0.002  # seconds: dates are kept to the millisecond
STOPPED_FOR_LONG = 50.0  # seconds, in which a holder cannot have its sandbox's TTL extended


@dataclass(frozen=True)
class Violation:
    """A promise that was broken: which, when, and how."""

    promise: str
    at: float
    how: str

    def __str__(self) -> str:
        return f"{self.promise} at {self.at:.3f}: {self.how}"


class Judge:
    """The first violation ends the world."""

    server: Server
    cloud: Cloud
    rows: Rows

    def __init__(self, scheduler: Scheduler, grace: float) -> None:
        self.scheduler = scheduler
        self.grace = grace  # of a sandbox that no row explains
        self.books = Books()
        self.violation: Violation | None = None
        self.scopes: dict[str, str] = {}  # of every name that a row ever had
        self.closing_since: dict[str, float] = {}
        self.absent_at: dict[str, float] = {}
        self.ended_as: dict[tuple[str, int], str | None] = {}
        # Kept active by a process that is logged in to another account: it cannot extend its TTL.
        self.from_elsewhere: set[tuple[str, int]] = set()
        self.actives: dict[str, list[tuple[float, bool]]] = {}

    def broken(self, promise: str, how: str) -> None:
        """Stop the world here."""
        if self.violation is None:
            self.violation = Violation(promise, self.scheduler.now, how)
            self.scheduler.note(f"VIOLATION {self.violation}")
        self.scheduler.halted = True

    # What the cloud sees

    def created(self, box: Box) -> None:
        """A sandbox of ours came to be, also long after the call."""
        scope = self.scopes.get(box.name)
        if scope is None:
            self.broken("L1", f"{box.name} was made before its row was committed")
        elif scope != box.account:
            self.broken("L1", f"{box.name} was made in {box.account}, its row says {scope}")
        row = self.rows.sandboxes.get(box.name.rpartition("-")[2])
        if row is None or row.state == "gone":
            self.cloud.faults.happened(Fault.LATE_CREATE)

    def destroyed(self, box: Box) -> None:
        """A sandbox came to its end by a call of ours."""
        if box.foreign:
            self.broken("S2", f"{box.name} belongs to somebody else, and was destroyed")
        for trust in self.books.live(self.scheduler.now, box=box.external_id):
            self.broken(
                "S1",
                f"{box.name} was destroyed while {trust.process.name} trusts turn {trust.turn.id} "
                f"on {trust.session_id}",
            )
        row = self.rows.sandboxes.get(box.name.rpartition("-")[2])
        if row is None:
            self._rowless(box)
        elif row.state not in {"closing", "gone"} and row.external_id in {None, box.external_id}:
            self.broken("S1", f"{box.name} was destroyed, and its row says {row.state}")

    def _rowless(self, box: Box) -> None:
        age = self.scheduler.now - box.born
        if age < self.grace and not self.server.stepped:
            self.broken("S4", f"{box.name}, which no row explains, was destroyed after {age:.1f} s")

    def expired(self, box: Box) -> None:
        """The provider's own TTL has run out."""
        if box.refused_extensions >= 3:
            return  # it was asked for more, in time and again, and did not want to
        for trust in self.books.live(self.scheduler.now, box=box.external_id):
            stopped = trust.process.stopped_between(box.extended_at, self.scheduler.now)
            if stopped < STOPPED_FOR_LONG and trust.process.account == box.account:
                self.broken("S1", f"{box.name} expired under turn {trust.turn.id}")
        row = self.rows.sandboxes.get(box.name.rpartition("-")[2])
        if row is not None and row.external_id == box.external_id and row.state == "running":
            self._expired_too_early(row)

    def _expired_too_early(self, row: SandboxRow) -> None:
        known = self.books.promised.get(row.session_id)
        session = self.rows.sessions.get(row.session_id)
        if known is None or session is None or known.generation != row.generation:
            return
        now = self.server.clock()
        until = known.active_at + timedelta(seconds=session.idle_ttl)
        until = max(until, self.kept_until(known, now) or until)
        if (row.session_id, row.generation) in self.from_elsewhere:
            return
        if until > now and not self.server.stepped:
            self.broken("S1", f"{row} expired, and was promised until {until}")

    def absent(self, name: str, account: str) -> None:
        """The cloud said that there is none, which it may be believed of its own account."""
        if self.scopes.get(name) == account:
            self.absent_at[name] = self.scheduler.now

    # What callers hear

    def ask(self, session_id: str) -> Asked:
        """Before a call."""
        return Asked(
            session_id=session_id,
            at=self.scheduler.now,
            steps=len(self.server.stepped),
        )

    def opened(self, asked: Asked, session: Session) -> None:
        """open() has returned."""
        self._was_active(asked, "open")
        self._active(asked, session.generation)
        if session.sandbox.state is not SandboxState.RUNNING:
            self.broken("S1", f"open of {session.id} gave a sandbox that is not running")

    def touched(self, asked: Asked) -> None:
        """touch() has returned."""
        self._was_active(asked, "touch")
        known = self.books.promised.get(asked.session_id)
        row = self.rows.sessions.get(asked.session_id)
        if known is not None and row is not None and row.generation == known.generation:
            self._active(asked, known.generation)

    def extended(self, asked: Asked, session: Session, seconds: float) -> None:
        """extend() has returned."""
        self._was_active(asked, "extend")
        assert session.extended_until is not None
        extended = Extended(
            until=session.extended_until,
            at=self.server.latest(asked.at),
            since=asked.at,
            lasts=asked.at + seconds,
        )
        self.books.extended(session.id, session.generation, extended)

    def kept_until(self, known: Promised, shown: datetime) -> datetime | None:
        """
        Until when it was promised to be kept, where that is not over, by a clock that may have
        shown so much.
        """
        passed = self.scheduler.now
        for each in known.extensions:
            if each.lasts > passed + self.server.jumped_ahead(each.since) + TICK:
                return each.until
        # What was promised last is what the row says, unless a jump ahead was over it.
        last = known.extensions[-1] if known.extensions else None
        if last is None or last.at > shown or last.until <= self.server.latest(last.since):
            return None
        return last.until

    def began(self, asked: Asked, turn: Turn, ceiling: float) -> Trust:
        """A turn has begun, and its holder goes to work."""
        session, now = turn.session, self.scheduler.now
        trust = Trust(
            turn=turn,
            session_id=session.id,
            generation=session.generation,
            box=session.sandbox.external_id or "",
            process=self.scheduler.actor.process,
            since=now,
            ceiling=ceiling,
        )
        if self._over(asked, session):
            trust.excused = "it was over before the answer came, and the next heartbeat says so"
        self._was_active(asked, "begin")
        if session.sandbox.external_id is None:
            self.broken("S1", f"a turn began on {session.id}, whose sandbox is being created")
        elif asked.steps == len(self.server.stepped) and ceiling + now - asked.at < asked.at - 1.0:
            self.broken("S1", f"a turn began on {session.id}, which was too old before")
        elif self._destroyed_by_us(session.sandbox.external_id) and not trust.excused:
            self.broken("S1", f"a turn began on {session.id}, whose sandbox had been destroyed")
        self._active(asked, session.generation)
        self.books.trusts.append(trust)
        return trust

    def cannot_be_made(self, asked: Asked, error: InvalidSpec) -> None:
        """open() said that it will never succeed: then it must have made room."""
        row = self.rows.sessions.get(asked.session_id)
        sandbox = None if row is None else self.rows.current(row)
        if sandbox is not None and sandbox.state == "creating" and self._same(asked):
            self.broken("L1", f"{asked.session_id} can never be made ({error}), and stays")

    def heard(self, event: Event) -> None:
        """A sink was told. Only of what is committed, so never from within a transaction."""
        actor = self.scheduler.running
        if event.kind not in NOT_MOVES and actor is not None and actor.opened_at is not None:
            self.broken("H1", f"{event.kind} was told before it was committed")

    def rang(self, session_id: str, generation: int) -> None:
        """Somebody rang for a teardown: then whoever hears it has to find the row."""
        for row in self.rows.sandboxes.values():
            if (row.session_id, row.generation) == (session_id, generation) and row.state in {
                "creating",
                "running",
            }:
                self.broken("L1", f"the doorbell rang for {session_id} before it was closing")

    # When an actor met what nobody expects

    def failed(self, actor: Actor, trace: str) -> None:
        """Every refusal has a type of its own; anything else is a bug."""
        self.broken("typed refusals", f"{actor.name} met\n{trace}")

    # At the end

    def clean(self) -> bool:
        """Whether nothing is left that anybody has to do."""
        return (
            all(row.status == "ended" for row in self.rows.sessions.values())
            and all(row.state == "gone" for row in self.rows.sandboxes.values())
            and not self._left()
        )

    def lingering(self, since: float) -> None:
        """What landed after its teardown is found by a reconcile, not by its own TTL."""
        for box in self._left():
            row = self.rows.sandboxes.get(box.name.rpartition("-")[2])
            if row is None or row.state != "gone" or box.account != OURS:
                continue
            if self.scheduler.now - max(since, box.born) > FOUND_WITHIN and not self.rows.held():
                self.broken("L4", f"{box.name} landed late, and nobody finds it")

    def finish(self) -> None:
        """The quiet time is over."""
        for session in self.rows.sessions.values():
            if session.status != "ended":
                self.broken("L1", f"session {session.id} is still active: {session}")
        for sandbox in self.rows.sandboxes.values():
            if sandbox.state != "gone":
                self.broken("L1, L3", f"a sandbox is still {sandbox.state}: {sandbox}")
        by_name = {name_of(row.key): row for row in self.rows.sandboxes.values()}
        spared = self.rows.keeps_what_it_cannot_know()
        for box in self._left():
            row = by_name.get(box.name)
            if (row is None and not spared) or (row is not None and row.state == "gone"):
                self.broken("L1, L4", f"{box.name} is left alive")
        events, rows = (self.rows.real.execute(query).fetchall() for query in GONE_PAIRS)
        if events != rows:
            self.broken("H1", f"gone in the ledger {events}, in the rows {rows}")

    def _left(self) -> list[Box]:
        return [box for box in self.cloud.boxes if not box.foreign and self.cloud.alive(box)]

    def _active(self, asked: Asked, generation: int) -> None:
        """Counted from when it was asked, by a clock that may have been set back since."""
        session = self.rows.sessions.get(asked.session_id)
        sandbox = None if session is None else self.rows.current(session)
        if sandbox is not None and self.scheduler.actor.process.account != sandbox.scope:
            self.from_elsewhere.add((asked.session_id, generation))
        self.books.active(asked.session_id, generation, self.server.earliest(asked.at))

    def _was_active(self, asked: Asked, what: str) -> None:
        """Somewhere between the question and the answer the session was active."""
        active = False
        for time, status in self.actives.get(asked.session_id, ()):
            active = status if time <= asked.at else active or status
        if not active:
            self.broken("S1", f"{what} of {asked.session_id} was acknowledged after its end")

    def _destroyed_by_us(self, external_id: str | None) -> bool:
        return any(
            box.external_id == external_id
            and box.dead_at is not None
            and not (box.vanished or box.expired)
            for box in self.cloud.boxes
        )

    def _over(self, asked: Asked, session: Session) -> bool:
        """A caller ended the session meanwhile, or the answer took so long that it went idle."""
        why = self.ended_as.get((session.id, session.generation))
        slow = self.scheduler.now - asked.at > session.idle_ttl
        return why is not None and (why not in {"idle", "max_age"} or slow)

    def _same(self, asked: Asked) -> bool:
        """It is the generation that the call joined or made: nobody opened another since."""
        was_active, opened_since = False, 0
        for time, active in self.actives.get(asked.session_id, ()):
            if time < asked.at:
                was_active = active
            else:
                opened_since += active
        return opened_since == (0 if was_active else 1)


def name_of(key: str) -> str:
    """The cloud's name for the sandbox of a row."""
    return sandbox_name(INSTALLATION, key)
