# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls about PASIDs.

No posted hypervisor has PASIDs, so no driver here has; ``pasid-driver`` gives the driver under test the two functions
that the core asks for, over a table of the test bed's own (``World.pasids``), so that the core's part can be put
through failures: which devices of a group were changed, and what they were changed back to.
"""

from __future__ import annotations

from abi.errno import EINVAL, EIO
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_DOMAIN_BLOCKED, IommuDomain
from guest_driver.linux.iommu_pasid import (
    iommu_attach_device_pasid,
    iommu_detach_device_pasid,
    iommu_replace_device_pasid,
)
from guest_driver.xen_iommu import XenIommu
from testbed.validate.calling import named, named_domain
from testbed.validate.record import Step
from testbed.validate.world import World, patched

MAX_PASIDS = 64


@named("pasid-driver")
def _pasid_driver(world: World, step: Step) -> int:
    """Before boot: devices and driver have PASIDs."""
    world.patch_pci = patched(max_pasids=MAX_PASIDS)
    world.equip = lambda driver: _equip(world, driver)
    return 0


def _equip(world: World, driver: XenIommu) -> None:
    def set_dev_pasid(domain: IommuDomain, dev: Device, pasid: int, old: IommuDomain | None) -> int:
        if domain.type == IOMMU_DOMAIN_BLOCKED:
            world.pasids.pop((dev.pci.sbdf, pasid), None)
            return 0
        if world.pasid_fault is not None:
            world.pasid_fault -= 1
            if world.pasid_fault < 0:
                world.pasid_fault = None
                return -EIO
        world.pasids[dev.pci.sbdf, pasid] = domain
        return 0

    def equip_blocked() -> int:
        if driver.blocked is not None:
            driver.blocked.ops.set_dev_pasid = set_dev_pasid
        return 0

    driver.unit.max_pasids = MAX_PASIDS
    driver.domain_ops.set_dev_pasid = set_dev_pasid
    driver.static_domains.append(equip_blocked)


@named("pasid-fail")
def _pasid_fail(world: World, step: Step, position: int) -> int:
    """The next PASID attach fails at the group's device number ``position``, counted from 0."""
    world.pasid_fault = position
    return 0


def _note(world: World, step: Step, device: str) -> Device:
    """What there was before the call: the devices' domains and the group's entries."""
    dev = world.device(device)
    group = dev.iommu_group
    step.details.update(group=group, pasids=dict(world.pasids))
    if group is not None:
        step.details["entries"] = {pasid: entry[0] for pasid, entry in group.pasid_array.items()}
    return dev


@named("pasid")
def _pasid(world: World, step: Step, number: int, device: str, pasid: int) -> int:
    domain = named_domain(world, step, number)
    dev = _note(world, step, device)
    return -EINVAL if domain is None else iommu_attach_device_pasid(domain, dev, pasid, object())


@named("pasid-replace")
def _pasid_replace(world: World, step: Step, number: int, device: str, pasid: int) -> int:
    domain = named_domain(world, step, number)
    dev = _note(world, step, device)
    return -EINVAL if domain is None else iommu_replace_device_pasid(domain, dev, pasid, object())


@named("pasid-detach")
def _pasid_detach(world: World, step: Step, number: int, device: str, pasid: int) -> int:
    domain = named_domain(world, step, number)
    dev = _note(world, step, device)
    if domain is None:
        return -EINVAL
    iommu_detach_device_pasid(domain, dev, pasid)
    return 0
