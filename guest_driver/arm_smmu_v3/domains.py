# SPDX-License-Identifier: GPL-2.0-or-later
"""Masters and domains of the arm-smmu-v3 driver: attaching a stream, attaching a PASID.

Every master has one table of context descriptors; a domain knows the (master, PASID) pairs that use it, which is where
its invalidations go.  A pair is put on the new domain's list before hardware may use that domain, and taken off the
old one's when hardware no longer can, so an invalidation in between reaches both.

Locks: ``asid_lock`` keeps an ASID from being given away while a descriptor with it is written; ``devices_lock`` of a
domain, inside it, covers its list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from abi.errno import EINVAL, ENODEV, ENOMEM, ENOSPC
from base.units import PAGE_SIZE
from guest_driver.arm_smmu_v3.ctx_desc import (
    CtxDescTable,
    arm_smmu_alloc_cd_ptr,
    arm_smmu_clear_cd,
    arm_smmu_free_cd_tables,
    arm_smmu_make_cd,
    arm_smmu_write_cd_entry,
    read_cd,
)
from guest_driver.arm_smmu_v3.layouts import (
    S1DSS_BYPASS,
    S1DSS_SSID0,
    S1DSS_TERMINATE,
    Command,
    Entry,
    cfgi_cd,
    tlbi_asid,
    tlbi_va,
)
from guest_driver.arm_smmu_v3.port import SmmuFeatures, SmmuPort
from guest_driver.arm_smmu_v3.stream_entries import (
    arm_smmu_make_abort_ste,
    arm_smmu_make_bypass_ste,
    arm_smmu_make_cdtable_ste,
)
from guest_driver.linux.device import Device
from guest_driver.linux.io_pgtable_arm import INPUT_BITS, PGSIZES, IoPgtable
from guest_driver.linux.iommu import (
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_IDENTITY,
    IOMMU_NO_PASID,
    IommuDevice,
    IommuDomain,
    IommuDomainOps,
    IommuIotlbGather,
    IommuOps,
)
from guest_driver.linux.iommu_probe import iommu_device_register, iommu_device_unregister
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.mutex import Mutex
from guest_driver.linux.pci_group import pci_device_group

_MOST_PAGES: Final = 16
"""Longest invalidation that names its pages."""


class ArmSmmuDomain(IommuDomain):
    """A stage 1 address space: a tree and an ASID."""

    __slots__ = ("asid", "devices", "devices_lock", "pgtable", "smmu")

    def __init__(self, smmu: ArmSmmuDevice, pgtable: IoPgtable, ops: IommuDomainOps) -> None:
        super().__init__(ops=ops)
        self.smmu: Final = smmu
        self.pgtable: Final = pgtable
        self.asid = 0
        self.devices: list[tuple[ArmSmmuMaster, int]] = []
        self.devices_lock: Final = Mutex("devices_lock", smmu.kernel)


class ArmSmmuMaster:
    """A device: its streams, its descriptors, and the domain of its requests without a PASID."""

    def __init__(self, smmu: ArmSmmuDevice, dev: Device) -> None:
        self.smmu: Final = smmu
        self.dev: Final = dev
        self.sids: Final = (dev.pci.sbdf & 0xFFFF,)
        self.ssid_bits: Final = min(smmu.features.ssid_bits, max(dev.pci.max_pasids, 1).bit_length() - 1)
        self.cd_table: Final = CtxDescTable()
        self.domain: IommuDomain | None = None


SetPasid = Callable[[ArmSmmuMaster, ArmSmmuDomain, int, Entry, IommuDomain | None], int]


class ArmSmmuDevice:
    """The driver of one unit.  ``set_pasid`` and ``remove_pasid`` are how descriptors of PASIDs come and go."""

    def __init__(self, kernel: Kernel, port: SmmuPort) -> None:
        self.kernel: Final = kernel
        self.port: Final = port
        self.features: Final[SmmuFeatures] = port.features
        self.unit: Final = IommuDevice("arm-smmu-v3")
        self.unit.max_pasids = 1 << self.features.ssid_bits if self.features.ssid_bits else 0
        self.asids: Final[dict[int, ArmSmmuDomain]] = {}
        self.asid_lock: Final = Mutex("arm_smmu_asid_lock", kernel)
        self.masters: Final[dict[Device, ArmSmmuMaster]] = {}
        self.set_pasid: SetPasid = arm_smmu_set_pasid
        self.remove_pasid: Callable[[ArmSmmuMaster, ArmSmmuDomain, int], None] = arm_smmu_remove_pasid
        self.joins_list = True
        """A (master, PASID) pair is put on its domain's list."""
        static = IommuDomainOps(attach_dev=self.arm_smmu_attach_dev_identity)
        blocked = IommuDomainOps(
            attach_dev=self.arm_smmu_attach_dev_blocked, set_dev_pasid=self.arm_smmu_blocking_set_dev_pasid
        )
        self.identity: Final = IommuDomain(IOMMU_DOMAIN_IDENTITY, static)
        self.blocked: Final = IommuDomain(IOMMU_DOMAIN_BLOCKED, blocked)
        self.domain_ops: Final = IommuDomainOps(
            attach_dev=self.arm_smmu_attach_dev,
            map_pages=lambda domain, iova, paddr, size, count, prot, gfp: domain.pgtable.map_pages(
                iova, paddr, size, count, prot
            ),
            unmap_pages=self.arm_smmu_unmap_pages,
            iotlb_sync=self.arm_smmu_iotlb_sync,
            flush_iotlb_all=lambda domain: self.invalidate_asid(domain),
            iova_to_phys=lambda domain, iova: domain.pgtable.iova_to_phys(iova),
            set_dev_pasid=self.arm_smmu_s1_set_dev_pasid,
            free=self.arm_smmu_domain_free,
        )
        from guest_driver.arm_smmu_v3.sva import arm_smmu_sva_domain_alloc

        self.ops: Final = IommuOps(
            name="arm-smmu-v3",
            probe_device=self.arm_smmu_probe_device,
            device_group=pci_device_group,
            default_domain_ops=self.domain_ops,
            domain_alloc_paging=self.arm_smmu_domain_alloc_paging,
            domain_alloc_sva=lambda dev, mm: arm_smmu_sva_domain_alloc(self, mm),
            capable=lambda dev, cap: cap == IOMMU_CAP_CACHE_COHERENCY,
            release_device=self.arm_smmu_release_device,
            identity_domain=self.identity,
            blocked_domain=self.blocked,
            release_domain=self.blocked,
        )

    def register(self) -> int:
        """Probe every device of the kernel; 0 or -errno."""
        return iommu_device_register(self.kernel, self.unit, self.ops)

    def unregister(self) -> None:
        iommu_device_unregister(self.kernel, self.unit)

    # -- commands

    def issue(self, commands: list[Command]) -> None:
        ret = self.port.issue(commands)
        self.kernel.printk.warn_on(ret != 0, f"arm-smmu-v3: commands were not confirmed ({ret})")

    def sync_cd(self, master: ArmSmmuMaster, ssid: int) -> None:
        """arm_smmu_sync_cd: forget the descriptor of ``ssid``."""
        self.issue([cfgi_cd(sid, ssid, leaf=True) for sid in master.sids])

    def invalidate_asid(self, domain: ArmSmmuDomain) -> None:
        self.issue([tlbi_asid(domain.asid)])

    def invalidate_range(self, domain: ArmSmmuDomain, start: int, end: int) -> None:
        """Forget ``start`` to ``end`` (exclusive) under the domain's ASID."""
        if end - start > _MOST_PAGES * PAGE_SIZE:
            self.invalidate_asid(domain)
        else:
            self.issue([tlbi_va(domain.asid, va) for va in range(start & -PAGE_SIZE, end, PAGE_SIZE)])

    # -- ASIDs

    def alloc_asid(self, domain: ArmSmmuDomain) -> int:
        """The lowest free ASID becomes the domain's: 0 or -ENOSPC."""
        with self.asid_lock:
            last = 1 << self.features.asid_bits
            asid = next((number for number in range(1, last) if number not in self.asids), 0)
            if not asid:
                return -ENOSPC
            self.asids[asid] = domain
            domain.asid = asid
        return 0

    def free_asid(self, domain: ArmSmmuDomain) -> None:
        """No descriptor has it any more; what was cached under it goes before it is used again."""
        self.invalidate_asid(domain)
        with self.asid_lock:
            self.asids.pop(domain.asid, None)

    # -- devices

    def arm_smmu_probe_device(self, dev: Device) -> IommuDevice | int:
        master = ArmSmmuMaster(self, dev)
        for sid in master.sids:
            ret = self.port.prepare_stream(sid)
            if ret:
                return ret
        self.masters[dev] = master
        return self.unit

    def arm_smmu_release_device(self, dev: Device) -> None:
        master = self.masters.pop(dev, None)
        if master is not None:
            arm_smmu_free_cd_tables(master)

    # -- paging domains

    def arm_smmu_domain_alloc_paging(self, dev: Device) -> IommuDomain | int:
        """An empty stage 1 domain; -ENOMEM or -ENOSPC."""
        if not self.kernel.kzalloc("arm_smmu_domain"):
            return -ENOMEM
        pgtable = IoPgtable(self.kernel)
        ret = pgtable.alloc()
        if ret:
            return ret
        domain = ArmSmmuDomain(self, pgtable, self.domain_ops)
        ret = self.alloc_asid(domain)
        if ret:
            pgtable.free()
            return ret
        domain.pgsize_bitmap = PGSIZES
        domain.aperture_last = (1 << INPUT_BITS) - 1
        domain.force_aperture = True
        return domain

    def arm_smmu_domain_free(self, domain: ArmSmmuDomain) -> None:
        self.free_asid(domain)
        domain.pgtable.free()

    def arm_smmu_unmap_pages(
        self, domain: ArmSmmuDomain, iova: int, pgsize: int, pgcount: int, gather: IommuIotlbGather
    ) -> int:
        size = domain.pgtable.unmap_pages(iova, pgsize, pgcount)
        if size:
            gather.add_range(iova, size, pgsize)
        return size

    def arm_smmu_iotlb_sync(self, domain: ArmSmmuDomain, gather: IommuIotlbGather) -> None:
        if not gather.is_empty():
            self.invalidate_range(domain, gather.start, gather.last + 1)

    # -- attaching a stream

    def arm_smmu_attach_dev(self, domain: ArmSmmuDomain, dev: Device, old: IommuDomain | None) -> int:
        """Requests without a PASID go through ``domain``; -EINVAL for another unit's, -ENOMEM, the port's error."""
        master = self.masters.get(dev)
        if master is None:
            return -ENODEV
        if domain.smmu is not self:
            return -EINVAL
        cdptr = arm_smmu_alloc_cd_ptr(master, IOMMU_NO_PASID)
        if not cdptr:
            return -ENOMEM
        with self.asid_lock:
            ret = arm_smmu_attach_prepare(master, domain, IOMMU_NO_PASID)
            if ret:
                return ret
            before = read_cd(master, IOMMU_NO_PASID)
            target = arm_smmu_make_cd(domain.pgtable.root, domain.asid, self.features.oas)
            arm_smmu_write_cd_entry(master, IOMMU_NO_PASID, cdptr, target)
            ret = arm_smmu_install_ste_for_dev(master, arm_smmu_make_cdtable_ste(master.cd_table, S1DSS_SSID0))
            if ret:
                arm_smmu_write_cd_entry(master, IOMMU_NO_PASID, cdptr, before)
                arm_smmu_remove_master_domain(master, domain, IOMMU_NO_PASID)
                return ret
            master.cd_table.in_ste = True
            arm_smmu_attach_commit(master, domain, IOMMU_NO_PASID, master.domain)
            master.domain = domain
        return 0

    def arm_smmu_attach_dev_identity(self, domain: IommuDomain, dev: Device, old: IommuDomain | None) -> int:
        return self._attach_dev_ste(domain, dev, arm_smmu_make_bypass_ste(), S1DSS_BYPASS)

    def arm_smmu_attach_dev_blocked(self, domain: IommuDomain, dev: Device, old: IommuDomain | None) -> int:
        return self._attach_dev_ste(domain, dev, arm_smmu_make_abort_ste(), S1DSS_TERMINATE)

    def _attach_dev_ste(self, domain: IommuDomain, dev: Device, plain: Entry, s1dss: int) -> int:
        """Requests without a PASID bypass or abort; those with one keep their descriptors."""
        master = self.masters.get(dev)
        if master is None:
            return -ENODEV
        with self.asid_lock:
            in_use = bool(master.cd_table.ssids)
            ste = arm_smmu_make_cdtable_ste(master.cd_table, s1dss) if in_use else plain
            ret = arm_smmu_install_ste_for_dev(master, ste)
            if ret:
                return ret
            master.cd_table.in_ste = in_use
            arm_smmu_clear_cd(master, IOMMU_NO_PASID)
            arm_smmu_attach_commit(master, domain, IOMMU_NO_PASID, master.domain)
            master.domain = domain
        return 0

    # -- attaching a PASID

    def arm_smmu_s1_set_dev_pasid(self, domain: ArmSmmuDomain, dev: Device, pasid: int, old: IommuDomain | None) -> int:
        master = self.masters.get(dev)
        if master is None:
            return -ENODEV
        target = arm_smmu_make_cd(domain.pgtable.root, domain.asid, self.features.oas)
        return self.set_pasid(master, domain, pasid, target, old)

    def arm_smmu_blocking_set_dev_pasid(
        self, domain: IommuDomain, dev: Device, pasid: int, old: IommuDomain | None
    ) -> int:
        master = self.masters.get(dev)
        if master is None:
            return -ENODEV
        if isinstance(old, ArmSmmuDomain):
            self.remove_pasid(master, old, pasid)
        return 0


