# SPDX-License-Identifier: GPL-2.0-or-later
"""DMA without an IOMMU of our own (kernel/dma/direct.c, and drivers/xen/swiotlb-xen.c as far as it translates).

The device is behind nothing, or on an identity domain, and must be given the addresses that the hypervisor's side
uses: guest physical ones for PVH and HVM, machine addresses for PV.  There are no bounce buffers: a buffer that a
PV guest has in scattered machine frames, or above the device's mask, cannot be mapped.
"""

from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.device import Device
from guest_driver.linux.dma_iommu import DMA_MAPPING_ERROR
from guest_driver.linux.page_alloc import GFP_ZERO


def phys_to_bus(dev: Device, phys: int, size: int) -> int:
    """Bus address of ``size`` bytes at ``phys``, DMA_MAPPING_ERROR if they are not in one piece there."""
    ram = dev.kernel.ram
    first, last = phys >> PAGE_SHIFT, phys + size - 1 >> PAGE_SHIFT
    if not ram.xen_pv_domain or last >= ram.pages:
        return phys
    gfn = ram.pfn_to_gfn(first)
    for pfn in range(first + 1, last + 1):
        if ram.pfn_to_gfn(pfn) != gfn + pfn - first:
            return DMA_MAPPING_ERROR
    return (gfn << PAGE_SHIFT) + (phys & PAGE_SIZE - 1)


def dma_direct_map_phys(dev: Device, phys: int, size: int) -> int:
    """The bus address of a buffer, or DMA_MAPPING_ERROR."""
    if size <= 0:
        return DMA_MAPPING_ERROR
    address = phys_to_bus(dev, phys, size)
    limit = min(dev.dma_mask, dev.bus_dma_limit or dev.dma_mask)
    return DMA_MAPPING_ERROR if address + size - 1 > limit else address


def dma_direct_alloc(dev: Device, size: int, gfp: int) -> tuple[list[tuple[int, int]], int] | None:
    """One physically contiguous zeroed block: ([(pfn, order)], bus address), or ``None``."""
    if size <= 0:
        return None
    pages = dev.kernel.pages
    order = (size - 1 >> PAGE_SHIFT).bit_length()
    pfn = pages.alloc_pages(gfp | GFP_ZERO, order)
    if not pfn:
        return None
    address = phys_to_bus(dev, pfn << PAGE_SHIFT, PAGE_SIZE << order)
    if address == DMA_MAPPING_ERROR or address + size - 1 > dev.coherent_dma_mask:
        pages.free_pages(pfn, order)
        return None
    return [(pfn, order)], address
