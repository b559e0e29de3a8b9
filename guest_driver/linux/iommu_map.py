# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapping ranges of any size with the page sizes a domain has (drivers/iommu/iommu.c, iommu_map and around).

The driver is asked for runs of one page size and says what it really did; whatever happens, what a failed call has
mapped is unmapped again before the caller sees the error.
"""

from typing import Final

from abi.errno import EINVAL, ENODEV
from guest_driver.linux.iommu import (
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_IDENTITY,
    IOMMU_DOMAIN_PAGING_BIT,
    IommuDomain,
    IommuIotlbGather,
)
from guest_driver.linux.page_alloc import GFP_COMP, GFP_DMA, GFP_DMA32, GFP_HIGHMEM, GFP_KERNEL
from guest_driver.linux.scatterlist import Scatterlist

_GFP_REFUSED: Final = GFP_COMP | GFP_DMA | GFP_DMA32 | GFP_HIGHMEM


def iommu_pgsize(domain: IommuDomain, iova: int, paddr: int, size: int) -> tuple[int, int]:
    """(page size, count) of the next run of a range: ``count`` pages of the biggest size that fits its start.

    The run ends where a bigger page could begin, provided that one fits into what is left after that boundary.
    Arguments are multiples of the smallest page size and ``size`` is not 0.
    """
    bitmap = domain.pgsize_bitmap
    if not bitmap & (bitmap - 1):
        return bitmap, size // bitmap
    alignment = iova | paddr
    usable = bitmap & ((1 << size.bit_length()) - 1)
    if alignment:
        usable &= ((alignment & -alignment) << 1) - 1
    pgsize = 1 << usable.bit_length() - 1
    bigger = bitmap & ~((pgsize << 1) - 1)
    if bigger:
        next_size = bigger & -bigger
        if not (iova ^ paddr) & (next_size - 1):
            to_boundary = -iova & (next_size - 1)
            if to_boundary + next_size <= size:
                size = to_boundary
    return pgsize, size // pgsize


def iommu_map_nosync(domain: IommuDomain, iova: int, paddr: int, size: int, prot: int, gfp: int) -> int:
    """:func:`iommu_map` without the final iotlb_sync_map."""
    ops = domain.ops
    map_pages = ops.map_pages
    bitmap = domain.pgsize_bitmap
    if not domain.type & IOMMU_DOMAIN_PAGING_BIT:
        return -EINVAL
    if map_pages is None or not bitmap:
        domain.iommu.printk.warn_on(True, "iommu_map: a paging domain without map_pages or page sizes")
        return -ENODEV
    if gfp & _GFP_REFUSED:
        domain.iommu.printk.warn_on(True, f"iommu_map: page allocation flags {gfp:#x} make no sense here")
        return -EINVAL
    smallest = bitmap & -bitmap
    if (iova | paddr | size) & (smallest - 1):
        domain.iommu.printk.err(f"unaligned: iova {iova:#x} pa {paddr:#x} size {size:#x}")
        return -EINVAL
    done = 0
    while done < size:
        left = size - done
        pgsize, count = (left, 1) if left == smallest else iommu_pgsize(domain, iova + done, paddr + done, left)
        ret, mapped = map_pages(domain, iova + done, paddr + done, pgsize, count, prot, gfp)
        done += mapped
        if ret:
            _unwind(domain, iova, done)
            return ret
    return 0


def _unwind(domain: IommuDomain, iova: int, done: int) -> None:
    """Take back the first ``done`` bytes of a mapping that failed further on."""
    if done:
        left = done - iommu_unmap(domain, iova, done)
        domain.iommu.printk.warn_on(left > 0, f"{left:#x} bytes from {iova:#x} stay mapped after a failed map")


def iommu_map(domain: IommuDomain, iova: int, paddr: int, size: int, prot: int, gfp: int = GFP_KERNEL) -> int:
    """Map ``size`` bytes of physical memory from ``paddr`` at ``iova``; 0, or -errno with nothing mapped.

    -EINVAL: not a paging domain, or a misaligned argument; otherwise the driver's error.
    """
    ret = iommu_map_nosync(domain, iova, paddr, size, prot, gfp)
    if ret:
        return ret
    sync_map = domain.ops.iotlb_sync_map
    if sync_map is not None:
        ret = sync_map(domain, iova, size)
        if ret:
            _unwind(domain, iova, size)
    return ret


def iommu_map_sg(domain: IommuDomain, iova: int, entries: list[Scatterlist], prot: int, gfp: int = GFP_KERNEL) -> int:
    """Map the elements one after the other from ``iova``; the number of bytes, or -errno with nothing mapped.

    Physically adjacent elements go to the driver as one range; elements flagged as bus addresses are left out.
    """
    mapped = 0
    length = 0
    start = 0
    for entry in entries:
        if entry.dma_bus_address:
            continue
        paddr = entry.paddr
        if length and paddr == start + length:
            length += entry.length
            continue
        if length:
            ret = iommu_map_nosync(domain, iova + mapped, start, length, prot, gfp)
            if ret:
                _unwind(domain, iova, mapped)
                return ret
            mapped += length
        start, length = paddr, entry.length
    if length:
        ret = iommu_map_nosync(domain, iova + mapped, start, length, prot, gfp)
        if ret:
            _unwind(domain, iova, mapped)
            return ret
        mapped += length
    sync_map = domain.ops.iotlb_sync_map
    if sync_map is not None:
        ret = sync_map(domain, iova, mapped)
        if ret:
            _unwind(domain, iova, mapped)
            return ret
    return mapped


def iommu_unmap_fast(domain: IommuDomain, iova: int, size: int, gather: IommuIotlbGather) -> int:
    """:func:`iommu_unmap` that leaves the invalidation to the caller's :func:`iommu_iotlb_sync`."""
    unmap_pages = domain.ops.unmap_pages
    bitmap = domain.pgsize_bitmap
    if not domain.type & IOMMU_DOMAIN_PAGING_BIT:
        return 0
    if unmap_pages is None or not bitmap:
        domain.iommu.printk.warn_on(True, "iommu_unmap: a paging domain without unmap_pages or page sizes")
        return 0
    smallest = bitmap & -bitmap
    if (iova | size) & (smallest - 1):
        domain.iommu.printk.err(f"unaligned: iova {iova:#x} size {size:#x}")
        return 0
    done = 0
    while done < size:
        left = size - done
        pgsize, count = (left, 1) if left == smallest else iommu_pgsize(domain, iova + done, iova + done, left)
        unmapped = unmap_pages(domain, iova + done, pgsize, count, gather)
        if unmapped <= 0:
            break
        done += unmapped
    if done and gather.pgsize == 0 and domain.ops.iotlb_sync is not None:
        gather.add_range(iova, done, smallest)
    return done


def iommu_unmap(domain: IommuDomain, iova: int, size: int) -> int:
    """Unmap and invalidate; the number of bytes unmapped from ``iova`` on.

    Less than ``size`` where a hole was met, more where the last page removed reaches beyond.  0 also for a
    misaligned range and for domains that are not paging.
    """
    gather = IommuIotlbGather()
    done = iommu_unmap_fast(domain, iova, size, gather)
    iommu_iotlb_sync(domain, gather)
    return done


def iommu_iotlb_sync(domain: IommuDomain, gather: IommuIotlbGather) -> None:
    """Invalidate what ``gather`` has collected; it is empty afterwards."""
    sync = domain.ops.iotlb_sync
    if sync is not None and gather.pgsize:
        sync(domain, gather)
    gather.pgsize = 0


def iommu_iova_to_phys(domain: IommuDomain, iova: int) -> int:
    """Physical address behind ``iova``; 0 if nothing is mapped (or if that is the physical address)."""
    if domain.type == IOMMU_DOMAIN_IDENTITY:
        return iova
    if domain.type == IOMMU_DOMAIN_BLOCKED or domain.ops.iova_to_phys is None:
        return 0
    return domain.ops.iova_to_phys(domain, iova)
