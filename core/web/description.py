"""openapi.json: what FastAPI knows, with our errors and who may call what."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .gate import FOR_ALL, RULES
from .problems import KINDS, MEDIA_TYPE, OF_HTTP, PREFIX

ABOUT: Final = (
    "Sessions of AI agents, each with a sandbox that never outlives it. Errors are problem "
    "details (RFC 9457) with a stable `type`."
)
TYPES: Final = sorted({PREFIX + kind.type for kind in (*KINDS.values(), *OF_HTTP)})
PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong (RFC 9457). `errors` has each field that is malformed.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "examples": TYPES},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "session_id": {"type": "string"},
        "turn_id": {"type": "string"},
        "reason": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["in", "field", "value", "fix"],
                "properties": {
                    name: {"type": "string"} for name in ("in", "field", "value", "fix")
                },
            },
        },
    },
    "examples": [
        {
            "type": PREFIX + "session-ended",
            "title": "The session was ended",
            "status": 410,
            "detail": "session 'conv-42' was ended (idle): call open() for a fresh sandbox",
            "session_id": "conv-42",
            "reason": "idle",
        }
    ],
}
ANY_PROBLEM: Final[dict[str, Any]] = {
    "description": "A problem",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}

# What an answer is good for: the calls that take its ids, by the names of their parameters.
_OF_SESSION: Final = {"session_id": "$response.body#/id"}
_OF_TURN: Final = {
    "session_id": "$response.body#/session_id",
    "turn_id": "$response.body#/turn_id",
}
_FROM_SESSION: Final = {
    name: {"operationId": name, "parameters": _OF_SESSION}
    for name in ("begin_turn", "get_session", "list_events", "extend_session", "end_session")
}
LINKS: Final[dict[tuple[str, str, str], dict[str, Any]]] = {
    ("/v1/sessions", "post", "201"): _FROM_SESSION,
    ("/v1/sessions", "post", "200"): _FROM_SESSION,
    ("/v1/sessions/{session_id}/turns", "post", "201"): {
        name: {"operationId": name, "parameters": _OF_TURN} for name in ("beat", "end_turn")
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
    parts = found.setdefault("components", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(unused, None)
    parts["schemas"]["Problem"] = PROBLEM
    parts["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "`sk_<id>_<secret>`"}
    }
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = ANY_PROBLEM
            if (method.upper(), path) not in FOR_ALL:
                rule = RULES[method.upper(), path]
                operation["security"] = [{"token": []}]
                operation["x-scope"] = rule.scope.value
    for (path, method, status), links in LINKS.items():
        found["paths"][path][method]["responses"][status]["links"] = links
    return found
