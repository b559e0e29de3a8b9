# SPDX-License-Identifier: GPL-2.0-or-later
"""What an IOMMU is for, shown on a booted test bed: attempts that must fault, each with its record and its walk."""

from dataclasses import dataclass
from typing import Final

from abi.errno import errno_name
from base.units import Sbdf
from guest_driver.linux.iommu_attach import iommu_attach_device, iommu_detach_device
from guest_driver.linux.iommu_core import iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.linux.iommu_map import iommu_map, iommu_unmap
from guest_driver.linux.page_alloc import GFP_KERNEL
from hypervisor.iommu.backend import FaultReport
from machine.devices.copier import ERROR_NONE, pack_descriptor
from machine.iommu.unit import Fault, Walk
from testbed.build import COPIER, COPIER_BAR, NIC, ROGUE, TestBed
from testbed.guest import Guest

DMA_TO_DEVICE: Final = 1
READ_WRITE: Final = 3
_PAGE: Final = 4096


class DemonstrationError(Exception):
    """Something that had to happen did not: a finding, in one line."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """One DMA that the unit blocked."""

    title: str
    story: str
    device: Sbdf
    fault: Fault
    reported: FaultReport | None
    """What the hypervisor's driver read back from the unit, ``None`` if the manual has nothing recorded."""
    walk: Walk


def rogue_device(testbed: TestBed, guest: Guest) -> Blocked:
    """A device goes for memory that another device's driver mapped: it has its own context, with nothing there."""
    secret = b"for the network card only"
    kernel = guest.kernel
    nic = kernel.devices[NIC]
    pfn = kernel.kernel.pages.alloc_pages(GFP_KERNEL)
    testbed.ram.write(pfn << 12, secret)
    iova = kernel.dma.map_page(nic, pfn, 0, len(secret), DMA_TO_DEVICE)
    _check(not kernel.dma.mapping_error(nic, iova), "a buffer for the network card could not be mapped")
    owner = testbed.fabric.port(NIC).read(iova, len(secret))
    _check(owner == secret, f"the network card cannot read its own buffer: {owner!r}")
    attempt = testbed.rogue.peek(iova, len(secret))
    kernel.dma.unmap_page(nic, iova, len(secret), DMA_TO_DEVICE)
    kernel.kernel.pages.free_pages(pfn)
    if attempt.fault is None:
        raise DemonstrationError(f"the rogue device read {attempt.data!r} out of another device's buffer")
    return _blocked(
        testbed,
        "a rogue device reads the network card's buffer",
        "the buffer is mapped, but not in the context that the rogue device is in",
        ROGUE,
        attempt.fault,
    )


def late_dma(testbed: TestBed, guest: Guest) -> Blocked:
    """A device uses a buffer after its driver unmapped it, while the IOTLB had the translation a moment before."""
    kernel = guest.kernel
    nic = kernel.devices[NIC]
    port = testbed.fabric.port(NIC)
    pfn = kernel.kernel.pages.alloc_pages(GFP_KERNEL)
    iova = kernel.dma.map_page(nic, pfn, 0, _PAGE, 2)
    _check(not kernel.dma.mapping_error(nic, iova), "a receive buffer could not be mapped")
    early = port.write(iova, b"in time")
    _check(early is None and testbed.ram.read(pfn << 12, 7) == b"in time", f"DMA to a mapped buffer failed: {early}")
    kernel.dma.unmap_page(nic, iova, _PAGE, 2)
    fault = port.write(iova, b"too late")
    untouched = testbed.ram.read(pfn << 12, 7) == b"in time"
    kernel.kernel.pages.free_pages(pfn)
    if fault is None or not untouched:
        raise DemonstrationError(f"a device wrote to {iova:#x} after its driver had unmapped it")
    return _blocked(
        testbed,
        "the network card writes to a buffer after it was unmapped",
        "its translation had been used, and cached, just before",
        NIC,
        fault,
    )


@dataclass(frozen=True, slots=True)
class BigCopy:
    """What the copier did through superpages."""

    copied: int
    folds: int
    splits: int
    unmapped_bytes: int


