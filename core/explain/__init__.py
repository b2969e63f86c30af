"""
Why a session is still there, and why it was taken: what the rows and the ledger say, in plain
words. Facts in, explanation out. What nobody wrote down is said to be unknown, and never guessed.
"""

from __future__ import annotations

from ..policy import Policy
from ..store.evidence import Facts
from .answer import Activity, Explanation, Holding, Limit, Point
from .case import Case
from .present import activity, earlier, limits, state
from .prospects import obstacles, steps
from .reasons import not_reaped, taken

__all__ = ["Activity", "Explanation", "Holding", "Limit", "Point", "explain"]


def explain(facts: Facts, policy: Policy) -> Explanation:
    """What the facts of one session mean under this policy."""
    case = Case(facts, policy)
    session, what = facts.session, state(case)
    return Explanation(
        session_id=session.id,
        tenant=session.tenant,
        generation=session.generation,
        status=session.status,
        sandbox=session.sandbox.state,
        seen_at=case.now,
        state=what[0],
        sentence=what[1],
        limits=limits(case),
        activity=activity(case),
        turns=case.turns,
        kept=case.kept,
        obstacles=obstacles(case),
        next=steps(case),
        not_reaped=not_reaped(case),
        taken=taken(case),
        earlier=earlier(case),
        history=facts.history,
    )
