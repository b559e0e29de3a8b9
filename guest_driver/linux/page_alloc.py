# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's page allocator (mm/page_alloc.c), reduced to what DMA code can observe of it.

Blocks of 2**order pages, aligned to their size.  Successive allocations land deliberately far apart, as they do in
a kernel that has been up for a while: code that takes two pages for neighbours fails here at once.  For the same
reason a request for neighbours that is willing to fail (``GFP_NORETRY``) does.  Every block is accounted for, so that
a test can count leaks and a double free is a WARN.
"""

from collections.abc import Callable
from typing import Final

from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.printk import Printk
from guest_driver.port import GuestRam

GFP_KERNEL: Final = 0xCC0
GFP_ATOMIC: Final = 0x820
GFP_ZERO: Final = 0x100
GFP_NORETRY: Final = 0x10000
"""The caller can do with less: give up at once."""
GFP_COMP: Final = 0x40000
GFP_DMA: Final = 0x01
GFP_HIGHMEM: Final = 0x02
GFP_DMA32: Final = 0x04

MAX_PAGE_ORDER: Final = 10

# One byte per page: free, inside a block, or the first page of a block of 2**(byte & 0xF) pages.
_FREE: Final = 0
_TAIL: Final = 0x40
_HEAD: Final = 0x80


class PageAllocator:
    """Pages ``first_pfn`` to the end of ``ram``.  pfn 0 is never handed out: it is the NULL of this allocator."""

    __slots__ = ("_first", "_position", "_printk", "_ram", "_state", "_stride", "allocated", "fault", "scatter")

    def __init__(self, ram: GuestRam, printk: Printk, first_pfn: int = 1, scatter: bool = True) -> None:
        self._ram = ram
        self._printk = printk
        self._first = max(1, first_pfn)
        self._state = bytearray(ram.pages)
        self._state[: self._first] = bytes([_TAIL]) * self._first
        self._position = self._first
        self._stride = int(ram.pages * 0.382) | 1
        self.scatter = scatter
        """False hands out pages in ascending order, and neighbours to whoever asks."""
        self.allocated = 0
        """Pages handed out and not returned."""
        self.fault: Callable[[int], bool] | None = None
        """Fault point: called with the order of every allocation; answering True makes it fail."""

    def alloc_pages(self, gfp: int, order: int = 0) -> int:
        """pfn of 2**order contiguous pages aligned to their size (zeroed for ``GFP_ZERO``); 0 if there are none."""
        if order > MAX_PAGE_ORDER or (self.fault is not None and self.fault(order)):
            return 0
        if order and gfp & GFP_NORETRY and self.scatter:
            return 0
        pages = 1 << order
        pfn = self._find(pages, self._position) or self._find(pages, self._first)
        if not pfn:
            return 0
        state = self._state
        state[pfn] = _HEAD | order
        if order:
            state[pfn + 1 : pfn + pages] = bytes([_TAIL]) * (pages - 1)
        self.allocated += pages
        step = self._stride if self.scatter else pages
        self._position = (pfn + step) % len(state)
        if gfp & GFP_ZERO:
            self._ram.write(pfn << PAGE_SHIFT, bytes(PAGE_SIZE << order))
        return pfn

    def free_pages(self, pfn: int, order: int = 0) -> None:
        """Return a block; a WARN, and nothing else, if ``pfn`` is not the start of a block of that order."""
        state = self._state
        if not 0 < pfn < len(state) or state[pfn] != _HEAD | order:
            self._printk.warn_on(True, f"bad page state: free of pfn {pfn:#x} order {order}")
            return
        pages = 1 << order
        state[pfn : pfn + pages] = bytes(pages)
        self.allocated -= pages

    def _find(self, pages: int, start: int) -> int:
        """Lowest free aligned block of ``pages`` at or above ``start``; 0 if there is none."""
        free = bytes(pages)
        while True:
            pfn = self._state.find(free, start)
            if pfn < 0:
                return 0
            aligned = pfn + pages - 1 & -pages
            if aligned == pfn:
                return pfn
            if self._state[aligned : aligned + pages] == free:
                return aligned
            start = aligned

    def save(self) -> tuple[bytes, int, int]:
        return bytes(self._state), self._position, self.allocated

    def restore(self, state: tuple[bytes, int, int]) -> None:
        self._state[:] = state[0]
        self._position, self.allocated = state[1:]
