"""
The same for Django on ASGI: `uvicorn examples.django_app:application`. One file, settings and all;
what is Sandkeeper's are the views and the last line, which goes into your asgi.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache, wraps
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_http_methods, require_POST

from core import AsyncLifecycle, InvalidArgument, SessionEnded, SessionNotFound
from core.model import Sandbox
from core.web import TurnMiddleware, hold
from tasks import ring

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])

STATUS = {SessionEnded: 409, SessionNotFound: 404, InvalidArgument: 422}


@cache
def keeper() -> AsyncLifecycle:
    """One for each process. Django has no lifespan, so it is made when the first view asks."""
    return AsyncLifecycle.from_env(doorbell=ring)


def refusing(view: Any) -> Any:
    """Errors as answers."""

    @wraps(view)
    async def answered(request: HttpRequest, conversation: str) -> Any:
        try:
            return await view(request, conversation)
        except (SessionEnded, SessionNotFound, InvalidArgument) as error:
            return JsonResponse({"error": str(error)}, status=STATUS[type(error)])

    return answered


async def stream(request: Any, conversation: str) -> StreamingHttpResponse:
    await keeper().open(conversation)
    # `async with keeper().turn(...)` in here would end the turn before the first word is sent; in
    # the generator it would begin too late for an error to become an answer. And a WSGI server
    # would collect the whole of an async stream first: there, stream as flask_app.py does.
    turn = await hold(request, keeper().turn(conversation))
    seconds = float(request.GET.get("seconds", 1))
    return StreamingHttpResponse(agent(turn.sandbox, seconds), content_type="text/plain")


async def agent(sandbox: Sandbox, seconds: float) -> AsyncIterator[str]:
    """Yours. It is cancelled where it waits when its client goes, or when the turn is lost."""
    yield f"{sandbox.external_id}\n"
    for number in range(round(seconds * 5)):
        await asyncio.sleep(0.2)
        yield f"word {number}\n"


async def leave(_: HttpRequest, conversation: str) -> HttpResponse:
    await keeper().end(conversation, reason="user left")
    return HttpResponse(status=202)


urlpatterns = [
    path("conversations/<conversation>/stream", require_POST(refusing(stream))),
    path("conversations/<conversation>", require_http_methods(["DELETE"])(refusing(leave))),
]

application = TurnMiddleware(get_asgi_application())
