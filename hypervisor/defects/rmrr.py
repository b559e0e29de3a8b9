# SPDX-License-Identifier: GPL-2.0-or-later
"""D: reserved memory regions."""

from typing import Final

from hypervisor.defects.model import V1_TO_3, V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.iommu.context import IommuContext


def _first_page_only(context: IommuContext, first: int, dfn: int) -> bool:
    return context.identity_offset(first, 1) is not None


def _drops_all(seams: Seams) -> None:
    """References are dropped whether or not they were taken."""
    loop, frames = seams.loop, seams.xen.frames

    def unreferenced(mfn: int, count: int) -> None:
        if mfn + count <= frames.frames:
            frames.put(mfn, count, loop.reference_kind(False))

    replace(loop, "unreferenced", unreferenced)


def map_tests_the_first_page(seams: Seams) -> None:
    """D1."""
    loop = seams.loop
    replace(loop, "reserved_for_unmap", loop.reserved)
    replace(loop, "reserved", _first_page_only)


def unmap_tests_the_first_page(seams: Seams) -> None:
    """D2."""
    replace(seams.loop, "reserved_for_unmap", _first_page_only)
    _drops_all(seams)


def nothing_is_reserved(seams: Seams) -> None:
    """D3."""
    loop = seams.loop
    replace(loop, "reserved", lambda context, first, dfn: False)
    replace(loop, "reserved_for_unmap", lambda context, first, dfn: False)
    _drops_all(seams)


DEFECTS: Final = (
    Defect(
        "D1",
        V4_TO_7,
        "map_pages looks for a reserved region at the first page of the call only",
        "a range that enters a region stops with -EADDRINUSE instead of -EADDRNOTAVAIL",
        "catalogue D1",
        map_tests_the_first_page,
    ),
    Defect(
        "D2",
        ("v4", "v5", "v6"),
        "unmap_pages looks for a reserved region at the first page of the call only",
        "a range that enters a region removes its identity mapping and drops references never taken",
        "catalogue D2",
        unmap_tests_the_first_page,
    ),
    Defect(
        "D3",
        V1_TO_3,
        "map_pages and unmap_pages do not know reserved regions",
        "unmapping a reserved region answers 0 and drops references never taken",
        "catalogue D3; golden record destr-unmap_ctx0",
        nothing_is_reserved,
    ),
)
