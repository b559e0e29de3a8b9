# SPDX-License-Identifier: GPL-2.0-or-later
"""One translated DMA request: with the translation in the IOTLB, and with every cache of the unit empty."""

from collections.abc import Iterator
from typing import Final

from base.units import PAGE_SHIFT
from benchmarks.bed import CONTIGUOUS_PFN, Bed
from benchmarks.figures import Figure, clock, rate
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from testbed.build import NIC

BARS: Final = {"hit": 500_000, "miss": 100_000}
PAGES: Final = 64
ROUNDS: Final = 20
FIRST_DFN: Final = 0x1000


def figures(seconds: float, lean: Lean) -> Iterator[Figure]:
    for backend in BACKENDS:
        for what, bar in BARS.items():
            bed = Bed(backend=backend, iotlb_capacity=None if what == "hit" else 0)
            for k in range(PAGES):
                bed.map(CONTIGUOUS_PFN + k, FIRST_DFN + k)
            requests = [((FIRST_DFN + k << PAGE_SHIFT) + 0x10, bool(k & 1)) for k in range(PAGES)]
            translate, sid = bed.testbed.unit.translate, NIC & 0xFFFF
            for k, (iova, write) in enumerate(requests):
                if translate(sid, iova, write) != (bed.testbed.mfns[CONTIGUOUS_PFN + k] << PAGE_SHIFT) + 0x10:
                    raise RuntimeError(f"DMA to {iova:#x} arrived at the wrong place")

            def loop() -> None:
                for _ in range(ROUNDS):
                    for iova, write in requests:  # noqa: B023 - called before the next turn
                        translate(sid, iova, write)  # noqa: B023

            times = clock(loop, ROUNDS * PAGES, seconds)
            in_c = lean.seconds_for(backend, f"dma-{what}", 1)
            yield rate("dma", f"{backend}, IOTLB {what}", "translations/s", times, 1, bar, in_c)