# ------------------------------------------------------------------------------------------ the steps of an attach


def arm_smmu_install_ste_for_dev(master: ArmSmmuMaster, target: Entry) -> int:
    for sid in master.sids:
        ret = master.smmu.port.write_ste(sid, target)
        if ret:
            return ret
    return 0


def arm_smmu_attach_prepare(master: ArmSmmuMaster, domain: ArmSmmuDomain, ssid: int) -> int:
    """Let invalidations of ``domain`` reach (master, ssid) from now on: 0 or -ENOMEM."""
    master.smmu.asid_lock.assert_held()
    if not master.smmu.kernel.kzalloc("arm_smmu_master_domain"):
        return -ENOMEM
    if master.smmu.joins_list or ssid == IOMMU_NO_PASID:
        with domain.devices_lock:
            domain.devices.append((master, ssid))
    return 0


def arm_smmu_remove_master_domain(master: ArmSmmuMaster, domain: IommuDomain | None, ssid: int) -> None:
    if isinstance(domain, ArmSmmuDomain):
        with domain.devices_lock:
            if (master, ssid) in domain.devices:
                domain.devices.remove((master, ssid))


def arm_smmu_attach_commit(master: ArmSmmuMaster, new: IommuDomain, ssid: int, old: IommuDomain | None) -> None:
    """Hardware has left ``old``: its invalidations need not reach (master, ssid) any more."""
    arm_smmu_remove_master_domain(master, old, ssid)


