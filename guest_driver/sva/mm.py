# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's address space and its notifiers, as far as devices that share it can tell (mm_types.h, mmu_notifier.c).

``users`` are those who run in it; when the last is gone the notifiers' ``release`` is called, and then the pages and
their tables are given back.  ``count`` keeps the root of the tables and the struct itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from abi.errno import EEXIST, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.io_pgtable_arm import IoPgtable
from guest_driver.linux.iommu import IOMMU_READ, IOMMU_WRITE
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_KERNEL, GFP_ZERO

if TYPE_CHECKING:
    from guest_driver.sva.iommu_sva import IommuMmData


class MmuNotifier(Protocol):
    """Somebody who caches what the page tables say."""

    def release(self, mm: MmStruct) -> None:
        """Nothing of ``mm`` may be reached any more when this returns."""
        ...

    def arch_invalidate_secondary_tlbs(self, mm: MmStruct, start: int, end: int) -> None:
        """Forget ``start`` to ``end`` (exclusive)."""
        ...


class MmStruct:
    """struct mm_struct; :func:`mm_alloc` makes one."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel: Final = kernel
        self.pgd: Final = IoPgtable(kernel)
        self.users = 1
        self.count = 1
        self.notifiers: Final[list[MmuNotifier]] = []
        self.iommu_mm: IommuMmData | None = None
        self.pages: Final[dict[int, int]] = {}
        """Page address to pfn of the process's memory."""

    # -- memory

    def mmap(self, va: int, pages: int, writable: bool = True) -> int:
        """Populate ``pages`` pages at ``va``: 0, -EEXIST or -ENOMEM with nothing changed."""
        made: list[int] = []
        for at in range(va, va + pages * PAGE_SIZE, PAGE_SIZE):
            ret = self._populate(at, writable)
            if ret:
                for undo in made:
                    self._zap(undo)
                return ret
            made.append(at)
        return 0

    def munmap(self, va: int, pages: int) -> None:
        """Take pages away: out of the tables, out of every secondary TLB, then back to the allocator."""
        at = [page for page in range(va, va + pages * PAGE_SIZE, PAGE_SIZE) if page in self.pages]
        for page in at:
            self.pgd.unmap_pages(page, PAGE_SIZE, 1)
        for notifier in self.notifiers[:]:
            notifier.arch_invalidate_secondary_tlbs(self, va, va + pages * PAGE_SIZE)
        for page in at:
            self.kernel.pages.free_pages(self.pages.pop(page))

    def write(self, va: int, data: bytes) -> None:
        """A store by the process, within one page that it has."""
        self.kernel.ram.write(self.pages[va & -PAGE_SIZE] << PAGE_SHIFT | va & PAGE_SIZE - 1, data)

    def _populate(self, va: int, writable: bool) -> int:
        if va in self.pages:
            return -EEXIST
        pfn = self.kernel.pages.alloc_pages(GFP_KERNEL | GFP_ZERO)
        if not pfn:
            return -ENOMEM
        prot = IOMMU_READ | (IOMMU_WRITE if writable else 0)
        ret, _ = self.pgd.map_pages(va, pfn << PAGE_SHIFT, PAGE_SIZE, 1, prot)
        if ret:
            self.kernel.pages.free_pages(pfn)
            return ret
        self.pages[va] = pfn
        return 0

    def _zap(self, va: int) -> None:
        self.pgd.unmap_pages(va, PAGE_SIZE, 1)
        self.kernel.pages.free_pages(self.pages.pop(va))


def mm_alloc(kernel: Kernel) -> MmStruct | int:
    """An empty address space with one user, or -ENOMEM."""
    if not kernel.kzalloc("mm_struct"):
        return -ENOMEM
    mm = MmStruct(kernel)
    return mm.pgd.alloc() or mm


def mmget_not_zero(mm: MmStruct) -> bool:
    """Become a user unless the last one has gone."""
    if not mm.users:
        return False
    mm.users += 1
    return True


def mmput(mm: MmStruct) -> None:
    """Stop being a user; the last one takes the memory down (exit_mmap)."""
    mm.users -= 1
    if mm.users:
        return
    for notifier in mm.notifiers[:]:
        notifier.release(mm)
    for pfn in mm.pages.values():
        mm.kernel.pages.free_pages(pfn)
    mm.pages.clear()
    mm.pgd.free_tables()
    mmdrop(mm)


def mmgrab(mm: MmStruct) -> None:
    mm.count += 1


def mmdrop(mm: MmStruct) -> None:
    """Let go of the struct; with the last reference its root table and its PASID go."""
    from guest_driver.sva.iommu_sva import mm_pasid_drop

    mm.count -= 1
    if not mm.count:
        mm.pgd.free()
        mm_pasid_drop(mm)


def mmu_notifier_register(notifier: MmuNotifier, mm: MmStruct) -> int:
    """0 or -ENOMEM; holds the struct, not the users."""
    if not mm.kernel.kzalloc("mmu notifier"):
        return -ENOMEM
    mm.notifiers.append(notifier)
    mmgrab(mm)
    return 0


def mmu_notifier_put(notifier: MmuNotifier, mm: MmStruct) -> None:
    mm.notifiers.remove(notifier)
    mmdrop(mm)
