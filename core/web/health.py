"""For probes and for Prometheus: does the process answer, can it work, and how much is there."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from .answers import HealthAnswer, ReadyAnswer
from .desk import Desk
from .gate import Admitted
from .metrics import CONTENT_TYPE, Known, exposition
from .readiness import OK
from .requests import Nothing

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> HealthAnswer:
    """The process answers. Restart it when it does not."""
    return HealthAnswer()


@router.get("/readyz", responses={503: {"model": ReadyAnswer}})
async def readyz(request: Request, response: Response) -> ReadyAnswer:
    """Database, schema, broker and pulse: 503 with what is wrong."""
    desk: Desk = request.app.state.desk
    checks = await desk.ready()
    ready = all(found == OK for found in checks.values())
    response.status_code = 200 if ready else 503
    return ReadyAnswer(ready=ready, checks=dict(checks))


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(caller: Admitted, _: Nothing) -> Response:
    """What there is, in Prometheus' text format."""
    desk = caller.desk
    store = desk.keeper.store
    pulse = await desk.quick(store.watch.pulse)
    known = Known(
        pulse=pulse,
        census=await desk.quick(desk.census),
        totals=await desk.quick(store.tallies.totals),
        late=pulse.late(store.policy.late_after),
    )
    return Response(exposition(known), media_type=CONTENT_TYPE)
