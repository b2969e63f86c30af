"""
The safeguards that only a simulation misses, and which of tests/mutants.py it cannot see, with
the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.mutants import MUTANTS, Mutant

UNSEEN: Mapping[str, str] = {
    "no trigger": "the second lock on a door: no code tries it",
    "gone can be recorded twice": "the second lock on a door: no code tries it",
    "an end takes any generation": "giving up looks at the sandbox first, in the same transaction",
    "beats wait for locks": "one SQLite has no row locks",
    "a notice from the future stays": "its session's other dates are brought back, and clear it",
    "activity of the future stays": "re-arming brings it back as well",
    "a claim does not run out": "the sweep brings back dates that nobody writes",
    "a step that was held up counts as time for heartbeats": "it takes a sweep that is stopped in "
    "the step before it ends, between a notice and the next heartbeat",
    "begin takes what is not usable": "the turn's own ceiling refuses it as well",
    "activity goes back": "one SQLite writes in the order of its clock",
    "now is when the transaction began": "a word of PostgreSQL's",
    "an orphan has no grace": "no row of a world is later than its sandbox",
    "children keep their parent's connections": "processes of a world do not fork",
    "an open turn is not looked at again": "one world of 5,000 comes to it",
    "an open turn is looked at again without a pause": "one world of 5,000 comes to it",
    "a turn that was lost ends well": "no holder of a world looks at how its turn ended",
    "a refused move is in the ledger": "what one statement does, and SQLite takes several",
    "a fan-out is not waited for": "the broker of a world is one of its own",
    "what the broker refuses is published": "the broker of a world is one of its own",
}
BEATER, ENDINGS = "core/beater.py", "core/store/endings.py"
OPENINGS, SWEEPS = "core/store/openings.py", "core/store/sweeps.py"
ORPHANS, CLAMPS = "core/store/orphans.py", "core/store/clamps.py"
KILLS, MISSING = "core/reconcile/orphans.py", "core/reconcile/missing.py"
TEARDOWN, TEARDOWNS = "core/teardown.py", "core/store/teardowns.py"
BACKSTOP, BACKSTOPS = "core/backstop.py", "core/store/backstops.py"


def mutant(name: str, promise: str, file: str, *, old: str, new: str) -> Mutant:
    """One that has no test of its own: worlds have to find it."""
    return Mutant(name, promise, file, old, new, ())


EXTRA: tuple[Mutant, ...] = (
    mutant(
        "a failed heartbeat is the last",
        "S5: after an outage the first heartbeat comes before the second look",
        BEATER,
        old="return self.interval if self.once() else self.interval / 4",
        new="return self.interval if self.once() else 1e6",
    ),
    mutant(
        "an outage ends the turns",
        "S1: an outage refuses nothing",
        BEATER,
        old="""kind=EventKind.BEAT_FAILED, actor=self._actor, detail=detail))
""",
        new="""kind=EventKind.BEAT_FAILED, actor=self._actor, detail=detail))
                self._turns.clear()
""",
    ),
    mutant(
        "creates are not closed",
        "L1: what is being created when its session ends is torn down",
        ENDINGS,
        old="b.state.in_([SandboxState.CREATING.value, SandboxState.RUNNING.value])",
        new="b.state.in_([SandboxState.RUNNING.value])",
    ),
    mutant(
        "a recorded create is acknowledged whatever became of it",
        "S1: the loser gets a typed refusal",
        OPENINGS,
        old="intent.generation or session.status is SessionStatus.ENDED:",
        new="intent.generation:",
    ),
    mutant(
        "a notice from the future stays",
        "L1: a clock that steps back delays, it does not forget",
        SWEEPS,
        old="                    s.noticed_at > rules.now,\n",
        new="",
    ),
    mutant(
        "activity of the future stays",
        "L1: a clock that steps back delays, it does not forget",
        CLAMPS,
        old="                last_activity_at=Earliest(s.last_activity_at, rules.now),\n",
        new="",
    ),
    mutant(
        "a claim does not run out",
        "L1: a worker that died leaves its claim to the next",
        TEARDOWNS,
        old="until = rules.in_(rules.policy.claim_ttl)",
        new="until = rules.in_(30.0 * 86400.0)",
    ),
    mutant(
        "a failed destroy is done",
        "L3: a teardown that fails is retried",
        TEARDOWN,
        old="""        except ProviderError as error:
            return self._failed(claim, worker, error)
""",
        new="""        except ProviderError:
            pass
""",
    ),
    mutant(
        "a stale listing is believed",
        "S4: lost is never concluded from a list",
        MISSING,
        old="""if info is None or info.state is ProviderState.GONE:
            gone.append(row)""",
        new="""if True:
            gone.append(row)""",
    ),
    mutant(
        "an orphan has no grace",
        "S4: a row may be late, its sandbox is watched first",
        ORPHANS,
        old="o.first_seen_at <= rules.in_(-rules.policy.orphan_grace),",
        new="o.first_seen_at <= rules.now,",
    ),
    mutant(
        "what lands late stays",
        "L4: a create that lands after its teardown is found",
        KILLS,
        old='return "late", OrphanKind.LATE',
        new='return "late", None',
    ),
    mutant(
        "what no row explains stays",
        "L4: a sandbox of a lost row is found",
        KILLS,
        old='return "rowless", OrphanKind.ROWLESS',
        new='return "rowless", None',
    ),
    mutant(
        "the backstop is never extended",
        "S1: the provider's own TTL outlives every turn",
        BACKSTOP,
        old="granted = provider.extend(extension.ref, ttl=extension.ttl, deadline=deadline)",
        new="granted = None",
    ),
    mutant(
        "an extension shortens after a step of the clock",
        "S1: the provider's own TTL outlives every turn",
        BACKSTOPS,
        old="wanted = Latest(needed, later(rules.now, ttl + policy.create_deadline))",
        new="wanted = needed",
    ),
    mutant(
        "a jump of the clock goes unseen",
        "S1: heartbeats have had time to come since the notice",
        SWEEPS,
        old="confirmed = and_(s.noticed_at >= since, no_jump, rules.noticed_long_enough)",
        new="confirmed = rules.noticed_long_enough",
    ),
    mutant(
        "sweeps end while everything is held",
        "breaker: nothing destructive until an operator answers",
        SWEEPS,
        old=".where(idle, witnessed, confirmed, looked_again, UNHELD)",
        new=".where(idle, witnessed, confirmed, looked_again)",
    ),
    mutant(
        "teardowns go on while everything is held",
        "breaker: nothing destructive until an operator answers",
        TEARDOWNS,
        old="                UNHELD,\n",
        new="",
    ),
    mutant(
        "nobody stands in for beat",
        "H2: when the sweep is dead, somebody else notices",
        "core/watchdog.py",
        old="            if pulse.needs_stand_in(self.late_after):\n",
        new="            if False:\n",
    ),
)


def chosen() -> tuple[Mutant, ...]:
    """Every mutant that a world can see."""
    return tuple(mutant for mutant in (*MUTANTS, *EXTRA) if mutant.name not in UNSEEN)
