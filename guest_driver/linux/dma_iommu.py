# SPDX-License-Identifier: GPL-2.0-or-later
"""The DMA API on top of an IOMMU domain (drivers/iommu/dma-iommu.c): an IOVA for every buffer, mapped while in use.

A mapping that fails gives its IOVA back; an unmap invalidates before its IOVA can be handed out again (strict), or
queues it (a DMA-FQ domain).
"""

from typing import Final

from abi.errno import EINVAL, EIO, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE, U32_MAX
from guest_driver.linux.device import Device
from guest_driver.linux.errno import EREMOTEIO
from guest_driver.linux.iommu import (
    IOMMU_CACHE,
    IOMMU_DOMAIN_DMA_FQ,
    IOMMU_MMIO,
    IOMMU_PRIV,
    IOMMU_READ,
    IOMMU_WRITE,
    IommuDomain,
    IommuIotlbGather,
)
from guest_driver.linux.iommu_attach import iommu_deferred_attach
from guest_driver.linux.iommu_map import iommu_iotlb_sync, iommu_iova_to_phys, iommu_map, iommu_map_sg, iommu_unmap_fast
from guest_driver.linux.iova import IovaDomain
from guest_driver.linux.page_alloc import GFP_ATOMIC, GFP_KERNEL, GFP_NORETRY, GFP_ZERO, MAX_PAGE_ORDER
from guest_driver.linux.scatterlist import Scatterlist
from guest_driver.linux.swiotlb import is_unaligned

DMA_BIDIRECTIONAL: Final = 0
DMA_TO_DEVICE: Final = 1
DMA_FROM_DEVICE: Final = 2
DMA_NONE: Final = 3

DMA_MAPPING_ERROR: Final = (1 << 64) - 1

DMA_ATTR_PRIVILEGED: Final = 1 << 9

_DIRECTION_PROT: Final = (IOMMU_READ | IOMMU_WRITE, IOMMU_READ, IOMMU_WRITE, 0)
_PLAIN_PROT: Final = (_DIRECTION_PROT, tuple(prot | IOMMU_CACHE for prot in _DIRECTION_PROT))
"""By coherency and direction, for mappings without attributes."""


def dma_info_to_prot(direction: int, coherent: bool, attrs: int) -> int:
    """IOMMU protection bits for a DMA direction."""
    prot = _DIRECTION_PROT[direction]
    if coherent:
        prot |= IOMMU_CACHE
    if attrs & DMA_ATTR_PRIVILEGED:
        prot |= IOMMU_PRIV
    return prot


def iommu_dma_alloc_iova(domain: IommuDomain, iovad: IovaDomain, size: int, limit: int, dev: Device) -> int:
    """``size`` bytes (a multiple of the granule) of IOVA up to ``limit`` (inclusive); 0 if there is no room."""
    if dev.bus_dma_limit and dev.bus_dma_limit < limit:
        limit = dev.bus_dma_limit
    if domain.force_aperture and domain.aperture_last < limit:
        limit = domain.aperture_last
    shift = iovad.shift
    pages = size >> shift
    iommu = dev.iommu
    assert iommu is not None
    if limit > U32_MAX and iommu.pci_32bit_workaround:
        pfn = iovad.alloc_iova_fast(pages, U32_MAX >> shift, False)
        if pfn:
            return pfn << shift
        iommu.pci_32bit_workaround = False
        dev.kernel.printk.info(f"{dev.name}: Using {limit.bit_length()}-bit DMA addresses")
    # The last page must lie below the limit as a whole.
    return iovad.alloc_iova_fast(pages, (limit + 1 >> shift) - 1) << shift


def __dma_domain(dev: Device) -> tuple[IommuDomain, IovaDomain]:
    group = dev.iommu_group
    assert group is not None and group.default_domain is not None
    domain = group.default_domain
    assert domain.cookie is not None and domain.cookie.iovad is not None
    return domain, domain.cookie.iovad


