# SPDX-License-Identifier: GPL-2.0-or-later
"""T, F, G, H and R: one demonstration each, as in :mod:`testbed.defects.shows`."""

from abi.errno import EBUSY, EINVAL, EIO, ENOMEM, EPERM
from base.units import U64_MAX, make_sbdf
from hypervisor.iommu.context import IommuContext
from hypervisor.p2m import RAM_RO
from hypervisor.pagetable.radix import Changes
from testbed.build import COPIER
from testbed.defects.stage import Stage, _replace

ROOT_PORT = make_sbdf(0, 0, 0x1C, 0)
MMIO_FRAME = 0xE0000


def t1(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.map(context, 512, 0x200, 256)
    stage.map(context, 768, 0x300, 256)
    result, _ = stage.call("free_context", ctx_no=context)
    return result == 0 and stage.references(512) == 1


def _fill(stage: Stage) -> int:
    """A context that takes all of an arena of 4 pages, or of one more for a wider root."""
    stage.set_up(order=2)
    context = stage.alloc()
    stage.map(context, 1, 0x10)
    for step in range(1, 4):
        stage.map(context, 2, 0x200 * step)
    stage.arena()
    return context


def t3(stage: Stage) -> bool:
    _fill(stage)
    result, fields = stage.call("alloc_context")
    if result == 0:
        stage.map(fields["ctx_no"], 3, 0x10)
        stage.reattach(COPIER, fields["ctx_no"])
        stage.call("free_context", ctx_no=fields["ctx_no"])
    return result == -ENOMEM


def t4(stage: Stage) -> bool:
    stage.call("init", max_ctx_no=4, arena_order=0)
    return stage.call("alloc_context")[0] is not None


def t5(stage: Stage) -> bool:
    stage.set_up()
    before = stage.arena()
    for _ in range(3):
        stage.call("free_context", ctx_no=stage.alloc())
    return stage.arena() == before


def f1(stage: Stage) -> bool:
    context = _fill(stage)
    before = stage.references(9)
    result, _ = stage.map(context, 9, 0x40000)
    return result == -ENOMEM and stage.references(9) == before


def f6(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.map(context, 9, 0x10)
    stage.unmap(context, 0x10)
    order = ["flush" if event.startswith("flush") else "put" for event in stage.flushed]
    return order == ["flush", "put"]


def f7(stage: Stage) -> bool:
    stage.set_up()
    stage.dom0.p2m.set(9, stage.bed.mfns[9], 1, RAM_RO)
    return stage.map(stage.alloc(), 9, 0x10)[0] == -EPERM


def g5(stage: Stage) -> bool:
    return stage.call("query_capabilities")[1]["max_iova_addr"] == stage.xen.backend.max_iova


def h1(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    result, _ = stage.map(context, 9, 0x10, flags=0)
    stage.references(9)
    stage.unmap(context, 0x10)
    return result == -EINVAL


def h2(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.map(context, 1, 0)
    return stage.map(context, 2, stage.xen.max_dfn + 1)[0] == -EINVAL


def h7(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.map(context, 9, 0x10)

    def refused(context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        return -EIO

    _replace(stage.xen.backend, "flush", refused)
    stage.note("from here on the unit refuses invalidations")
    return stage.unmap(context, 0x10)[0] == -EIO


def r1(stage: Stage) -> bool:
    stage.xen.map_default(stage.dom0, MMIO_FRAME, MMIO_FRAME, 1)
    return stage.unmap(0, MMIO_FRAME)[0] == -EINVAL


def r3(stage: Stage) -> bool:
    context = stage.alloc()
    result, _ = stage.map(context, 1, U64_MAX)
    stage.unmap(context, U64_MAX)
    stage.arena()
    return result == -EINVAL


def r4(stage: Stage) -> bool:
    result, _ = stage.map(0, 9, 0x70000)
    stage.references(9)
    stage.call("lookup_page", ctx_no=0, dfn=0x70000)
    return result == -EINVAL


def r5(stage: Stage) -> bool:
    context = stage.alloc()
    stage.xen.frames.pagetable[stage.bed.mfns[9]] = 1
    return stage.map(context, 9, 0x10)[0] == -EPERM


def r6(stage: Stage) -> bool:
    context = stage.alloc()
    stage.reattach(ROOT_PORT, context)
    return stage.call("free_context", ctx_no=context)[0] == -EBUSY


def r7(stage: Stage) -> bool:
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.map(context, 9, 0x301, 2)
    return not stage.flushed
