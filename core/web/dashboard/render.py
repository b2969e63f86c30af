"""Templates: how they are found, what they may call, and that everything in them is escaped."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import words
from .advice import advice

WEB: Final = Path(__file__).parents[1]


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(WEB / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "advice": advice,
        "ago": words.ago,
        "clock": words.clock,
        "count": words.count,
        "day": words.day,
        "iso": words.iso,
        "label": words.label,
        "pretty": pretty,
        "span": words.span,
        "times": words.times,
    }
    return found


def render(request: Request, template: str, **facts: Any) -> str:
    """A page as text. `base` is where the dashboard is mounted."""
    base = request.scope.get("root_path", "")
    here = request.url.path.removeprefix(base) or "/"
    common = {"base": base, "here": here, "static": lambda name: f"{base}{static(name)}"}
    return _templates().get_template(template).render({"visit": None, **common, **facts})


def page(request: Request, template: str, *, status: int = 200, **facts: Any) -> HTMLResponse:
    """A page as an answer."""
    return HTMLResponse(render(request, template, **facts), status)


@cache
def static(name: str) -> str:
    """The address of a file of ours, another one with each version of it."""
    digest = hashlib.sha256((WEB / "static" / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


def pretty(value: object) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
