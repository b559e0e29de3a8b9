# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of the kernel around a driver, put on at the seam between the core and the driver."""

from typing import Final

from guest_driver.defects.model import Defect
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IommuDomain, IommuIotlbGather, IommuResvRegion
from guest_driver.xen_iommu import XenIommu


def _loses_map_errno(driver: XenIommu) -> None:
    ops = driver.domain_ops
    map_pages, unmap_pages = ops.map_pages, ops.unmap_pages
    assert map_pages is not None and unmap_pages is not None

    def map_and_lose(
        domain: IommuDomain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int, gfp: int
    ) -> tuple[int, int]:
        ret, mapped = map_pages(domain, iova, paddr, pgsize, pgcount, prot, gfp)
        if not ret:
            return 0, mapped
        if mapped:
            unmap_pages(domain, iova, pgsize, mapped // pgsize, IommuIotlbGather())
        return 0, pgsize * pgcount

    ops.map_pages = map_and_lose


def _reserves_for_one(driver: XenIommu) -> None:
    """dma-iommu asks each device of a shared domain once; after the first it hears of nothing."""
    ask = driver.ops.get_resv_regions
    assert ask is not None
    first: dict[int, int] = driver.extensions.setdefault("first_of_group", {})

    def regions_of_first(dev: Device) -> list[IommuResvRegion]:
        group = dev.iommu_group
        if group is not None and first.setdefault(group.id, dev.pci.sbdf) != dev.pci.sbdf:
            return []
        return ask(dev)

    driver.ops.get_resv_regions = regions_of_first


CORE: Final = (
    Defect(
        id="L8.1",
        versions=("linux-7.0",),
        title="the core loses the errno of map_pages: a map that failed is unwound and reported as success",
        seen="iommu_map answers 0 with nothing mapped; dma_map_page hands out an address that faults",
        source="Linux 7.0, d6c65b0fd621; fixed by 6fc7e8a3b811",
        build=_loses_map_errno,
    ),
    Defect(
        id="L8.6",
        versions=("linux-7.0",),
        title="dma-iommu reserves the regions of the first device of a shared domain only",
        seen="the IOVA allocator hands out addresses in the second device's RMRR",
        source="Linux up to 7.0, iommu_dma_init_domain returns early",
        build=_reserves_for_one,
    ),
)
