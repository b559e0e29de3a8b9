# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to be true after every operation of a program, kept as ranges: the quick reading of the fixed contracts.

:mod:`abi.semantics` is the specification, a page at a time; this says the same in ranges, so that watching a call costs
little.  Every method answers with the result
and the OUT fields that the call must have, and with what is done to the state if it has them.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from abi.errno import (
    E2BIG,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EBUSY,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
)
from abi.versions import Abi
from fuzz.intervals import Intervals

Args = tuple[int, ...]
MAX_PAGES: Final = 1 << 32
MAX_CONTEXTS: Final = 0xFFFE


class Frames:
    """Which frame numbers a hardware domain may map, and where they lead.  Facts of the machine, fixed at the start."""

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
        self._hole: Final = hole
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

    def run(self, gfn: int, limit: int) -> tuple[int, int, int]:
        """(machine frame, contiguous frames from there, 0), or (0, 0, errno) for one that may not be mapped; pages that
        were taken away are the caller's business."""
        if self.pv:
            if self.base <= gfn < self.base + self.size:
                return gfn, min(limit, self.base + self.size - gfn), 0
            if gfn < self.ram_frames:
                return 0, 0, -EPERM
        elif gfn < self.size:
            place = bisect_right(self._starts, gfn)
            end = self._starts[place] if place < len(self._starts) else self.size
            return self.mfns[gfn], min(limit, end - gfn), 0
        for first, last in self._mmio:
            if first <= gfn <= last:
                return (gfn, min(limit, last + 1 - gfn), 0) if self._maps_mmio else (0, 0, -EPERM)
        outside = not self.pv or gfn > self._mmio[-1][1]
        return 0, 0, -self._hole if outside else -EPERM