def big_copy(testbed: TestBed, guest: Guest, source: int, target: int) -> tuple[BigCopy, Blocked]:
    """The copier moves 2 MiB between two superpages; then one page of the target is taken away in mid-superpage.

    The pages are mapped 64 KiB at a time in a domain of the device's own, as VFIO would; the hypervisor folds them.
    ``source`` and ``target`` are the first pfns of blocks from :func:`take_superpages`.
    """
    kernel = guest.kernel
    device = kernel.devices[COPIER]
    size, piece = 512 * _PAGE, 16 * _PAGE
    source_iova, target_iova, list_iova = 0x4000_0000, 0x8000_0000, 0x1_0000_0000
    before = testbed.xen.superpages()
    domain = iommu_paging_domain_alloc(device)
    if isinstance(domain, int):
        raise DemonstrationError(f"no domain for the copier ({errno_name(domain)})")
    _check(not iommu_attach_device(domain, device), "the copier could not be attached")
    for iova, first in ((source_iova, source), (target_iova, target)):
        for offset in range(0, size, piece):
            error = iommu_map(domain, iova + offset, (first << 12) + offset, piece, READ_WRITE)
            _check(not error, f"mapping {iova + offset:#x} failed ({errno_name(error)})")
    listing = kernel.kernel.pages.alloc_pages(GFP_KERNEL)
    _check(not iommu_map(domain, list_iova, listing << 12, _PAGE, READ_WRITE), "the list could not be mapped")
    pattern = bytes(range(256)) * (size // 256)
    testbed.ram.write(source << 12, pattern)
    testbed.ram.write(
        listing << 12,
        b"".join(pack_descriptor(source_iova + at, target_iova + at, 0x10000) for at in range(0, size, 0x10000)),
    )
    writel, readl = testbed.mmio.writel, testbed.mmio.readl
    for register, value in ((0x18, list_iova & 0xFFFF_FFFF), (0x1C, list_iova >> 32), (0x20, size // 0x10000)):
        writel(COPIER_BAR + register, value)
    writel(COPIER_BAR + 0x24, 1)
    code = readl(COPIER_BAR + 0x0C)
    _check(code == ERROR_NONE, f"the copier stopped with error code {code}")
    _check(testbed.ram.read(target << 12, size) == pattern, "the copy differs from its source")

    middle = target_iova + 100 * _PAGE
    removed = iommu_unmap(domain, middle, _PAGE)
    _check(removed == _PAGE, f"unmapping 4096 bytes in mid-superpage removed {removed}")
    port = testbed.fabric.port(COPIER)
    fault = port.write(middle, b"gone")
    if fault is None:
        raise DemonstrationError(f"the copier reached {middle:#x} after it was unmapped")
    beside = port.read(middle + _PAGE, 4)
    _check(beside == pattern[101 * _PAGE :][:4], "the page beside the hole is no longer mapped")
    after = testbed.xen.superpages()
    shown = _blocked(
        testbed,
        "the copier writes into the hole in a superpage",
        "one page of 512 was unmapped; the superpage was split, its neighbours still translate",
        COPIER,
        fault,
    )
    for iova, length in ((source_iova, size), (target_iova, 100 * _PAGE), (middle + _PAGE, 411 * _PAGE)):
        removed = iommu_unmap(domain, iova, length)
        _check(removed == length, f"unmapping {length:#x} bytes at {iova:#x} removed {removed:#x}")
    _check(iommu_unmap(domain, list_iova, _PAGE) == _PAGE, "the list could not be unmapped")
    iommu_detach_device(domain, device)
    iommu_domain_free(domain)
    kernel.kernel.pages.free_pages(listing)
    return BigCopy(size, after[0] - before[0], after[1] - before[1], 2 * size), shown


def take_superpages(testbed: TestBed, guest: Guest, wanted: int) -> list[int]:
    """Allocate ``wanted`` 2 MiB blocks of guest memory that are contiguous and aligned in machine memory too: their
    first pfns.  To be done early, before small allocations are scattered over all of memory."""
    pages = guest.kernel.kernel.pages
    found: list[int] = []
    rejected: list[int] = []
    while len(found) < wanted:
        pfn = pages.alloc_pages(GFP_KERNEL, 9)
        _check(pfn, "the guest has no 2 MiB of contiguous memory left")
        first = testbed.mfns[pfn]
        fits = not first % 512 and testbed.mfns[pfn : pfn + 512] == list(range(first, first + 512))
        (found if fits else rejected).append(pfn)
    for pfn in rejected:
        pages.free_pages(pfn, 9)
    return found


def _blocked(testbed: TestBed, title: str, story: str, device: Sbdf, fault: Fault) -> Blocked:
    """Collect what hardware and hypervisor know about ``fault``."""
    reports = testbed.xen.backend.take_faults()
    reported = next((r for r in reports if r.sid == fault.sid and r.iova >> 12 == fault.iova >> 12), None)
    if fault.record and reported is None:
        raise DemonstrationError(f"the hypervisor did not find the record of: {fault}")
    walk = testbed.walk(device, fault.iova, fault.write)
    return Blocked(title, story, device, fault, reported, walk)


def _check(condition: object, complaint: str) -> None:
    if not condition:
        raise DemonstrationError(complaint)
