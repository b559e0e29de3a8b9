# SPDX-License-Identifier: GPL-2.0-or-later
"""Which I/O addresses may be used: reserved ranges with owners, allowed ranges, and the search for room."""

from __future__ import annotations

from typing import Final

from base.units import PAGE_SIZE

ULONG_MAX: Final = (1 << 64) - 1


class ReservedRanges:
    """Ranges (first, last) that mappings must avoid, each with who wants that; they may overlap."""

    __slots__ = ("ranges",)

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, object]] = []

    def hit(self, start: int, last: int) -> tuple[int, int] | None:
        """A reserved range that [start, last] touches."""
        for first, end, _ in self.ranges:
            if first <= last and start <= end:
                return first, end
        return None

    def add(self, start: int, last: int, owner: object) -> None:
        self.ranges.append((start, last, owner))

    def remove(self, owner: object) -> None:
        self.ranges = [entry for entry in self.ranges if entry[2] is not owner]

    def owners(self) -> list[object]:
        """Everybody with a reservation, each once, in the order of their first."""
        seen: dict[int, object] = {}
        for _, _, owner in self.ranges:
            seen.setdefault(id(owner), owner)
        return list(seen.values())

    def holes(self) -> list[tuple[int, int]]:
        """What is left of 0 to 2**64-1."""
        holes, start = [], 0
        for first, last, _ in sorted(self.ranges, key=lambda entry: entry[:2]):
            if first > start:
                holes.append((start, first - 1))
            start = max(start, last + 1)
        if start <= ULONG_MAX:
            holes.append((start, ULONG_MAX))
        return holes


def align_with_offset(start: int, alignment: int, page_offset: int) -> int:
    """Lowest address from ``start`` on that is aligned and has ``page_offset`` as its place in a page."""
    step = max(alignment, PAGE_SIZE)
    return start + (page_offset - start) % step
