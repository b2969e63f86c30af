"""A whole listing, from pages that are counted off while the list moves under them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ..errors import Unavailable

Item = TypeVar("Item")


def everything(
    fetch: Callable[[int, int], tuple[Mapping[str, Item], bool]], largest: int
) -> dict[str, Item]:
    """
    Every item that was there all the while, by its id, in the server's order. `fetch` takes a
    page's number and its size, at most `largest`, and gives its items, and whether more follow.

    The server counts pages off anew for each call: when one sandbox of the first page goes, the
    first of the second is on none. So each page begins before the last one ended, with items that
    are known already. Where it does not, more went than that: Unavailable, never half a listing.
    """
    seen: dict[str, Item] = {}
    reached = 0
    while True:
        page, size = window(reached, largest)
        items, goes_on = fetch(page, size)
        if reached and next(iter(items), None) not in seen:
            raise Unavailable(
                f"too many sandboxes went while they were listed, after {len(seen)}: ask again"
            )
        seen.update(items)
        if not goes_on:
            return seen
        reached = page * size


def window(reached: int, largest: int) -> tuple[int, int]:
    """
    Number and size of the page that leads farthest, of those that begin a tenth of the largest
    page, or more, before `reached`. A page begins at a multiple of its size, hence the search.
    """
    begin = max(0, reached - max(1, largest // 10))
    pages = ((begin // size + 1, size) for size in range(1, largest + 1))
    return max(pages, key=lambda found: (found[0] * found[1], found[1]))
