# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a domain ready for the DMA API: its IOVA space and what must stay out of it (drivers/iommu/dma-iommu.c).

Unlike the kernel (as of 7.0), the reserved regions of *every* device of a shared domain are taken out, not only of
the one that initialised it.
"""

from typing import Final

from abi.errno import EFAULT, EINVAL, EOPNOTSUPP
from guest_driver.linux.device import Device
from guest_driver.linux.flush_queue import FlushQueue
from guest_driver.linux.iommu import (
    IOMMU_CAP_DEFERRED_FLUSH,
    IOMMU_DOMAIN_DMA,
    IOMMU_DOMAIN_DMA_API_BIT,
    IOMMU_DOMAIN_DMA_FQ,
    IOMMU_RESV_MSI,
    IOMMU_RESV_SW_MSI,
    IommuDomain,
)
from guest_driver.linux.iommu_core import device_iommu_capable
from guest_driver.linux.iommu_resv import iommu_get_resv_regions
from guest_driver.linux.iova import IovaDomain

_BRIDGE_WINDOW: Final = 1 << 20
"""Bridges forward memory in units of 1 MiB (PCI-to-PCI bridge specification, memory base and limit)."""


def iommu_dma_init_domain(domain: IommuDomain, dev: Device) -> int:
    """Give ``domain`` an IOVA allocator for ``dev``; 0 also if it has one already that fits.

    -EINVAL: no DMA cookie.  -EFAULT: nothing the device can address lies in the aperture, or the allocator was made
    for another page size or base.
    """
    cookie = domain.cookie
    if cookie is None or cookie.msi_iova is not None or not domain.pgsize_bitmap:
        return -EINVAL
    granule = domain.pgsize_bitmap & -domain.pgsize_bitmap
    shift = granule.bit_length() - 1
    base_pfn = max(1, domain.aperture_start >> shift)
    if domain.force_aperture and dev.bus_dma_limit and domain.aperture_start > dev.bus_dma_limit:
        dev.kernel.printk.err(f"{dev.name}: its bus reaches no address of the IOMMU's aperture")
        return -EFAULT
    if cookie.iovad is not None:
        if granule != cookie.iovad.granule or base_pfn < cookie.iovad.start_pfn:
            dev.kernel.printk.err(f"{dev.name}: IOVA allocator was made for another granule or base")
            return -EFAULT
    else:
        cookie.iovad = IovaDomain(granule, base_pfn)
        _reserve_pci_windows(cookie.iovad, dev)
    if domain.type == IOMMU_DOMAIN_DMA_FQ and cookie.fq is None and iommu_dma_init_fq(domain, dev):
        domain.type = IOMMU_DOMAIN_DMA
    _reserve_regions(domain, cookie.iovad, dev)
    return 0


def _reserve_pci_windows(iovad: IovaDomain, dev: Device) -> None:
    """Keep addresses that a bridge would forward to a peer instead of to the IOMMU from being used as IOVAs."""
    for other in dev.kernel.devices:
        if other.pci.sbdf >> 16 != dev.pci.sbdf >> 16:
            continue
        for base, length in other.pci.bars:
            first = base // _BRIDGE_WINDOW * _BRIDGE_WINDOW
            end = -(-(base + length) // _BRIDGE_WINDOW) * _BRIDGE_WINDOW
            iovad.reserve_iova(first >> iovad.shift, end - 1 >> iovad.shift)


def _reserve_regions(domain: IommuDomain, iovad: IovaDomain, dev: Device) -> None:
    cookie = domain.cookie
    assert cookie is not None
    if dev.pci.sbdf in cookie.reserved_for:
        return
    cookie.reserved_for.add(dev.pci.sbdf)
    for region in iommu_get_resv_regions(dev):
        if region.type == IOMMU_RESV_SW_MSI:
            continue
        clean = iovad.reserve_iova(region.start >> iovad.shift, region.last >> iovad.shift)
        if not clean:
            dev.kernel.printk.err(f"{dev.name}: reserved region at {region.start:#x} is in use as IOVAs")
        page = (region.start, region.start, region.length)
        if region.type == IOMMU_RESV_MSI and page not in cookie.msi_pages:
            cookie.msi_pages.append(page)


def iommu_dma_init_fq(domain: IommuDomain, dev: Device) -> int:
    """Switch ``domain`` to deferred flushing; -EOPNOTSUPP if its driver gains nothing from that, -EINVAL."""
    cookie = domain.cookie
    if cookie is None or cookie.iovad is None:
        return -EINVAL
    if cookie.fq is not None:
        return 0
    flush = domain.ops.flush_iotlb_all
    if flush is None or not device_iommu_capable(dev, IOMMU_CAP_DEFERRED_FLUSH):
        return -EOPNOTSUPP
    cookie.fq = FlushQueue(cookie.iovad, lambda: flush(domain))
    return 0


def iommu_setup_dma_ops(dev: Device, domain: IommuDomain) -> None:
    """Route the DMA API calls of ``dev`` through dma-iommu if its default domain is one for that."""
    assert dev.iommu is not None
    dev.dma_iommu = bool(domain.type & IOMMU_DOMAIN_DMA_API_BIT)
    dev.iommu.pci_32bit_workaround = not dev.kernel.cmdline.forcedac
    if dev.dma_iommu:
        ret = iommu_dma_init_domain(domain, dev)
        if ret:
            dev.kernel.printk.err(f"{dev.name}: no DMA through the IOMMU ({ret})")
            dev.dma_iommu = False
