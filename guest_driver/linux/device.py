# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices as the driver core keeps them (include/linux/device.h, drivers/base/dd.c), the parts that concern DMA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from base.units import U32_MAX, format_sbdf
from guest_driver.port import PciInfo

if TYPE_CHECKING:
    from guest_driver.linux.iommu import IommuDevice
    from guest_driver.linux.iommu_group import IommuGroup
    from guest_driver.linux.kernel import Kernel


def dma_bit_mask(bits: int) -> int:
    """The kernel's DMA_BIT_MASK(n)."""
    return (1 << bits) - 1


class DevIommu:
    """struct dev_iommu: what the IOMMU core keeps for a device that a driver has claimed."""

    __slots__ = ("attach_deferred", "iommu_dev", "max_pasids", "pci_32bit_workaround", "priv", "require_direct")

    def __init__(self) -> None:
        self.iommu_dev: IommuDevice | None = None
        self.priv: Any = None
        self.max_pasids = 0
        self.require_direct = False
        """The device has DIRECT regions and so must never sit on a blocking domain."""
        self.attach_deferred = False
        self.pci_32bit_workaround = True
        """IOVAs above 4 GiB are not tried until one below has failed."""


class Device:
    """struct device of a PCI function."""

    __slots__ = (
        "bus_dma_limit",
        "coherent_dma_mask",
        "dma_coherent",
        "dma_iommu",
        "dma_mask",
        "driver",
        "driver_managed_dma",
        "iommu",
        "iommu_group",
        "kernel",
        "max_seg_size",
        "pci",
        "seg_boundary_mask",
    )

    def __init__(self, kernel: Kernel, pci: PciInfo) -> None:
        self.kernel: Final = kernel
        self.pci: Final = pci
        self.dma_mask = U32_MAX
        """Highest bus address the device can drive; drivers raise it with dma_set_mask."""
        self.coherent_dma_mask = U32_MAX
        """The same for dma_alloc_coherent."""
        self.bus_dma_limit = 0
        """Inclusive limit that the bus above imposes, 0 for none."""
        self.max_seg_size = 65536
        self.seg_boundary_mask = U32_MAX
        self.dma_coherent = True
        self.dma_iommu = False
        """DMA API calls go through dma-iommu."""
        self.iommu_group: IommuGroup | None = None
        self.iommu: DevIommu | None = None
        self.driver: str | None = None
        self.driver_managed_dma = False

    @property
    def name(self) -> str:
        return format_sbdf(self.pci.sbdf)

    def __repr__(self) -> str:
        return f"<Device {self.name}>"

    def save(self) -> tuple[Any, ...]:
        iommu = self.iommu
        return (
            self.dma_mask,
            self.coherent_dma_mask,
            self.bus_dma_limit,
            self.max_seg_size,
            self.seg_boundary_mask,
            self.dma_coherent,
            self.dma_iommu,
            self.iommu_group,
            self.driver,
            self.driver_managed_dma,
            iommu,
            None if iommu is None else tuple(getattr(iommu, slot) for slot in DevIommu.__slots__),
        )

    def restore(self, state: tuple[Any, ...]) -> None:
        (
            self.dma_mask,
            self.coherent_dma_mask,
            self.bus_dma_limit,
            self.max_seg_size,
            self.seg_boundary_mask,
            self.dma_coherent,
            self.dma_iommu,
            self.iommu_group,
            self.driver,
            self.driver_managed_dma,
            self.iommu,
            values,
        ) = state
        if self.iommu is not None:
            for slot, value in zip(DevIommu.__slots__, values):
                setattr(self.iommu, slot, value)
