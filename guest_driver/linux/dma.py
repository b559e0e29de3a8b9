# SPDX-License-Identifier: GPL-2.0-or-later
"""The DMA API as drivers call it (kernel/dma/mapping.c): through dma-iommu for a DMA domain, direct otherwise."""

from __future__ import annotations

from abi.errno import EINVAL, EIO
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.device import Device
from guest_driver.linux.dma_direct import dma_direct_alloc, dma_direct_map_phys
from guest_driver.linux.dma_iommu import (
    DMA_MAPPING_ERROR,
    iommu_dma_alloc,
    iommu_dma_free,
    iommu_dma_free_pages,
    iommu_dma_map_phys,
    iommu_dma_map_resource,
    iommu_dma_map_sg,
    iommu_dma_sync_single_for_cpu,
    iommu_dma_sync_single_for_device,
    iommu_dma_unmap_phys,
    iommu_dma_unmap_resource,
    iommu_dma_unmap_sg,
)
from guest_driver.linux.page_alloc import GFP_KERNEL
from guest_driver.linux.scatterlist import Scatterlist


def dma_set_mask(dev: Device, mask: int) -> int:
    """Tell how far the device can address; -EIO for less than a page."""
    if mask < PAGE_SIZE - 1:
        return -EIO
    dev.dma_mask = mask
    return 0


def dma_set_mask_and_coherent(dev: Device, mask: int) -> int:
    """:func:`dma_set_mask` for streaming and coherent mappings."""
    ret = dma_set_mask(dev, mask)
    if not ret:
        dev.coherent_dma_mask = mask
    return ret


def dma_map_phys(dev: Device, phys: int, size: int, direction: int, attrs: int = 0) -> int:
    """DMA address of ``size`` bytes at guest physical ``phys``; DMA_MAPPING_ERROR if they cannot be mapped."""
    if dev.dma_iommu:
        return iommu_dma_map_phys(dev, phys, size, direction, attrs)
    return dma_direct_map_phys(dev, phys, size)


def dma_unmap_phys(dev: Device, dma_addr: int, size: int, direction: int, attrs: int = 0) -> None:
    if dev.dma_iommu:
        iommu_dma_unmap_phys(dev, dma_addr, size, direction, attrs)


def dma_map_page(dev: Device, pfn: int, offset: int, size: int, direction: int, attrs: int = 0) -> int:
    """Map ``size`` bytes from ``offset`` of page ``pfn``; the DMA address, or DMA_MAPPING_ERROR."""
    if dev.dma_iommu:
        return iommu_dma_map_phys(dev, (pfn << PAGE_SHIFT) + offset, size, direction, attrs)
    return dma_direct_map_phys(dev, (pfn << PAGE_SHIFT) + offset, size)


def dma_unmap_page(dev: Device, dma_addr: int, size: int, direction: int, attrs: int = 0) -> None:
    if dev.dma_iommu:
        iommu_dma_unmap_phys(dev, dma_addr, size, direction, attrs)


def dma_sync_single_for_cpu(dev: Device, dma_addr: int, size: int, direction: int, offset: int = 0) -> None:
    """Before the CPU reads ``size`` bytes from ``offset`` of a buffer that stays mapped at ``dma_addr``."""
    if dev.dma_iommu:
        iommu_dma_sync_single_for_cpu(dev, dma_addr, offset, size)


def dma_sync_single_for_device(dev: Device, dma_addr: int, size: int, direction: int, offset: int = 0) -> None:
    """Before the device gets a buffer back that the CPU has read or written."""
    if dev.dma_iommu:
        iommu_dma_sync_single_for_device(dev, dma_addr, offset, size)


dma_map_single = dma_map_phys
dma_unmap_single = dma_unmap_phys


def dma_mapping_error(dev: Device, dma_addr: int) -> int:
    """-ENOMEM's place in drivers: non-zero if ``dma_addr`` is no address."""
    return -EIO if dma_addr == DMA_MAPPING_ERROR else 0


