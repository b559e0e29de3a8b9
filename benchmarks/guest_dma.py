# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's side: a page through Linux's DMA API and the xen-iommu driver down to the tables, and off again."""

from collections.abc import Iterator
from typing import Final

from benchmarks.figures import Figure, clock, rate
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from guest_driver.boot import boot
from guest_driver.linux.dma_iommu import DMA_TO_DEVICE
from guest_driver.xen_iommu import X86_MSI_WINDOW
from testbed.build import NIC, build
from testbed.config import Config

PAIRS: Final = 64


def figures(seconds: float, lean: Lean) -> Iterator[Figure]:
    for backend in BACKENDS:
        bed = build(Config(backend=backend))
        guest = boot(
            bed.hypercalls,
            bed.ram,
            bed.guest_pci,
            bed.mmio,
            bed.xen.abi,
            msi_window=None if bed.backend.doorbell_is_translated else X86_MSI_WINDOW,
        )
        device = guest.devices[NIC]
        map_page, unmap_page, is_error = guest.dma.map_page, guest.dma.unmap_page, guest.dma.mapping_error
        pages = [guest.kernel.pages.alloc_pages(0) for _ in range(PAIRS)]

        def loop() -> None:
            for page in pages:  # noqa: B023 - called before the next turn
                address = map_page(device, page, 0, 4096, DMA_TO_DEVICE)  # noqa: B023
                if is_error(device, address):  # noqa: B023
                    raise RuntimeError("a page could not be mapped")
                unmap_page(device, address, 4096, DMA_TO_DEVICE)  # noqa: B023

        times = clock(loop, PAIRS, seconds)
        yield rate("guest", f"{backend}, dma_map_page + dma_unmap_page", "pairs/s", times)
