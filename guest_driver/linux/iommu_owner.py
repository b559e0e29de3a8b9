# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may program a group's DMA: kernel drivers, all through the default domain, or one outside owner.

drivers/iommu/iommu.c, the iommu_*_dma_owner functions.  ``owner_cnt`` counts bound kernel drivers while ``owner``
is None, and claims of one owner otherwise.
"""

from abi.errno import EBUSY, EINVAL, ENODEV, EOPNOTSUPP, EPERM
from guest_driver.linux.device import Device
from guest_driver.linux.errno import EPROBE_DEFER
from guest_driver.linux.iommu import IOMMU_DOMAIN_BLOCKED, IommuDomain
from guest_driver.linux.iommu_attach import iommu_group_set_domain_nofail
from guest_driver.linux.iommu_core import dev_iommu_ops, domain_alloc_by_type, iommu_paging_domain_alloc
from guest_driver.linux.iommu_group import IommuGroup, iommu_group_set_domain


def iommu_device_use_default_domain(dev: Device) -> int:
    """A kernel driver is about to bind; -EBUSY while the group is somebody else's."""
    group = dev.iommu_group
    if group is None:
        return 0
    if group.default_domain is None:
        return -EPROBE_DEFER
    if group.owner_cnt and (group.owner is not None or group.domain is not group.default_domain or group.pasid_array):
        return -EBUSY
    group.owner_cnt += 1
    return 0


def iommu_device_unuse_default_domain(dev: Device) -> None:
    """The kernel driver is gone."""
    group = dev.iommu_group
    if group is None:
        return
    wrong = group.owner_cnt == 0 or bool(group.pasid_array)
    group.iommu.printk.warn_on(wrong, f"{dev.name}: unused a default domain that nobody used")
    if group.owner_cnt:
        group.owner_cnt -= 1


def iommu_group_claim_dma_owner(group: IommuGroup, owner: object | None) -> int:
    """Take the whole group for ``owner``; its devices are blocked until a domain is attached.

    -EPERM while drivers are bound or somebody owns it, -EBUSY if it is not on its default domain, or the error of
    allocating or attaching the blocking domain.
    """
    if group.iommu.printk.warn_on(owner is None, f"group {group.id}: claimed for nobody"):
        return -EINVAL
    if group.owner_cnt:
        return -EPERM
    return _take_ownership(group, owner)


def iommu_device_claim_dma_owner(dev: Device, owner: object | None) -> int:
    """:func:`iommu_group_claim_dma_owner` through one device; the same owner may claim for several devices."""
    group = dev.iommu_group
    if dev.kernel.printk.warn_on(owner is None, f"{dev.name}: claimed for nobody"):
        return -EINVAL
    if group is None:
        return -ENODEV
    if group.owner_cnt:
        if group.owner is not owner:
            return -EPERM
        group.owner_cnt += 1
        return 0
    return _take_ownership(group, owner)


def _take_ownership(group: IommuGroup, owner: object | None) -> int:
    if group.domain is not group.default_domain or group.pasid_array:
        return -EBUSY
    ret = group_alloc_blocking_domain(group)
    if ret:
        return ret
    ret = iommu_group_set_domain(group, group.blocking_domain)
    if ret:
        return ret
    group.owner = owner
    group.owner_cnt += 1
    return 0


def group_alloc_blocking_domain(group: IommuGroup) -> int:
    """Make sure that ``group.blocking_domain`` is there: the driver's static one, one that an old driver makes for the
    type BLOCKED, or an empty paging domain."""
    if group.blocking_domain is not None:
        return 0
    if not group.devices:
        return -ENODEV
    dev = group.devices[0]
    ops = dev_iommu_ops(dev)
    if ops is not None and ops.blocked_domain is not None:
        group.blocking_domain = ops.blocked_domain
        return 0
    domain: IommuDomain | int = -EOPNOTSUPP
    if ops is not None:
        domain = domain_alloc_by_type(dev, ops, IOMMU_DOMAIN_BLOCKED)
    if isinstance(domain, int):
        domain = iommu_paging_domain_alloc(dev)
    if isinstance(domain, int):
        return domain
    group.blocking_domain = domain
    return 0


def iommu_group_release_dma_owner(group: IommuGroup) -> None:
    """Give up one claim; with the last one the group returns to its default domain."""
    printk = group.iommu.printk
    wrong = group.owner_cnt == 0 or group.owner is None or bool(group.pasid_array)
    if printk.warn_on(wrong, f"group {group.id}: released by somebody who does not own it"):
        return
    group.owner_cnt -= 1
    if group.owner_cnt:
        return
    group.owner = None
    iommu_group_set_domain_nofail(group, group.default_domain)


def iommu_device_release_dma_owner(dev: Device) -> None:
    """Give up the claim made through ``dev``; while others remain, the group may well be attached."""
    group = dev.iommu_group
    if group is None:
        return
    if group.owner_cnt > 1 and group.owner is not None:
        group.owner_cnt -= 1
    else:
        iommu_group_release_dma_owner(group)


def iommu_group_dma_owner_claimed(group: IommuGroup) -> bool:
    """Whether anybody, a kernel driver or an owner, uses the group."""
    return group.owner_cnt != 0