def __iommu_dma_map(dev: Device, phys: int, size: int, prot: int, dma_mask: int) -> int:
    domain, iovad = __dma_domain(dev)
    iommu = dev.iommu
    if iommu is not None and iommu.attach_deferred and iommu_deferred_attach(dev, domain):
        return DMA_MAPPING_ERROR
    mask = iovad.granule - 1
    offset = phys & mask
    size = size + offset + mask & ~mask
    iova = iommu_dma_alloc_iova(domain, iovad, size, dma_mask, dev)
    if not iova:
        return DMA_MAPPING_ERROR
    if iommu_map(domain, iova, phys - offset, size, prot, GFP_ATOMIC):
        iovad.free_iova_fast(iova >> iovad.shift, size >> iovad.shift)
        return DMA_MAPPING_ERROR
    return iova + offset


def __iommu_dma_unmap(dev: Device, dma_addr: int, size: int) -> None:
    domain, iovad = __dma_domain(dev)
    mask = iovad.granule - 1
    offset = dma_addr & mask
    iova = dma_addr - offset
    size = size + offset + mask & ~mask
    gather = IommuIotlbGather()
    unmapped = iommu_unmap_fast(domain, iova, size, gather)
    if unmapped != size:
        dev.kernel.printk.warn_on(True, f"{dev.name}: DMA unmap of {size:#x} bytes at {iova:#x} removed {unmapped:#x}")
    if domain.type == IOMMU_DOMAIN_DMA_FQ and domain.cookie is not None and domain.cookie.fq is not None:
        domain.cookie.fq.queue_iova(iova >> iovad.shift, size >> iovad.shift)
        return
    iommu_iotlb_sync(domain, gather)
    iovad.free_iova_fast(iova >> iovad.shift, size >> iovad.shift)


def iommu_dma_map_phys(dev: Device, phys: int, size: int, direction: int, attrs: int = 0) -> int:
    """Map ``size`` bytes of memory at ``phys``; the DMA address, or DMA_MAPPING_ERROR."""
    if size <= 0:
        return DMA_MAPPING_ERROR
    prot = dma_info_to_prot(direction, dev.dma_coherent, attrs) if attrs else _PLAIN_PROT[dev.dma_coherent][direction]
    if dev.pci.untrusted and is_unaligned(__dma_domain(dev)[1].granule, phys, size):
        return __map_bounced(dev, phys, size, direction, prot)
    return __iommu_dma_map(dev, phys, size, prot, dev.dma_mask)


def iommu_dma_unmap_phys(dev: Device, dma_addr: int, size: int, direction: int, attrs: int = 0) -> None:
    """Undo iommu_dma_map_phys; the arguments must be those of the mapping."""
    if dev.pci.untrusted:
        bounce = __bounce_of(dev, dma_addr)
        __iommu_dma_unmap(dev, dma_addr, size)
        dev.kernel.swiotlb.unmap_single(bounce, direction != DMA_TO_DEVICE)
        return
    __iommu_dma_unmap(dev, dma_addr, size)


def __map_bounced(dev: Device, phys: int, size: int, direction: int, prot: int) -> int:
    """Map a copy in pages of its own."""
    swiotlb = dev.kernel.swiotlb
    bounce = swiotlb.map_single(phys, size, direction != DMA_FROM_DEVICE)
    if not bounce:
        return DMA_MAPPING_ERROR
    address = __iommu_dma_map(dev, bounce, size, prot, dev.dma_mask)
    if address == DMA_MAPPING_ERROR:
        swiotlb.unmap_single(bounce, False)
    return address


def __bounce_of(dev: Device, dma_addr: int) -> int:
    """Physical address behind the start of a mapping, which may be a bounce buffer's."""
    return iommu_iova_to_phys(__dma_domain(dev)[0], dma_addr)


def iommu_dma_sync_single_for_cpu(dev: Device, dma_addr: int, offset: int, size: int) -> None:
    """The CPU is about to read ``size`` bytes from ``offset`` of the mapping at ``dma_addr``."""
    if dev.pci.untrusted:
        dev.kernel.swiotlb.sync_for_cpu(__bounce_of(dev, dma_addr), offset, size)


