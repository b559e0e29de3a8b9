# SPDX-License-Identifier: GPL-2.0-or-later
"""An IOMMU driver whose tables are dicts: the core and iommufd without hardware underneath.

It has what no posted PV-IOMMU offers: units with and without snoop control, dirty bits, first stages that user space
owns.  :meth:`MockIommu.dma` is a device's access, with the faults that a wrong table causes.
"""

from __future__ import annotations

from typing import Final

from abi.errno import EEXIST, EINVAL, ENOMEM, EOPNOTSUPP
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import (
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_CAP_DIRTY_TRACKING,
    IOMMU_CAP_ENFORCE_CACHE_COHERENCY,
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_IDENTITY,
    IOMMU_DOMAIN_NESTED,
    IOMMU_READ,
    IOMMU_WRITE,
    IommuDevice,
    IommuDomain,
    IommuDomainOps,
    IommuIotlbGather,
    IommuOps,
    IommuResvRegion,
)
from guest_driver.linux.iommu_probe import iommu_device_register
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.pci_group import pci_device_group

DATA_TYPE: Final = 0xDEAD
"""User data of a nested table: one u64, the first-stage tag that devices get."""
DIRTY_FLAG: Final = 2
MOCK_PAGE: Final = 2048
"""Half a CPU page, so that nobody takes one for the other."""
APERTURE: Final = (16 << 20, (1 << 31) - 1)


class MockDomain(IommuDomain):
    """``table``: I/O page to (physical address, prot, snoop bit); ``starts``: where pages mapped in one piece begin."""

    __slots__ = ("devices", "dirty", "force_snooping", "name", "parent", "starts", "table", "tag", "tracking")

    def __init__(self, name: str, type: int = IOMMU_DOMAIN_BLOCKED, ops: IommuDomainOps | None = None) -> None:
        super().__init__(type, ops)
        self.name = name
        self.table: dict[int, tuple[int, int, bool]] = {}
        self.starts: dict[int, int] = {}
        self.devices: list[Device] = []
        self.force_snooping = False
        self.dirty: set[int] = set()
        self.tracking = False
        self.parent: MockDomain | None = None
        self.tag = 0

    def __repr__(self) -> str:
        return f"<{self.name}>"


