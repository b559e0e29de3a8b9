# SPDX-License-Identifier: GPL-2.0-or-later
"""Binding drivers to devices (drivers/base/dd.c), as far as it decides who owns a device's DMA."""

from abi.errno import EBUSY
from guest_driver.linux.device import Device
from guest_driver.linux.iommu_owner import iommu_device_unuse_default_domain, iommu_device_use_default_domain


def device_driver_attach(dev: Device, driver: str, managed_dma: bool = False) -> int:
    """Bind ``driver``; -EBUSY if another is bound, and the errors of iommu_device_use_default_domain.

    ``managed_dma`` is struct driver's driver_managed_dma: the driver (vfio-pci) claims DMA ownership itself.
    """
    if dev.driver is not None:
        return -EBUSY
    if not managed_dma:
        ret = iommu_device_use_default_domain(dev)
        if ret:
            return ret
    dev.driver, dev.driver_managed_dma = driver, managed_dma
    return 0


def device_release_driver(dev: Device) -> None:
    """Unbind whatever driver is bound."""
    if dev.driver is None:
        return
    if not dev.driver_managed_dma:
        iommu_device_unuse_default_domain(dev)
    dev.driver, dev.driver_managed_dma = None, False
