# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of the IOMMU core (the static variables of drivers/iommu/iommu.c) and the life of domains.

Every domain that is not static is listed here from allocation to free, so that a leak has a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abi.errno import ENODEV, ENOMEM, EOPNOTSUPP
from guest_driver.linux.iommu import (
    IOMMU_DOMAIN_DMA,
    IOMMU_DOMAIN_DMA_FQ,
    IOMMU_DOMAIN_IDENTITY,
    IOMMU_DOMAIN_NESTED,
    IOMMU_DOMAIN_UNMANAGED,
    IommuDevice,
    IommuDomain,
    IommuOps,
)
from guest_driver.linux.printk import Printk

if TYPE_CHECKING:
    from guest_driver.linux.device import Device
    from guest_driver.linux.iommu_group import IommuGroup


class Iommu:
    """What the IOMMU core knows: registered IOMMUs, groups, live domains and the policy for default domains."""

    __slots__ = ("def_domain_type", "devices", "domains", "global_pasids", "groups", "next_group_id", "printk")

    def __init__(self, printk: Printk, passthrough: bool, strict: bool) -> None:
        self.printk = printk
        if passthrough:
            self.def_domain_type = IOMMU_DOMAIN_IDENTITY
        else:
            self.def_domain_type = IOMMU_DOMAIN_DMA if strict else IOMMU_DOMAIN_DMA_FQ
        self.devices: list[IommuDevice] = []
        self.groups: list[IommuGroup] = []
        self.next_group_id = 0
        self.global_pasids: set[int] = set()
        """PASIDs that belong to a process."""
        self.domains: dict[IommuDomain, None] = {}
        """Allocated domains that are not freed yet, oldest first."""

    def save(self) -> Any:
        static = [domain for device in self.devices for domain in device.ops.static_domains()]
        return (
            list(self.devices),
            [(group, group.save()) for group in self.groups],
            self.next_group_id,
            [(domain, domain.save()) for domain in self.domains],
            [(domain, domain.save()) for domain in static],
            set(self.global_pasids),
        )

    def restore(self, state: Any) -> None:
        devices, groups, self.next_group_id, domains, static, pasids = state
        self.devices[:] = devices
        self.groups[:] = [group for group, _ in groups]
        for group, saved in groups:
            group.restore(saved)
        self.domains = {domain: None for domain, _ in domains}
        for domain, saved in domains:
            domain.restore(saved)
        for domain, saved in static:
            domain.restore(saved)
        self.global_pasids = set(pasids)


def dev_iommu_ops(dev: Device) -> IommuOps | None:
    """The driver that claimed ``dev``, ``None`` if no driver did."""
    iommu = dev.iommu
    if iommu is None or iommu.iommu_dev is None:
        return None
    return iommu.iommu_dev.ops


def device_iommu_capable(dev: Device, cap: int) -> bool:
    """Whether the IOMMU in front of ``dev`` has capability ``cap``; False without an IOMMU."""
    ops = dev_iommu_ops(dev)
    return ops is not None and ops.capable is not None and ops.capable(dev, cap)


def iommu_domain_init(domain: IommuDomain, type: int, iommu: Iommu, ops: IommuOps) -> None:
    """Fill in what the driver's allocation leaves to the core."""
    domain.type = type
    domain.owner = ops
    domain.iommu = iommu
    if domain.ops is None:
        domain.ops = ops.default_domain_ops


def paging_domain_alloc(dev: Device, type: int) -> IommuDomain | int:
    """A new paging domain of ``type`` for ``dev``; -ENODEV without an IOMMU, -EOPNOTSUPP, or the driver's error."""
    ops = dev_iommu_ops(dev)
    if ops is None:
        return -ENODEV
    if ops.domain_alloc_paging is not None:
        return _adopt(dev, ops, ops.domain_alloc_paging(dev), type)
    return domain_alloc_by_type(dev, ops, type)


def domain_alloc_by_type(dev: Device, ops: IommuOps, type: int) -> IommuDomain | int:
    """What drivers had before there were static domains: one function for all types; -EOPNOTSUPP without it."""
    if ops.domain_alloc is None:
        return -EOPNOTSUPP
    return _adopt(dev, ops, ops.domain_alloc(type) or -ENOMEM, type)


def _adopt(dev: Device, ops: IommuOps, domain: IommuDomain | int, type: int) -> IommuDomain | int:
    """Take a domain that the driver has just made into the books; its error passes through."""
    if isinstance(domain, int):
        return domain or -ENOMEM
    iommu = dev.kernel.iommu
    iommu_domain_init(domain, type, iommu, ops)
    iommu.domains[domain] = None
    return domain


def iommu_paging_domain_alloc_flags(dev: Device, flags: int) -> IommuDomain | int:
    """A paging domain with properties that user space asked for; -EOPNOTSUPP if the driver has no such thing."""
    ops = dev_iommu_ops(dev)
    if ops is None:
        return -ENODEV
    if ops.domain_alloc_paging_flags is None:
        return iommu_paging_domain_alloc(dev) if not flags else -EOPNOTSUPP
    return _adopt(dev, ops, ops.domain_alloc_paging_flags(dev, flags), IOMMU_DOMAIN_UNMANAGED)


def iommu_nested_domain_alloc(
    dev: Device, parent: IommuDomain, flags: int, data_type: int, data: bytes
) -> IommuDomain | int:
    """A domain whose first stage is user space's, over ``parent``; -EOPNOTSUPP or the driver's error."""
    ops = dev_iommu_ops(dev)
    if ops is None or ops.domain_alloc_nested is None:
        return -EOPNOTSUPP
    return iommu_adopt_nested(dev, ops.domain_alloc_nested(dev, parent, flags, data_type, data))


def iommu_adopt_nested(dev: Device, domain: IommuDomain | int) -> IommuDomain | int:
    """Take a nested domain that a driver has just made into the books; its error passes through."""
    ops = dev_iommu_ops(dev)
    return -ENODEV if ops is None else _adopt(dev, ops, domain, IOMMU_DOMAIN_NESTED)


def iommu_paging_domain_alloc(dev: Device) -> IommuDomain | int:
    """A domain whose mappings the caller manages (VFIO, iommufd, drivers with their own layout)."""
    return paging_domain_alloc(dev, IOMMU_DOMAIN_UNMANAGED)


def iommu_domain_free(domain: IommuDomain) -> None:
    """Give a domain back to its driver; static domains stay."""
    registry = domain.iommu.domains
    if domain not in registry:
        return
    if domain.cookie is not None:
        domain.cookie.put()
        domain.cookie = None
    del registry[domain]
    if domain.ops.free is not None:
        domain.ops.free(domain)


def domain_ops_compatible(ops: IommuOps, domain: IommuDomain) -> bool:
    """Whether ``domain`` is one that driver ``ops`` can attach: its own, or one of its static domains."""
    return domain.owner is ops or domain in (ops.identity_domain, ops.blocked_domain)
