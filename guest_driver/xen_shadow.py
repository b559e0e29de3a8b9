# SPDX-License-Identifier: GPL-2.0-or-later
"""What is mapped in a context, remembered by the guest.

ABI versions without lookup_page leave a driver no way to ask the hypervisor, and iova_to_phys must be exact.  One
record for each successful map call, cut when part of it is unmapped.
"""

from bisect import bisect_left, bisect_right, insort
from typing import Any


class IovaShadow:
    """Disjoint extents: iova -> (bytes, physical address)."""

    __slots__ = ("_extents", "_starts")

    def __init__(self) -> None:
        self._extents: dict[int, tuple[int, int]] = {}
        self._starts: list[int] = []

    @property
    def empty(self) -> bool:
        """Nothing is mapped."""
        return not self._starts

    def insert(self, iova: int, size: int, paddr: int) -> None:
        """``size`` bytes from ``iova``, none of them mapped so far, now lead to ``paddr`` and on."""
        self._extents[iova] = (size, paddr)
        starts = self._starts
        if not starts or iova > starts[-1]:
            starts.append(iova)
        else:
            insort(starts, iova)

    def remove(self, iova: int, size: int) -> None:
        """Nothing is mapped any more in ``size`` bytes from ``iova``."""
        extent = self._extents.get(iova)
        if extent is not None and extent[0] == size:
            del self._extents[iova]
            del self._starts[bisect_left(self._starts, iova)]
            return
        end = iova + size
        index = max(bisect_right(self._starts, iova) - 1, 0)
        while index < len(self._starts) and self._starts[index] < end:
            start = self._starts[index]
            length, paddr = self._extents[start]
            if start + length <= iova:
                index += 1
                continue
            del self._extents[start]
            del self._starts[index]
            if start < iova:
                self.insert(start, iova - start, paddr)
                index += 1
            if start + length > end:
                self.insert(end, start + length - end, paddr + end - start)
                index += 1

    def lookup(self, iova: int) -> int | None:
        """Physical address behind ``iova``; ``None`` if nothing is mapped there."""
        index = bisect_right(self._starts, iova) - 1
        if index < 0:
            return None
        start = self._starts[index]
        length, paddr = self._extents[start]
        return paddr + iova - start if iova < start + length else None

    def covered(self, iova: int, size: int) -> int:
        """How many of ``size`` bytes from ``iova`` on are mapped without a hole."""
        extent = self._extents.get(iova)
        if extent is not None and extent[0] == size:
            return size
        end = iova + size
        at = iova
        while at < end:
            index = bisect_right(self._starts, at) - 1
            if index < 0:
                break
            start = self._starts[index]
            reach = start + self._extents[start][0]
            if reach <= at:
                break
            at = reach
        return min(at, end) - iova

    def extents(self) -> list[tuple[int, int, int]]:
        """(iova, bytes, physical address), ascending."""
        return [(start, *self._extents[start]) for start in self._starts]

    def save(self) -> Any:
        return dict(self._extents), list(self._starts)

    def restore(self, state: Any) -> None:
        self._extents, self._starts = dict(state[0]), list(state[1])
