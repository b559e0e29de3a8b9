# SPDX-License-Identifier: GPL-2.0-or-later
"""Where page-table frames come from.

The default context's tables come from Xen's heap; those of a guest's own contexts come from the domain's *arena*,
one block of frames set aside when PV-IOMMU is initialised, so that a guest cannot eat the host's memory by
mapping.  An arena hands out its lowest free page.
"""

from heapq import heappop, heappush
from typing import Final

from hypervisor.errors import XenBug
from hypervisor.frames import DOMID_XEN, REF, FrameTable


class HeapPool:
    """Tables from the host's heap."""

    def __init__(self, frames: FrameTable) -> None:
        self._frames: Final = frames

    def allocate(self) -> int | None:
        return self._frames.allocate(DOMID_XEN)

    def free(self, frame: int) -> None:
        self._frames.put(frame, 1, REF)


class Arena:
    """``pages`` frames from ``base`` on, for the page tables of one domain's contexts."""

    def __init__(self, base: int, pages: int) -> None:
        self.base: Final = base
        self.pages: Final = pages
        self._fresh = base
        """From here on nothing was ever handed out."""
        self._returned: list[int] = []
        """A heap of what came back, all of it below: with few of them both ways are short."""
        self._is_free: Final = bytearray(b"\x01" * pages)

    @property
    def used(self) -> int:
        """Frames handed out and not yet returned."""
        return self._fresh - self.base - len(self._returned)

    def holds(self, frame: int) -> bool:
        """Whether ``frame`` is one of this arena's that is handed out."""
        return 0 <= frame - self.base < self.pages and not self._is_free[frame - self.base]

    def in_use(self) -> set[int]:
        """The frames that are handed out."""
        return {frame for frame in range(self.base, self._fresh) if not self._is_free[frame - self.base]}

    def allocate(self) -> int | None:
        if self._returned:
            frame = heappop(self._returned)
        else:
            frame = self._fresh
            if frame == self.base + self.pages:
                return None
            self._fresh = frame + 1
        self._is_free[frame - self.base] = 0
        return frame

    def free(self, frame: int) -> None:
        number = frame - self.base
        if not 0 <= number < self.pages or self._is_free[number]:
            raise XenBug(f"frame {frame:#x} is not in use in the arena at {self.base:#x}")
        self._is_free[number] = 1
        heappush(self._returned, frame)

    def save(self) -> object:
        return (self._fresh, self._returned[:], bytes(self._is_free))

    def restore(self, state: object) -> None:
        self._fresh, returned, self._is_free[:] = state  # type: ignore[misc]
        self._returned = returned[:]  # type: ignore[has-type]
