"""The HTTP API, for servers in any language: an ASGI app on a Lifecycle. docs/http.md has it."""

from .app import create_app
from .responses import TurnMiddleware, hold

__all__ = ["TurnMiddleware", "create_app", "hold"]
