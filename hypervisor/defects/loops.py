# SPDX-License-Identifier: GPL-2.0-or-later
"""H: the loops of map_pages and unmap_pages."""

from typing import Final

from hypervisor.defects.model import V1_TO_7, Defect
from hypervisor.defects.page_loop import PageLoop
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.radix import Changes, PageTable

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


def lookup_shares_the_flags(seams: Seams) -> None:
    """H4."""
    loop = seams.loop
    replace(loop, "after_look", lambda bits: bits if loop.flags_on_absent is None else loop.flags_on_absent)


def frame_0_is_not_seen(seams: Seams) -> None:
    """H8."""
    loop = seams.loop
    look = loop.look

    def nothing_below_a_page(table: PageTable, at: int) -> tuple[int, int, int] | None:
        found: tuple[int, int, int] | None = look(table, at)
        return None if found is not None and found[0] == 0 else found

    replace(loop, "look", nothing_below_a_page)
    _map_over(loop)


def _map_over(loop: PageLoop) -> None:
    """What the lookup did not find is mapped over, and its frame keeps its reference."""
    enter = loop.enter

    def over(domain: Domain, context: IommuContext, at: int, mfn: int, bits: int, changes: Changes) -> int:
        table = context.table
        if table is not None and table.lookup(at) is not None:
            table.unmap(at, 1, changes)
            changes.removed.clear()
        result: int = enter(domain, context, at, mfn, bits, changes)
        return result

    replace(loop, "enter", over)


def no_lookup_at_all(seams: Seams) -> None:
    """H9."""
    replace(seams.loop, "look", lambda table, at: None)
    _map_over(seams.loop)


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
    Defect(
        "H4",
        ("v1", "v2", "v3", "v4", "v5", "v6"),
        "the lookup for something in the way writes into the flags that the map is then made with",
        "VT-d's lookup leaves them alone; with v7's AMD lookup, which clears them where nothing is mapped, pages are "
        "mapped without rights",
        "catalogue H4",
        lookup_shares_the_flags,
        needs=("H1",),
    ),
    Defect(
        "H8",
        V1_TO_7,
        "the lookup takes a mapping to machine frame 0 for none",
        "a page that leads to frame 0 cannot be unmapped (-ENOENT) and is mapped over without -EADDRINUSE",
        "catalogue H8",
        frame_0_is_not_seen,
    ),
    Defect(
        "H9",
        ("v6",),
        "a driver without lookup: nothing that is mapped is ever found",
        "map never answers -EADDRINUSE, unmap always -ENOENT",
        "catalogue H9 and section 3, AMD",
        no_lookup_at_all,
        only_on="AMD-Vi",
    ),
)
