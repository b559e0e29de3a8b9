# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices come under an IOMMU and leave it (drivers/iommu/iommu.c).

At registration all devices are probed and grouped first, and only complete groups get their default domain, because
its type depends on every member.
"""

from abi.errno import EBUSY, EINVAL, ENODEV
from guest_driver.linux.device import Device, DevIommu
from guest_driver.linux.dma_domain import iommu_setup_dma_ops
from guest_driver.linux.iommu import IommuDevice, IommuOps
from guest_driver.linux.iommu_core import Iommu, dev_iommu_ops, iommu_domain_free
from guest_driver.linux.iommu_default_domain import iommu_setup_default_domain
from guest_driver.linux.iommu_group import IommuGroup, attach_dev, device_set_domain
from guest_driver.linux.iommu_resv import iommu_create_device_direct_mappings
from guest_driver.linux.kernel import Kernel


def _init_device(dev: Device, ops: IommuOps) -> int:
    """Let the driver claim ``dev`` and put it into its group."""
    dev.iommu = DevIommu()
    unit = ops.probe_device(dev)
    if isinstance(unit, int):
        dev.iommu = None
        return unit or -ENODEV
    dev.iommu.iommu_dev = unit
    dev.iommu.max_pasids = min(dev.pci.max_pasids, unit.max_pasids)
    dev.iommu.attach_deferred = ops.is_attach_deferred is not None and ops.is_attach_deferred(dev)
    group = ops.device_group(dev)
    if isinstance(group, int):
        if ops.release_device is not None:
            ops.release_device(dev)
        dev.iommu = None
        return group or -EINVAL
    dev.iommu_group = group
    group.devices.append(dev)
    dev.kernel.printk.info(f"pci {dev.name}: Adding to iommu group {group.id}")
    return 0


def _probe_one(dev: Device, ops: IommuOps, new_groups: list[IommuGroup] | None) -> int:
    """Probe ``dev``; a group that has no default domain yet is put on ``new_groups``, or set up if that is None."""
    if dev.iommu_group is not None:
        return 0
    ret = _init_device(dev, ops)
    if ret:
        return ret
    group = dev.iommu_group
    assert group is not None
    if group.default_domain is not None:
        iommu_create_device_direct_mappings(group.default_domain, dev)
    if group.domain is not None:
        ret = device_set_domain(group, dev, group.domain, must_succeed=False)
        if not ret and group.domain is group.default_domain:
            iommu_setup_dma_ops(dev, group.default_domain)
    elif new_groups is None:
        ret = iommu_setup_default_domain(group)
        if not ret and group.default_domain is not None:
            iommu_setup_dma_ops(dev, group.default_domain)
    elif group not in new_groups:
        new_groups.append(group)
    if ret:
        iommu_release_device(dev)
    return ret


def iommu_probe_device(dev: Device) -> int:
    """A device was added to the bus: offer it to the registered IOMMUs.  -ENODEV if none covers it."""
    for ops in dict.fromkeys(unit.ops for unit in dev.kernel.iommu.devices):
        ret = _probe_one(dev, ops, None)
        if ret != -ENODEV:
            return ret
    return -ENODEV


def bus_iommu_probe(kernel: Kernel, ops: IommuOps) -> int:
    """Offer all devices of the bus to ``ops``; the first error of a default domain ends it.

    A device that the driver does not take is none; another error of probing one device is logged and that device
    stays without IOMMU.
    """
    new_groups: list[IommuGroup] = []
    for dev in list(kernel.devices):
        ret = _probe_one(dev, ops, new_groups)
        if ret and ret != -ENODEV:
            kernel.printk.err(f"{dev.name}: IOMMU probe failed ({ret})")
    for group in new_groups:
        ret = iommu_setup_default_domain(group)
        if ret:
            return ret
        assert group.default_domain is not None
        for dev in group.devices:
            iommu_setup_dma_ops(dev, group.default_domain)
    return 0


def iommu_device_register(kernel: Kernel, unit: IommuDevice, ops: IommuOps) -> int:
    """A driver has found its IOMMU; on an error everything that was probed for it is released again.

    -EBUSY: that unit is registered already.
    """
    iommu = kernel.iommu
    if unit in iommu.devices:
        return -EBUSY
    unit.ops = ops
    for domain in ops.static_domains():
        domain.owner = ops
        domain.iommu = iommu
    iommu.devices.append(unit)
    ret = bus_iommu_probe(kernel, ops)
    if ret:
        iommu_device_unregister(kernel, unit)
    return ret


def iommu_device_unregister(kernel: Kernel, unit: IommuDevice) -> None:
    """The IOMMU goes away: release every device behind it."""
    for dev in list(kernel.devices):
        if dev.iommu is not None and dev.iommu.iommu_dev is unit:
            iommu_release_device(dev)
    kernel.iommu.devices.remove(unit)


def iommu_release_device(dev: Device) -> None:
    """``dev`` leaves: put it on the driver's release domain, tell the driver, drop its group if it was the last.

    A device whose firmware regions must stay mapped is put on the identity domain where others are blocked.
    """
    group = dev.iommu_group
    ops = dev_iommu_ops(dev)
    if group is None or ops is None:
        return
    assert dev.iommu is not None
    target = ops.release_domain
    if target is not None and target is ops.blocked_domain and dev.iommu.require_direct:
        target = ops.identity_domain
    if target is not None:
        ret = attach_dev(target, dev, group.domain)
        dev.kernel.printk.warn_on(ret != 0, f"{dev.name}: release domain cannot be attached ({ret})")
    if ops.release_device is not None:
        ops.release_device(dev)
    group.devices.remove(dev)
    dev.iommu_group = None
    dev.iommu = None
    dev.dma_iommu = False
    if not group.devices:
        _group_release(dev.kernel.iommu, group)


def _group_release(iommu: Iommu, group: IommuGroup) -> None:
    iommu.groups.remove(group)
    iommu.printk.warn_on(bool(group.pasid_array), f"group {group.id}: gone with PASIDs attached")
    default, blocking = group.default_domain, group.blocking_domain
    group.default_domain = group.blocking_domain = group.domain = None
    if default is not None:
        iommu_domain_free(default)
    if blocking is not None and blocking is not default:
        iommu_domain_free(blocking)


def pci_bus_add_device(dev: Device) -> int:
    """Hot plug: add ``dev`` to the bus and probe it; being without an IOMMU is no error."""
    dev.kernel.devices.append(dev)
    ret = iommu_probe_device(dev)
    return 0 if ret == -ENODEV else ret


def pci_stop_and_remove_bus_device(dev: Device) -> int:
    """Hot unplug; -EBUSY while a driver is bound."""
    if dev.driver is not None:
        return -EBUSY
    iommu_release_device(dev)
    dev.kernel.devices.remove(dev)
    return 0
