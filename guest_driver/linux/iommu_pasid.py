# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains for single process address spaces of a device (drivers/iommu/iommu.c, the *_device_pasid functions).

A group keeps one entry for each PASID: the domain, and a handle of the caller's.
"""

from abi.errno import EBUSY, EINVAL, ENODEV, ENOENT, EOPNOTSUPP
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_NO_PASID, IommuDomain
from guest_driver.linux.iommu_core import dev_iommu_ops, domain_ops_compatible
from guest_driver.linux.iommu_group import IommuGroup


def _users(group: IommuGroup) -> list[Device]:
    """The devices of the group that have PASIDs at all."""
    return [dev for dev in group.devices if dev.iommu is not None and dev.iommu.max_pasids]


def _check(domain: IommuDomain, dev: Device, pasid: int) -> int:
    ops = dev_iommu_ops(dev)
    if dev.iommu_group is None or ops is None:
        return -ENODEV
    blocked = ops.blocked_domain
    if domain.ops.set_dev_pasid is None or blocked is None or blocked.ops.set_dev_pasid is None:
        return -EOPNOTSUPP
    if not domain_ops_compatible(ops, domain) or pasid == IOMMU_NO_PASID:
        return -EINVAL
    for other in _users(dev.iommu_group):
        if other.iommu is not None and pasid >= other.iommu.max_pasids:
            return -EINVAL
    return 0


def _set_group_pasid(domain: IommuDomain, group: IommuGroup, pasid: int, old: IommuDomain | None) -> int:
    """Give ``domain`` to every device; on an error those already changed get ``old`` back, or are blocked."""
    set_pasid = domain.ops.set_dev_pasid
    assert set_pasid is not None
    changed: list[Device] = []
    for dev in _users(group):
        ret = set_pasid(domain, dev, pasid, old)
        if not ret:
            changed.append(dev)
            continue
        for earlier in changed:
            if old is None or old.ops.set_dev_pasid is None:
                _block(earlier, pasid, domain)
            elif old.ops.set_dev_pasid(old, earlier, pasid, domain):
                group.iommu.printk.warn_on(True, f"{earlier.name}: PASID {pasid} cannot go back to its domain")
                _block(earlier, pasid, domain)
        return ret
    return 0


def _block(dev: Device, pasid: int, old: IommuDomain) -> None:
    ops = dev_iommu_ops(dev)
    blocked = None if ops is None else ops.blocked_domain
    if blocked is None or blocked.ops.set_dev_pasid is None:
        return
    ret = blocked.ops.set_dev_pasid(blocked, dev, pasid, old)
    dev.kernel.printk.warn_on(ret != 0, f"{dev.name}: PASID {pasid} cannot be blocked ({ret})")


def iommu_attach_device_pasid(domain: IommuDomain, dev: Device, pasid: int, handle: object) -> int:
    """Attach ``domain`` to ``pasid`` of all devices of the group; -EBUSY if that PASID has one."""
    ret = _check(domain, dev, pasid)
    if ret:
        return ret
    group = dev.iommu_group
    assert group is not None
    if pasid in group.pasid_array:
        return -EBUSY
    ret = _set_group_pasid(domain, group, pasid, None)
    if not ret:
        group.pasid_array[pasid] = (domain, handle)
    return ret


def iommu_replace_device_pasid(domain: IommuDomain, dev: Device, pasid: int, handle: object | None) -> int:
    """Swap domain and handle of ``pasid``; on an error both stay.  -EINVAL if nothing is attached."""
    ret = _check(domain, dev, pasid)
    if ret:
        return ret
    group = dev.iommu_group
    assert group is not None
    entry = group.pasid_array.get(pasid)
    if entry is None or handle is None:
        return -EINVAL
    old, old_handle = entry
    if group.iommu.printk.warn_on(old_handle is handle, f"{dev.name}: PASID {pasid} replaced by its own handle"):
        return -EINVAL
    if old is not domain:
        ret = _set_group_pasid(domain, group, pasid, old)
        if ret:
            return ret
    group.pasid_array[pasid] = (domain, handle)
    return 0


def iommu_detach_device_pasid(domain: IommuDomain, dev: Device, pasid: int) -> None:
    """Block ``pasid`` on all devices of the group."""
    group = dev.iommu_group
    if group is None:
        return
    entry = group.pasid_array.pop(pasid, None)
    wrong = entry is None or entry[0] is not domain
    group.iommu.printk.warn_on(wrong, f"{dev.name}: detach of a domain that PASID {pasid} does not have")
    for other in _users(group):
        _block(other, pasid, domain)


def iommu_attach_handle_get(group: IommuGroup, pasid: int, type: int = 0) -> tuple[int, object | None]:
    """(0, handle) of ``pasid``; -ENOENT if there is none, -EBUSY if its domain is not of ``type`` (0: any)."""
    entry = group.pasid_array.get(pasid)
    if entry is None:
        return -ENOENT, None
    if type and entry[0].type != type:
        return -EBUSY, None
    return 0, entry[1]
