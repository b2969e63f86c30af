"""An API server whose conversations each hold a sandbox: the whole of the integration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from core import AsyncLifecycle, InvalidArgument, SessionEnded, SessionNotFound
from core.aio import AsyncTurn
from core.model import Sandbox
from core.web import TurnMiddleware, hold
from tasks import ring


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncLifecycle.from_env(doorbell=ring) as app.state.keeper:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(TurnMiddleware)


async def held(request: Request, conversation: str) -> AsyncTurn:
    """
    A turn that ends with the response. A dependency with `yield` would not do: FastAPI leaves it
    after the last part, before the first one or somewhere between, by version and by `scope`; and
    takes a client that went away for the end of a good response.
    """
    keeper: AsyncLifecycle = request.app.state.keeper
    await keeper.open(conversation)
    return await hold(request, keeper.turn(conversation))


@app.post("/conversations/{conversation}/stream")
async def stream(turn: Annotated[AsyncTurn, Depends(held)], seconds: float = 1) -> object:
    return StreamingResponse(agent(turn.sandbox, seconds), media_type="text/plain")


async def agent(sandbox: Sandbox, seconds: float) -> AsyncIterator[str]:
    """Yours. It is cancelled where it waits when its client goes, or when the turn is lost."""
    yield f"{sandbox.external_id}\n"
    for number in range(round(seconds * 5)):
        await asyncio.sleep(0.2)
        yield f"word {number}\n"


@app.post("/conversations/{conversation}/messages")
async def message(request: Request, conversation: str, seconds: float = 0) -> dict[str, object]:
    keeper: AsyncLifecycle = request.app.state.keeper
    await keeper.open(conversation)
    async with keeper.turn(conversation, cancel_on_lost=True) as turn:
        await asyncio.sleep(seconds)  # the agent works in turn.sandbox, in silence if it likes
        return {"sandbox": turn.sandbox.external_id, "fresh": turn.session.fresh}


@app.delete("/conversations/{conversation}", status_code=202)
async def leave(request: Request, conversation: str) -> None:
    await request.app.state.keeper.end(conversation, reason="user left")


STATUS = {SessionEnded: 409, SessionNotFound: 404, InvalidArgument: 422}


async def refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=STATUS[type(error)])


for kind in STATUS:
    app.add_exception_handler(kind, refused)
