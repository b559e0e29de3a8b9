# SPDX-License-Identifier: GPL-2.0-or-later
"""T: page tables and the arena that they come from."""

from typing import Final

from abi.errno import ENODEV, ENOMEM
from hypervisor.defects.model import V1_TO_7, V4_TO_7, Defect
from hypervisor.defects.posted_table import PostedPageTable
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.locking.locks import UNIT
from hypervisor.pagetable.radix import FramePool
from hypervisor.pviommu.result import Result
from hypervisor.vtd.driver import VtdBackend, VtdContext
from hypervisor.xen import Xen


def superpage_runs_away(seams: Seams) -> None:
    """T1."""
    before = seams.contexts.before_tear_down

    def before_tear_down(context: IommuContext) -> None:
        before(context)
        if context.table is not None and any(order for _, _, order in context.table.leaves()):
            raise XenBug(
                f"free_context of {context.number} drops references of frame after frame behind a superpage, "
                "off the end of the frame table"
            )

    replace(seams.contexts, "before_tear_down", before_tear_down)


def root_is_not_checked(seams: Seams) -> None:
    """T3."""
    backend, xen = seams.xen.backend, seams.xen
    if not isinstance(backend, VtdBackend):
        return
    init, attach = backend.context_init, backend.attach

    def context_init(context: IommuContext) -> int:
        error: int = init(context)
        if error != -ENOMEM:
            return error
        context.hw = VtdContext(tuple(unit.take_did() for unit in backend.units))
        memory = xen.platform.memory
        context.table = PostedPageTable(memory, backend.format, backend.levels, 0, context.pool, backend.orders)
        return 0

    def attach_or_not(device: PciDevice, context: IommuContext) -> int:
        unit = backend.covering(device)
        if unit is None:
            return -ENODEV
        lock = seams.locks.of(UNIT, f"unit {unit.index}")
        seams.locks.acquire(lock)
        if context.table is not None and not context.table.root:
            return -ENOMEM
        result: int = attach(device, context)
        seams.locks.release(lock)
        return result

    replace(backend, "context_init", context_init)
    replace(backend, "attach", attach_or_not)
    assert seams.locks


def arena_of_order_0(seams: Seams) -> None:
    """T4."""
    init = seams.rows["init"].handler

    def without_arena(xen: Xen, vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        result = init(xen, vcpu, domain, args, start)
        if not result[0] and not args[1]:
            assert domain.iommu is not None
            domain.iommu.arena = None
        return result

    seams.replace_handler("init", without_arena)
    alloc = seams.rows["alloc_context"].handler

    def alloc_context(xen: Xen, vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        iommu = domain.iommu
        assert iommu is not None
        if iommu.initialised and iommu.arena is None and iommu.free_number() is not None:
            raise XenBug("BUG_ON in the arena: a table is taken where there is no arena")
        return alloc(xen, vcpu, domain, args, start)

    seams.replace_handler("alloc_context", alloc_context)


class KeepsRoot:
    """A pool that forgets to take one page back."""

    def __init__(self, pool: FramePool, root: range) -> None:
        self._pool: Final = pool
        self._root: Final = root

    def allocate(self) -> int | None:
        return self._pool.allocate()

    def free(self, frame: int) -> None:
        if frame not in self._root:
            self._pool.free(frame)


def root_is_leaked(seams: Seams) -> None:
    """T5: on units of 39 bits, where G5 makes a table of level 3 with the root, that one as well."""
    backend = seams.xen.backend
    init, release = backend.context_init, backend.context_release

    def context_init(context: IommuContext) -> int:
        error: int = init(context)
        if isinstance(context.table, PostedPageTable):
            context.table.keeps_first = True
        return error

    def context_release(context: IommuContext) -> None:
        table, pool = context.table, context.pool
        if table is not None and not getattr(table, "late_root", False):
            replace(context, "pool", KeepsRoot(pool, range(table.root, table.root + table.root_frames)))
        release(context)

    replace(backend, "context_init", context_init)
    replace(backend, "context_release", context_release)


DEFECTS: Final = (
    Defect(
        "T1",
        V1_TO_7,
        "freeing a context that holds a superpage drops references without end",
        "map 512 aligned frames and free the context: the host stops",
        "catalogue T1; golden record destr-free_superpage",
        superpage_runs_away,
        needs=("S1",),
    ),
    Defect(
        "T3",
        V1_TO_7,
        "a context whose root table could not be had is handed out all the same",
        "with a full arena: alloc 0, map -ENOMEM, reattach -ENOMEM and then never again; free stops the host",
        "catalogue T3; golden records arena3-free, arena3-reattach",
        root_is_not_checked,
        needs=("S1",),
        backends=("vtd",),
    ),
    Defect(
        "T4",
        V4_TO_7,
        "IOMMU_init accepts arena order 0 as no arena",
        "the first alloc_context stops the host",
        "catalogue T4",
        arena_of_order_0,
        subops=("init",),
    ),
    Defect(
        "T5",
        V1_TO_7,
        "a context's root table is never returned to the arena",
        "arena pages in use grow by one for every alloc and free",
        "catalogue T5; golden records sys, arena3-*",
        root_is_leaked,
    ),
)
