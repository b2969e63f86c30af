"""The rules that each commit is held to: what changed in the rows, who did it, and when."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

from core.policy import Policy
from tests.simulation.books import Trust
from tests.simulation.judge import Judge, name_of
from tests.simulation.moments import sweeps
from tests.simulation.rows import SandboxRow, SessionRow, moment
from tests.simulation.scheduler import Actor, Look

RANK = {"creating": 1, "running": 2, "closing": 3, "gone": 4}
TICK = timedelta(milliseconds=5)  # the store rounds to milliseconds
BY_SWEEP = {"idle", "max_age"}


class RowRules:
    """Called after each commit, before anybody else runs."""

    def __init__(self, judge: Judge, policy: Policy) -> None:
        self.judge = judge
        self.heartbeat = policy.heartbeat
        self.lease = timedelta(seconds=policy.publish_lease)
        self.noticing: dict[str, float] = {}  # when the transaction began that noticed it
        self.noticed: dict[str, float] = {}  # and when it was committed

    def committed(self, actor: Actor, now: datetime) -> None:
        """`now` is the latest that the transaction can have taken for the time."""
        rows = self.judge.rows
        sessions, sandboxes = rows.changed()
        if not sessions and not sandboxes:
            return
        for key in sandboxes:
            self._sandbox(actor, now, rows.sandboxes.get(key), rows.new_sandbox(key))
        before = {key: rows.sessions.get(key) for key in sessions}
        running = {key: self._state(old) for key, old in before.items()}
        rows.accept(sessions, sandboxes)
        for key, old in before.items():
            self._session(actor, now, old, rows.sessions.get(key), running[key])

    # Sandboxes

    def _sandbox(
        self, actor: Actor, now: datetime, old: SandboxRow | None, new: SandboxRow | None
    ) -> None:
        judge = self.judge
        if new is None:
            assert old is not None
            if old.state != "gone":  # what lands after that is a sandbox without a row
                judge.broken("L1", f"the row of a sandbox that is not gone was deleted: {old}")
            return
        if old is None:
            judge.scopes[name_of(new.key)] = new.scope
            if new.state != "creating":
                judge.broken("L1", f"a row was born as {new.state}")
            return
        self._forward(old, new)
        if new.claim_token > old.claim_token:
            self._claimed(actor, now, old, new)
        elif old.claimed_by is not None and new.claimed_by is None:
            self._written(actor, old)
        if new.state == "gone" and old.state != "gone":
            self._gone(new)
        elif sweeps(actor):
            self._published(actor, old, new)

    def _forward(self, old: SandboxRow, new: SandboxRow) -> None:
        judge = self.judge
        if RANK[new.state] < RANK[old.state] or new.claim_token < old.claim_token:
            judge.broken("S3", f"a row went back: {old} became {new}")
        if old.external_id is not None and new.external_id != old.external_id:
            judge.broken("S3", f"an external id changed: {old} became {new}")
        if new.state == "closing" and old.state != "closing":
            judge.closing_since[name_of(new.key)] = judge.scheduler.now

    def _claimed(self, actor: Actor, now: datetime, old: SandboxRow, new: SandboxRow) -> None:
        judge = self.judge
        if old.claimed_by is not None and old.not_before and moment(old.not_before) > now + TICK:
            judge.broken("S3", f"{actor.name} took a claim that is live: {old}")
        if actor.attempt != (new.session_id, new.generation, new.claimed_by):
            judge.broken("S3", f"{actor.name} is for {actor.attempt}, and claimed {new}")
        if judge.rows.held():
            judge.broken("breaker", f"{actor.name} claimed while everything is held: {new}")
        if new.attempts != old.attempts + 1:
            judge.broken("L3", f"an attempt began and was not counted: {new}")

    def _written(self, actor: Actor, old: SandboxRow) -> None:
        if actor.attempt is None or actor.attempt[2] != old.claimed_by:
            self.judge.broken(
                "S3", f"{actor.name} wrote the outcome of a claim of {old.claimed_by}"
            )

    def _gone(self, new: SandboxRow) -> None:
        judge, name = self.judge, name_of(new.key)
        absent = judge.absent_at.get(name)
        if absent is None or absent < judge.closing_since.get(name, 0.0):
            judge.broken("S4, H1", f"{name} was recorded as gone, and the cloud never said so")
        if judge.rows.gone_events(new) != 1:
            judge.broken("H1", f"{name} is gone, and the ledger has not exactly one such event")

    def _published(self, actor: Actor, old: SandboxRow, new: SandboxRow) -> None:
        """A sweep that leaves a date in the past publishes the same teardown again and again."""
        if old.state != "closing" or new.due_at == old.due_at or new.due_at is None:
            return
        since = self.judge.server.began(actor)  # stopped in its transaction, it may be late
        was_due = old.due_at is not None and moment(old.due_at) <= since
        if was_due and moment(new.due_at) <= since + self.lease / 2:
            self.judge.broken("L1", f"published without a lease: {new}")

    # Sessions

    def _state(self, old: SessionRow | None) -> str:
        sandbox = None if old is None else self.judge.rows.current(old)
        return "" if sandbox is None else sandbox.state

    def _session(
        self,
        actor: Actor,
        now: datetime,
        old: SessionRow | None,
        new: SessionRow | None,
        before: str,
    ) -> None:
        judge = self.judge
        if new is None:
            judge.actives.pop(old.id if old else "", None)
            judge.books.promised.pop(old.id if old else "", None)
            return
        if old is None or old.status != new.status or old.generation != new.generation:
            actives = judge.actives.setdefault(new.id, [])
            if old is not None and old.generation != new.generation:
                actives.append((judge.scheduler.now, False))
            actives.append((judge.scheduler.now, new.status == "active"))
        self._pair(new)
        if old is None:
            return
        if new.noticed_at is not None and new.noticed_at != old.noticed_at:
            self.noticed[new.id] = judge.scheduler.now
            assert actor.opened_at is not None, "whoever notices has a transaction"
            self.noticing[new.id] = actor.opened_at
        if new.generation not in {old.generation, old.generation + 1}:
            judge.broken("S3", f"generations jumped: {old} became {new}")
        if old.status == "active" and new.generation > old.generation:
            self._replaced(old)
        if old.status == "active" and new.generation == old.generation:
            self._activity(actor, now, old, new)
            self._due(now, old, new)
            if new.status == "ended":
                judge.ended_as[new.id, new.generation] = new.end_reason
                self._ended(actor, now, old, new, before)

    def _pair(self, new: SessionRow) -> None:
        sandbox = self.judge.rows.current(new)
        fitting = {"active": {"creating", "running"}, "ended": {"closing", "gone"}}[new.status]
        if sandbox is None or sandbox.state not in fitting:
            self.judge.broken("L1", f"{new.id} is {new.status}, and its sandbox {sandbox}")

    def _activity(self, actor: Actor, now: datetime, old: SessionRow, new: SessionRow) -> None:
        # Only what lies in the future of a clock that was set back may be brought back; also when
        # that has come to it, or is set right again, before the commit.
        server = self.judge.server
        true = moment(old.last_activity_at) <= (server.began(actor) if server.stepped else now)
        if new.last_activity_at < old.last_activity_at and true:
            self.judge.broken("S1", f"{actor.name} took activity back: {old} became {new}")
        later = new.last_activity_at > old.last_activity_at
        if later and actor.name.endswith("beater"):
            since = self.judge.server.began(actor)
            if not self.judge.rows.live_turns(new, since):
                self.judge.broken("S3", f"{new.id} was kept alive by a turn that is not live")

    def _due(self, now: datetime, old: SessionRow, new: SessionRow) -> None:
        """The first look at a running sandbox is not put off beyond its max age."""
        if new.max_age is None or new.due_at == old.due_at or new.noticed_at is not None:
            return
        age_ends = moment(new.opened_at) + timedelta(seconds=new.max_age)
        if self._state(new) == "running" and moment(new.due_at) > max(age_ends, now) + TICK:
            self.judge.broken("L1", f"{new.id} is looked at only after its max age: {new}")

    def _ended(
        self, actor: Actor, now: datetime, old: SessionRow, new: SessionRow, before: str
    ) -> None:
        if new.end_reason in {"create_failed", "create_expired"}:
            if before != "creating":
                self.judge.broken("S1", f"{new.id} ended as {new.end_reason}, and was {before}")
            return
        trusts = [
            trust
            for trust in self.judge.books.live(self.judge.scheduler.now)
            if (trust.session_id, trust.generation) == (new.id, new.generation)
        ]
        if new.end_reason == "lost":
            self._lost(old)
            return
        if new.end_reason not in BY_SWEEP or not sweeps(actor):
            for trust in trusts:
                trust.excused = f"ended by a caller ({new.end_reason})"
            return
        if self.judge.rows.held():
            self.judge.broken("breaker", f"{new.id} was ended while everything is held")
        assert new.ended_at is not None, "whoever ends it says when"
        ended = moment(new.ended_at)  # a clock that is watched steps also before the commit
        self._confirmed(actor, ended, old)
        self._kept(actor, ended, new)
        for trust in trusts:
            self._unheard(trust, new, actor)

    def _replaced(self, old: SessionRow) -> None:
        """
        Ended and reopened in one transaction: its max age had come, by the database's clock. Where
        that did not step, no turn can have been trusted for so long.
        """
        for trust in self.judge.books.live(self.judge.scheduler.now):
            of = (trust.session_id, trust.generation)
            stepped = any(trust.since <= when for when in self.judge.server.stepped)
            if of == (old.id, old.generation) and stepped:
                trust.excused = "the database's clock stepped past its max age"

    def _confirmed(self, actor: Actor, now: datetime, old: SessionRow) -> None:
        confirm = timedelta(seconds=actor.process.confirm_interval)
        if old.noticed_at is None:
            self.judge.broken("S5", f"{old.id} was ended at first sight")
        elif old.noticed_activity_at != old.last_activity_at:
            self.judge.broken("S5", f"{old.id} was active since its notice, and ended: {old}")
        elif moment(old.noticed_at) + confirm > now + TICK:
            self.judge.broken("S5", f"{old.id} was ended {now - moment(old.noticed_at)} after")

    def _lost(self, old: SessionRow) -> None:
        sandbox = self.judge.rows.current(old)
        for box in self.judge.cloud.boxes:
            if sandbox and box.external_id == sandbox.external_id and box.dead_at is None:
                self.judge.broken("S4", f"{old.id} ended as lost, and {box} lives")

    def _kept(self, actor: Actor, now: datetime, new: SessionRow) -> None:
        known = self.judge.books.promised.get(new.id)
        if known is None or known.generation != new.generation or new.end_reason != "idle":
            return
        shown = now + timedelta(seconds=actor.process.confirm_interval)
        until = self.judge.kept_until(known, shown)
        if until is not None:
            self.judge.broken("S1", f"{new.id} was extended until {until}: {new}")
        if known.active_at + timedelta(seconds=new.idle_ttl) > now + TICK:
            self.judge.broken("S5", f"{new.id} was active at {known.active_at}: {new}")

    def _unheard(self, trust: Trust, new: SessionRow, actor: Actor) -> None:
        """A holder that lives, and had the time to say so, was not heard."""
        judge = self.judge
        now = judge.scheduler.now
        assert new.ended_at is not None, "whoever ends it says when"
        clock = moment(new.ended_at)
        since = max(self.noticed.get(new.id, 0.0), trust.since)
        stopped = trust.process.stopped_between(since, now)
        lame = stopped + judge.server.blocked_between(since, now)
        if now - since - lame < 1.5 * self.heartbeat:
            if stopped > 0.0:
                trust.excused = f"stopped or cut off for {lame:.1f} s of {now - since:.1f} s"
                return
            looked = self.noticing.get(new.id, 0.0)
            stepped = any(looked <= when for when in judge.server.stepped)
            if stepped and not could_tell(actor, looked, now, clock):
                trust.excused = "the database's clock stepped between notice and end"
                return
        judge.broken(
            "S1, S5",
            f"{new.id} was ended ({new.end_reason}) under turn {trust.turn.id} of "
            f"{trust.process.name}, noticed {now - since:.1f} s before, unable for {lame:.1f} s",
        )


def could_tell(actor: Actor, since: float, now: float, clock: datetime) -> bool:
    """
    Whether the process that ends something now, when the clock shows this, has seen that clock come
    further than its own, by a quarter of its confirm interval, between two of its looks, of which
    the later one was after `since`. It does not know what happened to the clock between them.
    """
    tolerance = actor.process.confirm_interval / 4
    looks = [*actor.process.looks, Look(now, now, clock)]
    return any(
        (new.clock - old.clock).total_seconds() > new.at - old.asked + tolerance
        for old, new in pairwise(looks)
        if new.at > since
    )