class MockIommu:
    """The driver.  ``no_snoop_control`` names devices behind a unit without snoop control; ``refuse`` holds
    (domain or None, device name) to the error of such an attach; ``regions`` the reserved regions by device name."""

    def __init__(self, page: int = MOCK_PAGE, aperture: tuple[int, int] = APERTURE, checked: bool = True) -> None:
        self.page: Final = page
        self.aperture: Final = aperture
        self.checks_attach: Final = checked
        """attach_dev refuses a coherency-enforcing table for a device that cannot: as merged. False: as before."""
        self.no_snoop_control: set[str] = set()
        self.enforces: Final[bool] = True
        self.incoherent: set[str] = set()
        """Devices without CACHE_COHERENCY."""
        self.no_dirty: set[str] = set()
        self.regions: dict[str, list[IommuResvRegion]] = {}
        self.refuse: dict[tuple[IommuDomain | None, str], int] = {}
        self.calls: list[tuple[object, ...]] = []
        self.page_budget: int | None = None
        """Pages that can still be mapped; ``None`` is any number."""
        self.where: dict[str, MockDomain] = {}
        self.made = 0
        self.unit: Final = IommuDevice("mock")
        static = IommuDomainOps(attach_dev=self.attach_dev)
        self.blocked: Final = MockDomain("blocked", IOMMU_DOMAIN_BLOCKED, static)
        self.identity: Final = MockDomain("identity", IOMMU_DOMAIN_IDENTITY, static)
        self.ops: Final = IommuOps(
            name="mock",
            probe_device=lambda dev: self.unit,
            device_group=pci_device_group,
            default_domain_ops=self._paging_ops(False),
            domain_alloc_paging=lambda dev: self.domain_alloc(dev, 0),
            domain_alloc_paging_flags=self.domain_alloc,
            domain_alloc_nested=self.domain_alloc_nested,
            hw_info=lambda dev: (0xFEEDBEEF, (0xDEADBEEF).to_bytes(8, "little")),
            capable=self.capable,
            get_resv_regions=lambda dev: list(self.regions.get(dev.name, [])),
            def_domain_type=lambda dev: IOMMU_DOMAIN_IDENTITY,
            identity_domain=self.identity,
            blocked_domain=self.blocked,
            release_domain=self.blocked,
        )

    def register(self, kernel: Kernel) -> int:
        """Probe every device of ``kernel``; 0 or -errno."""
        return iommu_device_register(kernel, self.unit, self.ops)

    def _paging_ops(self, dirty: bool) -> IommuDomainOps:
        return IommuDomainOps(
            attach_dev=self.attach_dev,
            map_pages=self.map_pages,
            unmap_pages=self.unmap_pages,
            iova_to_phys=self.iova_to_phys,
            enforce_cache_coherency=self.enforce_cache_coherency,
            set_dirty_tracking=self.set_dirty_tracking if dirty else None,
            read_and_clear_dirty=self.read_and_clear_dirty if dirty else None,
            free=lambda domain: self.calls.append(("free", domain)),
        )

    def capable(self, dev: Device, cap: int) -> bool:
        if cap == IOMMU_CAP_CACHE_COHERENCY:
            return dev.name not in self.incoherent
        if cap == IOMMU_CAP_ENFORCE_CACHE_COHERENCY:
            return dev.name not in self.no_snoop_control
        return cap == IOMMU_CAP_DIRTY_TRACKING and dev.name not in self.no_dirty

    # -- domains

    def domain_alloc(self, dev: Device, flags: int) -> IommuDomain | int:
        if not dev.kernel.kzalloc("mock domain"):
            return -ENOMEM
        self.made += 1
        domain = MockDomain(f"domain{self.made}", ops=self._paging_ops(bool(flags & DIRTY_FLAG)))
        domain.pgsize_bitmap = self.page | self.page << 9
        domain.aperture_start, domain.aperture_last = self.aperture
        domain.force_aperture = True
        return domain

    def domain_alloc_nested(
        self, dev: Device, parent: IommuDomain, flags: int, data_type: int, data: bytes
    ) -> IommuDomain | int:
        if data_type != DATA_TYPE:
            return -EOPNOTSUPP
        if len(data) < 8 or not isinstance(parent, MockDomain):
            return -EINVAL
        if not dev.kernel.kzalloc("mock nested domain"):
            return -ENOMEM
        self.made += 1
        ops = IommuDomainOps(
            attach_dev=self.attach_dev,
            cache_invalidate_user=self.cache_invalidate_user,
            free=lambda domain: self.calls.append(("free", domain)),
        )
        domain = MockDomain(f"nested{self.made}", IOMMU_DOMAIN_NESTED, ops)
        domain.parent = parent
        domain.tag = int.from_bytes(data[:8], "little")
        return domain

    def cache_invalidate_user(self, domain: MockDomain, data_type: int, entries: list[bytes]) -> tuple[int, int]:
        """Entries are u64 tags; one that is not the table's own is refused."""
        if data_type != DATA_TYPE:
            return -EINVAL, 0
        for done, entry in enumerate(entries):
            if int.from_bytes(entry, "little") != domain.tag:
                return -EINVAL, done
            self.calls.append(("invalidate", domain.tag))
        return 0, len(entries)

    def attach_dev(self, domain: MockDomain, dev: Device, old: IommuDomain | None) -> int:
        errno = self.refuse.get((domain, dev.name), self.refuse.get((None, dev.name), 0))
        stage2 = domain.parent or domain
        if not errno and self.checks_attach and stage2.force_snooping and dev.name in self.no_snoop_control:
            errno = EINVAL
        if not errno and stage2.ops.set_dirty_tracking is not None and dev.name in self.no_dirty:
            errno = EINVAL
        self.calls.append(("attach", domain, dev.name, -errno))
        if errno:
            return -errno
        before = self.where.get(dev.name)
        if before is not None and dev in before.devices:
            before.devices.remove(dev)
        self.where[dev.name] = domain
        domain.devices.append(dev)
        return 0

    def enforce_cache_coherency(self, domain: MockDomain) -> bool:
        """From now on entries get the snoop bit; those that are there do not change."""
        if any(dev.name in self.no_snoop_control for dev in domain.devices):
            return False
        self.calls.append(("enforce", domain, len(domain.table)))
        domain.force_snooping = True
        return True

    # -- tables

    def map_pages(
        self, domain: MockDomain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int, gfp: int
    ) -> tuple[int, int]:
        self.calls.append(("map", domain, iova, paddr, pgsize, pgcount))
        for done in range(0, pgsize * pgcount, self.page):
            if self.page_budget is not None:
                if not self.page_budget:
                    self._trim(domain, iova, done)
                    return -ENOMEM, done
                self.page_budget -= 1
            if iova + done in domain.table:
                self._trim(domain, iova, done)
                return -EEXIST, done
            domain.table[iova + done] = (paddr + done, prot, domain.force_snooping)
        self._trim(domain, iova, pgsize * pgcount)
        return 0, pgsize * pgcount

    @staticmethod
    def _trim(domain: MockDomain, iova: int, length: int) -> None:
        if length:
            domain.starts[iova] = length

    def unmap_pages(self, domain: MockDomain, iova: int, pgsize: int, pgcount: int, gather: IommuIotlbGather) -> int:
        self.calls.append(("unmap", domain, iova, pgsize, pgcount))
        domain.starts.pop(iova, None)
        for done in range(0, pgsize * pgcount, self.page):
            if domain.table.pop(iova + done, None) is None:
                return done
            domain.dirty.discard(iova + done)
        return pgsize * pgcount

    def iova_to_phys(self, domain: MockDomain, iova: int) -> int:
        entry = domain.table.get(iova & -self.page)
        return 0 if entry is None else entry[0] + (iova & self.page - 1)

    def set_dirty_tracking(self, domain: MockDomain, enable: bool) -> int:
        domain.tracking = enable
        return 0

    def read_and_clear_dirty(self, domain: MockDomain, iova: int, size: int, keep: bool) -> list[tuple[int, int]] | int:
        if not domain.tracking and domain.dirty:
            return -EINVAL
        found = sorted(page for page in domain.dirty if iova <= page < iova + size)
        if not keep:
            domain.dirty.difference_update(found)
        return [(page, self.page) for page in found]

    # -- the device's side

    def dma(self, dev: Device, iova: int, write: bool = False, no_snoop: bool = False) -> str:
        """What becomes of one access: "ok", "incoherent" (it went around the caches), or the fault's name."""
        domain = self.where[dev.name]
        if domain is self.identity:
            return "ok"
        stage2 = domain.parent or domain
        entry = stage2.table.get(iova & -self.page)
        if entry is None:
            return "not present"
        _, prot, snoop = entry
        if snoop and dev.name in self.no_snoop_control:
            return "reserved bit"
        if not prot & (IOMMU_WRITE if write else IOMMU_READ):
            return "permission"
        if write and stage2.tracking:
            stage2.dirty.add(iova & -self.page)
        return "incoherent" if no_snoop and not snoop else "ok"
