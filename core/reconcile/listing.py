"""What a provider has of ours: all of it, or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import OutcomeUnknown
from ..events import EventKind
from ..model import ownership
from ..providers.base import ProviderState, SandboxInfo
from ..store.inventory import Running
from .visit import Visit


class Shown(NamedTuple):
    """What a pass keeps of a sandbox: of a hundred thousand, labels would be most of it."""

    external_id: str | None
    created_at: int  # seconds since 1970, as the label says


@dataclass(kw_only=True)
class Listing:
    """Sandboxes of ours, by our key. A provider may have made two of one name."""

    of: dict[str, list[Shown]] = field(default_factory=dict)
    listed: int = 0
    foreign: int = 0
    _ids: set[str] = field(default_factory=set)

    @property
    def owned(self) -> int:
        return self.listed - self.foreign

    def take(self, info: SandboxInfo, installation: str) -> None:
        """
        Note one that the provider shows. Who moves from page to page while they are read, as a
        sandbox that is resumed does, is shown twice and is one.
        """
        if info.state is ProviderState.GONE or info.ref.external_id in self._ids:
            return
        if info.ref.external_id is not None:
            self._ids.add(info.ref.external_id)
        self.listed += 1
        owned = ownership(info.ref.name, info.labels, installation)
        if owned is None or not _can_be_noted(info.ref.external_id):
            self.foreign += 1
            return
        shown = Shown(info.ref.external_id, owned.created_at)
        self.of.setdefault(owned.key, []).append(shown)

    def has(self, row: Running) -> bool:
        """Whether it shows the sandbox of a row."""
        return any(shown.external_id == row.external_id for shown in self.of.get(row.key, []))


def read(visit: Visit) -> Listing:
    """All pages, or an error: of half a listing nothing can be concluded (S4)."""
    listing, cursor, seen = Listing(), None, set[str]()
    wanted = {"sandkeeper-installation": visit.store.installation}
    while not visit.is_over():
        page = visit.provider.list(wanted, cursor=cursor, deadline=visit.deadline)
        for info in page.items:
            listing.take(info, visit.store.installation)
        if page.cursor is None:
            visit.check_scope()
            visit.count(listed=listing.listed, foreign=listing.foreign)
            return listing
        if page.cursor in seen:
            raise OutcomeUnknown(f"the listing goes round in circles at {page.cursor!r}")
        seen.add(page.cursor)
        cursor = page.cursor
    raise OutcomeUnknown("the listing did not come to its end in time")


def look_for_others(visit: Visit) -> None:
    """
    Once, on the first pass: an empty database makes a new installation, to which everything that
    is there belongs to somebody else. Nothing is touched, and somebody should know.
    """
    try:
        ours = {"sandkeeper-schema": "1"}
        page = visit.provider.list(ours, cursor=None, deadline=visit.deadline)
    except Exception:  # noqa: BLE001 - a courtesy: what was compared is compared
        return
    found = {info.labels.get("sandkeeper-installation", "?") for info in page.items}
    others = sorted(found - {visit.store.installation})
    if others and not visit.dry_run:
        visit.tell(EventKind.OTHER_INSTALLATIONS, provider=visit.name, installations=others[:10])


def _can_be_noted(external_id: str | None) -> bool:
    """Whether a column can hold it: no id that we ever recorded is longer, or looks like that."""
    return external_id is not None and 0 < len(external_id) <= 255 and external_id.isprintable()