def iommu_dma_sync_single_for_device(dev: Device, dma_addr: int, offset: int, size: int) -> None:
    """The CPU has written, and the device is about to read."""
    if dev.pci.untrusted:
        dev.kernel.swiotlb.sync_for_device(__bounce_of(dev, dma_addr), offset, size)


def iommu_dma_map_resource(dev: Device, phys: int, size: int, direction: int, attrs: int = 0) -> int:
    """Map device registers at ``phys`` (peer-to-peer); the DMA address, or DMA_MAPPING_ERROR."""
    if size <= 0:
        return DMA_MAPPING_ERROR
    prot = dma_info_to_prot(direction, False, attrs) | IOMMU_MMIO
    return __iommu_dma_map(dev, phys, size, prot, dev.dma_mask)


def iommu_dma_unmap_resource(dev: Device, dma_addr: int, size: int, direction: int, attrs: int = 0) -> None:
    __iommu_dma_unmap(dev, dma_addr, size)


# -- scatter-gather lists


def iommu_dma_map_sg(dev: Device, entries: list[Scatterlist], direction: int, attrs: int = 0) -> int:
    """Map a list into one run of IOVAs; the number of segments that the device sees, or -errno.

    -EINVAL, -ENOMEM or -EREMOTEIO.  Segments respect the device's segment size and boundary; element i carries the
    address and length of segment i.
    """
    domain, iovad = __dma_domain(dev)
    iommu = dev.iommu
    if not entries or any(entry.length <= 0 for entry in entries):
        return -EINVAL
    if iommu is not None and iommu.attach_deferred and iommu_deferred_attach(dev, domain):
        return -EINVAL
    if dev.pci.untrusted and any(is_unaligned(iovad.granule, entry.paddr, entry.length) for entry in entries):
        return __map_sg_bounced(dev, entries, direction, attrs)
    mask = iovad.granule - 1
    boundary = dev.seg_boundary_mask
    total = 0
    whole: list[Scatterlist] = []
    for entry in entries:
        offset = entry.paddr & mask
        padded = entry.length + offset + mask & ~mask
        room = boundary + 1 - (total & boundary)
        if whole and room < padded and room <= boundary:
            # The element would straddle the boundary: start it there, the run being aligned to its own size.
            whole[-1].length += room
            total += room
        whole.append(Scatterlist(entry.paddr - offset, padded))
        total += padded
    iova = iommu_dma_alloc_iova(domain, iovad, total, dev.dma_mask, dev)
    if not iova:
        return -ENOMEM
    prot = dma_info_to_prot(direction, dev.dma_coherent, attrs)
    ret = iommu_map_sg(domain, iova, whole, prot, GFP_ATOMIC)
    if ret != total:
        iovad.free_iova_fast(iova >> iovad.shift, total >> iovad.shift)
        return ret if ret in (-ENOMEM, -EREMOTEIO) else -EINVAL
    return __finalise_sg(dev, entries, whole, iova)


def __finalise_sg(dev: Device, entries: list[Scatterlist], whole: list[Scatterlist], iova: int) -> int:
    """Write the segments into the list: neighbours are joined where the device's limits allow."""
    boundary, max_size = dev.seg_boundary_mask, dev.max_seg_size
    count = 0
    end = -1
    for entry, padded in zip(entries, whole):
        address = iova + (entry.paddr - padded.paddr)
        iova += padded.length
        length = entry.length
        current = entries[count - 1] if count else None
        if (
            current is not None
            and address == end
            and current.dma_length + length <= max_size
            and (current.dma_address & boundary) + current.dma_length + length <= boundary + 1
        ):
            current.dma_length += length
        else:
            entries[count].dma_address, entries[count].dma_length = address, length
            count += 1
        end = address + length
    for entry in entries[count:]:
        entry.dma_address, entry.dma_length = DMA_MAPPING_ERROR, 0
    return count


