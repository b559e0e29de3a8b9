# SPDX-License-Identifier: GPL-2.0-or-later
"""map_pages and unmap_pages, from the bytes of the guest's struct to the bytes of the tables, flush and copy-back
included; references and conflicts are checked.  The device is in the context, so every unmap tells the unit.
"""

from collections.abc import Iterator
from typing import Final

from benchmarks.bed import CONTIGUOUS_PFN, READ_WRITE, Bed
from benchmarks.figures import Figure, Times, clock, rate
from benchmarks.lean import Lean

PROFILES: Final = ("v7-fixed", "v3-fixed")
BACKENDS: Final = ("vtd", "smmuv3")
BARS: Final = {1: 150_000, 32: 1_500_000, 512: 4_000_000}
"""Asked of v7-fixed, by pages in a call: hypercalls a second for 1, pages a second for more."""
PAIRS: Final = 64
"""Different map and unmap calls in a run."""


def figures(seconds: float, lean: Lean) -> Iterator[Figure]:
    for profile in PROFILES:
        for backend in BACKENDS:
            for pages in BARS:
                bed = Bed(backend=backend, profile=profile)
                pages = min(pages, bed.xen.max_nr_pages)
                times = map_unmap(bed, pages, seconds)
                is_v7 = profile == PROFILES[0]
                yield rate(
                    "hypercalls",
                    f"{backend} {profile}, {pages} page{'s' * (pages > 1)} a call",
                    "hypercalls/s" if pages == 1 else "pages/s",
                    times,
                    2 * pages,
                    BARS[pages] if is_v7 else None,
                    lean.seconds_for(backend, "map+unmap", pages) if is_v7 else None,
                )


def map_unmap(bed: Bed, pages: int, seconds: float) -> Times:
    """Time pairs of calls.  Their dfns are aligned to the size and lie under one table, which a neighbour keeps."""
    bed.map(0, 0xFFF if pages == 512 else 0x11FF)
    calls = []
    slot = 4096 // PAIRS
    for k in range(PAIRS):
        dfn = 0x1000 + (k if pages == 512 else k % max(256 // pages, 1)) * pages
        where = {"ctx_no": 1, "dfn": dfn, "nr_pages": pages}
        map_args = bed.put(0x5000 + k * slot, "map_pages", gfn=bed.gfn(CONTIGUOUS_PFN), flags=READ_WRITE, **where)
        calls.append((map_args, bed.put(0x6000 + k * slot, "unmap_pages", **where)))
    hypercall, vcpu, number = bed.xen.hypercall, bed.vcpu, bed.abi.hypercall

    def loop() -> None:
        for map_args, unmap_args in calls:
            if hypercall(vcpu, number, *map_args) or hypercall(vcpu, number, *unmap_args):
                raise RuntimeError("a hypercall failed")

    before = bed.xen.frames.refs[:]
    times = clock(loop, PAIRS, seconds)
    if bed.xen.frames.refs != before:
        raise RuntimeError("references are left over")
    return times
