# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups: devices that cannot be told apart or isolated from each other, and so share a domain at all times.

Switching a group's domain device by device, and undoing that when one refuses, is in ``iommu_group_set_domain``
(drivers/iommu/iommu.c, __iommu_group_set_domain_internal).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abi.errno import EBUSY, EINVAL
from guest_driver.linux.iommu import IOMMU_DOMAIN_BLOCKED, IommuDomain

if TYPE_CHECKING:
    from guest_driver.linux.device import Device
    from guest_driver.linux.iommu_core import Iommu


class IommuGroup:
    """struct iommu_group.  ``pasid_array`` maps a PASID to (domain, handle); entry 0 is the whole group's handle."""

    __slots__ = (
        "blocking_domain",
        "default_domain",
        "devices",
        "domain",
        "id",
        "iommu",
        "owner",
        "owner_cnt",
        "pasid_array",
        "resetting_domain",
    )

    def __init__(self, iommu: Iommu) -> None:
        self.iommu = iommu
        self.id = iommu.next_group_id
        self.devices: list[Device] = []
        self.default_domain: IommuDomain | None = None
        self.blocking_domain: IommuDomain | None = None
        self.domain: IommuDomain | None = None
        """What the group is attached to now."""
        self.owner: object | None = None
        self.owner_cnt = 0
        self.pasid_array: dict[int, tuple[IommuDomain, object]] = {}
        self.resetting_domain: IommuDomain | None = None
        """Set while a device of the group is being reset: attachment changes are refused meanwhile."""
        iommu.next_group_id += 1
        iommu.groups.append(self)

    def __repr__(self) -> str:
        return f"<IommuGroup {self.id}: {', '.join(dev.name for dev in self.devices)}>"

    def save(self) -> Any:
        return (
            list(self.devices),
            self.default_domain,
            self.blocking_domain,
            self.domain,
            self.owner,
            self.owner_cnt,
            dict(self.pasid_array),
            self.resetting_domain,
        )

    def restore(self, state: Any) -> None:
        (
            devices,
            self.default_domain,
            self.blocking_domain,
            self.domain,
            self.owner,
            self.owner_cnt,
            pasids,
            self.resetting_domain,
        ) = state
        self.devices[:] = devices
        self.pasid_array = dict(pasids)


def generic_device_group(dev: Device) -> IommuGroup | int:
    """A group of its own for ``dev``."""
    return IommuGroup(dev.kernel.iommu)


def iommu_group_alloc(iommu: Iommu) -> IommuGroup:
    return IommuGroup(iommu)


def attach_dev(domain: IommuDomain, dev: Device, old: IommuDomain | None) -> int:
    """The driver's attach_dev; clears a deferred attach that has now happened."""
    ret = domain.ops.attach_dev(domain, dev, old)
    if ret == 0 and dev.iommu is not None:
        dev.iommu.attach_deferred = False
    return ret


def device_set_domain(group: IommuGroup, dev: Device, domain: IommuDomain, must_succeed: bool) -> int:
    """Move one device of ``group`` to ``domain`` on behalf of the group."""
    iommu = dev.iommu
    assert iommu is not None
    blocks = domain.type == IOMMU_DOMAIN_BLOCKED or domain is group.blocking_domain
    if blocks and iommu.require_direct:
        group.iommu.printk.err(f"{dev.name}: firmware needs its reserved regions mapped, blocking is refused")
        return -EINVAL
    if iommu.attach_deferred:
        if domain is group.default_domain:
            return 0
        iommu.attach_deferred = False
    old = group.domain
    ret = attach_dev(domain, dev, old)
    if ret and must_succeed:
        # The device must not stay where it is: its old domain is about to be freed.
        blocking = group.blocking_domain
        if blocking is not None and blocking is not domain:
            attach_dev(blocking, dev, old)
    return ret


def iommu_group_set_domain(group: IommuGroup, domain: IommuDomain | None, must_succeed: bool = False) -> int:
    """Attach every device of ``group`` to ``domain``.

    The first refusal is the result; devices moved before it go back and the group stays where it was.  With
    ``must_succeed`` the switch goes on through refusals (each such device is blocked instead) and the group is on
    ``domain`` afterwards whatever the result, which is the last refusal.
    """
    printk = group.iommu.printk
    if group.domain is domain:
        return 0
    if printk.warn_on(domain is None, f"group {group.id}: no domain to attach"):
        return -EINVAL
    assert domain is not None
    if group.resetting_domain is not None and not must_succeed:
        return -EBUSY
    result = 0
    for position, dev in enumerate(group.devices):
        ret = device_set_domain(group, dev, domain, must_succeed)
        if not ret:
            continue
        result = ret
        if must_succeed:
            continue
        _revert(group, group.devices[:position], domain)
        return result
    group.domain = domain
    return result


def _revert(group: IommuGroup, moved: list[Device], domain: IommuDomain) -> None:
    """Bring devices already moved to ``domain`` back to the group's domain."""
    back = group.domain
    for dev in moved:
        if back is None:
            # The first attach of the group's life: there is nothing to go back to.
            continue
        if back is group.default_domain and dev.iommu is not None and dev.iommu.attach_deferred:
            continue
        ret = attach_dev(back, dev, domain)
        if ret:
            group.iommu.printk.warn_on(True, f"{dev.name}: cannot return to its previous domain ({ret})")
            blocking = group.blocking_domain
            if blocking is not None:
                attach_dev(blocking, dev, domain)
