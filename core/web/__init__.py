"""The HTTP API, for servers in any language: an ASGI app on a Lifecycle. docs/http.md has it."""

from .app import create_app

__all__ = ["create_app"]
