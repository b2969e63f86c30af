"""The moves of a teardown: claim, release, gone. Each is fenced by the claim's token."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, bindparam, case, func, null, or_, select, true, update

from ..events import Event, EventKind
from ..model import Claim, SandboxState, sandbox_name
from ..schema import providers, sandboxes
from .database import Database, kept
from .health import blocked, health_of
from .quarantine import IN_QUARANTINE, Among
from .rules import CLOSING, UNHELD, Rules, b, s


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A teardown that an operator should look at; it is still retried."""

    session_id: str
    generation: int
    provider: str
    name: str
    attempts: int
    last_error: str | None


class Teardowns:
    """One method, one transaction."""

    def __init__(self, database: Database, rules: Rules, installation: str) -> None:
        self.database = database
        self.installation = installation
        self._prepare_claim(rules)
        self._prepare_outcomes(rules)
        self._prepare_quarantine(rules)

    def claim(
        self, session_id: str, generation: int, worker: str, *, early: bool = False
    ) -> Claim | None:
        """
        The right to tear this sandbox down, for claim_ttl seconds. None when there is nothing to
        do, somebody else's claim is live, or a pause is not over; `early` ends the pause.
        """
        with self.database.single() as move:
            row = move.one(
                self._claim,
                {
                    "of_session": session_id,
                    "of_generation": generation,
                    "worker": worker[:200],
                    "early": early,
                },
            )
        if row is None:
            return None
        return Claim(
            key=row.key,
            token=row.claim_token,
            name=sandbox_name(self.installation, row.key),
            session_id=session_id,
            generation=generation,
            provider=row.provider,
            scope=row.scope,
            external_id=row.external_id,
            attempts=row.attempts,
            quarantined=row.quarantined_at is not None,
            failures=row.failures or 0,
            spacing=row.spacing or 0.0,
        )

    def gone(self, claim: Claim, *, actor: str) -> bool:
        """closing → gone. False when the claim had run out and another worker took over."""
        event = Event(
            kind=EventKind.SANDBOX_GONE,
            actor=actor,
            session_id=claim.session_id,
            generation=claim.generation,
            detail={"name": claim.name, "attempts": claim.attempts},
        )
        of = {"of_key": claim.key, "token": claim.token}
        return self.database.tell_if(self._gone, of, event)

    def release(
        self,
        claim: Claim,
        error: str,
        pause: float,
        *,
        actor: str,
        counts: bool = True,
        quarantine: bool = False,
    ) -> bool:
        """
        Give the claim back for `pause` seconds. `counts` is False for an answer that says
        nothing of this sandbox, such as a rate limit. False when the claim had run out.
        """
        error = kept(error)
        parameters = {
            "of_key": claim.key,
            "token": claim.token,
            "error": error,
            "pause": pause,
            "uncounted": 0 if counts else 1,
            "quarantine": quarantine,
        }
        with self.database.move() as move:
            row = move.one(self._release, parameters)
            if row is None:
                return False
            kind = EventKind.TEARDOWN_QUARANTINED if quarantine else EventKind.TEARDOWN_FAILED
            detail = {"error": error, "attempts": row.attempts, "retry_in": round(pause, 3)}
            move.record(
                Event(
                    kind=kind,
                    actor=actor,
                    session_id=claim.session_id,
                    generation=claim.generation,
                    detail=detail,
                )
            )
        return True

    def put_off(self, claim: Claim, pause: float) -> bool:
        """
        Give the claim back without an attempt, because no call could be made. It is no news of
        this sandbox, and thousands may wait: nothing goes into the ledger.
        """
        of = {"of_key": claim.key, "token": claim.token, "pause": pause}
        with self.database.single() as move:
            return move.one(self._put_off, of) is not None

    def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """The longest quarantined first."""
        with self.database.look() as look:
            rows = look.all(self._quarantined, {"limit": limit})
        return [
            Quarantined(
                session_id=row.session_id,
                generation=row.generation,
                provider=row.provider,
                name=sandbox_name(self.installation, row.key),
                attempts=row.attempts,
                last_error=row.last_error,
            )
            for row in rows
        ]

    def retry_now(
        self,
        session_id: str | None = None,
        *,
        among: Among | None = None,
        actor: str = "operator",
        why: str | None = None,
    ) -> int:
        """
        End the pauses of quarantined teardowns, of one session or of all, or of all that are
        `among` these; gives how many.
        """
        among = among or Among()
        said = among.given if why is None else {**among.given, "why": why}
        retry = self._retry_now.where(*among.conditions())
        with self.database.move() as move:
            retried = move.run(retry, {"of_session": session_id, **among.parameters})
            if retried:
                move.record(
                    Event(
                        kind=EventKind.QUARANTINE_RETRIED,
                        actor=actor,
                        session_id=session_id,
                        detail={"sandboxes": retried, **said},
                    )
                )
        return retried

    # Statements, built once

    def _prepare_claim(self, rules: Rules) -> None:
        until = rules.in_(rules.policy.claim_ttl)
        early = and_(bindparam("early", type_=true().type), b.claimed_by.is_(None))
        self._claim = (
            update(sandboxes)
            .where(
                b.session_id == bindparam("of_session"),
                b.generation == bindparam("of_generation"),
                CLOSING,
                UNHELD,
                or_(b.not_before <= rules.now, early),
                ~blocked(rules, b.provider),
            )
            .values(
                claim_token=b.claim_token + 1,
                claimed_by=bindparam("worker"),
                # Counted before the provider is called: a sandbox that kills its worker each
                # time still reaches quarantine.
                attempts=b.attempts + 1,
                not_before=until,
                due_at=until,
            )
            .returning(
                b.key,
                b.claim_token,
                b.provider,
                b.scope,
                b.external_id,
                b.attempts,
                b.quarantined_at,
                health_of(providers.c.failures, b.provider).label("failures"),
                health_of(providers.c.spacing, b.provider).label("spacing"),
            )
        )

    def _prepare_outcomes(self, rules: Rules) -> None:
        mine = and_(b.key == bindparam("of_key"), CLOSING, b.claim_token == bindparam("token"))
        self._gone = self.database.told(
            update(sandboxes)
            .where(mine)
            .values(
                state=SandboxState.GONE.value,
                gone_at=rules.now,
                due_at=null(),
                not_before=null(),
                claimed_by=null(),
            )
            .returning(b.key)
        )
        again = rules.in_(bindparam("pause", type_=s.idle_ttl.type))
        free = (
            update(sandboxes)
            .where(mine)
            .values(claimed_by=null(), not_before=again, due_at=again)
            .returning(b.attempts)
        )
        self._put_off = free.values(attempts=b.attempts - 1)
        self._release = free.values(
            last_error=bindparam("error"),
            attempts=b.attempts - bindparam("uncounted", type_=b.attempts.type),
            quarantined_at=case(
                (
                    bindparam("quarantine", type_=true().type),
                    func.coalesce(b.quarantined_at, rules.now),
                ),
                else_=b.quarantined_at,
            ),
        )

    def _prepare_quarantine(self, rules: Rules) -> None:
        self._quarantined = (
            select(b.key, b.session_id, b.generation, b.provider, b.attempts, b.last_error)
            .where(IN_QUARANTINE)
            .order_by(b.quarantined_at)
            .limit(bindparam("limit", type_=s.generation.type))
        )
        of = bindparam("of_session", type_=b.session_id.type)
        self._retry_now = (
            update(sandboxes)
            .where(IN_QUARANTINE, b.claimed_by.is_(None), or_(of.is_(None), b.session_id == of))
            .values(due_at=rules.now, not_before=rules.now)
        )
