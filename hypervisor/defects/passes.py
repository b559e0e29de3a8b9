# SPDX-License-Identifier: GPL-2.0-or-later
"""H3, R2, T2, T6, T7: passes that do not end, tables that come back too late or too early, memory that is not there."""

from typing import Final

from hypervisor.defects.model import V1_TO_3, V1_TO_7, V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext
from hypervisor.iommu.pool import Arena
from hypervisor.pagetable.radix import Changes


def looks_up_too_often(seams: Seams) -> None:
    """H3."""
    replace(seams.loop, "looks_up", lambda index: bool(index & 0xFF))


def own_tables_come_too_late(seams: Seams) -> None:
    """R2."""
    replace(seams.loop, "regain", lambda domain, context, dfn, done, changes: False)


def teardown_does_not_yield(seams: Seams) -> None:
    """T2."""
    replace(seams.contexts, "yields", _never)


def _never(vcpu: Vcpu) -> bool:
    return False


def tables_go_back_first(seams: Seams) -> None:
    """T6."""

    def page_done(context: IommuContext, changes: Changes) -> None:
        for table in changes.tables:
            context.pool.free(table)
        changes.tables.clear()

    replace(seams.loop, "page_done", page_done)


def bitmap_is_not_checked(seams: Seams) -> None:
    """T7."""
    xen = seams.xen
    new_arena = xen.new_arena

    def without_looking(domain: Domain, base: int, pages: int) -> Arena:
        arena = new_arena(domain, base, pages)
        if arena is None:
            raise XenBug("fatal page fault: the bitmap of an arena is cleared where there is none")
        return arena

    replace(xen, "new_arena", without_looking)


DEFECTS: Final = (
    Defect(
        "H3",
        V4_TO_7,
        "map_pages and unmap_pages ask whether the vCPU is wanted elsewhere on 255 of 256 pages instead of on one",
        "a busy vCPU maps two pages a pass, each pass with a flush of its own, and goes on once with no page left",
        "catalogue H3",
        looks_up_too_often,
        needs=("A9",),
    ),
    Defect(
        "R2",
        V1_TO_3,
        "tables that a call has emptied or folded come back at its end, too late for itself",
        "in a full arena, an unmap that first empties a table and then needs one answers -ENOMEM, and 0 when repeated",
        "section 8, 13; golden records freequeue",
        own_tables_come_too_late,
        needs=("S1",),
    ),
    Defect(
        "T2",
        V1_TO_7,
        "the teardown of a context looks at the wrong flag and never yields",
        "free_context of a large context lets nobody else run",
        "catalogue T2",
        teardown_does_not_yield,
    ),
    Defect(
        "T6",
        V4_TO_7,
        "tables go back to the arena before the IOTLB is flushed",
        "when the flush is queued, a table that hardware may still walk is free",
        "catalogue T6",
        tables_go_back_first,
    ),
    Defect(
        "T7",
        V1_TO_7,
        "the allocation of an arena's bitmap is not checked",
        "IOMMU_init without memory for it stops the host",
        "catalogue T7",
        bitmap_is_not_checked,
    ),
)
