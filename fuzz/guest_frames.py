# SPDX-License-Identifier: GPL-2.0-or-later
"""Which frame numbers a domain may map, and where they lead: facts of the machine, read once for each domain."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from abi.errno import EPERM

_NOTHING: Final = (0, 0, -EPERM)


class Frames:
    """Which frame numbers a domain may map, and where they lead."""

    def __init__(
        self, mfns: list[int], pv: bool, ram_frames: int, mmio: list[tuple[int, int]], maps_mmio: bool, hole: int
    ) -> None:
        self.mfns: Final = mfns
        self.pv: Final = pv
        self.size: Final = len(mfns)
        self.base: Final = min(mfns)
        self.ram_frames: Final = ram_frames
        self._mmio: Final = mmio
        self._maps_mmio: Final = maps_mmio
        self.hole: Final = hole
        """The errno for a frame number behind which there is nothing."""
        self.others: Callable[[int, int], tuple[int, int, int]] = lambda mfn, limit: _NOTHING
        """What comes of a machine frame of RAM that is not the domain's, as :meth:`run` says it (PV guests)."""
        self._starts: Final[list[int]] = []
        """Guest frames at which a stretch of contiguous machine frames begins (translated guests)."""
        for pfn, mfn in enumerate(mfns):
            if not pfn or mfn != mfns[pfn - 1] + 1:
                self._starts.append(pfn)

    def own(self, gfn: int) -> bool:
        """Whether ``gfn`` is a number of the domain's own RAM."""
        return self.base <= gfn < self.base + self.size if self.pv else 0 <= gfn < self.size

    def machine(self, gfn: int) -> int:
        """The machine frame of one of the domain's own."""
        return gfn if self.pv else self.mfns[gfn]

    def has(self, mfn: int) -> bool:
        """Whether a machine frame was given to the domain."""
        return self.base <= mfn < self.base + self.size

    def run(self, gfn: int, limit: int) -> tuple[int, int, int]:
        """(machine frame, contiguous frames from there, 0), or (0, 0, errno) for one that may not be mapped; pages that
        were taken away are the caller's business."""
        if self.pv:
            if self.base <= gfn < self.base + self.size:
                return gfn, min(limit, self.base + self.size - gfn), 0
            found = self.others(gfn, limit) if gfn < self.ram_frames else _NOTHING
            if found[1]:
                return found
        elif gfn < self.size:
            place = bisect_right(self._starts, gfn)
            end = self._starts[place] if place < len(self._starts) else self.size
            return self.mfns[gfn], min(limit, end - gfn), 0
        for first, last in self._mmio:
            if first <= gfn <= last:
                return (gfn, min(limit, last + 1 - gfn), 0) if self._maps_mmio else (0, 0, -EPERM)
        last = self._mmio[-1][1] if self._mmio else self.ram_frames - 1
        outside = not self.pv or gfn > last
        return 0, 0, -self.hole if outside else -EPERM
