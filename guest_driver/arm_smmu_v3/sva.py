# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains over the page tables of processes (arm-smmu-v3-sva.c).

While the process lives its descriptors point to its tables, and what it unmaps is invalidated under the domain's ASID.
When it ends while devices still send requests, the descriptors stay valid but translate nothing and record nothing:
the driver that bound the device is yet to be told, and until then an invalid descriptor would flood the event queue.
"""

from __future__ import annotations

from typing import Final

from abi.errno import EINVAL, ENODEV, ENOMEM
from guest_driver.arm_smmu_v3.ctx_desc import arm_smmu_get_cd_ptr, arm_smmu_make_cd, arm_smmu_write_cd_entry
from guest_driver.arm_smmu_v3.domains import ArmSmmuDevice, ArmSmmuDomain
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IommuDomain, IommuDomainOps
from guest_driver.sva.mm import MmStruct, mmget_not_zero, mmput, mmu_notifier_put, mmu_notifier_register


class ArmSmmuSvaDomain(ArmSmmuDomain):
    """The domain of ``mm``, and its notifier."""

    __slots__ = ("mm",)

    def __init__(self, smmu: ArmSmmuDevice, mm: MmStruct) -> None:
        super().__init__(smmu, mm.pgd, SVA_OPS)
        self.mm: Final = mm

    def release(self, mm: MmStruct) -> None:
        arm_smmu_mm_release(self)

    def arch_invalidate_secondary_tlbs(self, mm: MmStruct, start: int, end: int) -> None:
        arm_smmu_mm_arch_invalidate_secondary_tlbs(self, start, end)


def arm_smmu_mm_release(domain: ArmSmmuSvaDomain) -> None:
    """The process ends: quiet descriptors for every (master, PASID), then nothing stays cached.

    Allocates nothing: where a descriptor is valid its leaf is there.
    """
    smmu = domain.smmu
    with domain.devices_lock:
        for master, ssid in domain.devices:
            cdptr = arm_smmu_get_cd_ptr(master, ssid)
            if smmu.kernel.printk.warn_on(not cdptr, f"{master.dev.name}: PASID {ssid} has no descriptor"):
                continue
            arm_smmu_write_cd_entry(master, ssid, cdptr, arm_smmu_make_sva_cd(smmu, None, domain.asid))
    smmu.invalidate_asid(domain)


def arm_smmu_mm_arch_invalidate_secondary_tlbs(domain: ArmSmmuSvaDomain, start: int, end: int) -> None:
    domain.smmu.invalidate_range(domain, start, end)


def arm_smmu_make_sva_cd(smmu: ArmSmmuDevice, mm: MmStruct | None, asid: int) -> tuple[int, ...]:
    """The descriptor for ``mm``, or the quiet one."""
    return arm_smmu_make_cd(None if mm is None else mm.pgd.root, asid, smmu.features.oas)


def arm_smmu_sva_domain_alloc(smmu: ArmSmmuDevice, mm: MmStruct) -> ArmSmmuSvaDomain | int:
    """-ENOMEM, -ENOSPC without an ASID."""
    if not smmu.kernel.kzalloc("arm_smmu_domain"):
        return -ENOMEM
    domain = ArmSmmuSvaDomain(smmu, mm)
    ret = smmu.alloc_asid(domain)
    if ret:
        return ret
    ret = mmu_notifier_register(domain, mm)
    if ret:
        smmu.free_asid(domain)
        return ret
    return domain


def arm_smmu_sva_set_dev_pasid(domain: ArmSmmuSvaDomain, dev: Device, pasid: int, old: IommuDomain | None) -> int:
    """-EINVAL for a process that has ended, and what attaching a PASID answers."""
    smmu = domain.smmu
    master = smmu.masters.get(dev)
    if master is None:
        return -ENODEV
    if not mmget_not_zero(domain.mm):
        return -EINVAL
    target = arm_smmu_make_sva_cd(smmu, domain.mm, domain.asid)
    ret = smmu.set_pasid(master, domain, pasid, target, old)
    mmput(domain.mm)
    return ret


def arm_smmu_sva_domain_free(domain: ArmSmmuSvaDomain) -> None:
    domain.smmu.free_asid(domain)
    mmu_notifier_put(domain, domain.mm)


SVA_OPS: Final = IommuDomainOps(
    attach_dev=lambda domain, dev, old: -EINVAL,
    set_dev_pasid=arm_smmu_sva_set_dev_pasid,
    free=arm_smmu_sva_domain_free,
)
