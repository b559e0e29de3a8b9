# SPDX-License-Identifier: GPL-2.0-or-later
"""An IOMMU driver without Xen, so that the core can be tested alone: its tables are dicts, its refusals are planned."""

from fake_hypervisor import FakePci, FakeRam, NoMmio

from abi.errno import EEXIST, ENOMEM
from base.units import parse_sbdf
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import (
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_CAP_DEFERRED_FLUSH,
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_IDENTITY,
    IommuDevice,
    IommuDomain,
    IommuDomainOps,
    IommuOps,
)
from guest_driver.linux.iommu_group import generic_device_group
from guest_driver.linux.iommu_probe import iommu_device_register
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.linux.pci_group import pci_device_group
from guest_driver.port import PciInfo


class MockDomain(IommuDomain):
    __slots__ = ("name", "sizes", "table")

    def __init__(self, name="paging", type=0, ops=None):
        super().__init__(type, ops)
        self.name = name
        self.table = {}  # iova page -> paddr, prot
        self.sizes = {}  # iova page -> page size it was mapped with

    def __repr__(self):
        return f"<{self.name}>"


class MockIommu:
    """``calls`` lists driver calls; ``refuse`` holds (domain, device) pairs whose attach fails."""

    def __init__(self, pgsize_bitmap=0x1000, blocked=True, identity=True, aperture=(0, (1 << 48) - 1), deferred=False):
        self.calls = []
        self.refuse = {}
        self.page_budget = None
        self.unmap_slack = 0
        self.sync_map_error = 0
        self.regions = {}
        self.alloc_error = 0
        self.opinions = {}
        self.where = {}
        self.deferred_attach = set()
        self.deferred = deferred
        self.pgsize_bitmap = pgsize_bitmap
        self.aperture = aperture
        self.unit = IommuDevice("mock")
        static = IommuDomainOps(attach_dev=self.attach_dev)
        self.ops = IommuOps(
            name="mock",
            probe_device=lambda dev: self.unit,
            device_group=pci_device_group,
            default_domain_ops=IommuDomainOps(
                attach_dev=self.attach_dev,
                map_pages=self.map_pages,
                unmap_pages=self.unmap_pages,
                iotlb_sync_map=self.iotlb_sync_map,
                iotlb_sync=self.iotlb_sync,
                flush_iotlb_all=lambda domain: self.calls.append(("flush_all",)),
                iova_to_phys=self.iova_to_phys,
                free=lambda domain: self.calls.append(("free", domain)),
            ),
            domain_alloc_paging=self.domain_alloc_paging,
            capable=lambda dev, cap: (
                cap == IOMMU_CAP_CACHE_COHERENCY or (cap == IOMMU_CAP_DEFERRED_FLUSH and self.deferred)
            ),
            get_resv_regions=lambda dev: list(self.regions.get(dev.name, [])),
            def_domain_type=lambda dev: self.opinions.get(dev.name, 0),
            is_attach_deferred=lambda dev: dev.name in self.deferred_attach,
        )
        if blocked:
            self.ops.blocked_domain = self.ops.release_domain = MockDomain("blocked", IOMMU_DOMAIN_BLOCKED, static)
        if identity:
            self.ops.identity_domain = MockDomain("identity", IOMMU_DOMAIN_IDENTITY, static)

    def domain_alloc_paging(self, dev):
        if self.alloc_error:
            return -self.alloc_error
        domain = MockDomain()
        domain.pgsize_bitmap = self.pgsize_bitmap
        domain.aperture_start, domain.aperture_last = self.aperture
        domain.force_aperture = True
        return domain

    def attach_dev(self, domain, dev, old):
        errno = self.refuse.get((domain, dev.name), self.refuse.get((None, dev.name), 0))
        self.calls.append(("attach", domain, dev.name, -errno))
        if errno:
            return -errno
        self.where[dev.name] = domain
        return 0

    def map_pages(self, domain, iova, paddr, pgsize, pgcount, prot, gfp):
        self.calls.append(("map", iova, paddr, pgsize, pgcount))
        granule = self.pgsize_bitmap & -self.pgsize_bitmap
        done = 0
        for page in range(pgcount):
            at = iova + page * pgsize
            if self.page_budget is not None:
                if not self.page_budget:
                    return -ENOMEM, done
                self.page_budget -= 1
            if any(at + step in domain.table for step in range(0, pgsize, granule)):
                return -EEXIST, done
            for step in range(0, pgsize, granule):
                domain.table[at + step] = (paddr + page * pgsize + step, prot)
            domain.sizes[at] = pgsize
            done += pgsize
        return 0, done

    def unmap_pages(self, domain, iova, pgsize, pgcount, gather):
        self.calls.append(("unmap", iova, pgsize, pgcount))
        granule = self.pgsize_bitmap & -self.pgsize_bitmap
        done = 0
        while done < pgsize * pgcount:
            at = iova + done
            if at not in domain.table:
                break
            size = domain.sizes.pop(at, 0)
            if not size:
                break  # inside a bigger page
            for step in range(0, size, granule):
                del domain.table[at + step]
            done += size
        return done

    def iotlb_sync_map(self, domain, iova, size):
        self.calls.append(("sync_map", iova, size))
        return -self.sync_map_error

    def iotlb_sync(self, domain, gather):
        self.calls.append(("sync", gather.start, gather.last))

    def iova_to_phys(self, domain, iova):
        granule = self.pgsize_bitmap & -self.pgsize_bitmap
        entry = domain.table.get(iova & -granule)
        return 0 if entry is None else entry[0] + (iova & granule - 1)

    def named(self, kind):
        return [call for call in self.calls if call[0] == kind]


def endpoints(count, bus=0):
    """Functions that are isolated from each other, each in a slot of its own."""
    return [PciInfo(parse_sbdf(f"{bus:02x}:{slot + 1:02x}.0")) for slot in range(count)]


def one_group(count):
    """The functions of one multifunction device without ACS."""
    return [PciInfo(parse_sbdf(f"00:05.{function}"), multifunction=True) for function in range(count)]


def make_kernel(functions, pages=256, **cmdline):
    kernel = Kernel(FakeRam(pages), FakePci(functions), NoMmio(), CommandLine(**cmdline))
    kernel.devices.extend(Device(kernel, info) for info in functions)
    return kernel


def mock_kernel(functions, mock=None, grouped=True, **cmdline):
    """(kernel, mock driver) with every function probed."""
    mock = mock or MockIommu()
    kernel = make_kernel(functions, **cmdline)
    if not grouped:
        mock.ops.device_group = generic_device_group
    ret = iommu_device_register(kernel, mock.unit, mock.ops)
    assert ret == 0, ret
    return kernel, mock
