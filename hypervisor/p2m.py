# SPDX-License-Identifier: GPL-2.0-or-later
"""From a domain's frame numbers to machine frames, with what kind of thing lies behind each.

Translated domains (HVM, PVH, Arm) have a table; a PV domain names machine frames directly, and what they are
follows from the frame table.  Both answer :meth:`Translation.run`: the longest stretch of frames, from a given
one on, that is contiguous and of one kind.  The table stores the *difference* mfn - gfn, so that "contiguous"
is "all equal", which one comparison of memory decides.
"""

from array import array
from typing import Final, Protocol

from hypervisor.frames import DOMID_IO, FrameTable
from hypervisor.words import alike

# What a guest frame is: the types of Xen's p2m that the PV-IOMMU tells apart.  Plain ints, because every page
# that is mapped is asked for its kind.
NONE: Final = 0
RAM_RW: Final = 1
RAM_RO: Final = 2
RAM_LOGDIRTY: Final = 3
RAM_SHARED: Final = 4
RAM_PAGED: Final = 5
MMIO: Final = 6
FOREIGN: Final = 7
GRANT_RW: Final = 8
GRANT_RO: Final = 9
IOREQ: Final = 10

KINDS: Final = {
    NONE: "hole",
    RAM_RW: "RAM",
    RAM_RO: "read-only RAM",
    RAM_LOGDIRTY: "log-dirty RAM",
    RAM_SHARED: "shared RAM",
    RAM_PAGED: "paged-out RAM",
    MMIO: "MMIO",
    FOREIGN: "foreign frame",
    GRANT_RW: "granted frame",
    GRANT_RO: "read-only granted frame",
    IOREQ: "ioreq page",
}
"""What people call them."""
IS_RAM: Final = bytes(kind in (1, 2, 3, 4, 7, 8, 9, 10) for kind in KINDS)
"""By kind: 1 where a machine page is behind the frame."""
IS_READ_ONLY: Final = bytes(kind in (RAM_RO, RAM_SHARED, GRANT_RO) for kind in KINDS)
"""By kind: 1 where nobody may write, devices included."""
IS_OTHERS: Final = bytes(kind in (FOREIGN, GRANT_RW, GRANT_RO) for kind in KINDS)
"""By kind: 1 where the page legitimately belongs to another domain."""

Run = tuple[int, int, int]
"""(machine frame, kind, length): a stretch of frames that is contiguous and of one kind; for holes and paged-out
frames the machine frame means nothing."""


class Translation(Protocol):
    """How a domain's frame numbers are to be read."""

    def run(self, gfn: int, limit: int) -> Run:
        """The longest uniform stretch from ``gfn``, at least 1 and at most ``limit`` frames."""
        ...

    def ram(self, gfn: int, write: bool) -> int:
        """The machine frame of a RAM page that the domain's own CPUs may read (write), or -1."""
        ...

    def save(self) -> object: ...

    def restore(self, state: object) -> None: ...


class P2m:
    """A table of ``size`` guest frames, all holes at first; ``mmio`` lists (first, last) frames above the table that
    are MMIO under their machine frame numbers."""

    def __init__(self, size: int, mmio: tuple[tuple[int, int], ...] = ()) -> None:
        self.size: Final = size
        self._mmio: Final = mmio
        self._delta: Final = array("q", [0]) * size
        self._kind: Final = bytearray(size)
        self._reverse: dict[int, int] | None = None
        """Machine frame to guest frame, made when first asked for and forgotten by every change."""

    def set(self, gfn: int, mfn: int, count: int = 1, kind: int = RAM_RW) -> None:
        """Point ``count`` frames from ``gfn`` at machine frames from ``mfn``."""
        if gfn < 0 or gfn + count > self.size:
            raise ValueError(f"gfn {gfn:#x}+{count:#x} is beyond the p2m")
        self._reverse = None
        self._delta[gfn : gfn + count] = array("q", [mfn - gfn]) * count
        self._kind[gfn : gfn + count] = bytes([kind]) * count

    def clear(self, gfn: int, count: int = 1) -> None:
        """Make holes."""
        self.set(gfn, 0, count, NONE)

    def run(self, gfn: int, limit: int) -> Run:
        if gfn >= self.size:
            for first, last in self._mmio:
                if first <= gfn <= last:
                    return gfn, MMIO, min(limit, last + 1 - gfn)
            return 0, NONE, 1
        delta, kind = self._delta[gfn], self._kind[gfn]
        if limit == 1:
            return gfn + delta, kind, 1
        limit = alike(self._kind, gfn, min(limit, self.size - gfn))
        return gfn + delta, kind, alike(self._delta, gfn, limit)

    def ram(self, gfn: int, write: bool) -> int:
        if gfn >= self.size:
            return -1
        kind = self._kind[gfn]
        if not IS_RAM[kind] or (write and IS_READ_ONLY[kind]):
            return -1
        return gfn + self._delta[gfn]

    def gfn_of(self, mfn: int) -> int | None:
        """The lowest guest frame behind which machine frame ``mfn`` lies."""
        if self._reverse is None:
            pairs = zip(self._delta, self._kind)
            self._reverse = {}
            for gfn, (delta, kind) in enumerate(pairs):
                if kind != NONE and kind != RAM_PAGED:
                    self._reverse.setdefault(gfn + delta, gfn)
        return self._reverse.get(mfn)

    def save(self) -> object:
        return (self._delta[:], bytes(self._kind))

    def restore(self, state: object) -> None:
        self._reverse = None
        self._delta[:], self._kind[:] = state  # type: ignore[misc]


class PvFrames:
    """A PV domain's view: a gfn is a machine frame number.

    Frames of RAM are RAM whoever owns them (ownership is the caller's check); frames that firmware keeps
    (owner dom_io) and everything beyond RAM are MMIO.
    """

    def __init__(self, frames: FrameTable, domid: int, last_mfn: int) -> None:
        self._frames: Final = frames
        self._owner: Final = frames.owner
        self._domid: Final = domid
        self._last_mfn: Final = last_mfn

    def run(self, gfn: int, limit: int) -> Run:
        frames = self._frames
        if gfn >= frames.frames:
            if gfn > self._last_mfn:
                return 0, NONE, 1
            return gfn, MMIO, min(limit, self._last_mfn + 1 - gfn)
        owner = self._owner[gfn]
        kind = MMIO if owner == DOMID_IO else RAM_RW
        if limit == 1:
            return gfn, kind, 1
        return gfn, kind, alike(self._owner, gfn, min(limit, frames.frames - gfn))

    def ram(self, gfn: int, write: bool) -> int:
        if gfn >= self._frames.frames or self._owner[gfn] != self._domid:
            return -1
        return gfn

    def save(self) -> object:
        return None

    def restore(self, state: object) -> None:
        return None
