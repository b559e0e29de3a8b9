# SPDX-License-Identifier: GPL-2.0-or-later
"""An IOMMU driver whose tables are dicts: the core and iommufd without hardware underneath.

It has what no posted PV-IOMMU offers: units with and without snoop control, dirty bits, first stages that user space
owns.  :meth:`MockIommu.dma` is a device's access, with the faults that a wrong table causes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from abi.errno import E2BIG, EEXIST, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP
from guest_driver.linux.device import Device
from guest_driver.linux.io_pgfault import IopfFault, IopfQueue, iommu_report_device_fault
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
"""User data of a nested table: one u32, what the words of its IOTLB are at first."""
INVALIDATE_TYPE: Final = 0xDEADBEEF
"""Invalidation of a nested table: u32 flags (bit 0: every word), u32 number of the word that is cleared."""
IOTLB_WORDS: Final = 4
CACHE_WORDS: Final = 4
CACHE_DEFAULT: Final = 0xBADDAD
HW_INFO_TYPE: Final = 0xFEEDBEEF
INVALIDATE_ALL: Final = 1
RESERVED_PASID: Final = 1024
"""The second attach under this PASID fails, so that a replace can be seen to fail."""
NEST_PARENT_FLAG: Final = 1
DIRTY_FLAG: Final = 2
PASID_FLAG: Final = 8
MOCK_PAGE: Final = 2048
"""Half a CPU page, so that nobody takes one for the other."""
APERTURE: Final = (16 << 20, (1 << 31) - 1)


def entry_words(entry: bytes, count: int) -> tuple[int, list[int]]:
    """(0, u32 words of a user entry), or (-EINVAL, []) if it is short, (-E2BIG, []) if it says more than is known."""
    if len(entry) < 4 * count:
        return -EINVAL, []
    if any(entry[4 * count :]):
        return -E2BIG, []
    return 0, [int.from_bytes(entry[at : at + 4], "little") for at in range(0, 4 * count, 4)]


def clear(words: list[int], flags: int, number: int) -> None:
    """Invalidate one word, or all of them."""
    if flags & INVALIDATE_ALL:
        words[:] = [0] * len(words)
    else:
        words[number] = 0


class MockDomain(IommuDomain):
    """``table``: I/O page to (physical address, prot, snoop bit); ``starts``: where pages mapped in one piece begin."""

    __slots__ = (
        "devices",
        "dirty",
        "force_snooping",
        "iotlb",
        "name",
        "parent",
        "starts",
        "table",
        "tracking",
        "viommu",
    )

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
        self.iotlb: list[int] = []
        """Of a nested table."""
        self.viommu: object | None = None
        """The vIOMMU that a nested table was made through."""

    def __repr__(self) -> str:
        return f"<{self.name}>"


class MockIommu:
    """The driver.  ``no_snoop_control`` names devices behind a unit without snoop control; ``refuse`` holds
    (domain or None, device name) to the error of such an attach; ``regions`` the reserved regions by device name."""

    def __init__(
        self,
        page: int = MOCK_PAGE,
        aperture: tuple[int, int] = APERTURE,
        checked: bool = True,
        covers: Callable[[Device], bool] = lambda dev: True,
    ) -> None:
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
        self.map_error = 0
        """The errno with which nothing can be mapped."""
        self.page_budget: int | None = None
        """Pages that can still be mapped; ``None`` is any number."""
        self.where: dict[str, MockDomain] = {}
        """Device name to what its requests without PASID meet."""
        self.pasids: dict[tuple[str, int], MockDomain] = {}
        """(device name, PASID) to what requests with that PASID meet."""
        self.made = 0
        self.caches: dict[str, list[int]] = {}
        """Device name to the words of its cache, which a vIOMMU invalidates."""
        self.requests: dict[str, IopfQueue] = {}
        """Device name to its page requests that wait for their last page."""
        self.responses: list[tuple[str, int, int]] = []
        """(device name, group, code) of answers to page requests."""
        self._tried_pasid = False
        self.find_vdevice: Callable[[object, Device], object | None] = lambda viommu, dev: viommu
        """(vIOMMU, device) to its vDevice; a table of a vIOMMU takes only devices that have one."""
        self.unit: Final = IommuDevice("mock")
        static = IommuDomainOps(attach_dev=self.attach_dev, set_dev_pasid=self.set_dev_pasid)
        self.blocked: Final = MockDomain("blocked", IOMMU_DOMAIN_BLOCKED, static)
        self.identity: Final = MockDomain("identity", IOMMU_DOMAIN_IDENTITY, static)
        self.ops: Final = IommuOps(
            name="mock",
            probe_device=lambda dev: self.unit if covers(dev) else -ENODEV,
            device_group=pci_device_group,
            default_domain_ops=self._paging_ops(False),
            domain_alloc_paging=lambda dev: self.domain_alloc(dev, 0),
            domain_alloc_paging_flags=self.domain_alloc,
            domain_alloc_nested=self.domain_alloc_nested,
            hw_info=lambda dev: (HW_INFO_TYPE, bytes(4) + (0xDEADBEEF).to_bytes(4, "little")),
            page_response=lambda dev, fault, code: self.responses.append((dev.name, fault.grpid, code)),
            user_pasid_table=True,
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
            set_dev_pasid=self.set_dev_pasid,
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
        if flags & ~(NEST_PARENT_FLAG | DIRTY_FLAG | PASID_FLAG):
            return -EOPNOTSUPP
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
        if data_type != DATA_TYPE or flags & ~PASID_FLAG:
            return -EOPNOTSUPP
        if len(data) < 4 or not isinstance(parent, MockDomain):
            return -EINVAL
        if any(data[4:]):
            return -E2BIG
        if not dev.kernel.kzalloc("mock nested domain"):
            return -ENOMEM
        self.made += 1
        ops = IommuDomainOps(
            attach_dev=self.attach_dev,
            set_dev_pasid=self.set_dev_pasid,
            cache_invalidate_user=self.cache_invalidate_user,
            free=lambda domain: self.calls.append(("free", domain)),
        )
        domain = MockDomain(f"nested{self.made}", IOMMU_DOMAIN_NESTED, ops)
        domain.parent = parent
        domain.iotlb = [int.from_bytes(data[:4], "little")] * IOTLB_WORDS
        return domain

    def cache_invalidate_user(self, domain: MockDomain, data_type: int, entries: list[bytes]) -> tuple[int, int]:
        """Clear words of the table's IOTLB, until an entry is wrong."""
        if data_type != INVALIDATE_TYPE:
            return -EINVAL, 0
        for done, entry in enumerate(entries):
            ret, words = entry_words(entry, 2)
            if not ret and words[0] & ~INVALIDATE_ALL:
                ret = -EOPNOTSUPP
            if not ret and words[1] >= IOTLB_WORDS:
                ret = -EINVAL
            if ret:
                return ret, done
            clear(domain.iotlb, words[0], words[1])
            self.calls.append(("invalidate", domain, words[1]))
        return 0, len(entries)

    def set_dev_pasid(self, domain: MockDomain, dev: Device, pasid: int, old: IommuDomain | None) -> int:
        if pasid == RESERVED_PASID and domain is not self.blocked:
            if self._tried_pasid:
                return -ENOMEM
            self._tried_pasid = True
        elif pasid == RESERVED_PASID:
            self._tried_pasid = False
        stage2 = domain.parent or domain
        if stage2.ops.set_dirty_tracking is not None and dev.name in self.no_dirty:
            return -EINVAL
        if domain is self.blocked:
            self.pasids.pop((dev.name, pasid), None)
        else:
            self.pasids[dev.name, pasid] = domain
        return 0

    def cache_of(self, dev: Device) -> list[int]:
        return self.caches.setdefault(dev.name, [CACHE_DEFAULT] * CACHE_WORDS)

    def request_page(self, dev: Device, fault: IopfFault) -> int:
        """The device asks for a page; 0 or -errno."""
        return iommu_report_device_fault(dev, self.requests.setdefault(dev.name, IopfQueue()), fault)

    def attach_dev(self, domain: MockDomain, dev: Device, old: IommuDomain | None) -> int:
        errno = self.refuse.get((domain, dev.name), self.refuse.get((None, dev.name), 0))
        stage2 = domain.parent or domain
        if not errno and self.checks_attach and stage2.force_snooping and dev.name in self.no_snoop_control:
            errno = EINVAL
        if not errno and stage2.ops.set_dirty_tracking is not None and dev.name in self.no_dirty:
            errno = EINVAL
        if not errno and domain.viommu is not None and self.find_vdevice(domain.viommu, dev) is None:
            errno = ENOENT
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
        if self.map_error:
            return -self.map_error, 0
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

    def translate(self, dev: Device, iova: int, write: bool, pasid: int = 0) -> int | str:
        """The physical address that an access of a device leads to, or the fault's name."""
        domain = self.pasids.get((dev.name, pasid), self.blocked) if pasid else self.where[dev.name]
        if domain is self.identity:
            return iova
        stage2 = domain.parent or domain
        entry = stage2.table.get(iova & -self.page)
        if entry is None:
            return "not present"
        paddr, prot, snoop = entry
        if snoop and dev.name in self.no_snoop_control:
            return "reserved bit"
        if not prot & (IOMMU_WRITE if write else IOMMU_READ):
            return "permission"
        if write and stage2.tracking:
            stage2.dirty.add(iova & -self.page)
        return paddr | iova & self.page - 1

    def dma(self, dev: Device, iova: int, write: bool = False, no_snoop: bool = False) -> str:
        """What becomes of one access: "ok", "incoherent" (it went around the caches), or the fault's name."""
        found = self.translate(dev, iova, write)
        if isinstance(found, str):
            return found
        domain = self.where[dev.name]
        if not no_snoop or domain is self.identity:
            return "ok"
        return "ok" if (domain.parent or domain).table[iova & -self.page][2] else "incoherent"
