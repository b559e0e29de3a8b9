# SPDX-License-Identifier: GPL-2.0-or-later
"""What a context maps, as ranges: the shadow must cost less than the hypervisor it watches."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

Range = tuple[int, int, int, int]
"""(first dfn, dfn behind the last, machine frame - dfn, access): alike pages in a row."""


class Intervals:
    """Disjoint ranges of device frames, alike neighbours joined."""

    def __init__(self) -> None:
        self._starts: Final[list[int]] = []
        self._ranges: Final[list[Range]] = []

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def at(self, dfn: int) -> Range | None:
        """The range that ``dfn`` lies in."""
        place = bisect_right(self._starts, dfn) - 1
        if place >= 0 and dfn < self._ranges[place][1]:
            return self._ranges[place]
        return None

    def first_mapped(self, dfn: int, count: int) -> int:
        """How many of ``count`` pages from ``dfn`` come before the first that is mapped."""
        starts = self._starts
        place = bisect_right(starts, dfn)
        if place and self._ranges[place - 1][1] > dfn:
            return 0
        if place < len(starts) and starts[place] < dfn + count:
            return starts[place] - dfn
        return count

    def first_hole(self, dfn: int, count: int) -> int:
        """How many of ``count`` pages from ``dfn`` come before the first that is not mapped."""
        place = bisect_right(self._starts, dfn) - 1
        at, end = dfn, dfn + count
        while 0 <= place < len(self._ranges):
            start, stop, _, _ = self._ranges[place]
            if not start <= at < stop:
                break
            at = stop
            if at >= end:
                return count
            place += 1
        return at - dfn

    def add(self, dfn: int, count: int, delta: int, access: int) -> None:
        """Map ``count`` pages from ``dfn``, none of which is mapped, to frames from ``dfn + delta``."""
        starts, ranges = self._starts, self._ranges
        end = dfn + count
        place = bisect_left(starts, dfn)
        if place < len(ranges):
            start, stop, other, rights = ranges[place]
            if start == end and other == delta and rights == access:
                end = stop
                del starts[place], ranges[place]
        if place:
            start, stop, other, rights = ranges[place - 1]
            if stop == dfn and other == delta and rights == access:
                ranges[place - 1] = (start, end, delta, access)
                return
        starts.insert(place, dfn)
        ranges.insert(place, (dfn, end, delta, access))

    def remove(self, dfn: int, count: int) -> None:
        """Unmap whatever is mapped among ``count`` pages from ``dfn``."""
        starts, ranges = self._starts, self._ranges
        end = dfn + count
        first = bisect_right(starts, dfn) - 1
        if first < 0 or ranges[first][1] <= dfn:
            first += 1
        last = bisect_left(starts, end)
        if first >= last:
            return
        left: list[Range] = []
        start, _, delta, access = ranges[first]
        if start < dfn:
            left.append((start, dfn, delta, access))
        _, stop, delta, access = ranges[last - 1]
        if stop > end:
            left.append((end, stop, delta, access))
        starts[first:last] = [found[0] for found in left]
        ranges[first:last] = left
