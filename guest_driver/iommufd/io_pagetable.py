# SPDX-License-Identifier: GPL-2.0-or-later
"""The I/O page table of an IOAS: one list of areas, shown alike by every domain (iommufd/io_pagetable.c).

Mapping, copying and adding a domain happen wholly or not at all.  Functions answer 0 or -errno; with a value, a tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sortedcontainers import SortedDict

from abi.errno import EADDRINUSE, EBUSY, EDEADLOCK, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC, EOVERFLOW, EPERM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.defects.iommufd import UNMAP_RESTARTS
from guest_driver.iommufd.iova_ranges import ULONG_MAX, ReservedRanges, align_with_offset
from guest_driver.iommufd.pages import IoptArea, IoptPages
from guest_driver.iommufd.process import MemoryFile, Process
from guest_driver.linux.iommu import IOMMU_CACHE, IOMMU_WRITE, IommuDomain

if TYPE_CHECKING:
    from guest_driver.iommufd.access import IommufdAccess
    from guest_driver.iommufd.context import IommufdCtx

_HUGE: Final = 2 << 20
_UNMAP_ROUNDS: Final = 100


class IoPagetable:
    """struct io_pagetable."""

    __slots__ = (
        "accesses",
        "after_area_unmapped",
        "allowed",
        "areas",
        "ctx",
        "disable_large_pages",
        "domains",
        "iova_alignment",
        "reserved",
    )

    def __init__(self, ctx: IommufdCtx) -> None:
        self.ctx: Final = ctx
        self.areas: SortedDict = SortedDict()
        """First I/O address to :class:`IoptArea`."""
        self.allowed: list[tuple[int, int]] = []
        self.reserved: Final = ReservedRanges()
        self.domains: list[IommuDomain] = []
        self.accesses: list[IommufdAccess] = []
        self.iova_alignment = 1
        self.disable_large_pages = False
        self.after_area_unmapped: Callable[[], None] | None = None
        """Called between two areas of one unmap: what another thread would do at that moment."""

    # ------------------------------------------------------------------------------------------ looking up

    def area_at_or_after(self, iova: int) -> IoptArea | None:
        """The area that holds ``iova``, else the next one."""
        position = self.areas.bisect_right(iova)
        if position:
            area: IoptArea = self.areas.peekitem(position - 1)[1]
            if area.last >= iova:
                return area
        return self.areas.peekitem(position)[1] if position < len(self.areas) else None

    def overlapping(self, start: int, last: int) -> IoptArea | None:
        area = self.area_at_or_after(start)
        return area if area is not None and area.iova <= last else None

    def contiguous(self, iova: int, length: int) -> list[tuple[IoptArea, int, int]] | None:
        """(area, first, last) pieces that cover the range without a hole, ``None`` if something is missing."""
        last = iova + length - 1
        pieces = []
        while True:
            area = self.area_at_or_after(iova)
            if area is None or area.iova > iova:
                return None
            pieces.append((area, iova, min(area.last, last)))
            if area.last >= last:
                return pieces
            iova = area.last + 1

    # ------------------------------------------------------------------------------------- finding addresses

    def _alloc_iova(self, address: int, length: int) -> tuple[int, int]:
        """(0, lowest free I/O address that keeps the alignment of user ``address``) or (-errno, 0)."""
        if not length or length >= ULONG_MAX // 2:
            return -EOVERFLOW, 0
        alignment = 1 << (length - 1).bit_length()
        if address:
            alignment = min(alignment, address & -address)
        alignment = min(alignment, PAGE_SIZE if self.disable_large_pages else _HUGE)
        if alignment < self.iova_alignment:
            return -EINVAL, 0
        page_offset = address & PAGE_SIZE - 1
        for first, end in self.allowed or [(PAGE_SIZE, ULONG_MAX - PAGE_SIZE)]:
            iova = align_with_offset(max(first, PAGE_SIZE), alignment, page_offset)
            end = min(end, ULONG_MAX - PAGE_SIZE)
            while iova + length - 1 <= end:
                area = self.overlapping(iova, iova + length - 1)
                blocker = (area.iova, area.last) if area else self.reserved.hit(iova, iova + length - 1)
                if blocker is None:
                    return 0, iova
                iova = align_with_offset(blocker[1] + 1, alignment, page_offset)
        return -ENOSPC, 0

    def _check_iova(self, iova: int, length: int) -> int:
        if iova & self.iova_alignment - 1:
            return -EINVAL
        if iova + length - 1 > ULONG_MAX:
            return -EOVERFLOW
        if self.reserved.hit(iova, iova + length - 1):
            return -EINVAL
        return -EEXIST if self.overlapping(iova, iova + length - 1) else 0

    # ----------------------------------------------------------------------------------------- map and copy

    def map_user(
        self, process: Process, iova: int | None, address: int, length: int, prot: int, account_mode: int | None = None
    ) -> tuple[int, int]:
        """Show ``length`` bytes of user memory; (0, I/O address) or (-errno, 0).  ``iova`` of ``None``: anywhere."""
        if address + length > ULONG_MAX:
            return -EOVERFLOW, 0
        if not length:
            return -EINVAL, 0
        base = address & -PAGE_SIZE
        npages = (address + length - 1 >> PAGE_SHIFT) - (base >> PAGE_SHIFT) + 1
        if not self.ctx.kernel.kzalloc("iopt_pages"):
            return -ENOMEM, 0
        pages = IoptPages(self.ctx, process, base, npages, bool(prot & IOMMU_WRITE))
        if account_mode is not None:
            pages.account_mode = account_mode
        return self._insert([(pages, address - base, length)], iova, prot)

    def map_file(
        self, process: Process, file: MemoryFile, iova: int | None, start: int, length: int, prot: int
    ) -> tuple[int, int]:
        """Show ``length`` bytes of a file in memory from offset ``start``; as :meth:`map_user`."""
        if start + length > ULONG_MAX:
            return -EOVERFLOW, 0
        if not length:
            return -EINVAL, 0
        base = start & -PAGE_SIZE
        npages = (start + length - 1 >> PAGE_SHIFT) - (base >> PAGE_SHIFT) + 1
        if not self.ctx.kernel.kzalloc("iopt_pages"):
            return -ENOMEM, 0
        pages = IoptPages(self.ctx, process, base, npages, bool(prot & IOMMU_WRITE), file)
        return self._insert([(pages, start - base, length)], iova, prot)

    def copy(self, source: IoPagetable, source_iova: int, length: int, iova: int | None, prot: int) -> tuple[int, int]:
        """Show what ``source`` shows of a range; the pages are shared.

        -ENOENT unless the range is covered, -EPERM for writing to what was taken read-only.
        """
        if not length:
            return -EINVAL, 0
        if source_iova + length - 1 > ULONG_MAX:
            return -EOVERFLOW, 0
        with self.ctx.locks.hold("iova_rwsem", source):
            pieces = source.contiguous(source_iova, length)
        if pieces is None:
            return -ENOENT, 0
        if prot & IOMMU_WRITE and not all(area.pages.writable for area, _, _ in pieces):
            return -EPERM, 0
        return self._insert(
            [(area.pages, area.offset + first - area.iova, last - first + 1) for area, first, last in pieces],
            iova,
            prot,
        )

    def _insert(self, parts: list[tuple[IoptPages, int, int]], iova: int | None, prot: int) -> tuple[int, int]:
        """New areas one after the other for (pages, byte offset, length) parts, filled into every domain."""
        with self.ctx.locks.hold("domains_rwsem", self), self.ctx.locks.hold("iova_rwsem", self):
            total = sum(length for _, _, length in parts)
            alignment = self.iova_alignment - 1
            if any(length & alignment for _, _, length in parts):
                return -EINVAL, 0
            pages, offset, _ = parts[0]
            if iova is None:
                ret, iova = self._alloc_iova(pages.base + offset, total)
            else:
                ret = self._check_iova(iova, total)
            if not ret and any(offset & alignment for _, offset, _ in parts):
                ret = -EINVAL
            if ret:
                return ret, 0
            areas: list[IoptArea] = []
            at = iova
            for pages, offset, length in parts:
                if not self.ctx.kernel.kzalloc("iopt_area"):
                    self._drop(areas)
                    return -ENOMEM, 0
                area = IoptArea(at, length, pages, offset, prot | IOMMU_CACHE)
                self.areas[at] = area
                areas.append(area)
                at += length
            for area in areas:
                ret = self._fill(area)
                if ret:
                    self._drop(areas)
                    return ret, 0
            return 0, iova

    def _fill(self, area: IoptArea) -> int:
        for domain in self.domains:
            ret = area.fill_domain(domain, not self.disable_large_pages)
            if ret:
                return ret
        return 0

    def _drop(self, areas: list[IoptArea]) -> None:
        for area in areas:
            for domain in list(area.runs):
                area.unfill_domain(domain)
            area.pages.users -= 1
            del self.areas[area.iova]

    # ------------------------------------------------------------------------------------------------ unmap

    def unmap(self, start: int, last: int) -> tuple[int, int]:
        """Remove every area in the range; (0, bytes) or (-errno, bytes removed before the error).

        -ENOENT for an area that is only partly in the range; nothing there is (0, 0).  -EBUSY: a hardware queue lives
        in an area; -EDEADLOCK: an in-kernel user does not let go.
        """
        removed = 0
        at = start
        while True:
            area = self.overlapping(at, last)
            if area is None:
                return 0, removed
            if area.iova < start or area.last > last:
                return -ENOENT, removed
            if area.locks:
                return -EBUSY, removed
            if not self._evict(area):
                return -EDEADLOCK, removed
            removed += area.length
            with self.ctx.locks.hold("domains_rwsem", self), self.ctx.locks.hold("iova_rwsem", self):
                self._drop([area])
            if self.after_area_unmapped is not None:
                self.after_area_unmapped()
            if not self.ctx.release.has(UNMAP_RESTARTS):
                at = area.last + 1
                if at > last:
                    return 0, removed

    def _evict(self, area: IoptArea) -> bool:
        """Ask in-kernel users of the area to let go of its pages; whether they all did."""
        area.prevent_access = True
        for _ in range(_UNMAP_ROUNDS):
            if not area.accesses:
                return True
            for access in dict.fromkeys(area.accesses):
                access.notify_unmap(area.iova, area.length)
        if not area.accesses:
            return True
        area.prevent_access = False
        return False

    def unmap_all(self) -> tuple[int, int]:
        return self.unmap(0, ULONG_MAX)

    # ------------------------------------------------------------------------------- reserved and allowed

    def reserve(self, start: int, last: int, owner: object) -> int:
        """Keep mappings out of a range; -EADDRINUSE if one is there or user space has been promised the range."""
        if self.overlapping(start, last) is not None:
            return -EADDRINUSE
        if any(first <= last and start <= end for first, end in self.allowed):
            return -EADDRINUSE
        if not self.ctx.kernel.kzalloc("iopt_reserved"):
            return -ENOMEM
        self.reserved.add(start, last, owner)
        return 0

    def set_allowed(self, ordered: list[tuple[int, int]]) -> int:
        """Where automatic placement may go, in place of the earlier list; -EADDRINUSE changes nothing."""
        with self.ctx.locks.hold("iova_rwsem", self):
            if not self.ctx.kernel.kzalloc("iopt_allowed"):
                return -ENOMEM
            if any(self.reserved.hit(start, last) for start, last in ordered):
                return -EADDRINUSE
            self.allowed = ordered
            return 0

    # ---------------------------------------------------------------------------------------------- domains

    def _alignment(self, domains: list[IommuDomain], disable_large: bool) -> int:
        smallest = [domain.pgsize_bitmap & -domain.pgsize_bitmap for domain in domains]
        if disable_large or any(access.ops.needs_pin_pages for access in self.accesses):
            smallest.append(PAGE_SIZE)
        return max(smallest, default=1)

    def recalculate_alignment(self, domains: list[IommuDomain] | None = None) -> int:
        """Set the alignment that follows from ``domains``, accesses and switches; -EADDRINUSE if an area breaks it."""
        alignment = self._alignment(self.domains if domains is None else domains, self.disable_large_pages)
        if alignment > self.iova_alignment and any(area.misaligned(alignment) for area in self.areas.values()):
            return -EADDRINUSE
        self.iova_alignment = alignment
        return 0

    def add_domain(self, domain: IommuDomain) -> int:
        """Show everything in ``domain`` as well; on an error it is empty and forgotten."""
        with self.ctx.locks.hold("domains_rwsem", self), self.ctx.locks.hold("iova_rwsem", self):
            if self.ctx.printk.warn_on(domain in self.domains, "a domain that this I/O page table shows already"):
                return -EEXIST
            if domain.pgsize_bitmap & -domain.pgsize_bitmap > PAGE_SIZE:
                return -EINVAL
            ret = self.recalculate_alignment([*self.domains, domain])
            for start, last in ((0, domain.aperture_start - 1), (domain.aperture_last + 1, ULONG_MAX)):
                if not ret and start <= last:
                    ret = self.reserve(start, last, domain)
            if not ret and not self.ctx.kernel.kzalloc("iopt domains"):
                ret = -ENOMEM
            if not ret:
                ret = self._fill_new(domain)
            if ret:
                self.reserved.remove(domain)
                self.recalculate_alignment()
                return ret
            self.domains.append(domain)
            return 0

    def _fill_new(self, domain: IommuDomain) -> int:
        done: list[IoptArea] = []
        for area in self.areas.values():
            ret = area.fill_domain(domain, not self.disable_large_pages)
            if ret:
                for undo in done:
                    undo.unfill_domain(domain)
                return int(ret)
            done.append(area)
        return 0

    def remove_domain(self, domain: IommuDomain) -> None:
        with self.ctx.locks.hold("domains_rwsem", self), self.ctx.locks.hold("iova_rwsem", self):
            if self.ctx.printk.warn_on(domain not in self.domains, "a domain that this I/O page table does not show"):
                return
            for area in self.areas.values():
                area.unfill_domain(domain)
            self.domains.remove(domain)
            self.reserved.remove(domain)
            self.recalculate_alignment()

    # ------------------------------------------------------------------------------------------ large pages

    def disable_large(self) -> int:
        """Everything in single pages from now on; -EINVAL once something is mapped, -EADDRINUSE if misaligned."""
        if self.disable_large_pages:
            return 0
        if self.domains and self.areas:
            return -EINVAL
        self.disable_large_pages = True
        ret = self.recalculate_alignment()
        if ret:
            self.disable_large_pages = False
        return ret

    def enable_large(self) -> int:
        self.disable_large_pages = False
        return self.recalculate_alignment()

    def cut(self, boundaries: list[int]) -> int:
        """Split areas before each boundary, so that a part can be unmapped (VFIO type 1).

        -EINVAL: not aligned, an in-kernel user has the area, or it was filled with large pages.
        """
        with self.ctx.locks.hold("domains_rwsem", self), self.ctx.locks.hold("iova_rwsem", self):
            for boundary in boundaries:
                area = self.overlapping(boundary, boundary)
                if area is None or area.iova == boundary:
                    continue
                if boundary & self.iova_alignment - 1 or area.accesses or area.filled_large:
                    return -EINVAL
                if not self.ctx.kernel.kzalloc("iopt_area"):
                    return -ENOMEM
                upper = area.split(boundary)
                self.areas[boundary] = upper
        return 0
