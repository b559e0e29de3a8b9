# SPDX-License-Identifier: GPL-2.0-or-later
"""Which domain a group is on when nobody asks for another (drivers/iommu/iommu.c).

The choice: the driver's word, else the command line's; the switch: mappings that firmware needs are in the new
domain before the first device moves to it, and the old domain is freed only when all have moved.
"""

from abi.errno import EINVAL, EPERM
from guest_driver.linux.device import Device
from guest_driver.linux.dma_cookie import iommu_get_dma_cookie
from guest_driver.linux.dma_domain import iommu_dma_init_fq, iommu_setup_dma_ops
from guest_driver.linux.iommu import (
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_DMA,
    IOMMU_DOMAIN_DMA_API_BIT,
    IOMMU_DOMAIN_DMA_FQ,
    IOMMU_DOMAIN_IDENTITY,
    IommuDomain,
)
from guest_driver.linux.iommu_core import dev_iommu_ops, domain_alloc_by_type, iommu_domain_free, paging_domain_alloc
from guest_driver.linux.iommu_group import IommuGroup, iommu_group_set_domain
from guest_driver.linux.iommu_resv import iommu_create_device_direct_mappings

_TYPE_NAMES = {
    IOMMU_DOMAIN_BLOCKED: "blocked",
    IOMMU_DOMAIN_IDENTITY: "identity",
    IOMMU_DOMAIN_DMA: "DMA",
    IOMMU_DOMAIN_DMA_FQ: "DMA-FQ",
}


def _def_domain_type(dev: Device) -> int:
    ops = dev_iommu_ops(dev)
    if ops is None or ops.def_domain_type is None:
        return 0
    return ops.def_domain_type(dev)


def iommu_get_default_domain_type(group: IommuGroup, target_type: int) -> int:
    """The type that the group's driver and devices insist on, or ``target_type`` (0: none); -EINVAL if they clash.

    Devices that disagree get IDENTITY; an untrusted device gets DMA or nothing.
    """
    printk = group.iommu.printk
    wanted = 0
    untrusted: Device | None = None
    for dev in group.devices:
        if dev.pci.untrusted:
            untrusted = dev
        opinion = _def_domain_type(dev)
        if opinion and wanted and opinion != wanted:
            printk.info(f"group {group.id}: devices disagree about the default domain type, identity wins")
            opinion = IOMMU_DOMAIN_IDENTITY
        wanted = opinion or wanted
    if untrusted is not None:
        if wanted not in (0, IOMMU_DOMAIN_DMA):
            printk.err(f"{untrusted.name}: not trusted, but its driver insists on {_TYPE_NAMES[wanted]}")
            return -EINVAL
        wanted = IOMMU_DOMAIN_DMA
    if target_type:
        if wanted and target_type != wanted:
            printk.err(f"group {group.id}: {_TYPE_NAMES[target_type]} asked for, {_TYPE_NAMES[wanted]} required")
            return -EINVAL
        return target_type
    return wanted


def _domain_alloc(group: IommuGroup, type: int) -> IommuDomain | int:
    dev = group.devices[0]
    ops = dev_iommu_ops(dev)
    assert ops is not None
    if type == IOMMU_DOMAIN_IDENTITY:
        return ops.identity_domain or domain_alloc_by_type(dev, ops, type)
    if type == IOMMU_DOMAIN_BLOCKED:
        return ops.blocked_domain or domain_alloc_by_type(dev, ops, type)
    return paging_domain_alloc(dev, type)


def iommu_group_alloc_default_domain(group: IommuGroup, required: int) -> IommuDomain | int:
    """A domain of type ``required``; 0: of the command line's type, or DMA if that one cannot be had."""
    ops = dev_iommu_ops(group.devices[0])
    assert ops is not None
    if ops.default_domain is not None:
        return ops.default_domain if required in (0, ops.default_domain.type) else -EINVAL
    if required:
        return _domain_alloc(group, required)
    preferred = group.iommu.def_domain_type
    domain = _domain_alloc(group, preferred)
    if not isinstance(domain, int):
        return domain
    if preferred == IOMMU_DOMAIN_DMA:
        return -EINVAL
    group.iommu.printk.err(f"group {group.id}: no {_TYPE_NAMES[preferred]} domain, falling back to DMA")
    domain = _domain_alloc(group, IOMMU_DOMAIN_DMA)
    return -EINVAL if isinstance(domain, int) else domain


def iommu_setup_default_domain(group: IommuGroup, target_type: int = 0) -> int:
    """Give ``group`` a default domain and attach it; on an error the previous one is in force again.

    The first attach of a group is one that must succeed: on an error the group is on the new domain nevertheless and
    the caller has to release its devices.
    """
    printk = group.iommu.printk
    required = iommu_get_default_domain_type(group, target_type)
    if required < 0:
        return -EINVAL
    domain = iommu_group_alloc_default_domain(group, required)
    if isinstance(domain, int):
        return domain
    if domain is group.default_domain:
        return 0
    if domain.type & IOMMU_DOMAIN_DMA_API_BIT:
        iommu_get_dma_cookie(domain)
    direct_failed = False
    for dev in group.devices:
        if iommu_create_device_direct_mappings(domain, dev):
            direct_failed = True
            printk.err(f"{dev.name}: firmware's regions could not be mapped before the device is attached")
    old = group.default_domain
    group.default_domain = domain
    if group.domain is None:
        ret = iommu_group_set_domain(group, domain, must_succeed=True)
        if printk.warn_on(ret != 0, f"group {group.id}: first attach failed ({ret})"):
            return ret
    else:
        ret = iommu_group_set_domain(group, domain)
        if ret:
            group.default_domain = old
            iommu_domain_free(domain)
            return ret
    if direct_failed:
        for dev in group.devices:
            ret = iommu_create_device_direct_mappings(domain, dev)
            if ret:
                if old is not None:
                    back = iommu_group_set_domain(group, old, must_succeed=True)
                    printk.warn_on(back != 0, f"group {group.id}: cannot return to its old domain ({back})")
                    group.default_domain = old
                    iommu_domain_free(domain)
                return ret
    if old is not None:
        iommu_domain_free(old)
    return 0


def iommu_group_store_type(group: IommuGroup, text: str) -> int:
    """Write ``text`` to /sys/kernel/iommu_groups/N/type as root; 0 or -errno.

    "identity", "DMA", "DMA-FQ" or "auto".  -EINVAL: none of these, or the driver insists on another; -EPERM: a
    driver is bound or the group is empty.  Going from DMA to DMA-FQ is possible while the group is in use.
    """
    types = {"identity": IOMMU_DOMAIN_IDENTITY, "DMA": IOMMU_DOMAIN_DMA, "DMA-FQ": IOMMU_DOMAIN_DMA_FQ, "auto": 0}
    if text.strip() not in types:
        return -EINVAL
    target = types[text.strip()]
    default = group.default_domain
    if not group.devices or default is None:
        return -EPERM
    if target == IOMMU_DOMAIN_DMA_FQ and default.type == IOMMU_DOMAIN_DMA:
        ret = iommu_dma_init_fq(default, group.devices[0])
        if not ret:
            default.type = IOMMU_DOMAIN_DMA_FQ
        return ret
    if group.owner_cnt:
        return -EPERM
    ret = iommu_setup_default_domain(group, target)
    if not ret:
        assert group.default_domain is not None
        for dev in group.devices:
            iommu_setup_dma_ops(dev, group.default_domain)
    return ret