def __map_sg_bounced(dev: Device, entries: list[Scatterlist], direction: int, attrs: int) -> int:
    """One mapping for each element; their number, or -EIO with nothing mapped."""
    for number, entry in enumerate(entries):
        entry.dma_address = iommu_dma_map_phys(dev, entry.paddr, entry.length, direction, attrs)
        entry.dma_length = entry.length
        if entry.dma_address == DMA_MAPPING_ERROR:
            for earlier in entries[:number]:
                iommu_dma_unmap_phys(dev, earlier.dma_address, earlier.length, DMA_TO_DEVICE, attrs)
            for each in entries:
                each.dma_address, each.dma_length = DMA_MAPPING_ERROR, 0
            return -EIO
    return len(entries)


def iommu_dma_unmap_sg(dev: Device, entries: list[Scatterlist], direction: int, attrs: int = 0) -> None:
    """Undo iommu_dma_map_sg with the same list."""
    used = [entry for entry in entries if entry.dma_length]
    if not used:
        return
    if dev.pci.untrusted and __bounce_of(dev, used[0].dma_address) in dev.kernel.swiotlb.slots:
        for entry in used:
            iommu_dma_unmap_phys(dev, entry.dma_address, entry.length, direction, attrs)
        return
    start = used[0].dma_address
    __iommu_dma_unmap(dev, start, used[-1].dma_address + used[-1].dma_length - start)


# -- coherent memory


def iommu_dma_alloc_pages(dev: Device, size: int, gfp: int) -> list[tuple[int, int]] | None:
    """Zeroed blocks (pfn, order) that add up to ``size`` bytes, rounded up to pages; ``None`` if there are none.

    Big blocks are tried before small ones, none bigger than what is left.
    """
    pages = dev.kernel.pages
    left = size + PAGE_SIZE - 1 >> PAGE_SHIFT
    blocks: list[tuple[int, int]] = []
    order = MAX_PAGE_ORDER
    while left:
        order = min(order, left.bit_length() - 1)
        pfn = pages.alloc_pages(gfp | GFP_ZERO | (GFP_NORETRY if order else 0), order)
        if pfn:
            blocks.append((pfn, order))
            left -= 1 << order
        elif order:
            order -= 1
        else:
            iommu_dma_free_pages(dev, blocks)
            return None
    return blocks


def iommu_dma_free_pages(dev: Device, blocks: list[tuple[int, int]]) -> None:
    for pfn, order in blocks:
        dev.kernel.pages.free_pages(pfn, order)


def iommu_dma_alloc(dev: Device, size: int, gfp: int = GFP_KERNEL) -> tuple[list[tuple[int, int]], int] | None:
    """Pages from anywhere that the device sees as one run: (blocks, DMA address); ``None`` if that is impossible."""
    if size <= 0:
        return None
    domain, iovad = __dma_domain(dev)
    iommu = dev.iommu
    if iommu is not None and iommu.attach_deferred and iommu_deferred_attach(dev, domain):
        return None
    blocks = iommu_dma_alloc_pages(dev, size, gfp)
    if blocks is None:
        return None
    mask = iovad.granule - 1
    entries = [Scatterlist(pfn << PAGE_SHIFT, PAGE_SIZE << order) for pfn, order in blocks]
    total = sum(entry.length for entry in entries)
    if mask >= PAGE_SIZE and any((entry.paddr | entry.length) & mask for entry in entries):
        iommu_dma_free_pages(dev, blocks)
        return None
    size = total + mask & ~mask
    iova = iommu_dma_alloc_iova(domain, iovad, size, dev.coherent_dma_mask, dev)
    if iova:
        prot = dma_info_to_prot(DMA_BIDIRECTIONAL, dev.dma_coherent, 0)
        if iommu_map_sg(domain, iova, entries, prot, gfp) == total:
            return blocks, iova
        iovad.free_iova_fast(iova >> iovad.shift, size >> iovad.shift)
    iommu_dma_free_pages(dev, blocks)
    return None


def iommu_dma_free(dev: Device, blocks: list[tuple[int, int]], dma_addr: int) -> None:
    """Undo iommu_dma_alloc."""
    __iommu_dma_unmap(dev, dma_addr, sum(PAGE_SIZE << order for _, order in blocks))
    iommu_dma_free_pages(dev, blocks)
