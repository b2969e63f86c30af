"""
News for the pages: a stream that says only that something changed, upon which a page asks for
itself again. One look at the database every two seconds serves all viewers of a process, and any
server of the installation sees what any other did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from fastapi.responses import StreamingResponse

from ...errors import SandkeeperError
from .door import Looking
from .route import new_router
from .shared import POLL, Shared

LIFE: Final = 60.0  # seconds of one stream: whoever lost the right to look is told with the next
QUIET: Final = 10.0  # seconds after which a proxy may take it for dead

router = new_router()


@router.get("/live")
async def live(visit: Looking) -> StreamingResponse:
    """Server-sent events."""
    headers = {"X-Accel-Buffering": "no"}  # nginx would keep it all for the end
    return StreamingResponse(news(visit.shared), media_type="text/event-stream", headers=headers)


async def news(shared: Shared, *, life: float = LIFE, poll: float = POLL) -> AsyncIterator[str]:
    """What goes over one stream."""
    known = await _stamp(shared)
    yield "retry: 2000\n\n"
    end, said = time.monotonic() + life, time.monotonic()
    while not shared.closed and time.monotonic() < end:
        await asyncio.sleep(poll)
        found = await _stamp(shared)
        if found != known:
            known, said = found, time.monotonic()
            yield f"event: {'away' if found is None else 'changed'}\ndata: 1\n\n"
        elif time.monotonic() - said > QUIET:
            said = time.monotonic()
            yield ": still here\n\n"


async def _stamp(shared: Shared) -> tuple[object, ...] | None:
    """None while the database is away."""
    try:
        return await shared.news.get()
    except SandkeeperError:
        return None
