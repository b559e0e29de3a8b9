# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserved regions and the 1:1 mappings that firmware asks for (drivers/iommu/iommu.c)."""

from __future__ import annotations

from abi.errno import EINVAL
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import (
    IOMMU_DOMAIN_DMA_API_BIT,
    IOMMU_RESV_DIRECT,
    IOMMU_RESV_DIRECT_RELAXABLE,
    RESV_TYPE_NAMES,
    IommuDomain,
    IommuResvRegion,
)
from guest_driver.linux.iommu_core import dev_iommu_ops
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.iommu_map import iommu_iova_to_phys, iommu_map


def iommu_get_resv_regions(dev: Device) -> list[IommuResvRegion]:
    """What the driver reports for ``dev``; the core adds nothing."""
    ops = dev_iommu_ops(dev)
    if ops is None or ops.get_resv_regions is None:
        return []
    return ops.get_resv_regions(dev)


def iommu_get_group_resv_regions(group: IommuGroup) -> list[IommuResvRegion]:
    """Union over the group's devices: sorted by start, overlapping or touching regions of one type merged."""
    regions = sorted(
        {region for dev in group.devices for region in iommu_get_resv_regions(dev)},
        key=lambda region: (region.type, region.start, region.last),
    )
    merged: list[IommuResvRegion] = []
    for region in regions:
        last = merged[-1] if merged else None
        if last is not None and last.type == region.type and region.start <= last.last + 1:
            length = max(last.last, region.last) - last.start + 1
            merged[-1] = IommuResvRegion(last.start, length, last.prot | region.prot, last.type)
        else:
            merged.append(region)
    merged.sort(key=lambda region: (region.start, region.type))
    return merged


def reserved_regions_show(group: IommuGroup) -> str:
    """/sys/kernel/iommu_groups/N/reserved_regions."""
    return "".join(
        f"0x{region.start:016x} 0x{region.last:016x} {RESV_TYPE_NAMES[region.type]}\n"
        for region in iommu_get_group_resv_regions(group)
    )


def iommu_create_device_direct_mappings(domain: IommuDomain, dev: Device) -> int:
    """Map the DIRECT regions of ``dev`` 1:1 into ``domain`` if the DMA API is to use it.

    Pages that another device's region has mapped already are left as they are.  DIRECT regions mark the device, so
    that it will not be put on a blocking domain, whatever ``domain`` is.
    """
    smallest = domain.pgsize_bitmap & -domain.pgsize_bitmap
    for_dma_api = bool(domain.type & IOMMU_DOMAIN_DMA_API_BIT)
    if for_dma_api and dev.kernel.printk.warn_on(not smallest, f"{dev.name}: a DMA domain without page sizes"):
        return -EINVAL
    assert dev.iommu is not None
    for region in iommu_get_resv_regions(dev):
        if region.type == IOMMU_RESV_DIRECT:
            dev.iommu.require_direct = True
        if region.type not in (IOMMU_RESV_DIRECT, IOMMU_RESV_DIRECT_RELAXABLE) or not for_dma_api:
            continue
        ret = _map_identity(domain, region, smallest)
        if ret:
            return ret
    return 0


def _map_identity(domain: IommuDomain, region: IommuResvRegion, smallest: int) -> int:
    start = region.start + smallest - 1 & -smallest
    end = region.start + region.length + smallest - 1 & -smallest
    missing = start
    for address in range(start, end + 1, smallest):
        # Address 0 translated 1:1 looks like "not mapped"; any other byte of its page tells the truth.
        if address < end and not iommu_iova_to_phys(domain, address or 1):
            continue
        if missing < address:
            ret = iommu_map(domain, missing, missing, address - missing, region.prot)
            if ret:
                return ret
        missing = address + smallest
    return 0
