"""An API server whose conversations each hold a sandbox: the whole of the integration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from core import AsyncLifecycle, InvalidArgument, SessionEnded, SessionNotFound
from tasks import ring


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncLifecycle.from_env(doorbell=ring) as app.state.keeper:
        yield


app = FastAPI(lifespan=lifespan)


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


@app.exception_handler(SessionEnded)
async def ended(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=409)


@app.exception_handler(SessionNotFound)
async def unknown(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=404)


@app.exception_handler(InvalidArgument)
async def malformed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=422)
