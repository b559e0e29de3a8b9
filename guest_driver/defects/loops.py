# SPDX-License-Identifier: GPL-2.0-or-later
"""The map and unmap loops in the shape in which they were posted, each of their faults behind a switch of its own.

With every switch off they answer like the reference driver's (a property test holds them to that).  The posted
drivers keep one argument struct for all hypercalls of a loop, go on by what they asked for, and mirror mappings in
a table of leaves of their own.
"""

from __future__ import annotations

from typing import Any, Final

from abi.errno import EINVAL, EIO
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.iommu import IOMMU_READ, IOMMU_WRITE, IommuIotlbGather
from guest_driver.xen_iommu import XenIommu, XenIommuDomain


class LeafShadow:
    """iova -> physical address in leaves of the sizes that were mapped; stands in for the driver's IovaShadow."""

    __slots__ = ("_leaves", "drop_whole_leaf")

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[int, int]] = {}
        self.drop_whole_leaf = False
        """Removing part of a leaf removes all of it."""

    def insert_leaves(self, iova: int, paddr: int, pgsize: int, count: int) -> None:
        for index in range(count):
            self._leaves[iova + index * pgsize] = pgsize, paddr + index * pgsize

    def insert(self, iova: int, size: int, paddr: int) -> None:
        """As IovaShadow.insert, in 4 KiB leaves."""
        self.insert_leaves(iova, paddr, PAGE_SIZE, size >> PAGE_SHIFT)

    def remove(self, iova: int, size: int) -> int:
        """Forget ``size`` bytes from ``iova``; how many of them were known."""
        end = iova + size
        known = 0
        for start, (length, paddr) in sorted(self._leaves.items()):
            if start >= end or start + length <= iova:
                continue
            known += min(end, start + length) - max(iova, start)
            del self._leaves[start]
            if self.drop_whole_leaf:
                continue
            for page in range(start, start + length, PAGE_SIZE):
                if not iova <= page < end:
                    self._leaves[page] = PAGE_SIZE, paddr + page - start
        return known

    def lookup(self, iova: int) -> int | None:
        for start, (length, paddr) in self._leaves.items():
            if start <= iova < start + length:
                return paddr + iova - start
        return None

    def extents(self) -> list[tuple[int, int, int]]:
        return [(start, length, paddr) for start, (length, paddr) in sorted(self._leaves.items())]

    def save(self) -> Any:
        return dict(self._leaves)

    def restore(self, state: Any) -> None:
        self._leaves = dict(state)


class PostedLoops:
    """map_pages and unmap_pages of ``driver`` in their posted shape."""

    def __init__(self, driver: XenIommu) -> None:
        self._driver: Final = driver
        self._pv: Final[bool] = driver.kernel.ram.xen_pv_domain
        self.page_by_page = False
        """PV: one hypercall for each page, whatever frames are behind them."""
        self.one_frame_steps = False
        """Page-by-page loops go on by one 4 KiB frame whatever the page size."""
        self.reports_last_call = False
        """The count that is reported is what the struct held after the last call, not a sum."""
        self.keeps_struct = False
        """``mapped`` of the struct goes into the next call as the last one left it."""
        self.adds_stale_count = False
        """A failed call's ``mapped`` is added whatever it is: the hypervisor may not have written it."""
        self.shadow_believes_request = False
        """The shadow takes the whole range of a map call whatever the hypercalls did."""
        self.unmap_claims_all = False
        """unmap answers the full size whatever the hypercalls did."""
        self.unmap_trusts_shadow = False
        """unmap clears the shadow for the whole range and answers what the shadow knew."""
        self.unmap_counts_absent = False
        """unmap's answer counts leaves that were not there."""
        driver.domain_ops.map_pages = self.map_pages
        driver.domain_ops.unmap_pages = self.unmap_pages

    def shadow(self, domain: XenIommuDomain) -> LeafShadow:
        """The domain's shadow, made a table of leaves on first use."""
        held: Any = domain.shadow
        shadow: LeafShadow = held if isinstance(held, LeafShadow) else LeafShadow()
        domain.shadow = shadow  # type: ignore[assignment]  # it answers everything that an IovaShadow does
        shadow.drop_whole_leaf = self.unmap_counts_absent
        return shadow

    def map_pages(
        self, domain: XenIommuDomain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int, gfp: int
    ) -> tuple[int, int]:
        """map_pages of the domain ops: (0 or -errno, bytes)."""
        driver = self._driver
        if not prot & (IOMMU_READ | IOMMU_WRITE) or iova + pgsize * pgcount - 1 > domain.aperture_last:
            return -EINVAL, 0
        single = self._pv and self.page_by_page
        frames = 1 if single and self.one_frame_steps else pgsize >> PAGE_SHIFT
        gfn, dfn = paddr >> PAGE_SHIFT, iova >> PAGE_SHIFT
        flags = driver.map_flags(prot)
        at = total = last = carried = ret = 0
        while at < pgcount:
            first, count = gfn + at * frames, min(pgcount - at, driver.max_nr_pages)
            if single:
                first, count = driver.gfn_run(first, 1)
            elif self._pv:
                first, count = driver.gfn_run(first, count)
            ret, fields = driver.call(
                "map_pages", domain.ctx_no, first, dfn + at * frames, flags, pgsize, count, carried
            )
            last = fields[6]
            total += last if self.adds_stale_count else min(last, count)
            carried = last if self.keeps_struct else 0
            at += count
            if ret:
                break
            if not total and not last:
                ret = -EIO
                break
        done = last if self.reports_last_call else total
        believed = pgcount if self.shadow_believes_request else min(done, pgcount)
        if believed:
            self.shadow(domain).insert_leaves(iova, paddr, pgsize, believed)
        return ret, done * pgsize

    def unmap_pages(
        self, domain: XenIommuDomain, iova: int, pgsize: int, pgcount: int, gather: IommuIotlbGather
    ) -> int:
        """unmap_pages of the domain ops: bytes."""
        driver = self._driver
        frames = pgsize >> PAGE_SHIFT
        dfn = iova >> PAGE_SHIFT
        size = pgcount * pgsize
        at = removed = 0
        while at < pgcount:
            count = min(pgcount - at, driver.max_nr_pages)
            ret, fields = driver.call("unmap_pages", domain.ctx_no, dfn + at * frames, pgsize, count, 0)
            removed += min(fields[4], count)
            at += count
            if ret and not self.unmap_claims_all:
                break
        if self.unmap_claims_all:
            self.shadow(domain).remove(iova, size)
            return size
        if self.unmap_trusts_shadow:
            driver.kernel.printk.warn_on(removed != pgcount, f"xen-iommu: {pgcount - removed} pages stay mapped")
            known = self.shadow(domain).remove(iova, size)
            return size if self.unmap_counts_absent else known
        self.shadow(domain).remove(iova, removed * pgsize)
        return removed * pgsize


_loops: Final = "posted_loops"


def posted_loops(driver: XenIommu) -> PostedLoops:
    """The loops of ``driver``, exchanged for posted ones on first use."""
    loops: PostedLoops | None = driver.extensions.get(_loops)
    if loops is None:
        loops = driver.extensions[_loops] = PostedLoops(driver)
    return loops
