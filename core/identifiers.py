"""Ids that sort by the moment they were made: UUIDv7 (RFC 9562)."""

from __future__ import annotations

import uuid

from .host import Host


def new_id(host: Host) -> str:
    """48 bits of unix milliseconds, then randomness. Nothing is ever decided by its time."""
    value = (host.milliseconds() & ((1 << 48) - 1)) << 80 | host.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))