class Shadow:
    """The state of one hardware domain's PV-IOMMU, and what calls do to it."""

    def __init__(
        self,
        abi: Abi,
        frames: Frames,
        limit: int,
        initialised: bool,
        devices: dict[int, tuple[tuple[int, int], ...]],
        max_iova: int,
        pgsize_mask: int,
        caps: int,
    ) -> None:
        self.abi: Final = abi
        self.frames: Final = frames
        self.limit = limit
        self.initialised = initialised
        self.spaces: dict[int, Intervals] = {}
        self.homes: dict[int, int] = dict.fromkeys(devices, 0)
        self.devices: Final = devices
        self.removed: set[int] = set()
        """Machine frames that the toolstack took away."""
        self.regions: dict[int, list[tuple[int, int]]] = {}
        """By context: the reserved regions of its devices."""
        self.starved: Callable[[int], bool] = lambda pages: False
        """Whether a call that maps or splits so many pages may have run out of memory for tables."""
        self._max_iova: Final = max_iova
        self._max_dfn: Final = max_iova >> 12
        self._pgsize_mask: Final = pgsize_mask
        self._caps: Final = caps
        self.predict: Final[dict[str, Callable[[Args, int, Args], tuple[int, Args]]]] = {
            "noop": lambda args, result, out: (0, ()),
            "query_capabilities": self._query,
            "init": self._init,
            "alloc_context": self._alloc,
            "free_context": self._free,
            "reattach_device": self._reattach,
            "map_pages": self._map,
            "unmap_pages": self._unmap,
            "lookup_page": self._lookup,
        }
        """By sub-op: (fields, actual result, actual OUT fields) to what they must be.  Where the contract leaves
        something open (was there memory?) the answer follows the actual one as far as that is legal."""

    # ------------------------------------------------------------------------------------------ contexts, devices

    def _query(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        return 0, (self._max_iova, self._caps, self._pgsize_mask, 0, self.limit, self.abi.max_nr_pages or 0)

    def _init(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        contexts, order = args
        if contexts > MAX_CONTEXTS:
            return -E2BIG, ()
        if self.initialised:
            return -EACCES, ()
        if order >= self.frames.ram_frames.bit_length():
            return -ENOMEM, ()
        if result == -ENOMEM and (self.starved(0) or 4 << order >= self.frames.ram_frames):
            return -ENOMEM, ()
        self.initialised, self.limit = True, contexts
        return 0, ()

    def _alloc(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number_in, flags = args
        if flags & ~self.abi.alloc_flags_mask:
            return -EINVAL, (number_in,)
        if flags & self.abi.alloc_identity:
            return -EOPNOTSUPP, (number_in,)
        number = next((n for n in range(1, self.limit + 1) if n not in self.spaces), None)
        if number is None:
            return -ENOSPC, (number_in,)
        if result == -ENOMEM and self.starved(0):
            return -ENOMEM, (number_in,)
        self.spaces[number] = Intervals()
        self.regions[number] = []
        return 0, (number,)

    def _free(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, flags = args
        if flags & ~self.abi.free_flags_mask or number == 0:
            return -EINVAL, ()
        if number not in self.spaces:
            return -ENOENT, ()
        inside = [device for device, home in self.homes.items() if home == number]
        if inside and not flags & self.abi.free_reattach_default:
            return -EBUSY, ()
        for device in inside:
            self.homes[device] = 0
        del self.spaces[number], self.regions[number]
        return 0, ()

    def _reattach(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, segment, bus, devfn, pasid = args
        device = segment << 16 | bus << 8 | devfn
        if pasid:
            return -EOPNOTSUPP, ()
        if device not in self.devices:
            return -ENODEV, ()
        if number and number not in self.spaces:
            return -ENOENT, ()
        if self.homes[device] == number:
            return 0, ()
        if number:
            there = self.regions[number]
            for first, last in self.devices[device]:
                if (first, last) in there:
                    continue
                if any(first <= other and start <= last for start, other in there):
                    return -EADDRINUSE, ()
                pages = last - first + 1
                if self.spaces[number].first_mapped(first, pages) < pages:
                    return -EADDRINUSE, ()
        if result == -ENOMEM and self.starved(1):
            return -ENOMEM, ()
        old, self.homes[device] = self.homes[device], number
        for context in (old, number):
            if context:
                self.regions[context] = sorted(
                    {region for other, home in self.homes.items() if home == context for region in self.devices[other]}
                )
        return 0, ()

    # ---------------------------------------------------------------------------------------------------- mappings

    def _checked(self, number: int, dfn: int, gfn: int, pgsize: int, nr_pages: int) -> tuple[int, int]:
        """(4 KiB pages in a page, 0) or (0, errno)."""
        limit = self.abi.max_nr_pages
        if limit is not None and nr_pages > limit:
            return 0, -E2BIG
        if number not in self.spaces:
            return 0, -EINVAL
        if limit is not None:
            unit = 1
        elif pgsize & self._pgsize_mask and not pgsize & pgsize - 1:
            unit = pgsize >> 12
        else:
            return 0, -EINVAL
        if (dfn | gfn) & unit - 1 or dfn + nr_pages * unit - 1 > self._max_dfn:
            return 0, -EINVAL
        return (unit, 0) if nr_pages * unit <= MAX_PAGES else (0, -E2BIG)

    def _region_ahead(self, number: int, dfn: int, count: int) -> int:
        """How many of ``count`` pages from ``dfn`` come before the first in a reserved region."""
        for first, last in self.regions[number]:
            if dfn <= last and first < dfn + count:
                count = max(first - dfn, 0)
        return count

    def _map(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, gfn, dfn, flags, pgsize, nr_pages, _ = args
        unit, error = self._checked(number, dfn, gfn, pgsize, nr_pages)
        if error:
            return error, (0,)
        if flags & ~self.abi.map_flags_mask or not flags & (self.abi.map_readable | self.abi.map_writeable):
            return -EINVAL, (0,)
        total = nr_pages * unit
        space = self.spaces[number]
        limit, error = total, 0
        if self.regions[number]:
            limit = self._region_ahead(number, dfn, total)
            if limit < total:
                error = -EADDRNOTAVAIL
        pieces: list[tuple[int, int]] = []
        done = 0
        while done < limit:
            mfn, count, refused = self.frames.run(gfn + done, limit - done)
            if not refused and self.removed:
                count, refused = self._without_removed(mfn, count)
            if count:
                pieces.append((mfn, count))
                done += count
            if refused:
                limit, error = done, refused
                break
        free = space.first_mapped(dfn, limit)
        if free < limit:
            limit, error = free, -EADDRINUSE
        limit -= limit % unit
        did = out[0] * unit if out else 0
        if result == -ENOMEM and did <= limit and did < total and self.starved(did + 512):
            limit, error = did, -ENOMEM
        access = (flags & self.abi.map_readable and 1) | (flags & self.abi.map_writeable and 2)
        at = 0
        for mfn, count in pieces:
            if at >= limit:
                break
            count = min(count, limit - at)
            space.add(dfn + at, count, mfn - dfn - at, access)
            at += count
        return error, (limit // unit,)

    def _without_removed(self, mfn: int, count: int) -> tuple[int, int]:
        """Of ``count`` frames from ``mfn``: how many come before one that the guest
        can no longer name, and its errno."""
        for gone in sorted(self.removed):
            if mfn <= gone < mfn + count:
                if not self.frames.pv:
                    return gone - mfn, -self.frames._hole
                if not self.held(gone):
                    return gone - mfn, -EPERM
        return count, 0

    def held(self, mfn: int) -> bool:
        """Whether a mapping of the domain's own contexts leads to ``mfn``."""
        return any(
            start + delta <= mfn < end + delta for space in self.spaces.values() for start, end, delta, _ in space
        )

    def _unmap(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, dfn, pgsize, nr_pages, _ = args
        unit, error = self._checked(number, dfn, 0, pgsize, nr_pages)
        if error:
            return error, (0,)
        total = nr_pages * unit
        space = self.spaces[number]
        limit = self._region_ahead(number, dfn, total) if self.regions[number] else total
        if limit < total:
            error = -EADDRNOTAVAIL
        mapped = space.first_hole(dfn, limit)
        if mapped < limit:
            limit, error = mapped, -ENOENT
        limit -= limit % unit
        if result == -ENOMEM and out[0] * unit <= limit and out[0] * unit < total and self.starved(total):
            limit, error = out[0] * unit, -ENOMEM
        if limit:
            space.remove(dfn, limit)
        return error, (limit // unit,)

    def _lookup(self, args: Args, result: int, out: Args) -> tuple[int, Args]:
        number, dfn, _ = args
        if number not in self.spaces:
            return -EINVAL, (0,)
        mfn = self.reach(number, dfn)[0]
        if mfn is None:
            return -ENOENT, (0,)
        if self.frames.pv:
            return 0, (mfn,)
        if mfn in self.removed or mfn not in self._gfns:
            return -ENOENT, (0,)
        return 0, (self._gfns[mfn],)

    @property
    def _gfns(self) -> dict[int, int]:
        return {mfn: gfn for gfn, mfn in enumerate(self.frames.mfns)}

    # ----------------------------------------------------------------------------------------------- the other ends

    def remove(self, gfn: int, result: int) -> int:
        """What taking page ``gfn`` away must answer."""
        if not self.frames.own(gfn):
            return -EINVAL
        mfn = self.frames.machine(gfn)
        if mfn in self.removed:
            return -EINVAL
        if result == -ENOMEM and self.starved(1):
            return -ENOMEM
        if result == -EIO:
            return 0
        self.removed.add(mfn)
        return 0

    def reach(self, number: int, dfn: int) -> tuple[int | None, int]:
        """(machine frame, access) that a device in context ``number`` finds at ``dfn``; (``None``, 0) for nothing."""
        if not number:
            if not self.frames.own(dfn) or self.frames.machine(dfn) in self.removed:
                return None, 0
            return self.frames.machine(dfn), 3
        for first, last in self.regions[number]:
            if first <= dfn <= last:
                return dfn, 3
        found = self.spaces[number].at(dfn)
        return (dfn + found[2], found[3]) if found is not None else (None, 0)
