# SPDX-License-Identifier: GPL-2.0-or-later
"""Bounce buffers for devices that are not trusted (kernel/dma/swiotlb.c, as dma-iommu uses it).

A page is the least that an IOMMU protects.  A buffer that shares its pages with other things is therefore not mapped
for such a device: a copy in pages of its own is, the rest of those pages zeroed, and data is copied when ownership
changes.
"""

from typing import Any, Final, NamedTuple

from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.page_alloc import GFP_ATOMIC, GFP_ZERO, PageAllocator
from guest_driver.port import GuestRam


class Bounce(NamedTuple):
    """A buffer that stands in for ``size`` bytes at ``orig``: 2**``order`` pages."""

    orig: int
    size: int
    order: int


class Swiotlb:
    """The bounce buffers of one kernel, by physical address."""

    __slots__ = ("_pages", "_ram", "slots")

    def __init__(self, ram: GuestRam, pages: PageAllocator) -> None:
        self._ram: Final = ram
        self._pages: Final = pages
        self.slots: dict[int, Bounce] = {}

    def map_single(self, orig: int, size: int, to_device: bool) -> int:
        """Physical address of a buffer for ``size`` bytes at ``orig``, with their content if the device is to read it;
        0 if there is no memory."""
        order = (size - 1 >> PAGE_SHIFT).bit_length()
        pfn = self._pages.alloc_pages(GFP_ATOMIC | GFP_ZERO, order)
        if not pfn:
            return 0
        paddr = pfn << PAGE_SHIFT
        self.slots[paddr] = Bounce(orig, size, order)
        if to_device:
            self._ram.write(paddr, self._ram.read(orig, size))
        return paddr

    def sync_for_cpu(self, paddr: int, offset: int, size: int) -> None:
        """Copy what the device has written back; nothing for an address that is no bounce buffer's."""
        found = self.slots.get(paddr)
        if found is not None:
            size = min(size, found.size - offset)
            self._ram.write(found.orig + offset, self._ram.read(paddr + offset, size))

    def sync_for_device(self, paddr: int, offset: int, size: int) -> None:
        """Copy what the CPU has written to where the device reads."""
        found = self.slots.get(paddr)
        if found is not None:
            size = min(size, found.size - offset)
            self._ram.write(paddr + offset, self._ram.read(found.orig + offset, size))

    def unmap_single(self, paddr: int, from_device: bool) -> None:
        """Give a buffer back, after copying out what the device wrote."""
        found = self.slots.pop(paddr, None)
        if found is None:
            return
        if from_device:
            self._ram.write(found.orig, self._ram.read(paddr, found.size))
        self._pages.free_pages(paddr >> PAGE_SHIFT, found.order)

    def save(self) -> Any:
        return dict(self.slots)

    def restore(self, state: Any) -> None:
        self.slots = dict(state)


def is_unaligned(granule: int, phys: int, size: int) -> bool:
    """Whether a buffer shares the IOMMU's smallest pages with anything else."""
    return bool((phys | size) & (max(granule, PAGE_SIZE) - 1))
