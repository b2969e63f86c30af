"""What operators look at and do: sandboxes, orphans, quarantine, sweeps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from ..model import SandboxState
from ..reaper import SweepReport
from ..store.listings import SandboxLine
from .answers import OrphanPage, PulseAnswer, RetryAnswer, SandboxPage, SweepAnswer
from .gate import Admitted, Caller
from .pages import page, place
from .requests import Nothing, Page, PageQuery, SandboxQuery, SessionId

router = APIRouter(prefix="/v1", tags=["operations"])


@router.get("/sandboxes", response_model=SandboxPage)
async def list_sandboxes(caller: Admitted, wanted: SandboxQuery) -> dict[str, Any]:
    """List sandboxes by session and generation, gone ones included until they are purged."""
    return await _sandboxes(caller, wanted, state=wanted.state)


@router.get("/quarantine", response_model=SandboxPage)
async def list_quarantine(caller: Admitted, wanted: PageQuery) -> dict[str, Any]:
    """List teardowns that failed too often. They are retried all the same."""
    return await _sandboxes(caller, wanted, quarantined=True)


@router.post("/quarantine/{session_id}/retry", response_model=RetryAnswer)
async def retry_quarantined(caller: Admitted, session_id: SessionId, _: Nothing) -> dict[str, int]:
    """Try a session's quarantined teardowns again with the next sweep."""
    await caller.expect(session_id)
    await caller.desk.quick(caller.desk.keeper.get, session_id)
    retry = caller.desk.keeper.store.teardowns.retry_now
    retried = await caller.desk.quick(retry, session_id, actor=caller.actor)
    return {"retried": retried}


@router.get("/orphans", response_model=OrphanPage)
async def list_orphans(caller: Admitted, wanted: PageQuery) -> dict[str, Any]:
    """List sandboxes that carry our labels and that no row explains."""
    after = place(wanted.cursor, ("", ""))
    lines = await caller.desk.quick(
        caller.desk.listings.orphans, after=(after[0], after[1]), limit=wanted.limit + 1
    )
    return page(lines, wanted.limit, lambda line: (line.provider, line.external_id))


@router.get("/sweeps", response_model=PulseAnswer)
async def get_pulse(caller: Admitted, _: Nothing) -> dict[str, Any]:
    """How the sweep is doing."""
    store = caller.desk.keeper.store
    pulse = await caller.desk.quick(store.watch.pulse)
    return {**asdict(pulse), "late": pulse.late(store.policy.late_after)}


@router.post("/sweeps", response_model=SweepAnswer)
async def sweep(caller: Admitted, _: Nothing) -> SweepReport:
    """Sweep once, now, in this server. Safe beside any other sweep."""
    return await caller.desk.slow(caller.desk.sweep)


async def _sandboxes(
    caller: Caller,
    wanted: Page,
    *,
    state: SandboxState | None = None,
    quarantined: bool = False,
) -> dict[str, Any]:
    after = place(wanted.cursor, ("", 0))
    lines: list[SandboxLine] = await caller.desk.quick(
        caller.desk.listings.sandboxes,
        tenant=caller.grant.tenant,
        state=state,
        quarantined=quarantined,
        after=(after[0], after[1]),
        limit=wanted.limit + 1,
    )
    return page(lines, wanted.limit, lambda line: (line.session_id, line.generation))
