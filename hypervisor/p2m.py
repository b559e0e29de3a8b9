# SPDX-License-Identifier: GPL-2.0-or-later
"""From a domain's frame numbers to machine frames, with what kind of thing lies behind each.

Translated domains (HVM, PVH, Arm) have a table; a PV domain names machine frames directly, and what they are
follows from the frame table.  Both answer :meth:`Translation.run`: the longest stretch of frames, from a given
one on, that is contiguous and of one kind.  The table stores the *difference* mfn - gfn, so that "contiguous"
is "all equal", which one comparison of memory decides.
"""

from array import array
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from hypervisor.frames import DOMID_IO, FrameTable


class P2mType(IntEnum):
    """What a guest frame is (the types of Xen's p2m that the PV-IOMMU tells apart)."""

    NONE = 0
    RAM_RW = 1
    RAM_RO = 2
    RAM_LOGDIRTY = 3
    RAM_SHARED = 4
    RAM_PAGED = 5
    MMIO = 6
    FOREIGN = 7
    GRANT_RW = 8
    GRANT_RO = 9
    IOREQ = 10


RAM_TYPES: Final = frozenset(
    {
        P2mType.RAM_RW,
        P2mType.RAM_RO,
        P2mType.RAM_LOGDIRTY,
        P2mType.RAM_SHARED,
        P2mType.FOREIGN,
        P2mType.GRANT_RW,
        P2mType.GRANT_RO,
        P2mType.IOREQ,
    }
)
READ_ONLY_TYPES: Final = frozenset({P2mType.RAM_RO, P2mType.RAM_SHARED, P2mType.GRANT_RO})
OTHERS_TYPES: Final = frozenset({P2mType.FOREIGN, P2mType.GRANT_RW, P2mType.GRANT_RO})
"""Frames that legitimately belong to another domain."""


class Run(NamedTuple):
    """``length`` frames from machine frame ``mfn`` on, all of ``kind``; for NONE ``mfn`` means nothing."""

    mfn: int
    kind: P2mType
    length: int


class Translation(Protocol):
    """How a domain's frame numbers are to be read."""

    def run(self, gfn: int, limit: int) -> Run:
        """The longest uniform stretch from ``gfn``, at least 1 and at most ``limit`` frames."""
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

    def set(self, gfn: int, mfn: int, count: int = 1, kind: P2mType = P2mType.RAM_RW) -> None:
        """Point ``count`` frames from ``gfn`` at machine frames from ``mfn``."""
        if gfn < 0 or gfn + count > self.size:
            raise ValueError(f"gfn {gfn:#x}+{count:#x} is beyond the p2m")
        self._delta[gfn : gfn + count] = array("q", [mfn - gfn]) * count
        self._kind[gfn : gfn + count] = bytes([kind]) * count

    def clear(self, gfn: int, count: int = 1) -> None:
        """Make holes."""
        self.set(gfn, 0, count, P2mType.NONE)

    def run(self, gfn: int, limit: int) -> Run:
        if gfn >= self.size:
            for first, last in self._mmio:
                if first <= gfn <= last:
                    return Run(gfn, P2mType.MMIO, min(limit, last + 1 - gfn))
            return Run(0, P2mType.NONE, 1)
        delta, kind = self._delta[gfn], self._kind[gfn]
        if limit == 1:
            return Run(gfn + delta, _TYPES[kind], 1)
        limit = min(limit, self.size - gfn)
        deltas, kinds = self._delta[gfn : gfn + limit], self._kind[gfn : gfn + limit]
        if deltas != array("q", [delta]) * limit or kinds != bytes([kind]) * limit:
            limit = next(k for k in range(limit) if deltas[k] != delta or kinds[k] != kind)
        return Run(gfn + delta, _TYPES[kind], limit)

    def save(self) -> object:
        return (self._delta[:], bytes(self._kind))

    def restore(self, state: object) -> None:
        self._delta[:], self._kind[:] = state  # type: ignore[misc]


class PvFrames:
    """A PV domain's view: a gfn is a machine frame number.

    Frames of RAM are RAM whoever owns them (ownership is the caller's check); frames that firmware keeps
    (owner dom_io) and everything beyond RAM are MMIO.
    """

    def __init__(self, frames: FrameTable, last_mfn: int) -> None:
        self._frames: Final = frames
        self._last_mfn: Final = last_mfn

    def run(self, gfn: int, limit: int) -> Run:
        frames = self._frames
        if gfn >= frames.frames:
            if gfn > self._last_mfn:
                return Run(0, P2mType.NONE, limit)
            return Run(gfn, P2mType.MMIO, min(limit, self._last_mfn + 1 - gfn))
        owner = frames.owner[gfn]
        kind = P2mType.MMIO if owner == DOMID_IO else P2mType.RAM_RW
        if limit == 1:
            return Run(gfn, kind, 1)
        limit = min(limit, frames.frames - gfn)
        owners = frames.owner[gfn : gfn + limit]
        if owners != array("H", [owner]) * limit:
            limit = next(k for k, other in enumerate(owners) if other != owner)
        return Run(gfn, kind, limit)

    def save(self) -> object:
        return None

    def restore(self, state: object) -> None:
        return None


_TYPES: Final = tuple(P2mType)
