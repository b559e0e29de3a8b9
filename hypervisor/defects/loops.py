# SPDX-License-Identifier: GPL-2.0-or-later
"""H: the loops of map_pages and unmap_pages."""

from typing import Final

from hypervisor.defects.model import V1_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.radix import Changes

_DESCRIPTOR_FRAMES: Final = (1 << 52) - 1
"""Frame numbers whose address fits into 64 bits."""


def neither_read_nor_write(seams: Seams) -> None:
    """H1."""
    loop, abi = seams.loop, seams.xen.abi
    rights = abi.map_readable | abi.map_writeable
    permission = loop.permission

    def dead_entries_too(flags: int) -> tuple[int, bool] | None:
        return permission(flags) if flags & rights else (0, False)

    replace(loop, "permission", dead_entries_too)


def range_is_not_checked(seams: Seams) -> None:
    """H2."""
    loop, mask = seams.loop, seams.xen.max_dfn
    finish = loop.finish

    def cut_off(domain: Domain, context: IommuContext, dfn: int, requested: int, done: int, changes: Changes) -> int:
        result: int = finish(domain, context, dfn & _DESCRIPTOR_FRAMES, requested, done, changes)
        return result

    replace(loop, "in_range", lambda dfn, pages: True)
    replace(loop, "place", lambda dfn: dfn & mask)
    replace(loop, "finish", cut_off)


def flush_errors_are_logged(seams: Seams) -> None:
    """H7."""

    def silent(flush_error: int) -> int:
        if flush_error:
            seams.xen.log(f"Flush operation failed ({flush_error})")
        return 0

    replace(seams.loop, "report", silent)


DEFECTS: Final = (
    Defect(
        "H1",
        V1_TO_7,
        "a map without read and write is counted and takes a reference, but maps nothing",
        "map 0 with mapped 1, unmap -ENOENT; the reference and the table stay",
        "catalogue H1; golden record sys",
        neither_read_nor_write,
        needs=("S1",),
    ),
    Defect(
        "H2",
        V1_TO_7,
        "device frames beyond what the tables translate wrap around",
        "map dfn 0, then dfn 2^36: -EADDRINUSE",
        "catalogue H2; golden record sys",
        range_is_not_checked,
    ),
    Defect(
        "H7",
        V1_TO_7,
        "a failing IOTLB flush is logged, and the call answers 0",
        "unmap answers 0 though the unit refused the invalidation",
        "catalogue H7",
        flush_errors_are_logged,
    ),
)
