"""
The same for Flask, or any WSGI app: `flask --app examples.flask_app run`. In production one keeper
for each worker process, made in it (gunicorn without --preload): it beats from a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response, request, stream_with_context

from core import InvalidArgument, Lifecycle, SessionEnded, SessionNotFound
from core.model import Sandbox
from core.turn import Turn
from tasks import ring

STATUS = {SessionEnded: 409, SessionNotFound: 404, InvalidArgument: 422}


def create_app() -> Flask:
    """What `flask --app` looks for."""
    app = Flask(__name__)
    keeper = Lifecycle.from_env(doorbell=ring)
    for kind in STATUS:
        app.register_error_handler(kind, refused)

    @app.post("/conversations/<conversation>/stream")
    def stream(conversation: str) -> Response:
        keeper.open(conversation)
        body = held(keeper.turn(conversation), request.args.get("seconds", 1.0, float))
        # Begin now, while an error can still become an answer. And a generator that was never
        # started is closed without a trace: its `with` would be neither entered nor left.
        begun = next(body)
        return Response(stream_with_context(rest(begun, body)), mimetype="text/plain")

    @app.delete("/conversations/<conversation>")
    def leave(conversation: str) -> Response:
        keeper.end(conversation, reason="user left")
        return Response(status=202)

    return app


def held(turn: Turn, seconds: float) -> Iterator[str]:
    """
    The body, inside of its turn. The server closes it when it was sent, and when the client went
    away, which WSGI notices only when it writes: an agent that is silent for long has to send
    something now and then, or the turn goes on for nobody until it speaks.
    """
    with turn:
        yield f"{turn.sandbox.external_id}\n"
        for word in agent(turn.sandbox, seconds):
            turn.check()  # nothing interrupts a thread: ask whether the turn was lost
            yield word


def rest(begun: str, body: Iterator[str]) -> Iterator[str]:
    """The body from its beginning."""
    yield begun
    yield from body  # and closing this closes that


def agent(_: Sandbox, seconds: float) -> Iterator[str]:
    """Yours."""
    for number in range(round(seconds * 5)):
        time.sleep(0.2)
        yield f"word {number}\n"


def refused(error: Exception) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, STATUS[type(error)]
