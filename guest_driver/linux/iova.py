# SPDX-License-Identifier: GPL-2.0-or-later
"""The IOVA allocator: which I/O virtual addresses a DMA domain has handed out (drivers/iommu/iova.c).

Ranges are found from the top down, first fit, aligned to their own size.  Small ones are not given back to the tree
when freed but kept in magazines, one set for each power of two, so that the sizes drivers use all the time cost a
list operation.

Addresses are counted in pfns of the domain's granule; "last" and "limit" are inclusive.
"""

from bisect import bisect_left, bisect_right, insort
from typing import Any, Final

IOVA_MAG_SIZE: Final = 127
"""Entries of a magazine."""
IOVA_RANGE_CACHE_MAX_SIZE: Final = 6
"""Orders 0 to 5, that is 1 to 32 pages, are cached."""
_DEPOT_MAGAZINES: Final = 32
_TOP: Final = 1 << 64
_FAST_PAGES: Final = 1 << IOVA_RANGE_CACHE_MAX_SIZE - 1


class IovaDomain:
    """The address space of one domain; pfn 0 is never handed out and means failure."""

    __slots__ = (
        "_depot",
        "_hint",
        "_hint32",
        "_last_of",
        "_loaded",
        "_los",
        "_max32_alloc_size",
        "_prev",
        "_reserved",
        "dma_32bit_pfn",
        "granule",
        "shift",
        "start_pfn",
    )

    def __init__(self, granule: int, start_pfn: int) -> None:
        self.granule = granule
        """Bytes per pfn, a power of two."""
        self.shift = granule.bit_length() - 1
        self.start_pfn = max(1, start_pfn)
        self.dma_32bit_pfn = 1 << 32 - self.shift
        self._los: list[int] = []
        """First pfns of taken ranges, ascending."""
        self._last_of: dict[int, int] = {}
        self._reserved: set[int] = set()
        """First pfns of the ranges that are reservations."""
        # Searches start below the last success; a separate mark for addresses under 4 GiB.
        self._hint = _TOP
        self._hint32 = self.dma_32bit_pfn
        self._max32_alloc_size = self.dma_32bit_pfn
        self._loaded: list[list[int]] = [[] for _ in range(IOVA_RANGE_CACHE_MAX_SIZE)]
        self._prev: list[list[int]] = [[] for _ in range(IOVA_RANGE_CACHE_MAX_SIZE)]
        self._depot: list[list[list[int]]] = [[] for _ in range(IOVA_RANGE_CACHE_MAX_SIZE)]

    # -- the tree

    def alloc_iova(self, size: int, limit_pfn: int, size_aligned: bool = True) -> int:
        """Take ``size`` pages ending at ``limit_pfn`` or below; first pfn, or 0 if there is no room.

        ``size_aligned``: the first pfn is a multiple of ``size`` rounded up to a power of two.
        """
        below_4g = limit_pfn < self.dma_32bit_pfn
        if below_4g and size >= self._max32_alloc_size:
            return 0
        align = 1 << (size - 1).bit_length() if size_aligned else 1
        top = limit_pfn + 1
        hint = self._hint32 if below_4g else self._hint
        pfn = self._search(size, min(top, hint), align)
        if not pfn and hint < top:
            pfn = self._search(size, top, align)
        if not pfn:
            if below_4g:
                self._max32_alloc_size = size
            return 0
        insort(self._los, pfn)
        self._last_of[pfn] = pfn + size - 1
        if below_4g:
            self._hint32 = pfn
        else:
            self._hint = pfn
        return pfn

    def _search(self, size: int, top: int, align: int) -> int:
        """Highest aligned place for ``size`` pages below ``top``; 0 if there is none."""
        los, last_of = self._los, self._last_of
        index = bisect_left(los, top) - 1
        high = top
        while True:
            floor = last_of[los[index]] + 1 if index >= 0 else self.start_pfn
            pfn = (high - size) & -align
            if pfn >= floor and pfn >= self.start_pfn:
                return pfn
            if index < 0:
                return 0
            high = min(high, los[index])
            index -= 1

    def free_iova(self, pfn: int) -> None:
        """Give back the range that starts at ``pfn``; nothing happens if none does."""
        last = self._last_of.get(pfn)
        if last is None or pfn in self._reserved:
            return
        del self._last_of[pfn]
        index = bisect_left(self._los, pfn)
        del self._los[index]
        above = self._los[index] if index < len(self._los) else _TOP
        if pfn >= self._hint:
            self._hint = above
        if pfn < self.dma_32bit_pfn:
            self._max32_alloc_size = self.dma_32bit_pfn
            if pfn >= self._hint32:
                self._hint32 = min(above, self.dma_32bit_pfn)

    def reserve_iova(self, first: int, last: int) -> bool:
        """Keep ``first`` to ``last`` from being handed out; False if part of it is in use and stays so."""
        clean = True
        while first <= last:
            index = bisect_right(self._los, first) - 1
            if index >= 0 and self._last_of[self._los[index]] >= first:
                clean = clean and self._los[index] in self._reserved
                first = self._last_of[self._los[index]] + 1
                continue
            end = self._los[index + 1] - 1 if index + 1 < len(self._los) else last
            insort(self._los, first)
            self._last_of[first] = min(end, last)
            self._reserved.add(first)
            first = end + 1
        return clean

    # -- the caches in front of it

    def alloc_iova_fast(self, size: int, limit_pfn: int, flush_rcache: bool = True) -> int:
        """:meth:`alloc_iova` (aligned) through the caches; empties them once before it gives up."""
        if size <= _FAST_PAGES:
            order = (size - 1).bit_length()
            size = 1 << order
            magazine = self._loaded[order]
            if magazine and magazine[-1] + size - 1 <= limit_pfn:
                return magazine.pop()
            pfn = self._rcache_get(order, limit_pfn - size + 1)
            if pfn:
                return pfn
        pfn = self.alloc_iova(size, limit_pfn)
        if not pfn and flush_rcache:
            self.free_iova_rcaches()
            pfn = self.alloc_iova(size, limit_pfn)
        return pfn

    def free_iova_fast(self, pfn: int, size: int) -> None:
        """Give back ``size`` pages from ``pfn``, as they were asked for."""
        if size <= _FAST_PAGES:
            order = (size - 1).bit_length()
            magazine = self._loaded[order]
            if len(magazine) < IOVA_MAG_SIZE:
                magazine.append(pfn)
                return
            self._rcache_put(order, pfn)
            return
        self.free_iova(pfn)

    def _rcache_get(self, order: int, limit: int) -> int:
        """A cached range whose first pfn is ``limit`` at most; 0 if there is none at hand."""
        if not self._loaded[order]:
            if self._prev[order]:
                self._loaded[order], self._prev[order] = self._prev[order], self._loaded[order]
            elif self._depot[order]:
                self._loaded[order] = self._depot[order].pop()
            else:
                return 0
        magazine = self._loaded[order]
        for index in range(len(magazine) - 1, -1, -1):
            if magazine[index] <= limit:
                pfn = magazine[index]
                magazine[index] = magazine[-1]
                magazine.pop()
                return pfn
        return 0

    def _rcache_put(self, order: int, pfn: int) -> None:
        """Store ``pfn`` although the loaded magazine is full."""
        if len(self._prev[order]) >= IOVA_MAG_SIZE:
            if len(self._depot[order]) < _DEPOT_MAGAZINES:
                self._depot[order].append(self._loaded[order])
            else:
                for stale in self._loaded[order]:
                    self.free_iova(stale)
            self._loaded[order] = []
        else:
            self._loaded[order], self._prev[order] = self._prev[order], self._loaded[order]
        self._loaded[order].append(pfn)

    def free_iova_rcaches(self) -> None:
        """Empty all caches into the tree."""
        for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
            for magazine in (self._loaded[order], self._prev[order], *self._depot[order]):
                for pfn in magazine:
                    self.free_iova(pfn)
            self._loaded[order], self._prev[order], self._depot[order] = [], [], []

    # -- accounts

    def reserved_ranges(self) -> list[tuple[int, int]]:
        """(first, last) of every reservation, ascending."""
        return [(pfn, self._last_of[pfn]) for pfn in sorted(self._reserved)]

    def live_ranges(self) -> list[tuple[int, int]]:
        """(first, last) of what is handed out now: neither reserved nor waiting in a cache."""
        cached: set[int] = set()
        for order in range(IOVA_RANGE_CACHE_MAX_SIZE):
            cached.update(self._loaded[order], self._prev[order], *self._depot[order])
        return [(pfn, self._last_of[pfn]) for pfn in self._los if pfn not in self._reserved and pfn not in cached]

    def save(self) -> Any:
        return (
            list(self._los),
            dict(self._last_of),
            set(self._reserved),
            self._hint,
            self._hint32,
            self._max32_alloc_size,
            [list(magazine) for magazine in self._loaded],
            [list(magazine) for magazine in self._prev],
            [[list(magazine) for magazine in depot] for depot in self._depot],
        )

    def restore(self, state: Any) -> None:
        los, last_of, reserved, self._hint, self._hint32, self._max32_alloc_size, loaded, prev, depot = state
        self._los = list(los)
        self._last_of = dict(last_of)
        self._reserved = set(reserved)
        self._loaded = [list(magazine) for magazine in loaded]
        self._prev = [list(magazine) for magazine in prev]
        self._depot = [[list(magazine) for magazine in magazines] for magazines in depot]
