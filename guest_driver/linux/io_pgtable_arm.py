# SPDX-License-Identifier: GPL-2.0-or-later
"""Stage 1 page tables of AArch64 in guest memory: 48-bit addresses, 4 KiB granule, pages and 2 MiB blocks.

What io-pgtable-arm makes for an SMMU and what the CPU's own page tables of a process look like are the same thing
here (Arm ARM D8.3), so both are this.
"""

from __future__ import annotations

from typing import Final

from abi.errno import EEXIST, EINVAL, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.iommu import IOMMU_READ, IOMMU_WRITE
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_KERNEL, GFP_ZERO

INPUT_BITS: Final = 48
BLOCK_SIZE: Final = 1 << 21
PGSIZES: Final = PAGE_SIZE | BLOCK_SIZE
_VALID: Final = 1
_TABLE: Final = 3
_PAGE: Final = 3
_UNPRIVILEGED: Final = 1 << 6
_READ_ONLY: Final = 1 << 7
_INNER_SHAREABLE: Final = 3 << 8
_ACCESSED: Final = 1 << 10
_NOT_GLOBAL: Final = 1 << 11
_NEVER_EXECUTE: Final = 3 << 53
_ADDRESS: Final = (1 << 48) - PAGE_SIZE


class IoPgtable:
    """A tree; ``root`` is 0 until :meth:`alloc` found a page for it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel: Final = kernel
        self.root = 0
        self._tables: list[int] = []
        """pfns of the tables below the root."""

    def alloc(self) -> int:
        """Make the root: 0 or -ENOMEM."""
        self.root = self._kernel.pages.alloc_pages(GFP_KERNEL | GFP_ZERO)
        return 0 if self.root else -ENOMEM

    def free_tables(self) -> None:
        """Give back every table but the root, and empty that."""
        if self.root:
            self._kernel.ram.write(self.root << PAGE_SHIFT, bytes(PAGE_SIZE))
        while self._tables:
            self._kernel.pages.free_pages(self._tables.pop())

    def free(self) -> None:
        self.free_tables()
        if self.root:
            self._kernel.pages.free_pages(self.root)
        self.root = 0

    def map_pages(self, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> tuple[int, int]:
        """(0 or -errno, bytes mapped): -EEXIST over something, -ENOMEM, -EINVAL for what cannot be written down."""
        if not prot & IOMMU_READ or pgsize not in (PAGE_SIZE, BLOCK_SIZE) or iova + pgsize * pgcount >> INPUT_BITS:
            return -EINVAL, 0
        level = 3 if pgsize == PAGE_SIZE else 2
        leaf = _VALID | _UNPRIVILEGED | _INNER_SHAREABLE | _ACCESSED | _NOT_GLOBAL | _NEVER_EXECUTE
        leaf |= _PAGE if level == 3 else 0
        leaf |= 0 if prot & IOMMU_WRITE else _READ_ONLY
        for done in range(0, pgsize * pgcount, pgsize):
            slot = self._slot(iova + done, level, make=True)
            if slot is None:
                return -ENOMEM, done
            if slot < 0 or self._read(slot):
                return -EEXIST, done
            self._write(slot, paddr + done | leaf)
        return 0, pgsize * pgcount

    def unmap_pages(self, iova: int, pgsize: int, pgcount: int) -> int:
        """Bytes unmapped from ``iova`` on; tables stay for the next mapping."""
        level = 3 if pgsize == PAGE_SIZE else 2
        for done in range(0, pgsize * pgcount, pgsize):
            slot = self._slot(iova + done, level, make=False)
            if slot is None or slot < 0 or not self._read(slot):
                return done
            self._write(slot, 0)
        return pgsize * pgcount

    def iova_to_phys(self, iova: int) -> int:
        """Physical address behind ``iova``, 0 if nothing is mapped."""
        table = self.root << PAGE_SHIFT
        for level in range(4):
            shift = 39 - 9 * level
            entry = self._read(table + 8 * (iova >> shift & 511))
            if not entry & _VALID:
                return 0
            if level == 3 or not entry & 2:
                return entry & _ADDRESS & -(1 << shift) | iova & (1 << shift) - 1
            table = entry & _ADDRESS
        return 0

    def _slot(self, iova: int, level: int, make: bool) -> int | None:
        """Address of the entry of ``iova`` at ``level``; ``None`` without a table for it, -1 inside a block."""
        table = self.root << PAGE_SHIFT
        for above in range(level):
            at = table + 8 * (iova >> 39 - 9 * above & 511)
            entry = self._read(at)
            if not entry:
                if not make:
                    return None
                pfn = self._kernel.pages.alloc_pages(GFP_KERNEL | GFP_ZERO)
                if not pfn:
                    return None
                self._tables.append(pfn)
                entry = pfn << PAGE_SHIFT | _TABLE
                self._write(at, entry)
            elif not entry & 2:
                return -1
            table = entry & _ADDRESS
        return table + 8 * (iova >> 39 - 9 * level & 511)

    def _read(self, at: int) -> int:
        return int.from_bytes(self._kernel.ram.read(at, 8), "little")

    def _write(self, at: int, entry: int) -> None:
        self._kernel.ram.write(at, entry.to_bytes(8, "little"))