def arm_smmu_update_ste(master: ArmSmmuMaster) -> int:
    """See that the stream's entry leads to the descriptors, whatever requests without a PASID meet."""
    if master.cd_table.in_ste:
        return 0
    s1dss = S1DSS_BYPASS if master.domain is master.smmu.identity else S1DSS_TERMINATE
    ret = arm_smmu_install_ste_for_dev(master, arm_smmu_make_cdtable_ste(master.cd_table, s1dss))
    master.cd_table.in_ste = not ret
    return ret


def arm_smmu_set_pasid(
    master: ArmSmmuMaster, domain: ArmSmmuDomain, pasid: int, target: Entry, old: IommuDomain | None
) -> int:
    """Requests of ``master`` with ``pasid`` meet ``target``, a descriptor of ``domain``.

    -EINVAL for another unit's domain, a PASID that the master cannot send, or a stream whose entry cannot lead to
    descriptors; -ENOMEM; the port's error.  On an error nothing has changed.
    """
    smmu = master.smmu
    if domain.smmu is not smmu or pasid >> master.ssid_bits:
        return -EINVAL
    if not master.cd_table.in_ste and master.domain not in (smmu.identity, smmu.blocked):
        return -EINVAL
    cdptr = arm_smmu_alloc_cd_ptr(master, pasid)
    if not cdptr:
        return -ENOMEM
    with smmu.asid_lock:
        ret = arm_smmu_attach_prepare(master, domain, pasid)
        if ret:
            return ret
        before = read_cd(master, pasid)
        arm_smmu_write_cd_entry(master, pasid, cdptr, target)
        ret = arm_smmu_update_ste(master)
        if ret:
            arm_smmu_write_cd_entry(master, pasid, cdptr, before)
            arm_smmu_remove_master_domain(master, domain, pasid)
            return ret
        arm_smmu_attach_commit(master, domain, pasid, old)
    return 0


def arm_smmu_remove_pasid(master: ArmSmmuMaster, old: ArmSmmuDomain, pasid: int) -> None:
    """Requests of ``master`` with ``pasid`` are refused; an entry that nothing needs becomes a plain one."""
    smmu = master.smmu
    with smmu.asid_lock:
        arm_smmu_clear_cd(master, pasid)
        smmu.invalidate_asid(old)
        arm_smmu_remove_master_domain(master, old, pasid)
        if not master.cd_table.ssids and master.domain in (smmu.identity, smmu.blocked):
            plain = arm_smmu_make_bypass_ste() if master.domain is smmu.identity else arm_smmu_make_abort_ste()
            master.cd_table.in_ste = arm_smmu_install_ste_for_dev(master, plain) != 0
