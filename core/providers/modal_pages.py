"""Listings of Modal, page by page, and the tags that they are filtered by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from modal_proto import api_pb2

from .base import Page, ProviderState, SandboxInfo, SandboxRef
from .modal_wire import Wire

EDGE = 1.5e-6  # seconds: Modal keeps microseconds, and a double of today loses a part of one


def page(
    wire: Wire, app_id: str, labels: Mapping[str, str], cursor: str | None, deadline: float
) -> Page:
    """
    The newest first; Modal decides how many. It lists what is older than a moment: sandboxes of
    one moment on both sides of a page's edge would be skipped. So the edge is listed again, and
    who was seen there is left out.
    """
    moment, seen = _edge(cursor)
    found = _listed(wire, app_id, labels, moment + EDGE if seen else 0.0, deadline)
    fresh = [item for item in found if item.id not in seen]
    if found and not fresh:  # nothing but the edge: go on below it
        fresh = _listed(wire, app_id, labels, moment, deadline)
    if not fresh:
        return Page(items=())
    moment = min(item.created_at for item in fresh)
    at_edge = {item.id for item in (*found, *fresh) if item.created_at < moment + EDGE}
    return Page(
        items=tuple(_info(item) for item in fresh if _is_wanted(item, labels)),
        cursor=" ".join([repr(moment), *sorted(at_edge)]),
    )


def tags_of(labels: Mapping[str, str]) -> list[api_pb2.SandboxTag]:
    """As Modal wants them, always in the same order."""
    return [api_pb2.SandboxTag(tag_name=key, tag_value=labels[key]) for key in sorted(labels)]


def labels_of(tags: Iterable[api_pb2.SandboxTag]) -> dict[str, str]:
    """As we have them."""
    return {tag.tag_name: tag.tag_value for tag in tags}


def _edge(cursor: str | None) -> tuple[float, set[str]]:
    """The moment of the last one, and who was seen at it; nobody at the beginning."""
    moment, *seen = (cursor or "0").split()
    return float(moment), set(seen)


def _listed(
    wire: Wire, app_id: str, labels: Mapping[str, str], before: float, deadline: float
) -> list[api_pb2.SandboxInfo]:
    found = wire.ask(
        "SandboxListV2",
        api_pb2.SandboxListRequest(app_id=app_id, before_timestamp=before, tags=tags_of(labels)),
        api_pb2.SandboxListResponse,
        doing="list sandboxes",
        deadline=deadline,
    )
    return [*found.sandboxes]


def _is_wanted(item: api_pb2.SandboxInfo, labels: Mapping[str, str]) -> bool:
    """Modal was asked for no other; what has ended meanwhile occupies nothing."""
    return labels.items() <= labels_of(item.tags).items() and not item.task_info.result.status


def _info(item: api_pb2.SandboxInfo) -> SandboxInfo:
    made = _moment(item.created_at)
    lives = timedelta(seconds=item.timeout_secs)
    return SandboxInfo(
        ref=SandboxRef(name=item.name, external_id=item.id),
        state=ProviderState.RUNNING if item.task_info.started_at else ProviderState.PENDING,
        labels=labels_of(item.tags),
        created_at=made,
        expires_at=made + lives if made and lives else None,
    )


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None
    except (OverflowError, OSError, ValueError):
        return None