def dma_map_sg(dev: Device, entries: list[Scatterlist], direction: int, attrs: int = 0) -> int:
    """Map a list; the number of segments for the device, 0 on failure (dma_map_sgtable tells why)."""
    ret = dma_map_sgtable(dev, entries, direction, attrs)
    return max(ret, 0)


def dma_map_sgtable(dev: Device, entries: list[Scatterlist], direction: int, attrs: int = 0) -> int:
    """:func:`dma_map_sg` that answers -errno on failure."""
    if dev.dma_iommu:
        return iommu_dma_map_sg(dev, entries, direction, attrs)
    if not entries:
        return -EINVAL
    for entry in entries:
        entry.dma_address, entry.dma_length = dma_direct_map_phys(dev, entry.paddr, entry.length), entry.length
        if entry.dma_address == DMA_MAPPING_ERROR:
            return -EIO
    return len(entries)


def dma_unmap_sg(dev: Device, entries: list[Scatterlist], direction: int, attrs: int = 0) -> None:
    if dev.dma_iommu:
        iommu_dma_unmap_sg(dev, entries, direction, attrs)


def dma_map_resource(dev: Device, phys: int, size: int, direction: int, attrs: int = 0) -> int:
    """Map registers of another device; the DMA address, or DMA_MAPPING_ERROR."""
    if dev.dma_iommu:
        return iommu_dma_map_resource(dev, phys, size, direction, attrs)
    return phys


def dma_unmap_resource(dev: Device, dma_addr: int, size: int, direction: int, attrs: int = 0) -> None:
    if dev.dma_iommu:
        iommu_dma_unmap_resource(dev, dma_addr, size, direction, attrs)


class CoherentBuffer:
    """Memory that CPU and device share: ``size`` bytes, contiguous in kernel virtual and in DMA addresses."""

    __slots__ = ("_paddrs", "_ram", "blocks", "dev", "dma_addr", "size")

    def __init__(self, dev: Device, size: int, blocks: list[tuple[int, int]], dma_addr: int) -> None:
        self.dev = dev
        self.size = size
        self.dma_addr = dma_addr
        self.blocks = blocks
        """(pfn, order) of the pages behind it, which need not be neighbours."""
        self._ram = dev.kernel.ram
        self._paddrs = [pfn + page << PAGE_SHIFT for pfn, order in blocks for page in range(1 << order)]

    def read(self, offset: int, length: int) -> bytes:
        """What the CPU reads at ``offset``; ``IndexError`` beyond the end."""
        page, start = divmod(offset, PAGE_SIZE)
        if start + length <= PAGE_SIZE:
            return self._ram.read(self._paddrs[page] + start, length)
        first = PAGE_SIZE - start
        return self.read(offset, first) + self.read(offset + first, length - first)

    def write(self, offset: int, data: bytes) -> None:
        page, start = divmod(offset, PAGE_SIZE)
        if start + len(data) <= PAGE_SIZE:
            self._ram.write(self._paddrs[page] + start, data)
            return
        first = PAGE_SIZE - start
        self.write(offset, data[:first])
        self.write(offset + first, data[first:])


def dma_alloc_coherent(dev: Device, size: int, gfp: int = GFP_KERNEL) -> CoherentBuffer | None:
    """Zeroed shared memory of ``size`` bytes, ``None`` if there is none."""
    if dev.dma_iommu:
        found = iommu_dma_alloc(dev, size, gfp)
    else:
        found = dma_direct_alloc(dev, size, gfp)
    return None if found is None else CoherentBuffer(dev, size, *found)


def dma_free_coherent(buffer: CoherentBuffer) -> None:
    if buffer.dev.dma_iommu:
        iommu_dma_free(buffer.dev, buffer.blocks, buffer.dma_addr)
    else:
        iommu_dma_free_pages(buffer.dev, buffer.blocks)
