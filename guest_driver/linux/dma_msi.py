# SPDX-License-Identifier: GPL-2.0-or-later
"""MSI doorbells behind a translating IOMMU (drivers/iommu/dma-iommu.c, the iommu_dma_*_msi functions).

A message interrupt is a DMA write.  Where the hardware lets it through untranslated (the MSI region of an x86
machine) its address stays; elsewhere the doorbell's page is mapped, once for each domain.
"""

from abi.errno import EINVAL, ENOMEM
from guest_driver.linux.device import Device
from guest_driver.linux.dma_iommu import iommu_dma_alloc_iova
from guest_driver.linux.iommu import IOMMU_DOMAIN_PAGING_BIT, IOMMU_MMIO, IOMMU_NOEXEC, IOMMU_WRITE, IommuDomain
from guest_driver.linux.iommu_attach import iommu_get_domain_for_dev
from guest_driver.linux.iommu_map import iommu_map


def iommu_dma_prepare_msi(dev: Device, msi_addr: int) -> tuple[int, int]:
    """(0, address that ``dev`` has to write to) for the doorbell at ``msi_addr``; (-errno, 0) on failure."""
    domain = iommu_get_domain_for_dev(dev)
    if domain is None or not domain.type & IOMMU_DOMAIN_PAGING_BIT or domain.cookie is None:
        return 0, msi_addr
    cookie = domain.cookie
    for paddr, iova, length in cookie.msi_pages:
        if paddr <= msi_addr < paddr + length:
            return 0, iova + msi_addr - paddr
    return _map_doorbell(domain, dev, msi_addr)


def _map_doorbell(domain: IommuDomain, dev: Device, msi_addr: int) -> tuple[int, int]:
    cookie = domain.cookie
    assert cookie is not None
    granule = domain.pgsize_bitmap & -domain.pgsize_bitmap
    page = msi_addr & -granule
    if cookie.iovad is not None:
        iova = iommu_dma_alloc_iova(domain, cookie.iovad, granule, dev.dma_mask, dev)
        if not iova:
            return -ENOMEM, 0
    elif cookie.msi_iova is not None:
        iova = cookie.msi_iova
    else:
        return -EINVAL, 0
    ret = iommu_map(domain, iova, page, granule, IOMMU_WRITE | IOMMU_NOEXEC | IOMMU_MMIO)
    if ret:
        if cookie.iovad is not None:
            cookie.iovad.free_iova_fast(iova >> cookie.iovad.shift, 1)
        return ret, 0
    if cookie.iovad is None:
        cookie.msi_iova = iova + granule
    cookie.msi_pages.append((page, iova, granule))
    return 0, iova + msi_addr - page
