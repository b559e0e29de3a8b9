# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching a domain of the caller's own to a device or a group (drivers/iommu/iommu.c)."""

from abi.errno import EBUSY, EINVAL, ENODEV
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_NO_PASID, IommuDomain
from guest_driver.linux.iommu_core import dev_iommu_ops, domain_ops_compatible
from guest_driver.linux.iommu_group import IommuGroup, attach_dev, iommu_group_set_domain


def iommu_get_domain_for_dev(dev: Device) -> IommuDomain | None:
    """What ``dev`` is attached to, ``None`` without an IOMMU."""
    return None if dev.iommu_group is None else dev.iommu_group.domain


def _attach_group(domain: IommuDomain, group: IommuGroup) -> int:
    if group.domain not in (group.default_domain, group.blocking_domain):
        return -EBUSY
    if not group.devices:
        return -ENODEV
    ops = dev_iommu_ops(group.devices[0])
    if ops is None or not domain_ops_compatible(ops, domain):
        return -EINVAL
    return iommu_group_set_domain(group, domain)


def iommu_attach_group(domain: IommuDomain, group: IommuGroup) -> int:
    """Move ``group`` to ``domain``; -EBUSY if it is on a foreign domain already, -EINVAL for another driver's."""
    return _attach_group(domain, group)


def iommu_detach_group(domain: IommuDomain, group: IommuGroup) -> None:
    """Take ``group`` off ``domain``: to the blocking domain while somebody owns its DMA, else to the default."""
    group.iommu.printk.warn_on(group.domain is not domain, f"group {group.id}: detach of a domain it is not on")
    core_domain = group.blocking_domain if group.owner is not None else group.default_domain
    iommu_group_set_domain_nofail(group, core_domain)


def iommu_group_set_domain_nofail(group: IommuGroup, domain: IommuDomain | None) -> None:
    """A switch that the caller cannot undo; failing is a WARN."""
    ret = iommu_group_set_domain(group, domain, must_succeed=True)
    group.iommu.printk.warn_on(ret != 0, f"group {group.id}: a switch that must succeed failed ({ret})")


def iommu_attach_device(domain: IommuDomain, dev: Device) -> int:
    """:func:`iommu_attach_group` for a device that is alone in its group; -EINVAL if it is not."""
    group = dev.iommu_group
    if group is None:
        return -ENODEV
    if len(group.devices) != 1:
        return -EINVAL
    return _attach_group(domain, group)


def iommu_detach_device(domain: IommuDomain, dev: Device) -> None:
    group = dev.iommu_group
    if group is None:
        return
    wrong = group.domain is not domain or len(group.devices) != 1
    if group.iommu.printk.warn_on(wrong, f"{dev.name}: detach of a domain it is not alone on"):
        return
    iommu_detach_group(domain, group)


def iommu_attach_group_handle(domain: IommuDomain, group: IommuGroup, handle: object) -> int:
    """:func:`iommu_attach_group` that keeps ``handle`` with the attachment; -EBUSY if there is one."""
    if IOMMU_NO_PASID in group.pasid_array:
        return -EBUSY
    ret = _attach_group(domain, group)
    if not ret:
        group.pasid_array[IOMMU_NO_PASID] = (domain, handle)
    return ret


def iommu_detach_group_handle(domain: IommuDomain, group: IommuGroup) -> None:
    group.pasid_array.pop(IOMMU_NO_PASID, None)
    iommu_detach_group(domain, group)


def iommu_replace_group_handle(group: IommuGroup, domain: IommuDomain | None, handle: object | None) -> int:
    """Swap domain and handle in one step; on an error both stay as they were."""
    if domain is None or handle is None:
        return -EINVAL
    ret = iommu_group_set_domain(group, domain)
    if not ret:
        group.pasid_array[IOMMU_NO_PASID] = (domain, handle)
    return ret


def iommu_deferred_attach(dev: Device, domain: IommuDomain) -> int:
    """Do the default attach that probing put off, at the first DMA mapping."""
    if dev.iommu is not None and dev.iommu.attach_deferred:
        return attach_dev(domain, dev, None)
    return 0
