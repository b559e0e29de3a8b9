# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's side: pages through Linux's DMA API and the xen-iommu driver down to the tables, and off again.

One page at a time and strict; lists of pages in neighbouring frames, which the driver maps with one hypercall; and the
flush queue of iommu.strict=0, with the driver that puts its unmaps off until the flush.  A ring of the device stays
mapped meanwhile, as every card's does, but for one figure: on an empty domain each map makes the tables on the way
to its entry, and each unmap gives them back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks.figures import Figure, clock, rate
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from guest_driver import drivers
from guest_driver.boot import GuestKernel, boot
from guest_driver.linux.device import Device
from guest_driver.linux.dma_iommu import DMA_TO_DEVICE
from guest_driver.linux.kernel import CommandLine
from guest_driver.linux.scatterlist import Scatterlist
from guest_driver.xen_iommu import X86_MSI_WINDOW
from testbed.build import NIC, build
from testbed.config import Config

BAR: Final = 40_000
PAIRS: Final = 256
"""As many as the flush queue holds, so that a run has all of its costs."""
LIST_PAGES: Final = 64


@dataclass(frozen=True, slots=True)
class _Setup:
    """A driver, how the kernel is told to unmap, and what is mapped at a time."""

    name: str
    driver: str
    strict: bool
    lists: bool
    bar: int | None = None
    ring: bool = True
    """Something of the device's stays mapped."""


SETUPS: Final = (
    _Setup("dma_map_page + dma_unmap_page", "reference", True, False, BAR),
    _Setup("the same, on an empty domain", "reference", True, False, BAR, ring=False),
    _Setup("the same, flush queue", "lazy", False, False),
    _Setup(f"lists of {LIST_PAGES} pages", "reference", True, True),
    _Setup(f"lists of {LIST_PAGES} pages, flush queue", "lazy", False, True),
)


def figures(seconds: float, lean: Lean | None = None) -> Iterator[Figure]:
    for backend in BACKENDS:
        for setup in SETUPS:
            guest = _boot(backend, setup)
            device = guest.devices[NIC]
            if setup.ring and guest.dma.alloc_coherent(device, 4096) is None:
                raise RuntimeError("a ring could not be mapped")
            loop: Callable[[], None] = partial(_lists if setup.lists else _pages, guest, device, _memory(guest, setup))
            times = clock(loop, PAIRS, seconds)
            unit = "pages/s" if setup.lists else "pairs/s"
            yield rate("guest", f"{backend}, {setup.name}", unit, times, bar=setup.bar)


def _boot(backend: str, setup: _Setup) -> GuestKernel:
    bed = build(Config(backend=backend))
    return boot(
        bed.hypercalls,
        bed.ram,
        bed.guest_pci,
        bed.mmio,
        bed.xen.abi,
        cmdline=CommandLine(strict=setup.strict),
        msi_window=None if bed.backend.doorbell_is_translated else X86_MSI_WINDOW,
        init=drivers.get(setup.driver).init,
    )


def _memory(guest: GuestKernel, setup: _Setup) -> list[int]:
    """First pages of blocks that are mapped as one list each, or pages for one mapping each."""
    order = LIST_PAGES.bit_length() - 1 if setup.lists else 0
    return [guest.kernel.pages.alloc_pages(0, order) for _ in range(PAIRS >> order)]


def _pages(guest: GuestKernel, device: Device, pages: list[int]) -> None:
    map_page, unmap_page, is_error = guest.dma.map_page, guest.dma.unmap_page, guest.dma.mapping_error
    for page in pages:
        address = map_page(device, page, 0, 4096, DMA_TO_DEVICE)
        if is_error(device, address):
            raise RuntimeError("a page could not be mapped")
        unmap_page(device, address, 4096, DMA_TO_DEVICE)


def _lists(guest: GuestKernel, device: Device, blocks: list[int]) -> None:
    for first in blocks:
        entries = [Scatterlist(pfn << 12, 4096) for pfn in range(first, first + LIST_PAGES)]
        if not guest.dma.map_sg(device, entries, DMA_TO_DEVICE):
            raise RuntimeError("a list could not be mapped")
        guest.dma.unmap_sg(device, entries, DMA_TO_DEVICE)
