"""
Heartbeats over HTTP, beside a bare FastAPI route that does one UPDATE: the same uvicorn, as
`sandkeeper serve` sets it, the same PostgreSQL, the same callers, in turns.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from secrets import randbits
from statistics import median, quantiles
from typing import Any

import psycopg
import uvicorn
from fastapi import FastAPI

from core.access import Grant, Scope, digest, minted
from core.engines import opened
from core.lifecycle import Keeper
from core.store import Store
from core.store.tokens import Tokens
from core.web import create_app
from tasks.serve import OPTIONS

from .figures import Figure
from .ground import Ground
from .processes import ROOT
from .providers import Nothing

NAME = "http"
CALLERS = 16  # each with a connection of its own, and one call at a time
TURNS = 160  # that are open, and beaten for in turns
SECONDS = 5.0  # of a round
ROUNDS = 5
UPDATE = b"UPDATE sessions SET last_activity_at = statement_timestamp() WHERE id = %s"
PEER = "a bare route with one UPDATE"

figure = partial(Figure, bench=NAME)


def run(here: Ground) -> Iterator[Figure]:
    """The figures."""
    here.grow(10 * TURNS)
    headers = {"Authorization": f"Bearer {_token(here)}"}
    with serving("ours", here.url) as ours, serving("bare", here.url) as bare:
        beats = list(_begun(ours, headers))
        plain = [f"/sessions/{path.split('/')[3]}" for path in beats]
        rounds: dict[str, list[list[float]]] = {"ours": [], "bare": []}
        _called(ours, beats, headers, SECONDS / 5)  # both are warm then
        _called(bare, plain, {}, SECONDS / 5)
        for _ in range(ROUNDS):
            rounds["ours"].append(_called(ours, beats, headers, SECONDS))
            rounds["bare"].append(_called(bare, plain, {}, SECONDS))
    yield figure(
        what=f"heartbeats, {CALLERS} callers",
        ours=median(len(found) / SECONDS for found in rounds["ours"]),
        peer=median(len(found) / SECONDS for found in rounds["bare"]),
        peer_is=PEER,
        unit="/s",
    )
    for what, number in (("median", 50), ("p99", 99)):
        yield figure(
            what=f"a heartbeat, {what}",
            ours=median(_percentile(found, number) for found in rounds["ours"]),
            peer=median(_percentile(found, number) for found in rounds["bare"]),
            peer_is=PEER,
            unit="s",
        )


def _percentile(seconds: Sequence[float], number: int) -> float:
    return quantiles(seconds, n=100)[number - 1]


def _token(here: Ground) -> str:
    """One that is looked up with each call, as production's are."""
    token_id, secret = minted(randbits)
    grant = Grant(id=token_id, scopes=frozenset({Scope.TURNS}), tenant=None)
    tokens = Tokens(here.store().database)
    tokens.create(grant, digest(secret), name="bench", seconds=None, actor="bench")
    return f"sk_{token_id}_{secret}"


def _begun(port: int, headers: dict[str, str]) -> Iterator[str]:
    """Turns, as the addresses of their heartbeats."""
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        for number in range(TURNS):
            path = f"/v1/sessions/conv-{10 * number + 1}/turns"
            connection.request("POST", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 201, answer.status
            yield f"{path}/{answer.headers['Location'].removeprefix('turns/')}"


def _called(
    port: int, paths: Sequence[str], headers: dict[str, str], seconds: float
) -> list[float]:
    """How long each call took, by all callers, for so long."""
    until = time.perf_counter() + seconds

    def call(mine: Sequence[str]) -> list[float]:
        took: list[float] = []
        with closing(HTTPConnection("127.0.0.1", port)) as connection:
            while (began := time.perf_counter()) < until:
                connection.request("PUT", mine[len(took) % len(mine)], headers=headers)
                answer = connection.getresponse()
                answer.read()
                took.append(time.perf_counter() - began)
                assert answer.status == 200, answer.status
        return took

    with ThreadPoolExecutor(CALLERS) as callers:
        found = callers.map(call, [paths[number::CALLERS] for number in range(CALLERS)])
        return [each for one in found for each in one]


@contextmanager
def serving(kind: str, url: str) -> Iterator[int]:
    """A server in a process of its own; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `sandkeeper serve`
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, kind, url, str(listener.fileno())],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
        )
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.wait()


def bare(url: str) -> FastAPI:
    """The least that does it: a connection for each thread, a statement that is prepared."""
    app, here = FastAPI(), threading.local()

    @app.put("/sessions/{session_id}")
    def touch(session_id: str) -> dict[str, str]:
        if not hasattr(here, "connection"):
            here.connection = psycopg.connect(url, autocommit=True)
        here.connection.execute(UPDATE, [session_id], prepare=True)
        return {"session_id": session_id}

    return app


def _main(kind: str, url: str, listener: str) -> None:
    with opened(url) as engine:
        app: Any = bare(url) if kind == "bare" else create_app(Keeper(Store(engine), Nothing()))
        sockets = [socket.socket(fileno=int(listener))]
        uvicorn.Server(uvicorn.Config(app, **OPTIONS)).run(sockets=sockets)


if __name__ == "__main__":
    _main(*sys.argv[1:])
